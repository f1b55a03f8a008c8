"""This module has fixtures for tests of any image's scripts; pytest finds them if this package is installed."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope='session')
def local_sagemaker() -> Iterator[Any]:
    """A Session with its own stand-in for AWS, for all tests; after the last of them all that it started is removed."""
    from local_mode.session import open_session  # imports the SDK, which takes seconds

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: pytest.exit('SIGTERM', 143))  # with the clean-up, as CI cancels a job
    with contextlib.closing(open_session(embedded=True)) as session:
        yield session


@pytest.fixture
def local_endpoint(local_sagemaker: Any) -> Iterator[Callable[..., Any]]:
    """A function that deploys an estimator or a model in a container and returns its predictor.

    Its arguments are those of deploy(), by default one local instance. Each endpoint has a port of its own.
    All are deleted when the test ends.
    """
    client = local_sagemaker.sagemaker_client
    with contextlib.ExitStack() as stack:

        def deploy(model: Any, initial_instance_count: int = 1, instance_type: str = 'local', **kwargs: Any) -> Any:
            before = set(client._endpoints)
            predictor = model.deploy(initial_instance_count, instance_type, **kwargs)
            for name in set(client._endpoints) - before:
                stack.callback(client.delete_endpoint, name)
            return predictor

        yield deploy
