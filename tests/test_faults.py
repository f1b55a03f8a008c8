"""What happens when things break, at random: `make test-faults`. Each campaign prints what it did and found.

The endpoint runs in the real container; FAULTS_SEED chooses other random requests and moments.
"""

import asyncio
import contextlib
import http.client
import io
import json
import os
import pickle
import random
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from test_local_mode import IMAGE, LABEL, PROGRAM, ChainerModel, make_estimator, opt_ml, serve, session  # noqa: F401
from test_serving import NPY, Canary, free_port, npy

import chainer_mnist_single_machine as script
from local_mode.docker import docker

pytestmark = pytest.mark.docker
SEED = int(os.environ.get('FAULTS_SEED', 0))
REQUESTS, LOAD_SECONDS, CLIENTS = 20000, 120, 64


@pytest.fixture
def report(capsys):
    """Print a line, whatever pytest captures."""

    def report(text, *values):
        with capsys.disabled():
            print('\n' + text.format(*values), flush=True)

    return report


# The endpoint


class Endpoint:
    """A container that serves, and what can be asked of it."""

    def __init__(self, name, port):
        self.name, self.port = name, port

    def connect(self, timeout=30):
        return http.client.HTTPConnection('127.0.0.1', self.port, timeout=timeout)

    def post(self, connection, body, content_type=NPY, accept=NPY):
        connection.request('POST', '/invocations', body, {'Content-Type': content_type, 'Accept': accept})
        response = connection.getresponse()
        return response.status, response.read()

    def processes(self):
        """{pid in the container: memory in MB, its own (RssAnon)} of the server's processes."""
        return {
            int(pid): int(kilobytes) / 1024
            for pid, kilobytes in (
                line.split()
                for line in docker(
                    'exec',
                    self.name,
                    'sh',
                    '-c',
                    "cd /proc; for p in [0-9]*; do grep -qs '[g]unicorn' $p/cmdline && "
                    'echo $p $(grep -s ^RssAnon: $p/status | tr -dc 0-9); done; true',
                ).splitlines()
                if len(line.split()) == 2
            )
        }


@pytest.fixture(scope='module')
def model(small_mnist, tmp_path_factory):
    """A directory with the script's model.npz after an epoch, and a file model.npz of its weights only."""
    directory = tmp_path_factory.mktemp('model')
    directory.parent.chmod(0o755)
    directory.chmod(0o755)
    subprocess.run(
        train_command(small_mnist, directory, '--epochs', '1'), check=True, stdout=subprocess.DEVNULL
    )
    return directory


@contextlib.contextmanager
def endpoint(model, *options, code=os.path.dirname(script.__file__), program=PROGRAM):
    port = free_port()
    with serve(
        '-p',
        f'127.0.0.1:{port}:8080',
        '-v',
        f'{model}:/opt/ml/model:ro',
        '-v',
        f'{code}/{program}:/opt/ml/code/{program}:ro',
        '-e',
        'SAGEMAKER_PROGRAM=' + program,
        '-e',
        'SAGEMAKER_MODEL_SERVER_WORKERS=2',
        *options,
        IMAGE,
        'serve',
        port=port,
    ) as name:
        yield Endpoint(name, port)


@pytest.fixture(scope='module')
def served(model):
    with endpoint(model) as served:
        yield served


