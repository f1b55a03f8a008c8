"""This module removes most of Chainer's overhead on CPUs; `import chainer` loads it if it is installed.

Linear layers, their gradients and Adam run in C for contiguous float32 arrays. They handle only cases in which their
results equal Chainer's within rounding, and leave all others to Chainer. CHAINER_FAST=0 turns them off.
"""

import ctypes
import functools
import importlib.util
import os
import sysconfig

import chainer
import numpy as np
from chainer.functions.connection.linear import LinearFunction, LinearGradData, LinearGradWeight
from chainer.optimizers.adam import AdamRule


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
        (loops.product, array, array, array, size, size, size, size),
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
    loops.linear(y, x, W, b, *y.shape, x.shape[1])
    return (y,)


def product(self, a, b, transposed):
    """Return (a b,), or (a' b,); None for arrays that are left to Chainer."""
    if not plain(a, b) or a.ndim != 2 or b.ndim != 2 or a.shape[not transposed] != len(b):
        return None
    self._config_use_ideep = chainer.config.use_ideep
    self.retain_inputs((0, 1))
    c = np.empty((a.shape[transposed], b.shape[1]), np.float32)
    loops.product(c, a, b, *c.shape, len(b), transposed)
    return (c,)


@replaces(LinearGradData, 'forward')
def linear_grad_data(self, inputs):
    W, gy = inputs
    return product(self, gy, W, transposed=False)


@replaces(LinearGradWeight, 'forward')
def linear_grad_weight(self, inputs):
    x, gy = inputs
    return product(self, gy, x, transposed=True) if self._w_dtype == np.float32 else None


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
