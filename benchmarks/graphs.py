"""This module records training steps on a GPU as CUDA graphs, so that Python launches a step as a whole."""

import contextlib
import ctypes
import time

import chainer
import numpy as np
from chainer.backends import cuda
from chainer.functions.connection import linear
from chainer.optimizers import adam


def recorded(optimizer):
    """Return the optimizer; if it is Adam with a model on a GPU, its update() records and replays steps.

    The forward pass must depend on nothing but the batch and the parameters. If CuPy cannot record a step
    (dropout: cuRAND), or the recorded step is slower (large batches through convolutions, which are
    recorded without cuDNN), training runs unrecorded.
    """
    on_gpu = isinstance(next(optimizer.target.params()).data, cuda.ndarray)
    if type(optimizer) is adam.Adam and on_gpu and hasattr(cuda.Stream, 'begin_capture'):
        optimizer.update = Steps(optimizer, record)
    return optimizer


class Steps:
    """Replaces an optimizer's update(): records a step and replays it for each batch of the same shape."""

    def __init__(self, optimizer, record):
        self.optimizer, self.update, self.record, self.like = optimizer, optimizer.update, record, None
        self.params = list(optimizer.target.params())

    def __call__(self, loss=None, *arrays, **named):
        if loss is None or named:
            return self.update(loss, *arrays, **named)
        like = [loss, chainer.config.train] + [(a.shape, a.dtype) for a in arrays]
        like += [id(param.data) for param in self.params]
        if like != self.like:
            self.like, self.taken, self.launch = like, 0, None
        self.taken += 1
        if self.taken == 1 or self.launch is False or chainer.config.debug:
            self.update(loss, *arrays)  # the first step checks types and allocates Adam's moments
        elif self.taken == 2:
            with chainer.using_config('type_check', False):
                self.seconds = timed(lambda: self.update(loss, *arrays))
        elif self.launch is None:
            self.begin(loss, arrays)
        else:
            self.optimizer.t += 1
            for param in self.params:
                param.update_rule.t += 1
            self.replay(arrays)

    def begin(self, loss, arrays):
        """Record a step and replay it for this batch; keep the recording only if it is faster."""
        xp = cuda.get_array_module(*arrays)
        self.inputs, self.rate = [a.copy() for a in arrays], xp.zeros((), np.float32)
        t, reporter = self.optimizer.t, chainer.reporter.get_current_reporter()
        try:
            self.launch = self.record(lambda: self.update(loss, *self.inputs), self.rate)
        except Exception:  # CuPy raises various exceptions for a step that it cannot record
            if self.optimizer.t != t:
                raise
            self.launch = False
            self.update(loss, *arrays)
        else:
            self.observed = dict(reporter.observation)
            if timed(lambda: self.replay(arrays)) > self.seconds:
                self.launch = False

    def replay(self, arrays):
        """Launch the recorded step for a batch; arrays: as in the recording."""
        for mine, array in zip(self.inputs, arrays):
            mine[...] = array
        self.rate.fill(self.optimizer.alpha_t)
        self.launch()
        chainer.reporter.get_current_reporter().observation.update(self.observed)


def timed(take):
    """Return the seconds that take() takes, including its work on the GPU."""
    cuda.Stream.null.synchronize()
    start = time.perf_counter()
    take()
    cuda.Stream.null.synchronize()
    return time.perf_counter() - start


def record(step, rate):
    """Record step() without running it; return a function that launches its kernels.

    rate: an array of shape (), from which the launched kernels read Adam's learning rate.
    """
    cupy, stream = cuda.cupy, cuda.Stream(non_blocking=True)
    pool = cupy.cuda.MemoryPool()  # nothing but the graph may use this memory
    with replaced(rate), stream, cupy.cuda.using_allocator(pool.malloc):
        space = cupy.empty(2**25, np.uint8)
        call('SetStream_v2', ctypes.c_void_p(stream.ptr))
        call('SetWorkspace_v2', ctypes.c_void_p(space.data.ptr), ctypes.c_size_t(space.nbytes))
        stream.begin_capture()
        try:
            step()
        finally:
            graph = stream.end_capture()
        graph.upload()
        stream.synchronize()
    return lambda kept=(pool, space): graph.launch()


