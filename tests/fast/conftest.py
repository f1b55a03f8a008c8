"""These fixtures start the server without Docker, good and bad mirrors of MNIST, and an empty cache."""

import contextlib
import gzip
import http.server
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time

import chainer
import numpy as np
import pytest
from local_mode import mnist
from support import SCRIPT, SERVER, free_port, load, ping, wait_for
from support import http as pool

import chainer_mnist_single_machine as script


class Mirror(http.server.BaseHTTPRequestHandler):
    """A mock of many mirrors: the first part of the path selects the behaviour."""

    def do_GET(self):
        _, mode, name = self.path.split('/')
        self.server.requests.append((mode, name))
        body, length = self.server.bodies[name], None
        if mode == 'missing':
            return self.send_error(404)
        if mode == 'silent':
            return self.server.over.wait(60)
        if mode == 'wrong':
            body = self.server.bodies['t10k-labels-idx1-ubyte.gz']
        elif mode == 'half':
            body = body[: len(body) // 2]
        elif mode == 'long':
            body = gzip.compress(gzip.decompress(body) + b'x', 1)
        elif mode == 'bomb':
            body = self.server.bodies['bomb']
        elif mode == 'page':
            body = b'<html>Please log in</html>'
        elif mode == 'damaged':
            body = body[:5000] + bytes(1000) + body[6000:]
        elif mode in ('short', 'dropped', 'stalled'):
            length, body = len(body), body[:20000]
        self.send_response(200)
        if mode != 'chunked':  # else without a length: the body ends with the connection
            self.send_header('Content-Length', str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)
        if mode == 'dropped':
            time.sleep(0.1)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            self.rfile.close()
            self.wfile.close()
            self.connection.close()
        elif mode == 'stalled':
            self.server.over.wait(60)

    def finish(self):
        if not self.wfile.closed:
            super().finish()

    def log_message(self, *args):
        pass


@pytest.fixture(scope='session')
def server():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Mirror)
    server.handle_error = lambda *args: None  # clients go away, on purpose
    server.requests, server.over = [], threading.Event()
    mnist.fill_cache()  # this user's, from anywhere
    server.bodies = {'bomb': gzip.compress(bytes(256 << 20), 1)}
    for npz, names in mnist.FILES.items():
        arrays = load(os.path.join(chainer.dataset.get_dataset_root(), 'pfnet/chainer/mnist', npz))
        for name, key in zip(names, 'xy'):
            server.bodies[f'{name}.gz'] = gzip.compress(mnist._to_idx(arrays[key]), 1)
    server.url = f'http://127.0.0.1:{server.server_port}/'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='session')
def filled(server, tmp_path_factory):
    """Return a folder with the right files of MNIST."""
    folder = tmp_path_factory.mktemp('filled')
    idx = {name: gzip.decompress(server.bodies[f'{name}.gz']) for name in mnist.IDX}
    for npz, (images, labels) in mnist.FILES.items():
        np.savez(
            folder / npz,
            x=np.frombuffer(idx[images], np.uint8)[16:].reshape(-1, 784),
            y=np.frombuffer(idx[labels], np.uint8)[8:],
        )
    yield folder
    shutil.rmtree(folder)  # pytest would keep it


@pytest.fixture
def cache(server, tmp_path, monkeypatch):
    """Return the folder of an empty cache."""
    server.requests.clear()
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.setenv(name, f'127.0.0.1,{os.environ.get(name, "")}')
    root = chainer.dataset.get_dataset_root()
    chainer.dataset.set_dataset_root(str(tmp_path / 'root'))
    monkeypatch.setenv('CHAINER_DATASET_ROOT', str(tmp_path / 'root'))  # other processes'
    yield tmp_path / 'root' / 'pfnet' / 'chainer' / 'mnist'
    chainer.dataset.set_dataset_root(root)
    shutil.rmtree(tmp_path / 'root', ignore_errors=True)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Return an empty folder, which is the only place where pip looks for wheels."""
    folder = tmp_path / 'index'
    folder.mkdir()
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(folder))
    return folder


@pytest.fixture
def mirrors(server, monkeypatch):
    return lambda *modes: monkeypatch.setattr(mnist, 'MIRRORS', [f'{server.url}{mode}/' for mode in modes])


@pytest.fixture
def only_test_missing(cache, filled):
    """Put the training half into the cache, so that only the small test half is fetched."""
    cache.mkdir(parents=True)
    os.link(filled / 'train.npz', cache / 'train.npz')


@pytest.fixture(scope='session')
def start():
    """Return a function that starts `serve` like the container's entry point, on loopback: (process, URL)."""

    def start(code, program, model_dir=None, workers=1, port=None, **env):
        variables = {
            'SAGEMAKER_SUBMIT_DIRECTORY': str(code),
            'SAGEMAKER_PROGRAM': program,
            'SM_MODEL_DIR': str(model_dir or code),
            'SAGEMAKER_MODEL_SERVER_WORKERS': str(workers),
            'PYTHONPATH': str(SERVER),
        }
        address = f'127.0.0.1:{port or free_port()}'
        command = [sys.executable, '-m', 'gunicorn', '-c', f'{SERVER}/gunicorn.conf.py', '--bind', address]
        streams = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        process = subprocess.Popen(command, env=os.environ | variables | env, **streams)
        return process, 'http://' + address

    return start


@pytest.fixture(scope='session')
def serving(start):
    """Return a context manager that runs a server and yields its URL; its output is added to the list `log`."""

    @contextlib.contextmanager
    def serving(*args, log=None, **kwargs):
        process, url = start(*args, **kwargs)
        try:
            wait_for(lambda: ping(url) or process.poll() is not None, 30)
            assert process.poll() is None, process.stdout.read()
            yield url
        finally:
            pool.clear()
            process.terminate()
            output, _ = process.communicate(timeout=20)
            if log is not None:
                log.append(output)

    return serving


@pytest.fixture(scope='session')
def connect():
    """Return a function that opens a connection to a URL's server."""
    return lambda url: socket.create_connection(('127.0.0.1', int(url.rsplit(':')[-1])), timeout=30)


@pytest.fixture(scope='session')
def model(tmp_path_factory):
    """Return a directory with an untrained model."""
    directory = tmp_path_factory.mktemp('model')
    chainer.serializers.save_npz(directory / 'model.npz', chainer.links.Classifier(script.MLP()))
    return directory


@pytest.fixture(scope='session')
def url(serving, code, model):
    with serving(code, SCRIPT.name, model) as url:
        yield url


@pytest.fixture(scope='session')
def images():
    return np.random.RandomState(0).rand(3, 784).astype(np.float32)
