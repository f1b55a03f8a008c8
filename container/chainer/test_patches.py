"""Each patch has a test here that fails without it. `make test-chainer` runs Chainer's own suite."""

import importlib.util
import io
import json
import pickle
import struct
import subprocess
import sys
import unittest
import zipfile

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import onnx_chainer
import onnxruntime
import pytest
from chainer import testing
from local_mode.docker import docker, image_uri
from support import Canary

import chainer_mnist_single_machine as script


def in_image(code, *command):
    return docker('run', '--rm', image_uri('local'), *command, 'python', '-W', 'ignore', '-c', code)


def test_numpy_sctypes():
    x = chainer.Variable(np.arange(4, dtype=np.float32))
    F.sum(F.as_strided(x, (2, 2), (1, 1), 0)).backward()
    np.testing.assert_array_equal(x.grad, [1, 2, 1, 0])


def test_no_pkg_resources():
    code = 'import sys, chainer.testing.doctest_helper; print("pkg_resources" in sys.modules)'
    assert subprocess.check_output([sys.executable, '-c', code], text=True) == 'False\n'
    assert importlib.util.find_spec('chainer._environment_check') is None
    for requirement, met in ('numpy>=2', True), ('numpy<2', False), ('no-such-package', False):
        for decorate, skips in (testing.with_requires, not met), (testing.without_requires, met):

            class Case(unittest.TestCase):
                pass

            assert getattr(decorate(requirement)(Case), '__unittest_skip__', False) == skips


def test_resize_images():
    image = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(F.resize_images(image, (3, 3)).array[0, 0], [[0, 0.5, 1], [1, 1.5, 2], [2, 2.5, 3]])


def test_categorical():
    p = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    log_prob = chainer.distributions.Categorical(p=p).log_prob(np.array([1, 0]))
    np.testing.assert_allclose(log_prob.array, np.log([0.75, 0.5]), rtol=1e-6)


@pytest.mark.docker
def test_sparse_matmul():
    assert (
        in_image("""
import chainer, numpy as np
dense = np.array([[1, 0], [0, 2]], np.float16)
y = chainer.functions.sparse_matmul(chainer.utils.to_coo(dense), dense)
print(y.dtype, y.array.tolist())
""")
        == 'float16 [[1.0, 0.0], [0.0, 4.0]]\n'
    )


@pytest.mark.parametrize('dtype', [np.uint8, np.uint64, np.int8, np.float32])
def test_pad_sequence(dtype):
    y = F.pad_sequence([np.array([1, 2], dtype), np.array([3], dtype)], padding=-1)
    np.testing.assert_array_equal(y.array, np.array([[1, 2], [3, -1]]).astype(dtype))


@pytest.mark.parametrize('dtype', [np.uint8, np.int32])
@pytest.mark.parametrize('padding', [np.nan, np.inf, 1e10, 1 << 32])
def test_pad_sequence_as_assignment(dtype, padding):
    """F.pad_sequence refuses a padding that the dtype cannot hold."""
    with pytest.raises((ValueError, OverflowError)):
        F.pad_sequence([np.array([1, 2], dtype), np.array([3], dtype)], padding=padding)


def test_debug_print():
    assert 'device: CPU' in chainer.Variable(np.ones(3, np.float32)).debug_print()


@pytest.mark.docker
def test_multi_node_iterator():
    """Without the patch one process failed, and the other waited."""
    assert (
        in_image(
            """
import chainer, chainermn, numpy as np
comm = chainermn.create_communicator('naive')
images, labels = np.arange(8, dtype=np.float32).reshape(4, 2), np.arange(4, dtype=np.int32)
data = chainer.datasets.TupleDataset(images, labels)
iterator = chainer.iterators.SerialIterator(data, 2, shuffle=False)
iterator = chainermn.iterators.create_multi_node_iterator(iterator, comm)
batches = comm.mpi_comm.gather([(image.tolist(), int(label)) for image, label in iterator.next()])
if comm.rank == 0:
    print(batches[0] == batches[1] == [([0.0, 1.0], 0), ([2.0, 3.0], 1)])
""",
            'timeout',
            '60',
            'mpirun',
            '--allow-run-as-root',
            '--oversubscribe',
            '-n',
            '2',
        )
        == 'True\n'
    )


