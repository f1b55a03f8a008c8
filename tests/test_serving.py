"""The server of container/ with real requests, without Docker: contract, formats, bad input."""

import concurrent.futures
import contextlib
import io
import json
import os
import pathlib
import pickle
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time

import chainer
import numpy as np
import pytest
import urllib3
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import chainer_mnist_single_machine as script

ROOT = pathlib.Path(script.__file__).parent
NPY, JSON, CSV = 'application/x-npy', 'application/json', 'text/csv'
http = urllib3.PoolManager(retries=False, timeout=30)


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start(code, program, model_dir, workers=1, **env):
    """Start `serve` as the container's entry point does, on loopback; return (process, URL)."""
    port = free_port()
    env = {
        **os.environ,
        'SAGEMAKER_SUBMIT_DIRECTORY': str(code),
        'SAGEMAKER_PROGRAM': program,
        'SM_MODEL_DIR': str(model_dir),
        'SAGEMAKER_MODEL_SERVER_WORKERS': str(workers),
        'PYTHONPATH': str(ROOT / 'container'),
        **env,
    }
    process = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'gunicorn',
            '-c',
            str(ROOT / 'container' / 'gunicorn.conf.py'),
            '--bind',
            f'127.0.0.1:{port}',
        ],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return process, f'http://127.0.0.1:{port}'


@contextlib.contextmanager
def serving(*args, **kwargs):
    """A server that answers /ping."""
    process, url = start(*args, **kwargs)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if http.request('GET', url + '/ping').status == 200:
                    break
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield url
    finally:
        http.clear()
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture(scope='module')
def code(tmp_path_factory):
    """The script alone, as it comes from S3: next to it here lies a requirements.txt of ours."""
    directory = tmp_path_factory.mktemp('code')
    shutil.copy(script.__file__, directory)
    return directory


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp('model')
    model = chainer.links.Classifier(script.MLP(1000, 10))
    chainer.serializers.save_npz(directory / 'model.npz', model)
    return directory


@pytest.fixture(scope='module')
def url(code, model):
    with serving(code, 'chainer_mnist_single_machine.py', model) as url:
        yield url


@pytest.fixture(scope='module')
def images():
    return np.random.RandomState(0).rand(3, 784).astype(np.float32)


@pytest.fixture(scope='module')
def scores(model, images):
    return script.model_fn(str(model))(images).array


def npy(array, **kwargs):
    stream = io.BytesIO()
    np.save(stream, array, **kwargs)
    return stream.getvalue()


def csv(array):
    return '\n'.join(','.join(map(str, row)) for row in array).encode()


def post(url, body, content_type=NPY, accept=NPY):
    headers = {k: v for k, v in (('Content-Type', content_type), ('Accept', accept)) if v}
    return http.request('POST', url + '/invocations', body=body, headers=headers)


DECODE = {
    NPY: lambda body: np.load(io.BytesIO(body), allow_pickle=False),
    JSON: lambda body: np.array(json.loads(body)),
    CSV: lambda body: np.loadtxt(io.BytesIO(body), delimiter=',', ndmin=2),
}


@pytest.mark.parametrize('accept', DECODE)
@pytest.mark.parametrize('content_type', DECODE)
def test_every_format_in_and_out(url, images, scores, content_type, accept):
    body = {NPY: npy(images), JSON: json.dumps(images.tolist()).encode(), CSV: csv(images)}
    response = post(url, body[content_type], content_type, accept)
    assert response.status == 200 and response.headers['Content-Type'].startswith(accept)
    np.testing.assert_allclose(DECODE[accept](response.data), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('shape', [(784,), (1, 784), (3, 784), (3, 28, 28), (3, 1, 28, 28), (0, 784)])
@pytest.mark.parametrize('dtype', ['<f4', '>f4', '<f8', '<f2'])
def test_every_shape_and_floating_dtype(url, images, scores, shape, dtype):
    count = 1 if shape == (784,) else shape[0]
    array = images[:count].reshape(shape).astype(dtype)
    response = post(url, npy(array))
    assert response.status == 200, response.data
    np.testing.assert_allclose(DECODE[NPY](response.data), scores[:count], atol=1e-2)


def test_fortran_order_and_npy_version_2(url, images, scores):
    response = post(url, npy(np.asfortranarray(images)))
    np.testing.assert_allclose(DECODE[NPY](response.data), scores, atol=1e-4)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, images, version=(2, 0))
    np.testing.assert_allclose(DECODE[NPY](post(url, stream.getvalue()).data), scores, atol=1e-4)


