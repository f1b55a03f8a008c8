"""What scripts for AWS's image of 2018 ask for a job's settings; sagemaker-training has them now."""

from sagemaker_training.environment import Environment as training_env

__all__ = ['training_env']