@pytest.mark.filterwarnings('error')
def test_deprecations():
    np.testing.assert_array_equal(F.fix(np.array([-1.5, 1.5], np.float32)).array, [-1, 1])
    link = chainer.links.Maxout(
        2, 3, 4, initialW=lambda array: array.fill(len(array)), initial_bias=lambda array: array.fill(0)
    )
    assert link.linear.W.shape == (12, 2) and (link.linear.W.array == 3).all()
    padded = chainer.dataset.concat_examples([np.zeros(2, np.float32), np.ones(3, np.float32)], padding=7)
    np.testing.assert_array_equal(padded, [[0, 0, 7], [1, 1, 1]])
    iterator = chainer.iterators.MultiprocessIterator(list(range(4)), 2, n_processes=1, shuffle=False)
    try:
        assert iterator.next() == [0, 1]
    finally:
        iterator.finalize()


@pytest.mark.docker
def test_observation_aggregator():
    assert (
        in_image("""
import types, chainer, chainermn, numpy as np
trainer = types.SimpleNamespace(observation={'loss': chainer.Variable(np.array(3, np.float32))})
comm = chainermn.create_communicator('naive')
chainermn.extensions.ObservationAggregator(comm, 'loss', 'mean', comm_trigger=lambda trainer: True)(trainer)
print(trainer.observation['mean'].array)
""")
        == '3.0\n'
    )


def test_chainer_fast():
    code = 'import sys, chainer; print("ideep4py" in sys.modules, chainer.config.use_ideep)'
    assert subprocess.check_output([sys.executable, '-c', code], text=True) == 'True auto\n'
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    for pooling in F.max_pooling_2d, F.average_pooling_2d:
        v = chainer.Variable(x)
        with chainer.using_config('use_ideep', 'never'):
            y = pooling(v, 2)
        F.sum(y).backward()
        assert v.grad.sum() == 4
    x = np.random.RandomState(0).rand(4, 3, 2, 3).astype(np.float32)
    y = F.batch_normalization(x, np.ones(3, np.float32), np.zeros(3, np.float32), axis=(0, 1, 2))
    np.testing.assert_allclose(y.array.mean((0, 1, 2)), 0, atol=1e-6)
    marked = chainer.backends.intel64.ideep.array(x)
    assert type(chainer.backend.get_device_from_array(marked)) is chainer.backend.Intel64Device
    assert type(chainer.get_device('@numpy').send(marked)) is np.ndarray


def test_no_pickles(tmp_path):
    """A pickle among or instead of a file's arrays runs no code; but None is one, and is loaded."""
    link, path = chainer.links.Linear(None, 2), tmp_path / 'a.npz'
    chainer.serializers.save_npz(path, link)
    chainer.serializers.load_npz(path, link)
    assert link.W.array is None
    for value in [Canary(tmp_path / 'ran')], Canary(tmp_path / 'ran'), [None], 'any', {'a': 1}:
        np.savez(path, W=np.ones((2, 2)), b=np.array(value, object))
        with pytest.raises(ValueError, match='pickle'):
            chainer.serializers.load_npz(path, link)
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(ValueError, match='pickle'):
            chainer.serializers.load_npz(path, link)
    assert not (tmp_path / 'ran').exists()


def test_no_pickles_that_reserve_memory(tmp_path):
    """pickle's Unpickler in C makes room for as many objects as the highest index in a pickle says."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {'descr': '|O', 'fortran_order': False, 'shape': ()})
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        archive.writestr('b.npy', header.getvalue() + b'\x80\2Nr\xff\xff\xff\7.')
    code = """import chainer, numpy, resource, sys
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    chainer.serializers.NpzDeserializer(numpy.load(sys.argv[1]))('b', numpy.ones(1))
except ValueError:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"""
    assert int(subprocess.check_output([sys.executable, '-c', code, tmp_path / 'a.npz'])) < 100  # MB


@pytest.mark.parametrize('protocol', [2, 3, 4])
@pytest.mark.parametrize('module', [b'numpy._core.multiarray', b'numpy.core.multiarray'])
def test_no_pickles_but_none_of_any_version(tmp_path, protocol, module):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {'descr': '|O', 'fortran_order': False, 'shape': ()})
    written = pickle.dumps(np.array(None), protocol)
    assert b'numpy._core.multiarray' in written
    text = len(b'numpy._core.multiarray'), len(module)  # in protocol 4 a text has its length, as has all of it
    written = written.replace(b'\x8c%c' % text[0], b'\x8c%c' % text[1]).replace(b'numpy._core.multiarray', module)
    if protocol == 4:
        written = written[:3] + struct.pack('<Q', len(written) - 11) + written[11:]
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        archive.writestr('b.npy', stream.getvalue() + written)
    with np.load(tmp_path / 'a.npz') as npz:
        assert chainer.serializers.NpzDeserializer(npz)('b', np.ones(1)) is None


WORKERS = """
import json, multiprocessing, os, sys, threading, time
import numpy as np
from chainer import iterators


