"""Our package beside the SDK's own sessions: importing it changes nothing, opening a session six names."""

import contextlib
import logging
import re
import types
import unittest.mock

import pytest
from local_mode import open_session, patches
from local_mode.session import Session
from sagemaker.chainer.estimator import Chainer
from sagemaker.estimator import _TrainingJob
from sagemaker.local import LocalSession
from sagemaker.workflow.pipeline_context import LocalPipelineSession
from support import ROLE, python

REPLACED = {'_add_spot_checkpoint_args', '_fetch_metric', 'fit', 'hyperparameters', 'start_new'}
REPLACED |= {'validate_sagemaker_config'}
# What the SDK's modules hold: functions and classes, and those of classes, by identity and by code.
SNAPSHOT = """
import json, logging, sys
import sagemaker, sagemaker.chainer.estimator, sagemaker.workflow.pipeline_context

def names():
    found = {}
    for module in [m for name, m in sys.modules.items() if name.startswith('sagemaker.')]:
        for name, value in vars(module).items():
            found[module.__name__, name] = id(value)
            if isinstance(value, type) and value.__module__.startswith('sagemaker.'):
                found.update({(module.__name__, name, n): id(v) for n, v in vars(value).items()})
    loggers = {n: logging.getLogger(n).level for n in ('sagemaker', 'sagemaker.local', 'sagemaker.telemetry')}
    return found | loggers | {'root': logging.root.level, 'handlers': len(logging.root.handlers)}

before = names()
# CHANGE
after = names()
print('CHANGED', [name for name in before if before[name] != after[name]])
"""
IMPORTS = """
import local_mode.clients, local_mode.docker, local_mode.pytest_plugin, local_mode.session
from local_mode import open_session, Session, gpu_available, image_uri
"""


@pytest.mark.slow
def test_an_import_leaves_the_sdk_as_it_was():
    done = python('-c', SNAPSHOT.replace('# CHANGE', IMPORTS))
    assert done.stdout.splitlines()[-1:] == ['CHANGED []'], done.stdout + done.stderr


LATER = """
import jsonschema, sys
def check(text):
    try:
        jsonschema.FormatChecker().check(text, 'iri')
        return True
    except jsonschema.FormatError:
        return False
print([check(text) for text in ('http://a/b', 'no address')], 'lark' in sys.modules)
"""


@pytest.mark.slow
def test_what_takes_a_second_to_import_is_imported_when_it_is_needed():
    """jsonschema's check of addresses, which Jupyter installs."""
    assert python('-c', IMPORTS + LATER).stdout == '[True, False] True\n'
    imported = python('-c', IMPORTS + 'import sys\nprint("lark" in sys.modules)')
    assert imported.stdout == 'False\n', imported.stderr


def test_a_configuration_is_validated_once():
    """The SDK validates it for each setting of each job; one that is wrong is refused each time."""
    calls = []
    module = types.SimpleNamespace(validate=lambda config: calls.append(config) or 1 / config['SchemaVersion'])
    patches.validate_once(module, 'validate')
    for version in 1, 1, 2, 0, 0:
        with contextlib.suppress(ZeroDivisionError):
            module.validate({'SchemaVersion': version})
    assert [config['SchemaVersion'] for config in calls] == [1, 2, 0, 0]


@pytest.mark.slow
def test_a_session_replaces_what_the_page_of_patches_names_and_no_more():
    opened = IMPORTS + 'open_session(embedded=True, serving_port=1).close()'
    done = python('-c', SNAPSHOT.replace('# CHANGE', opened))
    changed = re.findall(r"\('sagemaker[\w.]*', '(\w+)'(?:, '(\w+)')?\)", done.stdout.splitlines()[-1])
    assert {attribute or name for name, attribute in changed} == REPLACED, changed


USERS = """
logging.basicConfig(level=logging.INFO)
logging.root.handlers[0].addFilter(lambda record: 'hidden' not in record.getMessage())
"""
OPENS = """
from local_mode import open_session
open_session(embedded=True).close()
"""
LOGS = """
logging.getLogger('mine').info('shown')
logging.getLogger('mine').info('hidden')
"""


@pytest.mark.slow
@pytest.mark.parametrize('code', [USERS + OPENS + LOGS, OPENS + OPENS + USERS + LOGS])
def test_the_users_logging_stays_as_it_was(code):
    """It may be set up before the session or after it."""
    done = python('-c', 'import logging\n' + code)
    assert 'INFO:mine:shown' in done.stderr and 'hidden' not in done.stderr and done.returncode == 0, done.stderr


@pytest.fixture
def ours():
    with contextlib.closing(open_session(embedded=True)) as session:
        yield session


def test_a_plain_session_beside_ours_works_as_it_did(ours):
    """Also with our S3: the SDK still refuses checkpoint_s3_uri in local mode, and drops use_mpi=False."""
    options = dict(role=ROLE, image_uri='any', instance_count=1, instance_type='local', use_mpi=False)
    for session, refused in (LocalSession(ours.boto_session), True), (ours, False):
        estimator = Chainer(__file__, sagemaker_session=session, checkpoint_s3_uri='s3://any/where', **options)
        arguments = {}
        with pytest.raises(ValueError) if refused else contextlib.nullcontext():
            _TrainingJob._add_spot_checkpoint_args(True, estimator, arguments)
        assert ('checkpoint_s3_uri' in arguments) != refused
        assert ('sagemaker_use_mpi' in estimator.hyperparameters()) != refused
    assert patches.is_ours(ours) and not patches.is_ours(LocalSession(ours.boto_session))
    assert not patches.is_ours(unittest.mock.Mock())


def test_a_session_of_ours_can_be_one_of_pipelines_too(ours):
    class PipelineSession(Session, LocalPipelineSession):
        pass

    with contextlib.closing(PipelineSession(ours.boto_session, default_bucket='mine')) as session:
        assert session.default_bucket() == 'mine' and session.context is None
        assert session.sagemaker_client.sagemaker_session is session


def test_the_sdks_lines_reach_other_handlers(ours, caplog, capfd):
    """Whoever logs what the SDK does gets every line; the terminal does not."""
    with caplog.at_level(logging.INFO):
        logging.getLogger('sagemaker.local.image').info('a line')
    assert 'a line' in caplog.text and 'a line' not in capfd.readouterr().err


def test_exceptions_are_runtime_errors_with_names():
    import local_mode

    for name in 'LocalModeError', 'EngineError', 'JobError', 'EndpointError':
        assert issubclass(getattr(local_mode, name), RuntimeError) and name in local_mode.__all__
        assert issubclass(getattr(local_mode, name), local_mode.LocalModeError)
    with pytest.raises(AttributeError, match='no_such_name'):
        local_mode.no_such_name  # noqa: B018
