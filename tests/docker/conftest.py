"""These fixtures train a job, and give a second endpoint of the same session another port."""

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