@contextlib.contextmanager
def replaced(rate):
    """Make steps recordable: no cuDNN, matrix products by product(), Adam's rate from an array."""
    new = [
        (linear.LinearFunction, 'forward', forward),
        (linear.LinearGradData, 'forward', lambda self, inputs: (product(inputs[1], inputs[0]),)),
        (linear.LinearGradWeight, 'forward', lambda self, inputs: (product(inputs[1].T, inputs[0]),)),
        (adam.AdamRule, 'alpha_t', property(lambda self: rate)),
        (cuda.cupy, 'tensordot', tensordot),
    ]
    old = [(owner, name, vars(owner)[name]) for owner, name, _ in new]
    try:
        for owner, name, value in new:
            setattr(owner, name, value)
        with chainer.using_config('use_cudnn', 'never'):
            yield
    finally:
        for owner, name, value in old:
            setattr(owner, name, value)


def forward(self, inputs):
    """Replace LinearFunction.forward, with product()."""
    self._config_use_ideep = chainer.config.use_ideep  # as LinearFunction.forward does, for its backward
    self.retain_inputs((0, 1))
    y = product(inputs[0], inputs[1].T)
    if len(inputs) == 3:
        y += inputs[2]
    return (y,)


def call(name, *args):
    """Call a function of cuBLAS directly, with CuPy's handle, as CuPy refuses to record its own calls.

    Raises RuntimeError with cuBLAS's status if it fails.
    """
    cupy = cuda.cupy
    blas = ctypes.CDLL(f'libcublas.so.{cupy.cuda.runtime.runtimeGetVersion() // 1000}')
    status = blas['cublas' + name](ctypes.c_void_p(cupy.cuda.device.get_cublas_handle()), *args)
    if status:
        raise RuntimeError(f'cublas{name}: {status}')


def tensordot(a, b, axes):
    """Compute numpy.tensordot with product(); axes: two numbers or two tuples."""
    axes = [(n,) if isinstance(n, int) else n for n in axes]
    rest = [[i for i in range(m.ndim) if i not in mine] for m, mine in zip((a, b), axes)]
    shape = [m.shape[i] for m, kept in zip((a, b), rest) for i in kept]
    size = int(np.prod([a.shape[i] for i in axes[0]]))
    a, b = (a.transpose(*rest[0], *axes[0]).reshape(-1, size), b.transpose(*axes[1], *rest[1]).reshape(size, -1))
    return product(a, b).reshape(shape)


def product(a, b):
    """Return a.dot(b) of two float32 matrices on a GPU. Raises TypeError for other dtypes."""
    if a.dtype != np.float32 or b.dtype != np.float32:
        raise TypeError('product() takes float32')
    y, sides, number = cuda.cupy.empty((a.shape[0], b.shape[1]), np.float32), [], ctypes.c_float
    for m in b, a:  # cuBLAS stores matrices by columns, CuPy by rows: y' = b' a'
        m = m if m.flags.c_contiguous or m.flags.f_contiguous else cuda.cupy.ascontiguousarray(m)
        transposed = not m.flags.c_contiguous
        sides.append((m, int(transposed), ctypes.c_void_p(m.data.ptr), m.shape[not transposed]))
    (_, op_b, at_b, rows_b), (_, op_a, at_a, rows_a) = sides
    sizes = y.shape[1], y.shape[0], a.shape[1]
    one, zero, at_y = ctypes.byref(number(1)), ctypes.byref(number(0)), ctypes.c_void_p(y.data.ptr)
    call('Sgemm_v2', op_b, op_a, *sizes, one, at_b, rows_b, at_a, rows_a, zero, at_y, y.shape[1])
    return y