@pytest.mark.parametrize(
    'accept, answered',
    [
        (None, JSON),
        ('*/*', JSON),
        ('text/*', CSV),
        ('application/x-npy, */*;q=0.1', NPY),
        ('image/png, text/csv;q=0.5', CSV),
    ],
)
def test_accept_is_negotiated(url, images, accept, answered):
    response = post(url, npy(images), accept=accept)
    assert response.status == 200 and response.headers['Content-Type'].startswith(answered)


def test_a_content_type_may_have_parameters_and_defaults_to_json(url, images):
    body = json.dumps(images.tolist()).encode()
    assert post(url, body, 'application/json; charset=utf-8').status == 200
    assert post(url, body, None).status == 200


def header(text, version=1):
    text = text.encode() + b'\n'
    return b'\x93NUMPY' + bytes([version, 0]) + len(text).to_bytes(2 * version, 'little') + text


ONE = np.zeros((1, 784), np.float32)
BAD = [
    (b'', NPY, 'not valid application/x-npy'),
    (b'abc', NPY, 'not valid application/x-npy'),
    (npy(ONE)[:-1], NPY, 'does not fill'),
    (npy(ONE) + b'x', NPY, 'does not fill'),
    (npy(ONE)[:40], NPY, 'not valid'),
    (header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 784)}"), NPY, 'does not fill'),
    (
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -784)}") + ONE.tobytes(),
        NPY,
        'does not fill',
    ),
    (header("{'descr': '<f4', 'fortran_order': False, 'shape': ("), NPY, 'not valid'),
    (header("{'descr': '<f4'}"), NPY, 'not valid'),
    (header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + b'\0' * 8, NPY, 'dtype'),
    (npy(np.array([object()]), allow_pickle=True), NPY, 'dtype'),
    (npy(np.array(['1'])), NPY, 'dtype'),
    (npy(ONE.astype(np.complex64)), NPY, 'dtype'),
    (npy(ONE.astype([('a', 'f4')])), NPY, 'dtype'),
    (npy(ONE.astype(np.uint8)), NPY, 'dtype uint8'),
    (npy(ONE[:, :10]), NPY, 'shape (1, 10)'),
    (npy(ONE.reshape(2, 392)), NPY, 'shape (2, 392)'),
    (npy(np.float32(1)), NPY, 'single number'),
    (npy(ONE + np.nan), NPY, 'NaN'),
    (npy(ONE.astype('f8') + 1e300), NPY, 'too large'),
    (b'\xff\xfe', JSON, 'not valid application/json'),
    (b'{"a": 1}', JSON, 'lists of numbers'),
    (b'null', JSON, ''),
    (b'3', JSON, 'single number'),
    (b'[[1, 2], [3]]', JSON, 'not valid'),
    (b'["a"]', JSON, 'not valid'),
    (b'[NaN]', JSON, 'NaN'),
    (b'[1e999]', JSON, 'too large'),
    (b'[' * 100000, JSON, 'nested too deeply'),
    (b'[1, 2', JSON, 'not valid'),
    (b'', CSV, 'no rows'),
    (b'a,b', CSV, 'not valid'),
    (b'1,2\n3', CSV, 'not valid'),
    (b'1,,2', CSV, 'not valid'),
    (b'\xff', CSV, 'not valid'),
    (b'1,"2', CSV, ''),
]


@pytest.mark.parametrize('body, content_type, sentence', BAD, ids=map(str, range(len(BAD))))
def test_bad_bodies_get_400_with_a_sentence(url, images, body, content_type, sentence):
    response = post(url, body, content_type)
    assert response.status == 400, response.data
    assert sentence in response.data.decode()
    assert response.headers['Content-Type'].startswith('text/plain')
    assert post(url, npy(images)).status == 200


def test_other_refusals(url, images):
    for response, status, sentence in (
        (post(url, npy(images), 'image/png'), 415, 'Content-Type must be one of'),
        (post(url, npy(images), accept='image/png'), 406, 'Accept must allow one of'),
        (http.request('GET', url + '/invocations'), 405, 'not allowed'),
        (http.request('GET', url + '/other'), 404, 'GET /ping and POST /invocations'),
    ):
        assert response.status == status and sentence in response.data.decode()


