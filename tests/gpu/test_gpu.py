"""The GPU image works as far as a machine without a GPU can test it; tests marked `gpu` need one."""

import json

import pytest
from local_mode.docker import gpu_available
from support import SCRIPT, arguments, docker, image_uri, load, make_estimator, output, run

IMAGE = image_uri('local_gpu')

# Every chain of attributes in Chainer's and ChainerMN's sources that starts at CuPy, resolved.
NAMES = r"""
import ast, importlib, pathlib, sys
import chainer, chainermn, cupy
from chainer.backends import cuda
from cupy import cudnn
from cupy.cuda import nccl

# Several modules where different files call different ones so.
roots = dict.fromkeys(['cupy', 'cuda.cupy', 'xp'], [cupy])
roots.update(dict.fromkeys(['cudnn', 'cuda.cudnn'], [cudnn, cupy.cuda.cudnn]))
roots.update(dict.fromkeys(['libcudnn', 'cuda.libcudnn'], [cupy.cuda.cudnn]))
roots['nccl'] = [nccl, importlib.import_module('chainermn.nccl')]
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
            module = value.__name__ + '.' + part
            value = getattr(value, part) if hasattr(value, part) else importlib.import_module(module)
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


def python(code):
    """Run code in the image; return its output, in lines."""
    done = run(*f'docker run --rm --interactive {IMAGE} python -'.split(), input=code)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


VERSIONS = """
from chainer.backends import cuda
from cupy.cuda import nccl
from chainermn.communicators.pure_nccl_communicator import PureNcclCommunicator
print(cuda.available, cuda.cudnn_enabled, cuda.cupy.__version__, nccl.get_version())
"""


def test_chainer_finds_cupy_cudnn_and_nccl():
    assert python(VERSIONS) == ['True True 13.6.0 22105']


def test_every_name_of_cupy_that_chainer_uses_is_there():
    found, *missing = python(NAMES)
    assert int(found.split()[0]) > 100 and not any(missing), missing


def test_without_a_gpu_the_image_trains_on_the_cpu(code, small_mnist, tmp_path):
    mounts = f'-v {code}:/code:ro -v {small_mnist}:/data:ro -v {tmp_path}:/out'
    docker(f'run --rm {mounts} {IMAGE} python /code/{SCRIPT.name}', *arguments('/data', '/out', '--epochs 1'))
    assert (tmp_path / 'model.npz').exists()


@pytest.fixture(scope='module')
def data(mnist):
    return mnist


@pytest.mark.gpu
@pytest.mark.parametrize('augment', [0, 0.5])
def test_local_gpu_trains_and_serves(session, inputs, mnist, augment):
    """After one epoch on all of MNIST, as in the notebook, the model is as accurate as the CPU's."""
    assert gpu_available()
    options = dict(instance_type='local_gpu', image_uri=IMAGE)
    estimator = make_estimator(session, options=options, epochs=1, batch_size=128, augment=augment)
    estimator.fit(inputs)
    with output(estimator) as tar:
        assert json.load(tar.extractfile('data/log'))[-1]['validation/main/accuracy'] > 0.965
    predictor = estimator.deploy(1, 'local_gpu')
    try:
        test = load(mnist / 'test' / 'test.npz')
        read = predictor.predict(test['images'][:1000]).argmax(axis=1)
        assert (read == test['labels'][:1000]).mean() > 0.95
    finally:
        predictor.delete_endpoint()
