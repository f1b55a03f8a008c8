"""Estimators of the SDK's version 2: what they may be asked for in local mode besides."""

from local_mode.sdk import is_ours
from sagemaker.chainer.estimator import Chainer
from sagemaker.estimator import _TrainingJob


def add_checkpoint_args(local_mode, estimator, train_args, _add=_TrainingJob._add_spot_checkpoint_args):
    """Pass on checkpoint_s3_uri, which the SDK refuses in local mode; our sessions know it."""
    refused = estimator.use_spot_instances or not is_ours(estimator.sagemaker_session)
    _add(local_mode and refused, estimator, train_args)


def hyperparameters(self, _hyperparameters=Chainer.hyperparameters):
    """Pass on use_mpi=False, which the SDK drops; several hosts then each run the script alone."""
    given = _hyperparameters(self)
    return given if self.use_mpi is not False else {**given, 'sagemaker_use_mpi': 'false'}


_TrainingJob._add_spot_checkpoint_args = staticmethod(add_checkpoint_args)
Chainer.hyperparameters = hyperparameters