def test_too_large_a_body_gets_413(code, model):
    with serving(code, 'chainer_mnist_single_machine.py', model, SAGEMAKER_MAX_PAYLOAD_IN_MB='1') as url:
        body = npy(np.zeros((400, 784), np.float32))  # 1.2 MB
        for chunks in lambda: body, lambda: iter([body]), lambda: iter([body[:600000], body[600000:]]):
            for _ in range(5):
                response = post(url, chunks())
                assert response.status == 413 and 'larger than 1 MB' in response.data.decode()
                # and the connection stays good
                assert post(url, npy(np.zeros((300, 784), np.float32))).status == 200


def test_bodies_beyond_the_memory_get_503(code, model):
    """16 times the limit of one body is taken in; what needs no memory is answered, and later all is."""
    with serving(code, 'chainer_mnist_single_machine.py', model, SAGEMAKER_MAX_PAYLOAD_IN_MB='1') as url:
        host, port = urllib3.util.parse_url(url).host, urllib3.util.parse_url(url).port
        clients = [socket.create_connection((host, port), timeout=30) for _ in range(20)]
        for client in clients:
            client.sendall(
                b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n'
                b'Content-Length: 1000000\r\n\r\n' + b'1' * 999999
            )
        time.sleep(1)
        assert http.request('GET', url + '/ping').status == 200
        statuses = []
        for client in clients:
            client.sendall(b'1')
            statuses.append(int(client.recv(4096).split()[1]))
            client.close()
        assert set(statuses) == {400, 503} and 1 <= statuses.count(503) <= 5, statuses
        assert post(url, json.dumps([0.0] * 784), JSON).status == 200


def ask(url, sent, pieces=()):
    """Send bytes over a connection of their own, then pieces until the server closes; return all it says."""
    parsed = urllib3.util.parse_url(url)
    answer = b''
    with socket.create_connection((parsed.host, parsed.port), timeout=30) as client:
        with contextlib.suppress(ConnectionError):  # closed; what came before can still be read
            client.sendall(sent)
            for piece in pieces:
                client.sendall(piece)
        with contextlib.suppress(ConnectionError):
            while received := client.recv(65536):
                answer += received
    return answer


POST = b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n'


@pytest.mark.parametrize(
    'sent',
    [
        b'\0\xff\r\n\r\n',
        b'GET /ping HTTP/9.9\r\n\r\n',
        POST + b'no colon\r\n\r\n',
        POST + b'Content-Length: -5\r\n\r\n',
        POST + b'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n',
        POST + b'Transfer-Encoding: gzip\r\n\r\n',
        POST + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n',
    ],
)
def test_broken_http_gets_400_with_a_sentence(url, sent):
    head, _, sentence = ask(url, sent).partition(b'\r\n\r\n')
    assert head.startswith(b'HTTP/1.1 400 ') and sentence.startswith(b'Invalid HTTP request')


@pytest.mark.parametrize(
    'sent, piece, most',
    [
        (b'GET /ping HTTP/1.1\r\nX: ', b'x' * 65536, 100),
        (POST + b'Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n', b'X: x\r\n' * 10000, 100),
        (POST + b'Content-Length: 99999999999\r\n\r\n', b'1' * 65536, 1500),  # 98 MB
        (POST + b'Transfer-Encoding: chunked\r\n\r\n', b'10000\r\n' + b'1' * 65536 + b'\r\n', 1500),
    ],
    ids=['header', 'trailers', 'body', 'chunks'],
)
def test_what_does_not_end_is_cut_off(url, sent, piece, most):
    pieces = iter([piece] * 6000)
    answer = ask(url, sent, pieces)
    assert not answer or answer.startswith((b'HTTP/1.1 400 ', b'HTTP/1.1 413 '))  # or it is lost in a reset
    assert 6000 - len(list(pieces)) < most
    assert http.request('GET', url + '/ping').status == 200


def test_a_request_that_offers_http_2_or_waits_for_100_is_answered(url):
    body = json.dumps([0.0] * 784).encode()
    for headers, before in (
        (b'Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n', b''),
        (b'Expect: 100-continue\r\n', b'HTTP/1.1 100 Continue\r\n\r\n'),
    ):
        answer = ask(url, POST + headers + b'Content-Length: %d\r\n\r\n' % len(body) + body)
        assert answer.startswith(before + b'HTTP/1.1 200 OK\r\n') and answer.endswith(b']')


def test_ping_says_no_more_than_it_must(url):
    for method in 'GET', 'HEAD':
        response = http.request(method, url + '/ping')
        assert response.status == 200 and not response.data
        assert {name.lower() for name in response.headers} == {'date', 'content-length'}


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, 'w'))


