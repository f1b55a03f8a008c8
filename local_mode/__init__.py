"""This package is SageMaker's local mode: sessions that need no account, on Docker or plain processes.

from local_mode import image_uri, open_session

session = open_session(embedded=True)  # an S3 of its own
Chainer(..., instance_type='local', image_uri=image_uri('local'), sagemaker_session=session).fit()
"""

import logging
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from local_mode.engines.choose import gpu_available
    from local_mode.errors import EndpointError, EngineError, JobError, LocalModeError
    from local_mode.names import image_uri
    from local_mode.session import Session, open_session

__all__ = ['EndpointError', 'EngineError', 'JobError', 'LocalModeError']
__all__ += ['Session', 'gpu_available', 'image_uri', 'open_session']

# Before anything imports the SDK, which prints these otherwise.
os.environ.setdefault('SAGEMAKER_SUPPRESS_V2_WARNING', '1')  # v3 has no Chainer estimator
logging.getLogger('sagemaker.config').setLevel(logging.WARNING)


class Later(ModuleType):
    """Stands for rfc3987_syntax until it is used: its import takes a second, and the SDK's jsonschema imports it."""

    def is_valid_syntax(self, *args: str) -> bool:
        return self.__getattr__('is_valid_syntax')(*args)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):  # somebody looks through all modules
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


if 'rfc3987_syntax' not in sys.modules and (spec := find_spec('rfc3987_syntax')):
    sys.modules['rfc3987_syntax'] = later = Later('rfc3987_syntax')
    later.__spec__, later.__file__, later.__path__ = spec, spec.origin, spec.submodule_search_locations or []

HOMES = {'gpu_available': 'engines.choose', 'image_uri': 'names', 'Session': 'session', 'open_session': 'session'}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the SDK's import takes seconds."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{HOMES.get(name, "errors")}'), name)
