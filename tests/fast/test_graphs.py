"""Recorded training steps equal normal ones; without a GPU, Python repeats the recorded step."""

import ctypes
from types import SimpleNamespace

import chainer
import numpy as np
import pytest
from chainer.backends import cuda

import chainer_mnist_single_machine as script
from benchmarks import batches, graphs

RNG, PRODUCT = np.random.RandomState(0), graphs.product
IMAGES, LABELS = RNG.rand(640, 784).astype(np.float32), RNG.randint(0, 10, 640).astype(np.int32)


def record(step, rate):
    """Replace graphs.record() on a CPU: the recorded step changes no array, as on a GPU."""
    optimizer = step.__closure__[-1].cell_contents.optimizer
    params = list(optimizer.target.params())

    def arrays():
        return [a for p in params for a in (p.data, *p.update_rule.state.values())]

    before = [a.copy() for a in arrays()]
    with graphs.replaced(rate):
        step()
    for array, old in zip(arrays(), before):
        array[...] = old

    reporter = chainer.reporter.get_current_reporter()
    observed = dict(reporter.observation)

    def launch():
        times = optimizer.t, [p.update_rule.t for p in params]
        with graphs.replaced(rate), chainer.reporter.report_scope({}):
            step()
            for name, value in reporter.observation.items():
                observed[name].array[...] = value.array
        optimizer.t = times[0]
        for param, t in zip(params, times[1]):
            param.update_rule.t = t

    return launch


def fail(step, rate):
    raise NotImplementedError('calling cuDNN API during stream capture is currently unsupported')


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch):
    monkeypatch.setattr(graphs, 'product', np.dot)
    monkeypatch.setattr(cuda, 'cupy', SimpleNamespace(tensordot=None))
    monkeypatch.setattr(graphs, 'timed', lambda take: take() or 1)


def train(tmp_path, record=None):
    """Return the weights after two epochs, the log's losses, and the optimizer."""
    np.random.seed(0)
    model = chainer.links.Classifier(script.MLP(20))
    optimizer = chainer.optimizers.Adam().setup(model)
    if record:
        optimizer.update = graphs.Steps(optimizer, record)
    args = SimpleNamespace(augment=False, epochs=2, learning_rate=0.01, output_data_dir=str(tmp_path))
    data = chainer.datasets.TupleDataset(IMAGES, LABELS)
    trainer, _ = script.make_trainer(args, optimizer, data, data, 64, -1)
    log = chainer.training.extensions.LogReport(trigger=(1, 'iteration'))
    trainer.extend(log)
    trainer.run()
    return ([p.array for _, p in sorted(model.namedparams())], [line['main/loss'] for line in log.log], optimizer)


@pytest.mark.parametrize('record', [record, fail])
def test_recorded_steps_train_as_others_do(tmp_path, record):
    expected, losses, plain = train(tmp_path)
    weights, again, optimizer = train(tmp_path, record)
    assert bool(optimizer.update.launch) == (record is not fail)
    assert (optimizer.t, optimizer.alpha) == (plain.t, plain.alpha) == (20, 0)
    np.testing.assert_allclose(again, losses, rtol=1e-4)
    for ours, theirs in zip(weights, expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_batches_of_another_size_and_other_arrays_are_recorded_anew():
    model, recorded = chainer.links.Classifier(script.MLP(20)), []
    optimizer = chainer.optimizers.Adam().setup(model)
    optimizer.update = graphs.Steps(optimizer, lambda *args: recorded.append(1) or record(*args))
    reporter = chainer.Reporter()
    reporter.add_observer('main', model)
    with reporter:
        for size, new, expected in (64, False, 1), (32, False, 2), (32, True, 3):
            if new:
                model.predictor.l1.W.array = model.predictor.l1.W.array.copy()
            for _ in range(5):
                optimizer.update(model, IMAGES[:size], LABELS[:size])
            assert len(recorded) == expected
    assert optimizer.t == 15


def test_slow_recordings_are_left(tmp_path, monkeypatch):
    times = iter([1, 2])  # as ever, recorded
    monkeypatch.setattr(graphs, 'timed', lambda take: take() or next(times))
    expected, losses, _ = train(tmp_path)
    weights, again, optimizer = train(tmp_path, record)
    assert optimizer.update.launch is False and optimizer.t == 20
    np.testing.assert_allclose(again, losses, rtol=1e-4)
    for ours, theirs in zip(weights, expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_on_the_cpu_the_optimizer_stays_as_it_is():
    optimizer = chainer.optimizers.Adam().setup(chainer.links.Classifier(script.MLP(20)))
    update = optimizer.update
    assert graphs.recorded(optimizer) is optimizer and optimizer.update == update


class Array(np.ndarray):
    """A NumPy array with a data pointer like CuPy's."""

    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))


