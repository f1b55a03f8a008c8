"""This module removes most of Chainer's overhead on CPUs; `import chainer` loads it if it is installed.

Linear layers, their gradients and Adam run in C for contiguous float32 arrays. They handle only cases in which their
results equal Chainer's within rounding, and leave all others to Chainer. On a GPU, read-only data stay there, and
reports take one kernel for each value. CHAINER_FAST=0 turns all of this off.
"""

import ctypes
import functools
import importlib.util
import os
import sysconfig
import weakref

import chainer
import numpy as np
from chainer.backends import cuda
from chainer.dataset import convert
from chainer.datasets import TupleDataset
from chainer.functions.connection.linear import LinearFunction, LinearGradData, LinearGradWeight
from chainer.iterators import SerialIterator, _statemachine
from chainer.optimizers.adam import AdamRule
from chainer.reporter import Summary


def load():
    """Return the library of chainer_fast.c, set up, and the BLAS that it calls. Raises ImportError."""
    try:
        import scipy_openblas64

        loops = ctypes.CDLL(importlib.util.find_spec('_chainer_fast').origin)
        if sysconfig.get_config_var('Py_GIL_DISABLED'):
            raise ImportError('for Python with a GIL')
    except (ImportError, AttributeError, OSError) as e:
        raise ImportError(f'chainer_fast cannot be loaded ({e}); CHAINER_FAST=0 turns it off') from e
    array, size, integer, real = ctypes.py_object, ctypes.c_long, ctypes.c_int, ctypes.c_float
    for function, *types in (
        (loops.set_up, ctypes.c_void_p, integer),
        (loops.linear, array, array, array, array, size, size, size),
        (loops.linear_grad_data, array, array, array, size, size, size),
        (loops.linear_grad_weight, array, array, array, size, size, size),
        (loops.adam, array, array, array, array, size, real, real, real, real),
    ):
        function.argtypes, function.restype = types, None
    # Load a second BLAS with one thread: the threads of chainer_fast.c scale better. NumPy's keeps its own.
    blas = ctypes.CDLL(os.path.join(scipy_openblas64.get_lib_dir(), scipy_openblas64.get_library(fullname=True)))
    loops.set_up(blas.scipy_cblas_sgemm64_, blas.scipy_openblas_get_num_threads64_())
    blas.scipy_openblas_set_num_threads64_(1)
    return loops, blas


is_on = os.environ.get('CHAINER_FAST', '1') != '0'
if is_on:
    loops, blas = load()
replacements = []


def replaces(owner, name):
    """Replace owner's method of that name by a function; if the function returns None, the method runs."""
    slow = getattr(owner, name)

    def decorate(fast):
        @functools.wraps(slow)
        def method(*args, **kwargs):
            result = fast(*args, **kwargs)
            return slow(*args, **kwargs) if result is None else result

        replacements.append((owner, name, fast))
        if is_on:
            setattr(owner, name, method)
        return fast

    return decorate


def contiguous(a, dtype):
    """Return whether a is NumPy's array of this type, without gaps."""
    return type(a) is np.ndarray and a.dtype == dtype and a.flags.c_contiguous and a.flags.aligned


def plain(*arrays):
    """Return whether the loops in C can handle all arrays: NumPy's, float32, contiguous, not empty."""
    return all(contiguous(a, np.float32) and a.size for a in arrays)


@replaces(LinearFunction, 'forward')
def linear(self, inputs):
    if len(inputs) != 3 or not plain(*inputs) or chainer.config.schedule_func is not None:
        return None
    x, W, b = inputs
    if x.ndim != 2 or W.ndim != 2 or x.shape[1] != W.shape[1] or b.shape != W.shape[:1]:
        return None
    self._config_use_ideep = chainer.config.use_ideep
    self.retain_inputs((0, 1))
    y = np.empty((len(x), len(W)), np.float32)
    loops.linear(y, x, W, b, *x.shape, len(W))
    return (y,)


@replaces(LinearGradData, 'forward')
def linear_grad_data(self, inputs):
    W, gy = inputs
    if not plain(W, gy) or W.ndim != 2 or gy.ndim != 2 or gy.shape[1] != len(W):
        return None
    self._config_use_ideep = chainer.config.use_ideep
    self.retain_inputs((0, 1))
    gx = np.empty((len(gy), W.shape[1]), np.float32)
    loops.linear_grad_data(gx, W, gy, len(gy), W.shape[1], len(W))
    return (gx,)


