"""This package is SageMaker's local mode: sessions that need no account, on Docker or plain processes.

from local_mode import image_uri, open_session

session = open_session(embedded=True)  # an S3 of its own
Chainer(..., instance_type='local', image_uri=image_uri('local'), sagemaker_session=session).fit()
"""

import logging
import os
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING, Any

from local_mode.errors import EndpointError, EngineError, JobError, LocalModeError
from local_mode.names import image_uri

if TYPE_CHECKING:
    from local_mode.engines.choose import gpu_available
    from local_mode.session import Session, open_session

__all__ = ['EndpointError', 'EngineError', 'JobError', 'LocalModeError']
__all__ += ['Session', 'gpu_available', 'image_uri', 'open_session']
LATER = {'gpu_available': 'engines.choose', 'Session': 'session', 'open_session': 'session'}

# Before anything imports the SDK, which prints these otherwise.
os.environ.setdefault('SAGEMAKER_SUPPRESS_V2_WARNING', '1')  # v3 has no Chainer estimator
logging.getLogger('sagemaker.config').setLevel(logging.WARNING)


def __getattr__(name: str) -> Any:
    """Import a name of LATER when it is first used: the SDK's import takes seconds."""
    if name not in LATER:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{LATER[name]}'), name)


def put_off(name: str, function: str) -> None:
    """Put off a module's import until it is used, also where others import this function of it by name."""

    def get(attribute: str) -> Any:
        if attribute.startswith('__'):  # somebody looks through all modules
            raise AttributeError(attribute)
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(import_module(name), attribute)

    if name not in sys.modules and (spec := find_spec(name)):
        sys.modules[name] = stand_in = module_from_spec(spec)
        vars(stand_in).update({'__getattr__': get, function: lambda *args: get(function)(*args)})


put_off('rfc3987_syntax', 'is_valid_syntax')  # its import takes a second; the SDK's jsonschema imports it
