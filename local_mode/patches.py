"""This module replaces names of the SDK, from the first session of ours on; for other sessions all stays as it was.

It replaces only what no subclass can reach (see docs/patches.md).
"""

import functools
import logging
import sys
from importlib import import_module
from typing import Any

from local_mode.cells import get_shell
from local_mode.errors import JobError, LocalModeError
from local_mode.versions import PACKAGE


def is_ours(session: Any) -> bool:
    """Return whether a session is one of local_mode's, and not the SDK's own."""
    return hasattr(type(session), 'in_own_directory')  # a mock has every attribute


@functools.cache
def apply() -> None:
    """Replace the SDK's names, once a process; and let notebooks show errors of ours as a paragraph."""
    logging.getLogger('sagemaker').addFilter(lambda _: not isinstance(sys.exc_info()[1], LocalModeError))
    if shell := get_shell():
        show_reasons(shell)
    if PACKAGE == 'sagemaker':
        replace_for_estimators()
    else:
        replace_for_trainers()


def show_reasons(shell: Any) -> None:
    """Show errors of ours, and of a stopped job, as one paragraph: rich would draw 130 lines of traceback around it."""
    others = shell._showtraceback

    def show(kind: type, error: BaseException, lines: Any) -> None:
        if issubclass(kind, LocalModeError) or kind is KeyboardInterrupt and error.args:
            return type(shell)._showtraceback(shell, kind, error, [f'{kind.__name__}: {error}'])
        others(kind, error, lines)

    shell._showtraceback = show


def quiet(embedded: bool) -> None:
    """Keep from the terminal the log lines in which the SDK repeats what the output shows.

    fit() of version 2 would give the root logger a handler and the level INFO; this undoes it.
    embedded: version 3 shows no warnings of credentials and telemetry, which the stand-in lacks.
    """
    if PACKAGE == 'sagemaker':
        before, level = [*logging.root.handlers], logging.root.level
        import_module('sagemaker.experiments._metrics')  # which does so
        logging.root.handlers[:] = before
        logging.root.setLevel(level)
    else:
        logging.getLogger('sagemaker').setLevel(logging.WARNING)
        for name in ('telemetry', 'local') if embedded else ():
            logging.getLogger(f'{PACKAGE}.{name}').setLevel(logging.ERROR)


def without_telemetry(owner: Any, name: str) -> None:
    """For sessions of ours, call a method without the SDK's telemetry, which swallows KeyboardInterrupt."""
    theirs = getattr(owner, name)

    @functools.wraps(theirs)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (theirs.__wrapped__ if is_ours(self.sagemaker_session) else theirs)(self, *args, **kwargs)

    setattr(owner, name, method)


def validate_once(owner: Any, name: str) -> None:
    """Validate a configuration once: the SDK does so for each of a job's 18 settings, in 0.1 s each."""
    theirs, valid = getattr(owner, name), set()

    @functools.wraps(theirs)
    def validate(config: Any = None) -> None:
        if repr(config) not in valid:
            theirs(config)
            valid.add(repr(config))

    setattr(owner, name, staticmethod(validate))


def replace_for_estimators() -> None:
    """Let estimators of version 2 treat checkpoints, use_mpi=False, metrics, failures and Ctrl-C as SageMaker does."""
    from sagemaker import estimator as estimators
    from sagemaker.analytics import TrainingJobAnalytics
    from sagemaker.chainer import estimator as chainer

    Chainer: Any = chainer.Chainer
    _TrainingJob: Any = estimators._TrainingJob
    add, given, start = _TrainingJob._add_spot_checkpoint_args, Chainer.hyperparameters, _TrainingJob.start_new
    analytics: Any = TrainingJobAnalytics
    fetch = analytics._fetch_metric
    without_telemetry(estimators.EstimatorBase, 'fit')
    validate_once(import_module('sagemaker.utils'), 'validate_sagemaker_config')

    def add_checkpoint_args(local_mode: bool, estimator: Any, train_args: Any) -> None:
        """Pass on checkpoint_s3_uri, which the SDK refuses in local mode; our sessions know it."""
        ours = is_ours(estimator.sagemaker_session)
        add(local_mode and (estimator.use_spot_instances or not ours), estimator, train_args)

    def start_new(estimator: Any, *args: Any) -> Any:
        """Let an estimator know its running or failed job, and not the job before, which has another model."""
        if not is_ours(estimator.sagemaker_session):
            return start(estimator, *args)
        estimator.latest_training_job = _TrainingJob(estimator.sagemaker_session, estimator._current_job_name)
        try:
            return start(estimator, *args)
        except BaseException as e:
            if not isinstance(e, JobError):  # it was refused, or stopped by Ctrl-C
                estimator.latest_training_job = None
            raise

    def fetch_metric(self: Any, metric_name: str) -> None:
        """Take a metric of a job of ours from its log, not from CloudWatch."""
        if not hasattr(type(self._sage_client), 'metrics'):
            return fetch(self, metric_name)
        found = self._sage_client.metrics(self.name, metric_name)
        for metric in found:
            seconds = (metric['Timestamp'] - found[0]['Timestamp']).total_seconds()
            self._add_single_metric(seconds, metric_name, metric['Value'])

    @functools.wraps(given)
    def hyperparameters(self: Any) -> dict[str, Any]:
        """Pass on use_mpi=False, which the SDK drops; several hosts then each run the script alone."""
        alone = self.use_mpi is False and is_ours(self.sagemaker_session)
        return {**given(self), 'sagemaker_use_mpi': 'false'} if alone else given(self)

    _TrainingJob._add_spot_checkpoint_args = staticmethod(add_checkpoint_args)
    _TrainingJob.start_new = staticmethod(start_new)
    analytics._fetch_metric = fetch_metric
    Chainer.hyperparameters = hyperparameters


def replace_for_trainers() -> None:
    """Let version 3's ModelTrainer run containers of our sessions on their engine, and stop at Ctrl-C."""
    import sagemaker.train.model_trainer as module
    from local_mode.trainer import LocalContainer

    theirs = module._LocalContainer
    without_telemetry(module.ModelTrainer, 'train')
    validate_once(import_module('sagemaker.core.config.config_manager').SageMakerConfig, 'validate_sagemaker_config')

    def make(**fields: Any) -> Any:
        return (LocalContainer if is_ours(fields.get('sagemaker_session')) else theirs)(**fields)

    module._LocalContainer = make
