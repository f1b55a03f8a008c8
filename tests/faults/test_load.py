"""An endpoint stands long load, killed workers, a stop, overload, and slow and endless clients."""

import asyncio
import contextlib
import http.client
import socket
import threading
import time

import numpy as np
from support import docker, load, npy, wait_for

SECONDS, CLIENTS = 120, 64


class Load:
    """Keep-alive clients, each in a thread with its own image, which send requests and check the answers.

    Every tenth request of each client is broken, which must not affect the others in its batch.
    """

    def __init__(self, served, clients=CLIENTS):
        self.served, self.stopping = served, threading.Event()
        self.answered, self.errors = [], []
        images = np.random.RandomState(0).rand(clients, 1, 784).astype(np.float32)
        bodies = [npy(image) for image in images]
        alone, connection = [], served.connect()
        for body in bodies:
            alone.append(load(served.post(connection, body)[1]))
        self.threads = [threading.Thread(target=self.run, args=request) for request in zip(bodies, alone)]

    def run(self, body, expected):
        connection, answered = self.served.connect(), 0
        while not self.stopping.is_set():
            try:
                if answered % 10 == 0:
                    assert self.served.post(connection, body[:-1])[0] == 400
                start = time.monotonic()
                status, answer = self.served.post(connection, body)
                assert status == 200, (status, answer)
                np.testing.assert_allclose(load(answer), expected, rtol=1e-5, atol=1e-5)
                answered += 1
                self.answered.append((time.monotonic(), time.monotonic() - start))
            except (OSError, http.client.HTTPException, AssertionError) as e:
                self.errors.append((time.monotonic(), repr(e)))
                connection.close()
                connection = self.served.connect()
                time.sleep(0.05)

    def __str__(self):
        return f'{len(self.answered):,} answers, {len(self.errors)} errors'

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join()


def test_two_minutes_of_load(served, report):
    with Load(served) as clients:
        time.sleep(SECONDS / 6)
        with served.same() as memory:
            time.sleep(SECONDS * 5 / 6)
    p99 = 1000 * np.percentile([s for _, s in clients.answered], 99)
    report(
        f'load: {CLIENTS} clients for {SECONDS} s: {clients}, p99 {p99:.0f} ms; '
        f'memory {memory[0]:.0f} -> {memory[1]:.0f} MB'
    )
    assert not clients.errors and len(clients.answered) > 10000


def test_killed_workers_under_load(endpoint, rng, report):
    """A killed worker loses at most the requests that it held; a new worker replaces it."""
    with endpoint() as served:
        with Load(served) as clients:
            for _ in range(5):
                time.sleep(2 + rng.random())
                pids = served.processes()
                docker(f'exec {served.name} kill -9 {max(pids)}')

                def replaced(pids=pids):
                    now = served.processes()
                    return len(now) >= len(pids) and max(now) != max(pids)

                wait_for(replaced, 20)
            killed = time.monotonic()
            time.sleep(4)
        report(f'5 workers killed under load of {CLIENTS} clients: {clients}')
        assert len(clients.errors) <= 5 * CLIENTS and not any('(5' in error for _, error in clients.errors)
        assert not [t for t, _ in clients.errors if t > killed + 2]
        assert [t for t, _ in clients.answered if t > killed + 2]


def test_a_stop_under_load(endpoint, report):
    """After SIGTERM, running requests get answers, and the container exits with 0 within 5 s."""
    with endpoint() as served:
        with Load(served) as clients:
            time.sleep(3)
            start = time.monotonic()
            docker(f'kill --signal TERM {served.name}')
            code = docker(f'wait {served.name}').strip()
            seconds = time.monotonic() - start
        cut = [error for _, error in clients.errors if 'IncompleteRead' in error or 'AssertionError' in error]
        report(f'SIGTERM under load: ended with {code} after {seconds:.1f} s, {len(cut)} answers cut off')
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


def test_beyond_capacity_it_sheds(endpoint, tmp_path, report):
    """Requests beyond the capacity get 503 at once, and the server goes on."""
    tmp_path.chmod(0o755)
    (tmp_path / 'slow.py').write_text(SLOW)
    request = b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello'

    async def ask(served):
        reader, writer = await asyncio.open_connection('127.0.0.1', served.port)
        writer.write(request)
        await writer.drain()
        start = time.monotonic()
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return int(answer.split()[1]), answer.endswith(b'hello'), time.monotonic() - start

    async def crowd(served):
        return await asyncio.gather(*[ask(served) for _ in range(1200)])

    with endpoint(tmp_path, 'slow.py') as served:
        with served.same(spare=float('inf')) as memory:
            answers = asyncio.run(crowd(served))
        counts = {status: sum(s == status for s, _, _ in answers) for status, _, _ in answers}
        slowest = max(s for status, _, s in answers if status == 503)
        report(
            f'1,200 requests at once on a slow model: {counts}; the slowest 503 after {slowest:.1f} s; '
            f'memory {memory[0]:.0f} -> {memory[1]:.0f} MB'
        )
        assert set(counts) == {200, 503} and counts[200] >= 256
        assert all(echoed == (status == 200) for status, echoed, _ in answers)
        assert served.post(served.connect(), b'hello')[0] == 200


def test_oversize_endless_and_slow_requests(served, report):
    """Endless bodies are cut off; slow clients delay nobody; the memory is freed."""
    start = b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n'
    slow, statuses = [], []
    with served.same(spare=60) as memory:  # a freed body may stay in a heap
        for i in range(40):
            client = socket.create_connection(('127.0.0.1', served.port), timeout=60)
            client.sendall(start + b'Content-Length: 1000\r\n\r\n' if i % 2 else b'POST /invoc')
            slow.append(client)
        for _ in range(5):
            oversize = start + b'Content-Length: 70000000\r\n\r\n' + b'1,' * 35000000
            statuses.append(served.send(oversize)[0])
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
    report('endless, oversize and slow bodies: answers {}; memory {:.0f} -> {:.0f} MB'.format(statuses, *memory))
    assert 413 in statuses and set(statuses) <= {413, 0}  # 0: closed while the client was sending
