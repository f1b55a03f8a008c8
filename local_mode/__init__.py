"""What the notebook needs on this machine: where AWS is, SageMaker's local mode, MNIST."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