@replaces(LinearGradWeight, 'forward')
def linear_grad_weight(self, inputs):
    x, gy = inputs
    if not plain(x, gy) or x.ndim != 2 or gy.ndim != 2 or len(gy) != len(x) or self._w_dtype != np.float32:
        return None
    self._config_use_ideep = chainer.config.use_ideep
    self.retain_inputs((0, 1))
    gW = np.empty((gy.shape[1], x.shape[1]), np.float32)
    loops.linear_grad_weight(gW, x, gy, *x.shape, len(gW))
    return (gW,)


@replaces(AdamRule, 'update_core_cpu')
def adam(self, param):
    p, g, m, v, hp = param.data, param.grad, self.state['m'], self.state['v'], self.hyperparam
    usual = not (hp.weight_decay_rate or hp.amsgrad or hp.adabound) and hp.eps >= 1e-30
    if not usual or not plain(p, g, m, v) or not p.shape == g.shape == m.shape == v.shape:
        return None
    if not p.flags.writeable or np.ndim(self.alpha_t):
        return None
    loops.adam(p, m, v, g, p.size, 1 - hp.beta1, 1 - hp.beta2, hp.eta * self.alpha_t, hp.eps)
    return True


def of_numbers(a):
    """Return whether a is a contiguous NumPy array of numbers in the machine's byte order."""
    return type(a) is np.ndarray and a.flags.c_contiguous and a.dtype.isnative and a.dtype.kind in 'biuf'


# The latest batch: the list, its examples, and the arrays and indices from which they were taken.
latest = None, (), (), ()


@replaces(SerialIterator, 'next')
@replaces(SerialIterator, '__next__')
def next_batch(self):
    global latest
    arrays = self.dataset._datasets if type(self.dataset) is TupleDataset else ()
    if not arrays or not all(map(of_numbers, arrays)):
        return None
    self._previous_epoch_detail = self.epoch_detail
    self._state, indices = _statemachine.iterator_statemachine(
        self._state, self.batch_size, self.repeat, self.order_sampler, len(self.dataset)
    )
    if indices is None:
        raise StopIteration
    numbers = indices.tolist()
    batch = list(zip(*[[array[i] for i in numbers] for array in arrays]))
    latest = batch, tuple(batch), arrays, indices
    return batch


@replaces(type(convert.concat_examples), '__call__')
def concat_examples(self, *args, **kwargs):
    """Gather a batch with one operation for each array, if it still has the examples from next_batch."""
    global latest
    (made, examples, arrays, indices), latest = latest, (None, (), (), ())
    usual = self.base_callable is convert.concat_examples_func and len(args) == 2 and not kwargs
    if not usual or not made or args[0] is not made or [*map(id, made)] != [*map(id, examples)]:
        return None
    gathered, device, numbers = [], convert._get_device(args[1]), None
    for array, column in zip(arrays, zip(*made)):
        there = on_gpu(array, device)
        if there is not None:
            numbers = device.send(indices) if numbers is None else numbers
            gathered.append(there.take(numbers, axis=0))
        elif array.ndim == 1:  # the batch holds copies of numbers, and the array may have changed since
            gathered.append(convert.to_device(device, np.array(column)))
        elif any(a.shape != array.shape[1:] for a in column):
            return None
        else:
            gathered.append(convert.to_device(device, array.take(indices, axis=0)))
    return tuple(gathered)


kept = {}  # {(an array's id, a GPU's id): the array on that GPU}


def on_gpu(array, device):
    """Return the array on this GPU, where it stays; None if it is writeable or too large for that."""
    if getattr(device, 'xp', None) is not cuda.cupy or array.flags.writeable or not array.flags.owndata:
        return None
    key = id(array), device.device.id
    if key not in kept:
        if array.nbytes > cuda.cupy.cuda.runtime.memGetInfo()[0] // 8:
            return None
        kept[key] = device.send(array)
        weakref.finalize(array, kept.pop, key, None)
    return kept[key]


@replaces(Summary, 'add')
def add(self, value, weight=1):
    """Add a value to a Summary on a GPU with one kernel instead of five."""
    sums = value, self._x, self._x2
    if not all(type(a) is cuda.ndarray and a.dtype == np.float32 for a in sums) or weight != 1:
        return None
    code = 'x += value; x2 += value * value'
    cuda.elementwise('T value', 'T x, T x2', code, 'summary_add')(*sums)
    self._n += weight
    return True
