"""The real container hosts a trained model through the SDK."""

import contextlib
import socket
import time

import boto3
import botocore.exceptions
import numpy as np
import pytest
from local_mode import endpoints
from local_mode.session import open_session
from support import LABEL, answers, containers, docker, load, make_model, pack, python, wait_for

OTHER = """
def model_fn(model_dir): pass
def predict_fn(data, model): return 'the other'
"""
ELSEWHERE = """
import sys
from local_mode.session import open_session
from sagemaker.chainer.model import ChainerPredictor
from sagemaker.deserializers import JSONDeserializer

predictor = ChainerPredictor(sys.argv[1], open_session(embedded=True), deserializer=JSONDeserializer())
print(predictor.predict([1]))
predictor.delete_endpoint()
"""
KEYS = dict(aws_access_key_id='a', aws_secret_access_key='b', region_name='us-east-1')
BLACK = np.zeros((1, 784), np.float32)


@pytest.fixture(scope='module')
def predictor(session, estimator):
    predictor = estimator.deploy(1, 'local')
    yield predictor
    predictor.delete_model()
    predictor.delete_endpoint()
    assert containers(session) == [] and not answers(session.serving_port)


def test_the_endpoint_reads_digits(predictor, small_mnist):
    test = load(small_mnist / 'test' / 'test.npz')
    prediction = predictor.predict(test['images'])
    assert prediction.shape == (1000, 10) and prediction.dtype == np.float32
    assert (prediction.argmax(axis=1) == test['labels']).mean() > 0.8
    nested = predictor.predict(test['images'][:1].tolist())  # as the pad's data: float64 to the SDK
    np.testing.assert_allclose(nested, prediction[:1], atol=1e-4)


def test_the_user_sees_the_servers_sentence(predictor):
    with pytest.raises(botocore.exceptions.ClientError, match=r'ModelError.*400.*shape \(5, 7\)'):
        predictor.predict(np.zeros((5, 7), np.float32))


def test_the_endpoint_answers_on_this_machine_only(session, predictor):
    binding = docker(f'ps --filter label={LABEL}={session.name} --format {{{{.Ports}}}}')
    assert f'127.0.0.1:{session.serving_port}->8080' in binding and '0.0.0.0' not in binding


def test_the_endpoint_has_few_privileges(session, predictor):
    """Workers do not run as root, gain no privileges, and can write only to /tmp."""
    (name,) = containers(session)
    processes = docker(f'top {name} -eo pid,uid,cmd').splitlines()[2:]
    workers = [line.split()[1] for line in processes if 'gunicorn' in line][1:]
    assert workers and '0' not in workers
    assert docker(f'inspect --format {{{{.HostConfig.ReadonlyRootfs}}}} {name}').strip() == 'true'
    status = docker(f'exec {name} sh -c', 'cat /proc/[0-9]*/status')
    assert 'NoNewPrivs:\t1' in status.split('Name:\tgunicorn')[1]


def test_each_endpoint_answers_for_itself(session, predictor, other_port, tmp_path):
    """As on AWS an endpoint answers to its own name only; another process can ask and delete it."""
    (tmp_path / 'other.py').write_text(OTHER)
    (tmp_path / 'empty').mkdir()
    other = make_model(session, pack(tmp_path / 'model.tar.gz', tmp_path / 'empty'), tmp_path / 'other.py').deploy(
        1, 'local'
    )
    invoke = session.sagemaker_runtime_client.invoke_endpoint
    try:
        assert predictor.predict(BLACK).shape == (1, 10)
        assert invoke(b'[1]', other.endpoint_name)['Body'].read() == b'"the other"'
        with pytest.raises(botocore.exceptions.ClientError, match='ValidationError.*Endpoint nope of account'):
            invoke(b'[1]', 'nope')
        with pytest.raises(botocore.exceptions.ClientError, match='already existing'):
            session.sagemaker_client.create_endpoint(other.endpoint_name, other.endpoint_name)
        own = boto3.client('sagemaker-runtime', endpoint_url=f'http://127.0.0.1:{other_port}', **KEYS)
        assert own.invoke_endpoint(EndpointName=other.endpoint_name, Body=b'[1]')['Body'].read() == b'"the other"'
        done = python('-c', ELSEWHERE, other.endpoint_name)
        assert done.stdout.split('\n')[-2] == 'the other', done.stderr
        wait_for(lambda: not answers(other_port))
        with socket.socket() as stranger:  # whoever answers there now is not asked
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stranger.bind(('127.0.0.1', other_port))
            stranger.listen()
            with pytest.raises(ConnectionError, match=f'Nothing answers on port {other_port}'):
                invoke(b'[1]', other.endpoint_name)
    finally:
        other.delete_endpoint()
    assert predictor.predict(BLACK).shape == (1, 10)


def test_deploy_to_the_first_prediction_takes_seconds(estimator, other_port):
    start = time.monotonic()
    predictor = estimator.deploy(1, 'local')
    try:
        predictor.predict(BLACK)
        assert time.monotonic() - start < 20  # 30 s and more with the SDK's own waiting
    finally:
        predictor.delete_endpoint()


def test_a_model_that_does_not_load_is_reported_in_seconds(session, estimator, tmp_path, other_port):
    (tmp_path / 'broken.py').write_text('def model_fn(model_dir): raise OSError("weights are gone")')
    model = make_model(session, estimator.model_data, tmp_path / 'broken.py')
    start = time.monotonic()
    with pytest.raises(RuntimeError, match='(?s)The endpoint stopped.*weights are gone'):
        model.deploy(1, 'local')
    assert time.monotonic() - start < 30  # the SDK pings a dead container for 115 s
    assert not answers(other_port)


def test_a_taken_port_is_found_before_deploying(estimator, other_port):
    with socket.socket() as stranger:
        stranger.bind(('127.0.0.1', other_port))
        stranger.listen()
        with pytest.raises(RuntimeError, match=r'is taken by another program(.|\n)*next free port'):
            estimator.deploy(1, 'local')


def test_a_port_that_is_taken_meanwhile_leads_to_the_next(session, estimator, other_port, monkeypatch):
    with socket.socket() as stranger:

        def late(*_):  # between the choice of a port and the start
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier endpoint's connections linger
            stranger.bind(('127.0.0.1', session.serving_port))
            stranger.listen()

        monkeypatch.setattr(session.engine, 'fetch', late)
        session.set_serving_port(None)
        predictor = estimator.deploy(1, 'local')
        try:
            assert predictor.predict(BLACK).shape == (1, 10)
            found = endpoints.find(session.engine, predictor.endpoint_name)
            assert int(found[endpoints.PORT]) > stranger.getsockname()[1]
        finally:
            predictor.delete_endpoint()


def test_deploying_again_asks_to_delete_the_earlier_endpoint(predictor, estimator):
    with pytest.raises(RuntimeError, match=r'earlier endpoint of this notebook.*\n\n\w+.delete_endpoint\(\)\n'):
        estimator.deploy(1, 'local')


def test_a_port_taken_by_another_notebook_is_named(session, predictor):
    with contextlib.closing(open_session(embedded=True, serving_port=session.serving_port)) as other:
        with pytest.raises(RuntimeError, match=r'another notebook.*\n\ndocker rm -f \S+\n'):
            endpoints.check_serving_port(other)
    assert answers(session.serving_port)  # closing one session does not touch another's endpoint
