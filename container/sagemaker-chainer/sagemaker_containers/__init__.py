"""This module keeps a name that scripts for AWS's image of 2018 import; it is in sagemaker-training now."""

from sagemaker_training.environment import Environment as training_env

__all__ = ['training_env']