class Odd(Exception):
    def __init__(self, a, b):  # pickle makes no such exception again
        super().__init__(f'{a}{b}')


class Data:
    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if i == 5:
            self.bad()
        return np.full(10, i, np.float32), i


def bad_value():
    raise ValueError('bad example')

def bad_exit():
    sys.exit('bad exit')

def odd():
    raise Odd('bad ', 'oddity')

def killed():
    os.kill(os.getpid(), 9)

def left():
    os._exit(3)


def try_to(function):
    try:
        return [int(i) for _, i in function()]
    except BaseException as e:
        return [type(e).__name__, str(e), str(e.__cause__)]


def results(bad, kind, options):
    iterator = getattr(iterators, kind)(Data(globals()[bad]), 4, shuffle=False, **options)
    batches = [try_to(iterator.next) for _ in range(3)]
    iterator.reset()
    batches.append(try_to(iterator.next))
    began = time.monotonic()
    iterator.finalize()
    assert time.monotonic() - began < 5 and not multiprocessing.active_children()
    return batches


if __name__ == '__main__':
    start, *cases = json.loads(sys.argv[1])
    multiprocessing.set_start_method(start)
    print(json.dumps([results(*case) for case in cases]))
"""
PROCESSES, THREADS = 'MultiprocessIterator', 'MultithreadIterator'
RAISED = [
    ('fork', 'bad_value', PROCESSES, {'n_processes': 1, 'shared_mem': 99}, 'ValueError', 'bad example'),
    ('fork', 'bad_value', PROCESSES, {'n_processes': 3, 'maxtasksperchild': 1}, 'ValueError', 'bad example'),
    ('fork', 'bad_value', THREADS, {'n_threads': 2}, 'ValueError', 'bad example'),
    ('fork', 'bad_exit', PROCESSES, {'n_processes': 2}, 'SystemExit', 'bad exit'),
    ('fork', 'bad_exit', THREADS, {'n_threads': 2}, 'RuntimeError', "SystemExit('bad exit')"),
    ('fork', 'odd', PROCESSES, {'n_processes': 2}, 'RuntimeError', 'Odd: bad oddity'),
    ('spawn', 'bad_value', PROCESSES, {'n_processes': 2, 'n_prefetch': 3}, 'ValueError', 'bad example'),
]
ENDED = [
    ('fork', 'killed', PROCESSES, {'n_processes': 1, 'shared_mem': 99}, -9),
    ('fork', 'killed', PROCESSES, {'n_processes': 2, 'n_prefetch': 3}, -9),
    ('fork', 'left', PROCESSES, {'n_processes': 3}, 3),
    ('spawn', 'killed', PROCESSES, {'n_processes': 2, 'shared_mem': 99}, -9),
]


@pytest.mark.parametrize('start', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_iterator_workers(tmp_path, start):
    """Of an iterator whose sixth example is bad, this tests three batches, and one after a reset."""
    (tmp_path / 'main.py').write_text(WORKERS)
    raised, ended = ([case for case in cases if case[0] == start] for cases in (RAISED, ENDED))
    words = json.dumps([start, *[case[1:4] for case in raised + ended]])
    python = [sys.executable, '-W', 'ignore']
    results = json.loads(subprocess.check_output([*python, tmp_path / 'main.py', words], timeout=60))
    for (*_, kind, message), (first, error, third, again) in zip(raised, results):
        assert first == third == again == [0, 1, 2, 3]
        assert error[0] == kind and message in error[1]
    for (*_, code), (first, *errors) in zip(ended, results[len(raised) :]):
        assert first == [0, 1, 2, 3]
        for kind, message, _ in errors:
            assert kind == 'RuntimeError' and f'exit code {code}' in message and 'memory' in message
    assert "raise ValueError('bad example')" in results[0][1][2]  # the cause: the worker's traceback


def test_iterator_workers_end_with_the_main_process():
    """A worker that stays would keep the pipe open at whose end a job waits."""
    code = """import os
