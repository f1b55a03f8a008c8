"""The GPU image: what can be known of it without a GPU and, marked `gpu`, on one. `make test-gpu` builds it and runs this."""

import json
import subprocess

import numpy as np
import pytest
from test_local_mode import free_port, make_estimator, output

import chainer_mnist_single_machine as script
from local_mode.docker import docker, gpu_available, image_uri
from local_mode.session import open_session

pytestmark = pytest.mark.docker

# Every chain of attributes in Chainer's and ChainerMN's sources that starts at CuPy, resolved.
NAMES = r"""
import ast, importlib, pathlib, sys
import chainer, chainermn, cupy
from chainer.backends import cuda
from cupy import cudnn
from cupy.cuda import nccl

# Several modules where different files call different ones so.
roots = {'cupy': [cupy], 'cuda.cupy': [cupy], 'xp': [cupy], 'cudnn': [cudnn, cupy.cuda.cudnn],
         'cuda.cudnn': [cudnn, cupy.cuda.cudnn], 'libcudnn': [cupy.cuda.cudnn], 'cuda.libcudnn': [cupy.cuda.cudnn],
         'nccl': [nccl, importlib.import_module('chainermn.nccl')]}
used, missing = set(), set()

def dotted(node):
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return base and base + '.' + node.attr
    return node.id if isinstance(node, ast.Name) else None

def found(value, parts):
    for part in parts:
        if not isinstance(value, type(sys)):
            return True  # a class or a function; what it returns is not known here
        try:
            value = getattr(value, part) if hasattr(value, part) else importlib.import_module(value.__name__ + '.' + part)
        except ImportError:
            return False
    return True

for package in chainer, chainermn:
    for path in pathlib.Path(package.__file__).parent.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            name = isinstance(node, ast.Attribute) and dotted(node)
            for root, modules in roots.items() if name else ():
                if name.startswith(root + '.'):
                    used.add(name)
                    if not any([found(module, name[len(root) + 1:].split('.')) for module in modules]):
                        missing.add('{} {}:{}'.format(name, path, node.lineno))
print(len(used), 'names')
print('\n'.join(sorted(missing)))
"""


@pytest.fixture(scope='module')
def image():
    return image_uri('local_gpu')


def python(image, code, *options):
    """What this code prints in the image, in lines."""
    done = subprocess.run(
        ['docker', 'run', '--rm', '--interactive', *options, image, 'python', '-'],
        input=code,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_chainer_finds_cupy_cudnn_and_nccl(image):
    assert python(
        image,
        """
from chainer.backends import cuda
from cupy.cuda import nccl
from chainermn.communicators.pure_nccl_communicator import PureNcclCommunicator
print(cuda.available, cuda.cudnn_enabled, cuda.cupy.__version__, nccl.get_version())
""",
    ) == ['True True 13.6.0 22105']


def test_every_name_of_cupy_that_chainer_uses_is_there(image):
    found, *missing = python(image, NAMES)
    assert int(found.split()[0]) > 100 and not any(missing), missing


def test_without_a_gpu_the_image_trains_on_the_cpu(image, small_mnist, tmp_path):
    (tmp_path / 'model').mkdir()
    docker(
        'run',
        '--rm',
        '-v',
        f'{script.__file__}:/script.py:ro',
        '-v',
        f'{small_mnist}:/data:ro',
        '-v',
        f'{tmp_path}:/out',
        image,
        'python',
        '/script.py',
        '--epochs',
        '1',
        '--num-gpus',
        '0',
        '--train',
        '/data/train',
        '--test',
        '/data/test',
        '--model-dir',
        '/out/model',
        '--output-data-dir',
        '/out',
    )
    assert (tmp_path / 'model' / 'model.npz').exists()


@pytest.mark.gpu
@pytest.mark.parametrize('augment', [False, True])
def test_local_gpu_trains_and_serves(mnist, tmp_path, augment):
    """As in the notebook: after one epoch of all of MNIST the model reads as well as the CPU's."""
    assert gpu_available()
    session = open_session(embedded=True, serving_port=free_port())
    try:
        estimator = make_estimator(
            session,
            epochs=1,
            batch_size=128,
            augment=augment,
            options=dict(instance_type='local_gpu', image_uri=image_uri('local_gpu')),
        )
        estimator.fit(
            {name: session.upload_data(str(mnist / name), key_prefix=name) for name in ('train', 'test')}
        )
        with output(estimator, tmp_path) as tar:
            assert json.load(tar.extractfile('data/log'))[-1]['validation/main/accuracy'] > 0.965
        predictor = estimator.deploy(1, 'local_gpu')
        with np.load(mnist / 'test' / 'test.npz') as test:
            assert (
                predictor.predict(test['images'][:1000]).argmax(axis=1) == test['labels'][:1000]
            ).mean() > 0.95
    finally:
        session.close()