def sgemm(name, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """Compute C = A B for matrices stored by columns, as BLAS does."""

    def matrix(pointer, rows, columns, leading):
        flat = np.ctypeslib.as_array((ctypes.c_float * (leading * columns)).from_address(pointer.value))
        return flat.reshape(columns, leading).T[:rows]

    a = matrix(a, k, m, lda).T if op_a else matrix(a, m, k, lda)
    b = matrix(b, n, k, ldb).T if op_b else matrix(b, k, n, ldb)
    matrix(c, m, n, ldc)[...] = a @ b


@pytest.mark.parametrize('axes', [((1, 2, 3), (1, 2, 3)), ((0, 2, 3), (0, 2, 3)), (0, 0)])
def test_tensordot(axes):
    a, b = RNG.rand(3, 4, 5, 6), RNG.rand(3, 4, 5, 6)
    np.testing.assert_allclose(graphs.tensordot(a, b, axes), np.tensordot(a, b, axes))


@pytest.mark.parametrize('left', [False, True])
@pytest.mark.parametrize('right', [False, True])
@pytest.mark.parametrize('m, n, k', [(5, 3, 4), (1, 3, 4), (5, 1, 4), (5, 3, 1)])
def test_products(monkeypatch, left, right, m, n, k):
    monkeypatch.setattr(graphs, 'product', PRODUCT)
    monkeypatch.setattr(graphs, 'call', sgemm)
    fake = SimpleNamespace(empty=lambda *args: np.empty(*args).view(Array), ascontiguousarray=np.ascontiguousarray)
    monkeypatch.setattr(cuda, 'cupy', fake)
    a, b = RNG.rand(k, m).T if left else RNG.rand(m, k), RNG.rand(n, k).T if right else RNG.rand(k, n)
    a, b = (x.astype(np.float32).view(Array) for x in (a, b))  # keeps the order
    np.testing.assert_allclose(graphs.product(a, b), np.asarray(a) @ np.asarray(b), rtol=1e-5)


def a_gpu(monkeypatch, free=2**30):
    """Return a mock GPU device that keeps NumPy arrays, and the list of the shapes sent to it."""
    memory = SimpleNamespace(memGetInfo=lambda: (free, 2**40))
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=memory))
    monkeypatch.setattr(batches.cuda, 'cupy', cupy)
    monkeypatch.setattr(batches.convert, '_get_device', lambda device: device)
    sent = []
    send = lambda array: sent.append(array.shape) or array.copy()  # noqa: E731
    return SimpleNamespace(xp=cupy, device=SimpleNamespace(id=0), send=send), sent


@pytest.mark.parametrize('read_only, free, whole', [(True, 2**30, True), (False, 2**30, False), (True, 9, False)])
def test_arrays_that_cannot_change_stay_on_the_gpu(monkeypatch, read_only, free, whole):
    device, sent = a_gpu(monkeypatch, free)
    monkeypatch.setattr(batches.convert, 'to_device', lambda device, array: device.send(array))
    images, labels = IMAGES[:20].copy(), LABELS[:20].copy()
    if read_only:
        images.flags.writeable = labels.flags.writeable = False
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(images, labels), 4)
    for _ in range(3):
        examples = batches.next_batch(iterator)
        expected = [np.stack(column) for column in zip(*examples)]
        found = batches.concat_examples(chainer.dataset.concat_examples, examples, device)
        for a, b in zip(found, expected):
            np.testing.assert_array_equal(a, b)
    if whole:
        assert sorted(sent) == sorted([images.shape, labels.shape] + 3 * [(4,)])  # then the indices only
        assert len(batches.kept) == 2
    else:
        assert set(sent) == {(4, 784), (4,)}
    del iterator, images, labels, examples, expected
    assert not batches.kept


def test_a_summary_on_a_gpu_takes_one_kernel_a_value(monkeypatch):
    def elementwise(inputs, outputs, code, name):
        def kernel(value, x, x2):
            x += value
            x2 += value * value

        return kernel

    class Array(np.ndarray):
        pass

    monkeypatch.setattr(batches.cuda, 'ndarray', Array)
    monkeypatch.setattr(batches.cuda, 'elementwise', elementwise)
    summary = batches.Summary()
    one, two, three = (np.array(n, np.float32).view(Array) for n in (1, 2, 3))
    assert batches.add(summary, one) is None  # Chainer's own method runs first, as the sums are still numbers
    summary._x, summary._x2, summary._n = one.copy(), one.copy(), 1
    assert batches.add(summary, two) and batches.add(summary, three)
    assert (float(summary._x), float(summary._x2), summary._n) == (6, 14, 3)
    assert batches.add(summary, three, weight=2) is None