from chainer import iterators
iterator = iterators.MultiprocessIterator([1, 2, 3], 1, n_processes=3)
iterator.next()
os.kill(os.getpid(), 9)"""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], stdout=subprocess.PIPE, timeout=10)
    assert done.returncode == -9


def test_iterator_workers_first_batch():
    """The first batch is fetched in the main process, which measures it."""
    data = chainer.datasets.TransformDataset([1, 2], lambda x: int('bad example'))
    iterator = chainer.iterators.MultiprocessIterator(data, 2, n_processes=1)
    with pytest.raises(ValueError, match='bad example'):
        iterator.next()
    iterator.finalize()


class CNN(chainer.Sequential):
    def __init__(self):
        super().__init__(
            lambda x: F.reshape(x, (-1, 1, 28, 28)),
            *[L.Convolution2D(1, 4, 5), L.BatchNormalization(4), F.relu, lambda x: F.max_pooling_2d(x, 2)],
            *[L.Linear(4 * 12 * 12, 10), L.BatchNormalization(10)],
        )


class Mixed(chainer.Chain):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.one, self.two = (
                L.Convolution2D(1, 4, 3, 2, 1, groups=1),
                L.Convolution2D(4, 8, 3, pad=2, dilate=2, groups=2),
            )
            self.back, self.out = L.Deconvolution2D(8, 4, 4, 2, 1), L.Linear(5 * 28 * 28, 10)

    def forward(self, x):
        half = F.leaky_relu(self.one(F.reshape(x, (-1, 1, 28, 28))))
        half = F.local_response_normalization(F.average_pooling_2d(F.tanh(self.two(half)), 3, 1, 1))
        whole = F.elu(F.dropout(self.back(half)))
        both = F.concat([whole, F.depth2space(F.max_pooling_2d(whole, 2), 2)])
        return F.softmax(self.out(both * 2 - F.mean(both)))


@pytest.mark.parametrize('model', [script.MLP(50), CNN(), Mixed()], ids=lambda model: type(model).__name__)
def test_onnx(tmp_path, model):
    """The numbers differ by rounding, for other images and another number of them than in the export."""
    x = np.random.RandomState(0).rand(7, 784).astype(np.float32)
    with chainer.using_config('train', True):
        model(x)  # which changes batch normalisation's mean and variance
    path = str(tmp_path / 'model.onnx')
    onnx_chainer.export(model, x[:1], path, input_names=['x'], input_shapes=[('n', 784)], no_testcase=True)
    with chainer.using_config('train', False):
        expected = model(x).array
    (found,) = onnxruntime.InferenceSession(path).run(None, {'x': x})
    assert found.dtype == np.float32 and np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def lstm(x, h, c, w, b):
    """Return the states of one direction of one layer, step by step, in float64."""
    states = []
    for row in x.astype(np.float64):
        i, f, a, o = [w[k] @ row + w[k + 4] @ h + b[k] + b[k + 4] for k in range(4)]
        i, f, o = [1 / (1 + np.exp(-v)) for v in (i, f, o)]
        c = f * c + i * np.tanh(a)
        h = o * np.tanh(c)
        states.append(h)
    return np.array(states), c


@pytest.mark.parametrize('ideep', ['never', 'auto'])
@pytest.mark.parametrize('lengths', [(4,), (1, 3, 2), (2, 5, 5)])
def test_recurrent_layers(ideep, lengths):
    rng = np.random.RandomState(0)
    link = L.NStepBiLSTM(1, 7, 5, 0)
    for p in link.params():
        p.array[...] = rng.randn(*p.shape)
    h, c = rng.randn(2, 2, len(lengths), 5).astype(np.float32)
    xs = [rng.randn(n, 7).astype(np.float32) for n in lengths]
    with chainer.using_config('use_ideep', ideep):
        hy, cy, ys = link(chainer.Variable(h), chainer.Variable(c), [*map(chainer.Variable, xs)])
    for direction, (w, b) in enumerate(zip(link.ws, link.bs)):
        arrays = [v.array for v in w], [v.array for v in b]
        for k, x in enumerate(xs):
            forward = slice(None, None, -1 if direction else 1)
            states, last = lstm(x[forward], h[direction, k], c[direction, k], *arrays)
            units = slice(5 * direction, 5 * direction + 5)
            np.testing.assert_allclose(ys[k].array[forward, units], states, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(hy.array[direction, k], states[-1], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(cy.array[direction, k], last, rtol=1e-4, atol=1e-5)


def test_recurrent_layers_join_the_weights_once():
    """A step took longer to join the weights than to multiply by them."""
    hook = chainer.function_hooks.TimerHook()
    for link in L.NStepLSTM(1, 7, 5, 0), L.NStepGRU(1, 7, 5, 0), L.NStepRNNTanh(1, 7, 5, 0):
        counts = []
        for n in 3, 30:
            with hook, chainer.using_config('use_ideep', 'never'):
                link(*[None] * link.n_cells, [np.zeros((n, 7), np.float32)])
            counts.append([name for name, _ in hook.call_history if name in ('Stack', 'Concat')])
            hook.call_history.clear()
        assert counts[0] == counts[1]


def test_onnx_is_not_there():
    code = 'import sys; sys.modules["onnx"] = None; import onnx_chainer; onnx_chainer.export(None, None)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stderr.endswith('pip install onnx\n')
