"""These fixtures train a job, give a second endpoint another port, and make Docker misbehave."""

import os
import shutil

import pytest
from support import free_port, make_estimator


@pytest.fixture(scope='module')
def estimator(session, inputs):
    estimator = make_estimator(session, epochs=2, batch_size=100)
    estimator.fit(inputs)
    return estimator


@pytest.fixture
def other_port(session):
    before = session.serving_port
    session.set_serving_port(free_port())
    yield session.serving_port
    session.set_serving_port(before)


@pytest.fixture
def wrapped_docker(tmp_path, monkeypatch):
    """Puts a `docker` on the PATH that runs these lines of shell first; $here is the test's directory."""

    def wrap(lines):
        wrapper, docker = tmp_path / 'wrapped' / 'docker', shutil.which('docker')
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nhere={tmp_path}\n{lines}\nexec {docker} "$@"\n')
        wrapper.chmod(0o755)
        monkeypatch.setenv('PATH', f'{wrapper.parent}:{os.environ["PATH"]}')

    return wrap
