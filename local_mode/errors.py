"""This module has the exceptions of local mode. All are RuntimeErrors, which the SDK's local mode raises."""

import shlex
import sys

__all__ = ['EndpointError', 'EngineError', 'JobError', 'LocalModeError']


def paste(command: str) -> str:
    """Return a command as a part of a message: on a line of its own, so that it can be copied whole."""
    return f':\n\n{command}\n'


def paste_ours(arguments: str, environment: str = '') -> str:
    """Return a command of local_mode's as paste() does, for this Python, whose path may have spaces."""
    return paste(f'{environment}{shlex.quote(sys.executable)} -m local_mode {arguments}')


def stopped(what: str) -> str:
    """Return what a person reads who has stopped this with Ctrl-C or a notebook's Stop."""
    return f'{what} was stopped: run this cell again.'


class LocalModeError(RuntimeError):
    """Local mode could not do what it was asked for; the message says why and, where known, the remedy."""


class EngineError(LocalModeError):
    """The engine does not answer, lacks an image, or refused a command."""


class PortTaken(EngineError):
    """Something else has the port that a container was to have."""


class JobError(LocalModeError):
    """A training, processing or transform job failed."""


class EndpointError(LocalModeError):
    """An endpoint could not be started."""