def test_a_pickle_never_runs(url, tmp_path):
    canary = str(tmp_path / 'canary')
    bodies = [pickle.dumps(Canary(canary)), npy(np.array([Canary(canary)], dtype=object), allow_pickle=True)]
    pickle.loads(bodies[0]).close()
    assert os.path.exists(canary)  # it does sing
    os.remove(canary)
    for body in bodies:
        for content_type in DECODE:
            assert post(url, body, content_type).status == 400
    assert not os.path.exists(canary)


@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=64).map(lambda b: npy(ONE)[:10] + b),
        st.text(max_size=80).map(header),
        st.recursive(st.none() | st.floats() | st.text(max_size=3), lambda x: st.lists(x, max_size=4)).map(
            lambda x: json.dumps(x).encode()
        ),
    ),
    content_type=st.sampled_from(list(DECODE)),
)
@example(body=b'\r\0', content_type='text/csv')  # csv.Error is no ValueError
@example(body=b'[1' + b'0' * 400 + b']', content_type='application/json')  # nor is OverflowError
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_bodies_never_get_5xx(url, body, content_type):
    response = post(url, body, content_type)
    assert response.status in (200, 400), response.data
    assert response.data


HOOKS = """
import os
import numpy as np

def model_fn(model_dir):
    with open(os.path.join(model_dir, 'loads'), 'a') as f:
        f.write('%d\\n' % os.getpid())
    return 'a model'

def input_fn(input_data, content_type):
    if input_data == b'fail':
        raise KeyError('a bug')
    return input_data.decode() + '|' + content_type

def predict_fn(data, model):
    return data + '|' + model

def output_fn(prediction, accept):
    return (prediction + '|' + accept).upper(), 'text/x-own'
"""