def bad_body(rng):
    """(kind, body, Content-Type, Accept) of a bad request, or of one that may be good by chance."""

    def some(n):
        return rng.randbytes(rng.randrange(n))

    def header(text, version=1, length=None):
        text = text if isinstance(text, bytes) else text.encode('latin-1')
        size = len(text) if length is None else length
        return b'\x93NUMPY' + bytes([version, 0]) + struct.pack('<H' if version == 1 else '<I', size) + text

    shape = rng.choice([(784,), (1, 784), (3, 784), (2, 28, 28), (0, 784), (), (5, 7), (1, 1, 1, 784)])
    good = npy(
        np.asarray(rng.random() * np.ones(shape)).astype(
            rng.choice(['<f4', '>f8', '<i8', '|b1', '<f2', '<c8'])
        )
    )
    types = [
        NPY,
        'application/json',
        'text/csv',
        'text/csv; charset=utf-16',
        'application/x-npy;',
        'text/html',
        '',
        '*/*',
        'application/JSON',
        'multipart/form-data; boundary=x',
        'a' * 3000,
        '\u00e9;q="',
    ]
    kind = rng.choice(
        [
            'random bytes',
            'changed npy',
            'cut npy',
            'lying npy header',
            'pickle',
            'NaN or infinity',
            'other dtypes',
            'deep JSON',
            'changed JSON',
            'CSV',
            'encodings',
            'types',
        ]
    )
    content_type, accept = NPY, rng.choice([NPY, 'application/json', 'text/csv', '*/*', ''])
    if kind == 'random bytes':
        body, content_type = some(3000), rng.choice(types)
    elif kind == 'changed npy':
        body = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            body[rng.randrange(min(len(body), rng.choice([12, 140, 10**6])))] = rng.randrange(256)
    elif kind == 'cut npy':
        body = good[: rng.randrange(len(good))] if rng.random() < 0.7 else good + some(50)
    elif kind == 'lying npy header':
        shape = rng.choice(
            [
                f'({10 ** rng.randrange(1, 30)},)',
                '(-1, 784)',
                '(2**40, 2**40)',
                '(0, 10**30)',
                '784',
                '(1.5,)',
                '(' * 90 + ')' * 90,
                '(1, 784)',
                '(True, 784)',
                '(' + '1,' * 70 + ')',
            ]
        )
        descr = rng.choice(
            [
                "'<f4'",
                "'|O'",
                "'<f8'",
                "[('a', '<f4')]",
                "'<M8[s]'",
                "'|S9'",
                "'<U9'",
                "'|V4'",
                "'x'",
                '1',
                "'<f4' * 10**9",
            ]
        )
        body = header(
            "{{'descr': {}, 'fortran_order': {}, 'shape': {}}}{}\n".format(
                descr,
                rng.choice(['True', 'False', '1', 'None']),
                shape,
                ' ' * rng.choice([0, 30, 9000, 70000 // 2]),
            ),
            rng.choice([1, 1, 2, 3, 9]),
            rng.choice([None, None, 0, 65535]),
        ) + some(4000)
    elif kind == 'pickle':
        body = rng.choice(
            [
                npy(np.array([Canary('/tmp/canary')], object), allow_pickle=True),
                pickle.dumps(Canary('/tmp/canary')),
                header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n")
                + pickle.dumps(Canary('/tmp/canary')),
            ]
        )
        content_type = rng.choice([NPY, NPY, 'application/python-pickle', 'application/json'])
    elif kind == 'NaN or infinity':
        array = np.ones((2, 784), rng.choice(['<f4', '<f8']))
        array[rng.randrange(2), rng.randrange(784)] = rng.choice([np.nan, np.inf, -np.inf])
        body = npy(array)
        if rng.random() < 0.5:
            body, content_type = json.dumps(array.tolist()).encode(), 'application/json'
    elif kind == 'other dtypes':
        body = npy(
            np.zeros((1, 784), rng.choice(['<i4', '|u1', '|b1', '<c16', '<U3', '<M8[s]', '|S2', '<i8']))
        )
    elif kind == 'deep JSON':
        n = rng.randrange(1, 60000)
        body = (
            b'[' * n + rng.choice([b'', b'0', b']' * n, b'0' + b']' * n]),
            (b'{"a":' * n + b'1' + b'}' * n),
        )[rng.random() < 0.3]
        content_type = 'application/json'
    elif kind == 'changed JSON':
        body = bytearray(
            json.dumps(
                rng.choice(
                    [
                        [0.5] * 784,
                        [[0.5] * 784] * 2,
                        {'instances': [1]},
                        [1, [2]],
                        'text',
                        None,
                        [1e999, -1e999],
                        [True, None],
                        [[]],
                        [['0.5'] * 784],
                        1e30,
                    ]
                )
            ).encode()
        )
        for _ in range(rng.randrange(4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        if rng.random() < 0.1:
            body = b'[' + b'9' * rng.randrange(1, 9000) + b']'
        content_type = rng.choice(['application/json', '', 'text/json'])
    elif kind == 'CSV':
        body = rng.choice(
            [
                b'1,' * rng.randrange(1, 200000),
                b'"' * rng.randrange(1, 5000),
                b'1,2\n3\n',
                b'\r\0\n',
                b'a,b\n',
                b'1\n' * rng.randrange(1, 20000),
                b'"' + b'x' * 140000 + b'"',
                b'nan,inf\n',
                b',' * 783,
                some(800),
            ]
        )
        content_type = 'text/csv'
    elif kind == 'encodings':
        body = rng.choice(['[0.5]', '1,2\n', '\ufeff[1]', '\ud83d\ude00']).encode(
            rng.choice(['utf-16', 'utf-32', 'utf-7', 'utf-8-sig']), 'surrogatepass'
        ) + some(4)
        content_type = rng.choice(['application/json', 'text/csv'])
    else:
        body, content_type, accept = good, rng.choice(types), rng.choice(types)
    return (
        kind,
        bytes(body),
        content_type.encode('utf-8').decode('latin-1'),
        accept.encode('utf-8').decode('latin-1'),
    )


def bad_stream(rng):
    """(kind, bytes that are no proper HTTP request, or end in the middle of one)."""
    body = rng.randbytes(rng.randrange(400))
    kind = rng.choice(
        ['random bytes as HTTP', 'broken request line', 'broken headers', 'broken chunks', 'half-closed']
    )
    start = b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n'
    if kind == 'random bytes as HTTP':
        return kind, body
    if kind == 'broken request line':
        return kind, rng.choice(
            [
                b'POST\r\n\r\n',
                b'GET /ping HTTP/9.9\r\n\r\n',
                b'P\0ST / HTTP/1.1\r\n\r\n',
                b'POST ' + b'/a' * 9000 + b' HTTP/1.1\r\n\r\n',
                b'\r\n' * 50,
                b'GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n',
                b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
                b'\x16\x03\x01' + body,
            ]
        )
    if kind == 'broken headers':
        return kind, start + rng.choice(
            [
                b'Content-Length: -5',
                b'Content-Length: 1e3',
                b'Content-Length: 5\r\nContent-Length: 6',
                b'Content-Length: ' + b'9' * 400,
                b'Content-Length: 5\r\nTransfer-Encoding: chunked',
                b'Transfer-Encoding: gzip',
                b'X' * 20000 + b': y',
                b'no colon',
                b'\r\n'.join([b'A: b'] * 300),
                b'Content-Length: \xff',
                b': x',
                b' folded: x',
                b'Expect: 200-ok\r\nContent-Length: 1',
            ]
        ) + b'\r\n\r\n' + body
    if kind == 'broken chunks':
        return kind, start + b'Transfer-Encoding: chunked\r\n\r\n' + rng.choice(
            [
                b'zz\r\n',
                b'-1\r\n',
                b'5\r\nab\r\n',
                b'f' * 40 + b'\r\n',
                b'3\r\nabcXX0\r\n\r\n',
                b'5;' + b'x' * 9000 + b'\r\n',
                b'\0\r\n',
            ]
        ) + body
    return kind, start + b'Content-Length: %d\r\n\r\n' % (
        len(body) + rng.choice([1, 99, 10**7, 10**13])
    ) + body


def status_of_stream(port, data):
    """Send, close this side, and return the answer's status and sentence; (0, b'') where the server just closes."""
    with socket.create_connection(('127.0.0.1', port), timeout=20) as connection:
        with contextlib.suppress(OSError):  # the server may have closed before all is sent
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection, method='POST')
        try:
            response.begin()
            return response.status, response.read()
        except (http.client.HTTPException, ConnectionError):
            return 0, b''


def test_bad_requests(served, report):
    """No 5xx, no dead worker, no pickle, no growing memory; right answers between; sentences that help."""
    rng = random.Random(SEED)
    images = np.random.RandomState(0).rand(3, 784).astype(np.float32)
    connection = served.connect()
    expected = served.post(connection, npy(images))
    assert expected[0] == 200
    counts, wrong = {}, []

    def fuzz(n):
        nonlocal connection
        for i in range(n):
            not_http = i % 10 == 0  # answered by gunicorn itself: 501 for an unknown Transfer-Encoding
            if not_http:
                kind, data = bad_stream(rng)
                status, sentence = status_of_stream(served.port, data)
            else:
                kind, *request = bad_body(rng)
                try:
                    status, sentence = served.post(connection, *request)
                except (http.client.HTTPException, OSError):  # closed, say for a header that it cannot read
                    connection.close()
                    connection = served.connect()
                    status, sentence = served.post(connection, *request)
            counts.setdefault(kind, {}).setdefault(status, 0)
            counts[kind][status] += 1
            if (
                status >= 500
                and not (status == 501 and not_http)
                or status >= 400
                and len(sentence) < 15
                and not not_http
            ):
                wrong.append((kind, status, sentence, data if not_http else request))
            if i % 100 == 0:
                status, answer = served.post(connection, npy(images))
                assert status == 200
                np.testing.assert_allclose(
                    np.load(io.BytesIO(answer)), np.load(io.BytesIO(expected[1])), rtol=1e-5, atol=1e-5
                )

    fuzz(REQUESTS // 4)  # until caches and heaps have their size
    before = served.processes()
    start = time.monotonic()
    fuzz(REQUESTS)
    seconds = time.monotonic() - start
    after = served.processes()
    report(
        'bad requests: {:,} (seed {}) in {:.0f} s; memory {:.0f} -> {:.0f} MB; answers by kind:\n{}',
        REQUESTS + REQUESTS // 4,
        SEED,
        seconds,
        sum(before.values()),
        sum(after.values()),
        '\n'.join(
            '    {:22} {}'.format(
                kind, '  '.join('{}: {}'.format(s or 'closed', n) for s, n in sorted(by.items()))
            )
            for kind, by in sorted(counts.items())
        ),
    )
    assert not wrong, (len(wrong), {case[:3]: case[3] for case in wrong})
    assert len(before) >= 2 and before.keys() == after.keys()  # no worker died
    assert sum(after.values()) < 1.1 * sum(before.values())
    assert docker('exec', served.name, 'sh', '-c', 'ls -d /tmp/canary 2>/dev/null || true') == ''


def test_oversize_endless_and_slow_requests(served, report):
    """Bodies without an end are cut off; slow clients keep nobody waiting; memory comes back."""
    before = served.processes()
    start = b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n'
    slow = []
    for i in range(40):
        client = socket.create_connection(('127.0.0.1', served.port), timeout=60)
        client.sendall(start + b'Content-Length: 1000\r\n\r\n' if i % 2 else b'POST /invoc')
        slow.append(client)
    statuses = []
    for _ in range(5):
        status, _ = status_of_stream(
            served.port, start + b'Content-Length: 70000000\r\n\r\n' + b'1,' * 35000000
        )
        statuses.append(status)
        with socket.create_connection(('127.0.0.1', served.port), timeout=60) as client:
            client.sendall(start + b'Transfer-Encoding: chunked\r\n\r\n')
            sent = 0
            with contextlib.suppress(OSError):
                while sent < 4 * 10**8:  # until the server has had enough
                    sent += client.send(b'100000\r\n' + b'1,' * 0x80000 + b'\r\n')
            assert sent < 10**8
        for client in slow:  # a byte now and then
            client.send(b'1')
        begin = time.monotonic()
        assert served.post(served.connect(), npy(np.zeros((1, 784), np.float32)))[0] == 200
        assert time.monotonic() - begin < 2
    for client in slow:
        client.close()
    time.sleep(1)
    after = served.processes()
    report(
        'endless, oversize and slow bodies: answers {}; memory {:.0f} -> {:.0f} MB',
        statuses,
        sum(before.values()),
        sum(after.values()),
    )
    assert 413 in statuses and set(statuses) <= {413, 0}  # 0: closed while the client was sending
    assert len(before) >= 2 and before.keys() == after.keys()
    assert sum(after.values()) < 1.1 * sum(before.values()) + 60  # a freed body may stay in a heap


class Load:
    """Keep-alive clients that ask and check, each in a thread, until stopped."""

    def __init__(self, served, clients=CLIENTS):
        self.served, self.stopping = served, threading.Event()
        self.answered, self.errors = [], []
        self.body = npy(np.random.RandomState(0).rand(1, 784).astype(np.float32))
        self.expected = np.load(io.BytesIO(served.post(served.connect(), self.body)[1]))
        self.threads = [threading.Thread(target=self.run) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def run(self):
        connection = self.served.connect()
        while not self.stopping.is_set():
            try:
                start = time.monotonic()
                status, answer = self.served.post(connection, self.body)
                assert status == 200, (status, answer)
                np.testing.assert_allclose(np.load(io.BytesIO(answer)), self.expected, rtol=1e-5, atol=1e-5)
                self.answered.append((time.monotonic(), time.monotonic() - start))
            except (OSError, http.client.HTTPException, AssertionError) as e:
                self.errors.append((time.monotonic(), repr(e)))
                connection.close()
                connection = self.served.connect()
                time.sleep(0.05)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()


def test_two_minutes_of_load(served, report):
    load = Load(served)
    try:
        time.sleep(LOAD_SECONDS / 6)
        before = served.processes()
        time.sleep(LOAD_SECONDS * 5 / 6)
        after = served.processes()
    finally:
        load.stop()
    report(
        'load: {} clients for {} s: {:,} answers, {} errors, p99 {:.0f} ms; memory {:.0f} -> {:.0f} MB',
        CLIENTS,
        LOAD_SECONDS,
        len(load.answered),
        len(load.errors),
        1000 * np.percentile([s for _, s in load.answered], 99),
        sum(before.values()),
        sum(after.values()),
    )
    assert not load.errors and len(load.answered) > 10000
    assert (
        len(before) >= 2
        and before.keys() == after.keys()
        and sum(after.values()) < 1.1 * sum(before.values())
    )


def test_killed_workers_under_load(model, report):
    """Each costs at most the requests that it had; another takes its place."""
    with endpoint(model) as served:
        load = Load(served)
        rng = random.Random(SEED)
        try:
            for _ in range(5):
                time.sleep(2 + rng.random())
                pids = served.processes()
                docker('exec', served.name, 'kill', '-9', str(max(pids)))
                deadline = time.monotonic() + 20
                while len(now := served.processes()) < len(pids) or max(now) == max(pids):
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            killed = time.monotonic()
            time.sleep(4)
        finally:
            load.stop()
        report(
            '5 workers killed under load: {:,} answers, {} requests failed, of {} clients',
            len(load.answered),
            len(load.errors),
            CLIENTS,
        )
        assert len(load.errors) <= 5 * CLIENTS and not any('(5' in error for _, error in load.errors)
        assert not [t for t, _ in load.errors if t > killed + 2] and [
            t for t, _ in load.answered if t > killed + 2
        ]


def test_a_stop_under_load(model, report):
    """SIGTERM: what runs is answered, and the container ends with 0 within 5 s."""
    with endpoint(model) as served:
        load = Load(served)
        try:
            time.sleep(3)
            start = time.monotonic()
            docker('kill', '--signal', 'TERM', served.name)
            code = docker('wait', served.name).strip()
            seconds = time.monotonic() - start
        finally:
            load.stop()
        cut = [error for _, error in load.errors if 'IncompleteRead' in error or 'AssertionError' in error]
        report(
            'SIGTERM under load: ended with {} after {:.1f} s, {} answers cut off', code, seconds, len(cut)
        )
        assert code == '0' and seconds < 5 and not cut


SLOW = """
import time

def model_fn(model_dir):
    return lambda: time.sleep(0.02)

def input_fn(body, content_type):
    return body

def predict_fn(data, model):
    model()
    return data

def output_fn(prediction, accept):
    return prediction
"""


def test_beyond_capacity_it_sheds(tmp_path, report):
    """More requests at a time than it takes in: 503 for the rest at once, and it lives."""
    tmp_path.chmod(0o755)
    (tmp_path / 'slow.py').write_text(SLOW)

    async def ask(served):
        reader, writer = await asyncio.open_connection('127.0.0.1', served.port)
        writer.write(
            b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello'
        )
        await writer.drain()
        start = time.monotonic()
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return int(answer.split()[1]), answer.endswith(b'hello'), time.monotonic() - start

    async def crowd(served):
        return await asyncio.gather(*[ask(served) for _ in range(1200)])

    with endpoint(tmp_path, code=tmp_path, program='slow.py') as served:
        before = served.processes()
        answers = asyncio.run(crowd(served))
        after = served.processes()
        counts = {status: sum(s == status for s, _, _ in answers) for status, _, _ in answers}
        report(
            '1,200 requests at once on a slow model: {}; the slowest 503 after {:.1f} s; memory {:.0f} -> {:.0f} MB',
            counts,
            max(s for status, _, s in answers if status == 503),
            sum(before.values()),
            sum(after.values()),
        )
        assert set(counts) == {200, 503} and counts[200] >= 256
        assert all(echoed == (status == 200) for status, echoed, _ in answers)
        assert len(before) >= 2 and before.keys() == after.keys()
        assert served.post(served.connect(), b'hello')[0] == 200


@pytest.mark.parametrize(
    'kind, reason',
    [
        ('missing', 'No such file'),
        ('truncated', 'not a zip file|EOF|truncated'),
        ('foreign', 'KeyError|is not a file in the archive'),
        ('NaN', 'NaN or infinity'),
    ],
)
def test_a_bad_model_stops_the_container_and_deploy_says_why(model, session, tmp_path, kind, reason):  # noqa: F811
    if kind == 'truncated':
        data = (model / 'model.npz').read_bytes()
        (tmp_path / 'model.npz').write_bytes(data[: len(data) // 2])
    elif kind == 'foreign':
        np.savez(tmp_path / 'model.npz', weights=np.zeros(3))
    elif kind == 'NaN':
        with np.load(model / 'model.npz') as arrays:
            np.savez(tmp_path / 'model.npz', **{name: np.full_like(arrays[name], np.nan) for name in arrays})
    (tmp_path / 'README').write_text('There may be more in it.')
    with tarfile.open(tmp_path / 'model.tar.gz', 'w:gz') as tar:
        for path in [*tmp_path.glob('model.npz'), tmp_path / 'README']:
            tar.add(path, path.name)
    bad = ChainerModel(
        session.upload_data(str(tmp_path / 'model.tar.gz'), key_prefix='bad/' + kind),
        'arn:aws:iam::123456789012:role/r',
        script.__file__,
        image_uri=IMAGE,
        sagemaker_session=session,
    )
    start = time.monotonic()
    with pytest.raises(RuntimeError, match='(?s)The endpoint stopped.*(' + reason + ')'):
        bad.deploy(initial_instance_count=1, instance_type='local')
    assert time.monotonic() - start < 20


# Training


def train_command(data, out, *options):
    return [
        sys.executable,
        script.__file__,
        '--num-gpus',
        '0',
        '--batch-size',
        '100',
        '--train',
        str(data / 'train'),
        '--test',
        str(data / 'test'),
        '--model-dir',
        str(out),
        '--output-data-dir',
        str(out),
        *map(str, options),
    ]


def is_whole(path):
    with np.load(path) as arrays:
        return all(arrays[name] is not None for name in arrays.files)


def test_jobs_killed_at_random(small_mnist, tmp_path, report):
    """kill -9 or SIGTERM at any moment, 40 times: every file is whole, and the job ends like one that was not killed."""
    rng = random.Random(SEED)
    start = time.monotonic()
    subprocess.run(
        train_command(small_mnist, tmp_path / 'whole', '--epochs', 3), check=True, stdout=subprocess.DEVNULL
    )
    seconds = time.monotonic() - start
    with np.load(tmp_path / 'whole' / 'model.npz') as arrays:
        expected = dict(arrays)
    kills, jobs, checked, resumed, writing = 0, 0, 0, 0, 0
    while kills < 40:
        jobs += 1
        out, checkpoints = tmp_path / f'job {jobs}', tmp_path / f'checkpoints {jobs}'
        while True:
            process = subprocess.Popen(
                train_command(small_mnist, out, '--epochs', 3, '--checkpoint-dir', checkpoints),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            until = time.monotonic() + rng.uniform(0, 1.1) * seconds
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.002)
            if rng.random() < 0.5:  # the next time that a file is being written
                while process.poll() is None and not [*checkpoints.glob('*.tmp'), *out.glob('*.tmp')]:
                    time.sleep(0.0005)
                writing += process.poll() is None
            if process.poll() is None and kills < 40:
                process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
                kills += 1
            resumed += 'Resuming' in process.communicate(timeout=60)[0]
            for path in [*checkpoints.glob('*.npz'), *out.glob('model.npz'), *out.glob('snapshot_epoch_*')]:
                if not path.name.startswith('tmp') and path.suffix != '.tmp':
                    assert is_whole(path)
                    checked += 1
            if process.returncode == 0:
                break
            assert process.returncode in (-signal.SIGKILL, -signal.SIGTERM)
        with np.load(out / 'model.npz') as arrays:
            assert all(np.array_equal(expected[name], arrays[name]) for name in arrays.files)
    report(
        'jobs killed at random (seed {}): {} kills, {} of them while a file was being written, in {} jobs; {} starts resumed, '
        '{} files checked: all whole; the same weights at the end, to the bit',
        SEED,
        kills,
        writing,
        jobs,
        resumed,
        checked,
    )
    assert resumed > 5 and writing > 5 and checked > 40


@pytest.fixture
def job(small_mnist, tmp_path):
    """A job's directory; run(*options) starts it by hand and returns the exit code, its failure file and its log."""
    root = tmp_path / 'ml'
    opt_ml(root, small_mnist, epochs='3', batch_size='100')
    tmp_path.chmod(0o755)

    def run(*options, while_it_runs=None):
        container = docker(
            'run',
            '--detach',
            '--label',
            LABEL + '=by-hand',
            '--hostname',
            'algo-1',
            '-v',
            f'{root}:/opt/ml',
            *options,
            IMAGE,
            'train',
        ).strip()
        try:
            if while_it_runs:
                while_it_runs(container)
            code = int(docker('wait', container))
            failure = root / 'output' / 'failure'
            done = subprocess.run(['docker', 'logs', container], capture_output=True, text=True)
            return code, failure.read_text() if failure.exists() else '', done.stdout + done.stderr
        finally:
            docker('rm', '--force', container)

    run.root = root
    return run


@pytest.mark.parametrize(
    'directory, size, left',
    [
        ('model', '3m', '[]'),  # it takes 7 MB
        ('checkpoints', '30m', "['epoch_1_process_0_of_1.npz']"),
    ],
)  # the second epoch's does not fit
def test_a_full_disk(job, directory, size, left):
    """What was written before stays, half a file does not."""
    path = job.root / 'code' / PROGRAM
    path.write_text(
        f'import atexit, os\natexit.register(lambda: print("left", os.listdir("/opt/ml/{directory}")))\n'
        + path.read_text().split('"""', 2)[2]
    )
    code, failure, log = job('--tmpfs', f'/opt/ml/{directory}:size={size}')
    assert code == 1 and 'No space left on device' in failure and 'left ' + left in log


@pytest.mark.parametrize('directory', ['model', 'output/data', 'checkpoints'])
def test_a_read_only_directory_is_found_before_training(job, tmp_path, directory):
    (tmp_path / 'empty').mkdir()
    code, failure, log = job('-v', '{}:/opt/ml/{}:ro'.format(tmp_path / 'empty', directory))
    assert code == 1 and f'Cannot write to /opt/ml/{directory}: Read-only file system.' in failure
    assert 'Training on' not in log


def test_out_of_memory(job):
    (job.root / 'code' / PROGRAM).write_text('hog = b"x" * 10 ** 9')
    code, failure, _ = job('--memory', '400m', '--memory-swap', '400m')
    assert code == 1 and 'not enough memory' in failure


def test_a_stopped_job_says_so_and_resumes(job, tmp_path, report):
    """SIGTERM reaches the script; started again it goes on from its checkpoint."""
    checkpoints = tmp_path / 'checkpoints'

    def stop(container):
        deadline = time.monotonic() + 60
        while not list(checkpoints.glob('epoch_1_*.npz')):
            assert time.monotonic() < deadline, docker('logs', container)
            time.sleep(0.01)
        start = time.monotonic()
        docker('stop', '--time', '30', container)
        report('SIGTERM to a training container: ended after {:.1f} s', time.monotonic() - start)
        assert time.monotonic() - start < 10

    mount = '-v', f'{checkpoints}:/opt/ml/checkpoints'
    code, failure, _ = job(*mount, while_it_runs=stop)
    assert code == 1 and 'Stopped by SIGTERM' in failure and not (job.root / 'model' / 'model.npz').exists()
    (job.root / 'output' / 'failure').unlink()
    code, failure, log = job(*mount)
    assert (
        code == 0
        and not failure
        and 'Resuming after epoch' in log
        and is_whole(job.root / 'model' / 'model.npz')
    )


def test_the_sdk_says_that_a_container_was_killed(session, small_mnist):  # noqa: F811
    """From outside, in the middle of fit()."""
    inputs = {
        name: session.upload_data(str(small_mnist / name), key_prefix='killed/' + name)
        for name in ('train', 'test')
    }

    def kill():
        while not (found := docker('ps', '--quiet', '--filter', f'label={LABEL}={session.name}').split()):
            time.sleep(0.1)
        time.sleep(2)
        docker('kill', *found)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(RuntimeError, match='failed.*137'):
        make_estimator(session, epochs=300).fit(inputs)
    thread.join()
