"""What the benchmarks take from the image's own code, which is not installed here."""

import pathlib
import sys

SERVER = pathlib.Path(__file__).resolve().parent.parent / 'container' / 'sagemaker-chainer'
sys.path.insert(0, str(SERVER))

from sagemaker_chainer_container.cpus import blas_settings, cpus  # noqa: E402

__all__ = ['SERVER', 'blas_settings', 'cpus']