def test_the_users_functions_win_and_model_fn_runs_once_per_worker(tmp_path):
    (tmp_path / 'mine.py').write_text(HOOKS)
    with serving(tmp_path, 'mine.py', tmp_path, workers=2) as url:
        for _ in range(20):
            response = post(url, b'body', 'a/b', 'c/d')
            assert (response.status, response.data) == (200, b'BODY|A/B|A MODEL|C/D')
            assert response.headers['Content-Type'].startswith('text/x-own')
        response = post(url, b'fail', 'a/b', 'c/d')
        assert response.status == 500 and b'log' in response.data and b'bug' not in response.data
        assert post(url, b'body', 'a/b', 'c/d').status == 200
        deadline = time.monotonic() + 20  # /ping may answer before the other worker is up
        while len(loads := (tmp_path / 'loads').read_text().split()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(loads) == len(set(loads)) == 2


def test_the_users_files_may_have_our_names(tmp_path):
    names = ['serving', 'training', 'formats', 'hooks', 'cpus', 'worker']
    for name in names:
        (tmp_path / f'{name}.py').write_text(f'NAME = {name!r}')
    (tmp_path / 'mine.py').write_text(
        f'import {", ".join(names)}\n'
        f'def model_fn(model_dir): return [m.NAME for m in ({", ".join(names)})]\n'
        'def predict_fn(data, model): return model\n'
    )
    with serving(tmp_path, 'mine.py', tmp_path) as url:
        assert json.loads(post(url, b'[1]', JSON, JSON).data) == names


SLOW = """
import threading
import time
import chainer
import numpy as np

together = []

def model_fn(model_dir):
    chainer.config.train = False
    return 'a model'

def predict_fn(data, model):
    together.append(1)
    assert len(together) == 1
    time.sleep(float(data[0]))
    together.pop()
    return np.array([chainer.config.train, threading.current_thread() is threading.main_thread()], float)
"""


@pytest.mark.slow
def test_slow_predictions_run_in_a_thread_one_at_a_time_with_the_config_of_model_fn(tmp_path):
    (tmp_path / 'slow.py').write_text(SLOW)
    with serving(tmp_path, 'slow.py', tmp_path) as url, concurrent.futures.ThreadPoolExecutor(8) as pool:

        def ask(seconds):
            return json.loads(post(url, json.dumps([seconds, 0]).encode(), JSON, JSON).data)

        assert [ask(0) for _ in range(3)] == [[0, 0], [0, 1], [0, 1]]  # quick: from the second on, inline
        together = [pool.submit(ask, seconds) for seconds in [1.5] + 5 * [0.0]]
        assert all(future.result()[0] == 0 for future in together)
        ask(0.1)
        slow = pool.submit(ask, 1.5)  # in the thread, as the one before took long
        time.sleep(0.3)
        start = time.monotonic()
        assert http.request('GET', url + '/ping').status == 200
        assert time.monotonic() - start < 0.5 and not slow.done()
        assert slow.result() == [0, 0]


def test_a_stop_finishes_what_runs_and_does_not_wait_for_idle_connections(tmp_path):
    (tmp_path / 'slow.py').write_text(SLOW)
    process, url = start(tmp_path, 'slow.py', tmp_path)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if http.request('GET', url + '/ping').status == 200:  # this connection stays open
                    break
            time.sleep(0.05)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            response = pool.submit(
                urllib3.PoolManager(retries=False).request,
                'POST',
                url + '/invocations',
                body=b'[2, 0]',
                headers={'Content-Type': JSON, 'Accept': JSON},
            )
            time.sleep(0.5)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert response.result().status == 200
            process.wait(timeout=20)
        assert 1 < time.monotonic() - began < 3.5
    finally:
        http.clear()
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_connections_are_kept_after_large_bodies(url, images):
    body = npy(np.zeros((1000, 784), np.float32))
    pool = urllib3.HTTPConnectionPool(
        url[7:].split(':')[0], int(url.split(':')[2]), maxsize=4, block=True, retries=False
    )
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        responses = list(
            threads.map(
                lambda _: pool.urlopen('POST', '/invocations', body, {'Content-Type': NPY, 'Accept': NPY}),
                range(100),
            )
        )
    assert {r.status for r in responses} == {200} and pool.num_connections == 4


@pytest.mark.slow
def test_connections_are_spread_over_the_workers(tmp_path):
    (tmp_path / 'mine.py').write_text(
        'import os\ndef model_fn(d): pass\ndef predict_fn(data, model): return [os.getpid()]\n'
    )
    with serving(tmp_path, 'mine.py', tmp_path, workers=2) as url:
        time.sleep(1)  # /ping may answer before the other worker is up
        rounds, most = 20, 0
        for _ in range(rounds):
            clients = [
                socket.create_connection((url[7:].split(':')[0], int(url.split(':')[2]))) for _ in range(16)
            ]
            pids = []
            for client in clients:
                client.sendall(
                    b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'
                    b'Accept: application/json\r\nContent-Length: 3\r\n\r\n[1]'
                )
                answer = b''
                while not answer.endswith(b']'):
                    answer += client.recv(4096)
                pids.append(answer.split(b'\r\n\r\n')[1])
            for client in clients:
                client.close()
            most += max(map(pids.count, pids))
            time.sleep(0.02)
        assert most / rounds < 12.5, most / rounds  # of 16, in the mean; 8 would be even


@pytest.mark.parametrize(
    'source, reason',
    [
        ('', 'must define model_fn'),
        ('def model_fn(d): raise OSError("weights are gone")', 'weights are gone'),
        ('import nonexistent', "No module named 'nonexistent'"),
    ],
)
def test_a_model_that_cannot_be_loaded_stops_the_server_with_the_reason(tmp_path, source, reason):
    (tmp_path / 'broken.py').write_text(source)
    process, _ = start(tmp_path, 'broken.py', tmp_path, workers=2)
    log, _ = process.communicate(timeout=30)
    assert process.returncode != 0 and reason in log


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path):
    (tmp_path / 'mine.py').write_text(HOOKS)
    with serving(tmp_path, 'mine.py', tmp_path) as url:
        os.kill(int((tmp_path / 'loads').read_text()), 9)
        http.clear()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if post(url, b'body', 'a/b', 'c/d').status == 200:
                    break
        assert len((tmp_path / 'loads').read_text().split()) == 2


def test_what_is_set_is_left_and_the_cpus_are_shared(monkeypatch):
    cpus = runpy.run_path(str(ROOT / 'container' / 'sagemaker_chainer_container' / 'cpus.py'))
    settings = cpus['blas_settings']
    for name in settings() | settings(1000):
        monkeypatch.delenv(name, raising=False)
    assert settings()['OPENBLAS_NUM_THREADS'] == str(cpus['cpus']())
    assert settings(1000)['OPENBLAS_NUM_THREADS'] == '1'
    monkeypatch.setenv('OPENBLAS_NUM_THREADS', '3')
    monkeypatch.setenv('OPENBLAS_THREAD_TIMEOUT', '')
    assert 'OPENBLAS_NUM_THREADS' not in settings() and settings()['OPENBLAS_THREAD_TIMEOUT'] == '20'
