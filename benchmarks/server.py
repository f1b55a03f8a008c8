"""This module imports the parts of the image's own code that the benchmarks use."""

import pathlib
import sys

SERVER = pathlib.Path(__file__).resolve().parent.parent / 'container' / 'sagemaker-chainer'
sys.path.insert(0, str(SERVER))

from sagemaker_chainer_container.cpus import blas_settings, cpus  # noqa: E402

__all__ = ['SERVER', 'blas_settings', 'cpus']
