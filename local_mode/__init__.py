"""What the notebook needs on this machine: where AWS is, SageMaker's local mode, MNIST."""

import logging
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONTAINER = ROOT / 'local_mode' / 'container'  # the image's sources, where a wheel has them
if not CONTAINER.exists():
    CONTAINER = ROOT / 'container'

# Before anything imports the SDK, which prints otherwise.
os.environ.setdefault('SAGEMAKER_SUPPRESS_V2_WARNING', '1')  # v3 has no Chainer estimator
logging.getLogger('sagemaker.config').setLevel(logging.WARNING)
