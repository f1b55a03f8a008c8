"""The server's workers handle threads, connections, stops and deaths."""

import asyncio
import concurrent.futures
import contextlib
import json
import resource
import signal
import time

import numpy as np
import pytest
import urllib3
from support import JSON, NPY, http, npy, ping, post, wait_for

pytestmark = pytest.mark.slow  # most of them wait

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
def test_slow_predictions_run_in_a_thread_one_at_a_time_with_the_config_of_model_fn(serving, tmp_path):
    (tmp_path / 'slow.py').write_text(SLOW)
    with serving(tmp_path, 'slow.py') as url, concurrent.futures.ThreadPoolExecutor(8) as pool:

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


def test_the_first_prediction_runs_in_the_thread_though_its_body_is_empty(serving, tmp_path):
    body = 'def input_fn(body, content_type):\n    return body or [0]\n'
    (tmp_path / 'slow.py').write_text(SLOW + body)
    with serving(tmp_path, 'slow.py') as url:
        assert json.loads(post(url, b'', JSON, JSON).data) == [0, 0]


@pytest.mark.parametrize('seconds', [2, pytest.param(6, marks=pytest.mark.slow)])
def test_a_stop_finishes_what_runs_and_does_not_wait_for_idle_connections(start, tmp_path, seconds):
    (tmp_path / 'slow.py').write_text(SLOW)
    process, url = start(tmp_path, 'slow.py')
    try:
        wait_for(lambda: ping(url), 30)  # this connection stays open
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            response = pool.submit(post, url, b'[%d, 0]' % seconds, JSON, JSON)
            time.sleep(0.5)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert response.result().status == 200
            process.wait(timeout=20)
        assert seconds - 1 < time.monotonic() - began < seconds + 1.5
    finally:
        http.clear()
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_connections_are_kept_after_large_bodies(url):
    body = npy(np.zeros((1000, 784), np.float32))
    headers = {'Content-Type': NPY, 'Accept': NPY}
    pool = urllib3.connection_from_url(url, maxsize=4, block=True, retries=False)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        ask = [threads.submit(pool.urlopen, 'POST', '/invocations', body, headers) for _ in range(100)]
        assert {future.result().status for future in ask} == {200} and pool.num_connections == 4


@pytest.mark.slow
@pytest.mark.parametrize('gap', [0, 0.002])
def test_connections_are_spread_over_the_workers(serving, connect, tmp_path, gap):
    code = 'import os\ndef model_fn(d): pass\ndef predict_fn(data, model): return [os.getpid()]\n'
    (tmp_path / 'mine.py').write_text(code)
    with serving(tmp_path, 'mine.py', workers=2) as url:
        time.sleep(1)  # /ping may answer before the other worker is up
        rounds, most = 20, 0
        for _ in range(rounds):
            clients = []
            for _ in range(16):
                clients.append(connect(url))
                time.sleep(gap)
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
        assert most / rounds < 11.5, most / rounds  # of 16, in the mean; chance alone makes 9.6


def test_a_second_server_does_not_share_the_port(start, serving, tmp_path):
    (tmp_path / 'mine.py').write_text('def model_fn(d): pass\n')
    with serving(tmp_path, 'mine.py') as url:
        process, _ = start(tmp_path, 'mine.py', port=url.split(':')[-1])
        log, _ = process.communicate(timeout=30)
        assert process.returncode != 0 and 'Address already in use' in log


@pytest.mark.parametrize(
    'source, reason',
    [
        ('', 'must define model_fn'),
        ('def model_fn(d): raise OSError("weights are gone")', 'weights are gone'),
        ('import nonexistent', "No module named 'nonexistent'"),
        ('def model_fn(d): raise SystemExit("weights are gone")', 'weights are gone'),
        ('def model_fn(d): raise KeyboardInterrupt("weights are gone")', 'weights are gone'),
    ],
)
def test_a_model_that_cannot_be_loaded_stops_the_server_with_the_reason(start, tmp_path, source, reason):
    (tmp_path / 'broken.py').write_text(source)
    process, _ = start(tmp_path, 'broken.py', workers=2)
    try:
        log, _ = process.communicate(timeout=30)
        assert process.returncode != 0 and reason in log
    finally:
        process.terminate()


HANGS = """
import ctypes
import time

def model_fn(model_dir):
    pass

def predict_fn(data, model):
    if data[0] == 1:
        time.sleep(1000)
    while data[0] == 2:
        pass
    if data[0] == 3:
        ctypes.PyDLL(None).sleep(1000)  # with the GIL
    if data[0] == 4:
        time.sleep(2.8)
    return [1]
"""


def fresh(url, method, path, body=None, seconds=0.5):
    """Return the status of an answer over a connection of its own, 0 if there is none within so many seconds."""
    with contextlib.suppress(urllib3.exceptions.HTTPError), urllib3.PoolManager(retries=False, timeout=seconds) as pool:
        return pool.request(method, url + path, body=body, headers={'Content-Type': JSON}).status
    return 0


@pytest.mark.parametrize('how', [1, *(pytest.param(how, marks=pytest.mark.slow) for how in (2, 3))])
def test_a_prediction_that_hangs_fails_ping_and_then_its_worker_is_replaced(serving, tmp_path, how):
    (tmp_path / 'hangs.py').write_text(HANGS)
    log = []
    with serving(tmp_path, 'hangs.py', log=log, SAGEMAKER_MODEL_SERVER_TIMEOUT='4') as url:
        assert fresh(url, 'POST', '/invocations', b'[4]', 5) == 200  # slow, but in time
        assert fresh(url, 'GET', '/ping') == 200
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            hanging = pool.submit(fresh, url, 'POST', '/invocations', b'[%d]' % how, 20)
            start = time.monotonic()
            wait_for(lambda: fresh(url, 'GET', '/ping') != 200, 4)
            assert not hanging.done()
            assert hanging.result() == 0 and 0.9 < time.monotonic() - start < 16
        wait_for(lambda: fresh(url, 'GET', '/ping') == 200, 30)
        assert fresh(url, 'POST', '/invocations', b'[0]', 5) == 200
    assert log[0].count('WORKER TIMEOUT') == 1
    assert 'in predict_fn' in log[0]  # where it hung


EXITS = """
import os
import sys

def model_fn(model_dir):
    pass

def predict_fn(data, model):
    if data[0] == 1:
        sys.exit(3)
    if data[0] == 2:
        raise KeyboardInterrupt
    if data[0] > 2:
        os._exit(int(data[0]))
    return [1]
"""


def test_a_script_that_exits_does_not_stop_the_server(start, tmp_path):
    (tmp_path / 'exits.py').write_text(EXITS)
    process, url = start(tmp_path, 'exits.py')
    try:
        wait_for(lambda: ping(url), 30)
        for how, status in (0, 200), (1, 500), (2, 500), (3, 0), (4, 0):
            assert fresh(url, 'POST', '/invocations', b'[%d]' % how, 5) == status
            wait_for(lambda: fresh(url, 'GET', '/ping') == 200 or process.poll() is not None, 10)
            assert process.poll() is None, process.stdout.read()
        process.send_signal(signal.SIGHUP)  # gunicorn would close the sockets with connections that wait
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            assert fresh(url, 'POST', '/invocations', b'[0]') == 200
    finally:
        http.clear()
        process.terminate()
        process.communicate(timeout=20)


IMPATIENT = (
    'import time\n\ndef model_fn(d): pass\n\ndef predict_fn(data, model):\n    time.sleep(0.05)\n    return [1]\n'
)
ASK = b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'
WHOLE = ASK + b'Content-Length: 3\r\n\r\n[1]'


@pytest.mark.parametrize('spaces', [0, 100000])
def test_what_nobody_waits_for_is_not_predicted(serving, tmp_path, spaces):
    """40 clients wait one second each for a model that answers 20 in a second: 20 answers each second come in time."""
    (tmp_path / 'slow.py').write_text(IMPATIENT)
    request, answered = WHOLE, []
    if spaces:  # a large body: uvicorn stops reading, and would not see the client go
        request = ASK + b'Content-Length: %d\r\n\r\n[1]' % (spaces + 3) + b' ' * spaces
    with serving(tmp_path, 'slow.py') as url:
        start, port = time.monotonic(), int(url.rpartition(':')[2])

        async def ask():
            while time.monotonic() < start + 5:
                reader, writer = await asyncio.open_connection('127.0.0.1', port)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    writer.write(request)
                    if b'200 OK' in await asyncio.wait_for(reader.readline(), 1):
                        answered.append(time.monotonic() - start)
                writer.close()

        async def crowd():
            await asyncio.gather(*(ask() for _ in range(40)))

        asyncio.run(crowd())
        began = time.monotonic()
        assert post(url, b'[1]', JSON, JSON).status == 200
        gone = http.request('GET', url + '/metrics').data
        assert b'path="/invocations",status="499"' in gone, gone
        assert time.monotonic() - began < 1.5  # nothing of the crowd's is predicted before it
    late = sum(t > 2 for t in answered)
    assert late > 36, (late, len(answered))  # in three seconds, of at most 60


def test_clients_that_do_not_send_a_request_keep_nobody_out(start, connect, tmp_path):
    (tmp_path / 'mine.py').write_text('def model_fn(d): pass\n\ndef predict_fn(data, model): return [1]\n')
    limits = dict(SAGEMAKER_MODEL_SERVER_TIMEOUT='4', GUNICORN_CMD_ARGS='--keep-alive=2')  # six seconds for a request
    process, url = start(tmp_path, 'mine.py', **limits)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (200, 200))
    clients = []
    try:
        wait_for(lambda: ping(url), 30)
        begun = [b'', b'POST /invoc', WHOLE + b'POST', ASK, ASK + b'Content-Length: 9\r\n\r\n', WHOLE[:-1]]
        for i in range(400):
            clients.append(connect(url))
            clients[-1].settimeout(0)
            clients[-1].sendall(begun[i % len(begun)])
            if i % 40 == 39:
                assert fresh(url, 'GET', '/ping', seconds=2) == 200
                assert fresh(url, 'POST', '/invocations', b'[1]', 2) == 200

        def gone(client):
            with contextlib.suppress(BlockingIOError):
                try:
                    while client.recv(4096):
                        pass
                except ConnectionError:
                    pass
                return True

        assert not all(map(gone, clients[-100:]))
        deadline = time.monotonic() + 8
        while not all(map(gone, clients)) and time.monotonic() < deadline:
            for client in clients:
                with contextlib.suppress(OSError):
                    client.send(b' ')  # a byte now and then
            time.sleep(0.3)
        assert sum(map(gone, clients)) == 400
    finally:
        for client in clients:
            client.close()
        http.clear()
        process.terminate()
        process.communicate(timeout=20)


def test_a_reader_of_the_access_log_may_stall_or_go(start, tmp_path):
    (tmp_path / 'mine.py').write_text('def model_fn(d): pass\n')
    process, url = start(tmp_path, 'mine.py', SAGEMAKER_MODEL_SERVER_ACCESS_LOG='1')
    try:
        wait_for(lambda: ping(url), 30)
        for _ in range(1500):  # more lines than the pipe holds
            assert http.request('GET', url + '/ping', timeout=2).status == 200
        process.stdout.close()
        for _ in range(3):
            assert fresh(url, 'GET', '/ping') == 200
    finally:
        http.clear()
        process.terminate()
        process.wait(timeout=20)
