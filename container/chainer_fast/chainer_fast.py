"""This module removes most of Chainer's overhead on CPUs; `import chainer` loads it if it is installed.

It has two parts. Methods of Chainer that map arrays to arrays (forward passes, gradients, Adam) run in C for
contiguous float32 arrays. A chain of the functions in BACKWARD, such as an MLP with its loss, gets its
graph and its gradients without Chainer's checks, which such arrays always pass. Each part handles only cases
in which its results equal Chainer's within rounding, and leaves all others to Chainer. On a GPU, read-only
data stay there, and reports take one kernel for each value. CHAINER_FAST=0 turns all of this off.
"""

import ctypes
import functools
import importlib.util
import operator
import os
import sysconfig
import weakref

import chainer
import numpy as np
from chainer import _backprop
from chainer.backends import cuda
from chainer.dataset import convert
from chainer.datasets import TupleDataset
from chainer.function_node import FunctionNode
from chainer.functions.activation.relu import ReLU, ReLUGrad2
from chainer.functions.connection.linear import LinearFunction, LinearGradData, LinearGradWeight
from chainer.functions.evaluation.accuracy import Accuracy
from chainer.functions.loss.softmax_cross_entropy import (
    SoftmaxCrossEntropy,
    _SoftmaxCrossEntropyGrad_NoDoubleBackprop,
)
from chainer.iterators import SerialIterator, _statemachine
from chainer.optimizers.adam import AdamRule
from chainer.reporter import Summary
from chainer.variable import Variable

replacements = []


def replaces(owner, name):
    """Replace owner's method of that name by a function; if the function returns None, the method runs."""

    def decorate(fast):
        replacements.append((owner, name, fast))
        return fast

    return decorate


def plain(*arrays):
    """Return whether the loops in C can handle all arrays: NumPy's, float32, contiguous, not empty."""
    for a in arrays:
        if (
            type(a) is not np.ndarray
            or a.dtype != np.float32
            or not (a.flags.c_contiguous and a.flags.aligned and a.size)
        ):
            return False
    return True


def scores_and_labels(x, t, ignore_label=-1):
    """Return whether x are scores, float32 (N, columns), t labels, int32 (N,); ignore_label fits an int."""
    return (
        plain(x)
        and x.ndim == 2
        and type(t) is np.ndarray
        and t.dtype == np.int32
        and t.shape == x.shape[:1]
        and t.flags.c_contiguous
        and t.flags.aligned
        and type(ignore_label) is int
        and abs(ignore_label) < 2**31
    )


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


def linear_gradients(x, W, gy, wanted):
    """Return a linear layer's gradients, float32; wanted: which of x (0), W (1) and b (2)."""
    gradients = {
        i: np.empty(((len(gy), W.shape[1]), (gy.shape[1], x.shape[1]), gy.shape[1])[i], np.float32)
        for i in wanted
    }
    loops.linear_grad(
        *[gradients.get(i, gy) for i in range(3)],
        x,
        W,
        gy,
        len(gy),
        x.shape[1],
        gy.shape[1],
        sum([1 << i for i in wanted]),
    )
    return tuple(gradients.values())


@replaces(LinearGradData, 'forward')
def linear_grad_data(self, inputs):
    W, gy = inputs
    if not plain(W, gy) or W.ndim != 2 or gy.ndim != 2 or gy.shape[1] != len(W):
        return None
    self._config_use_ideep = chainer.config.use_ideep
    self.retain_inputs((0, 1))
    return linear_gradients(W, W, gy, (0,))


@replaces(LinearGradWeight, 'forward')
def linear_grad_weight(self, inputs):
    x, gy = inputs
    if not plain(x, gy) or x.ndim != 2 or gy.ndim != 2 or len(gy) != len(x) or self._w_dtype != np.float32:
        return None
    self._config_use_ideep = chainer.config.use_ideep
    self.retain_inputs((0, 1))
    return linear_gradients(x, x, gy, (1,))


@replaces(ReLU, 'forward_cpu')
def relu(self, inputs):
    (x,) = inputs
    if not plain(x):
        return None
    self.retain_outputs((0,))
    y = np.empty_like(x)
    loops.relu(y, x, x.size)
    return (y,)


@replaces(ReLUGrad2, 'forward_cpu')
def relu_grad(self, inputs):
    (gy,) = inputs
    if not plain(self.b, gy) or gy.shape != self.b.shape:
        return None
    gx = np.empty_like(gy)
    loops.relu_grad(gx, self.b, gy, gy.size)
    return (gx,)


@replaces(SoftmaxCrossEntropy, 'forward_cpu')
def softmax_cross_entropy(self, inputs):
    x, t = inputs
    if (
        not scores_and_labels(x, t, self.ignore_label)
        or chainer.config.debug
        or self.class_weight is not None
        or self.reduce != 'mean'
        or not self.cache_score
        or not self.normalize
    ):
        return None
    y, loss = np.empty_like(x), ctypes.c_float()
    count = loops.softmax_cross_entropy(y, x, t, *x.shape, self.ignore_label, loss)
    if count < 0:  # a label has no score: Chainer raises the error
        return None
    self.retain_inputs((0, 1))
    self.y, self._coeff = y, 1.0 / max(count, 1)
    return (np.array(loss.value, np.float32),)


@replaces(_SoftmaxCrossEntropyGrad_NoDoubleBackprop, 'forward_cpu')
def softmax_cross_entropy_grad(self, inputs):
    x, t, gloss = inputs
    if (
        not scores_and_labels(x, t, self.ignore_label)
        or not plain(self.y, gloss)
        or self.y.shape != x.shape
        or gloss.shape
        or self.soft_target
        or self.class_weight is not None
        or self.coeff is None
    ):
        return None
    gx = np.empty_like(x)
    if (
        loops.softmax_cross_entropy_grad(
            gx, self.y, t, *x.shape, self.ignore_label, float(gloss) * self.coeff
        )
        < 0
    ):
        return None
    return (gx,)


@replaces(Accuracy, 'forward_cpu')
def accuracy(self, inputs):
    y, t = inputs
    if not scores_and_labels(y, t) or self.ignore_label is not None:
        return None
    count = loops.correct(y, t, *y.shape)
    return None if count < 0 else (np.array(count / len(y), np.float32),)


@replaces(AdamRule, 'update_core_cpu')
def adam(self, param):
    p, g, m, v, hp = param.data, param.grad, self.state['m'], self.state['v'], self.hyperparam
    if (
        not plain(p, g, m, v)
        or not p.shape == g.shape == m.shape == v.shape
        or not p.flags.writeable
        or hp.weight_decay_rate
        or hp.amsgrad
        or hp.adabound
        or hp.eps < 1e-30
        or np.ndim(self.alpha_t)
    ):
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
    if (
        self.base_callable is not convert.concat_examples_func
        or len(args) != 2
        or kwargs
        or not made
        or args[0] is not made
        or len(made) != len(examples)
        or not all(map(operator.is_, made, examples))
    ):
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
    if not all([type(a) is cuda.ndarray and a.dtype == np.float32 for a in sums]) or weight != 1:
        return None
    code = 'x += value; x2 += value * value'
    cuda.elementwise('T value', 'T x, T x2', code, 'summary_add')(*sums)
    self._n += weight
    return True


FORWARD = {LinearFunction: linear, ReLU: relu, SoftmaxCrossEntropy: softmax_cross_entropy, Accuracy: accuracy}


@replaces(FunctionNode, 'apply')
def apply(self, inputs):
    forward, config = FORWARD.get(type(self)), chainer.config
    if (
        forward is None
        or self._n_local_function_hooks
        or chainer.get_function_hooks()
        or config.debug
        or config.schedule_func is not None
    ):
        return None
    variables = [x if isinstance(x, Variable) else chainer.as_variable(x) for x in inputs]
    for x in variables:
        if x._has_chainerx_array or x._layout is not None:
            return None
    self._input_indexes_to_retain = self._output_indexes_to_retain = None
    outputs = forward(self, [x._data[0] for x in variables])
    if outputs is None:
        return None
    y = Variable._init_unchecked(
        outputs[0], None, None, None, True, any([x._requires_grad for x in variables]), False
    )
    self._input_layouts, self._output_layouts, self._output_count = (None,) * len(variables), (None,), 1
    if config.enable_backprop:
        self.inputs, self.outputs = tuple([x._node for x in variables]), (weakref.ref(y._node),)
        self.rank = max([node._rank for node in self.inputs])
        y.creator_node = self
        for i in self._input_indexes_to_retain or ():
            variables[i].retain_data()
        if self._output_indexes_to_retain is not None:
            y.retain_data()
            self._retained_output_data = outputs
        self.lazy_grad_sum = config.lazy_grad_sum
    return (y,)


def linear_backward(function, indexes, gy):
    x, W = [x.data for x in function.inputs[:2]]
    if (
        not plain(x, W, gy)
        or x.ndim != 2
        or W.ndim != 2
        or x.shape[1] != W.shape[1]
        or gy.shape != (len(x), len(W))
    ):
        return None
    return linear_gradients(x, W, gy, indexes)


def relu_backward(function, indexes, gy):
    (y,) = function.get_retained_outputs()
    return relu_grad(ReLUGrad2(y.raw_array), (gy,))


def softmax_cross_entropy_backward(function, indexes, gy):
    grad = _SoftmaxCrossEntropyGrad_NoDoubleBackprop(
        function.ignore_label, function.class_weight, function.y, function._coeff, function.soft_target
    )
    return softmax_cross_entropy_grad(grad, (*[x.data for x in function.inputs], gy))


BACKWARD = {
    LinearFunction: linear_backward,
    ReLU: relu_backward,
    SoftmaxCrossEntropy: softmax_cross_entropy_backward,
}


@replaces(_backprop, '_backprop_to_all')
def backprop_to_all(outputs, retain_grad, loss_scale):
    config = chainer.config
    if (
        len(outputs) != 1
        or outputs[0][1] is None
        or retain_grad
        or loss_scale is not None
        or config.debug
        or config.enable_backprop
        or chainer.get_function_hooks()
    ):
        return None
    ((node, gy),) = outputs
    # found: {leaf: (variable, its gradient)}; set only at the end, so that Chainer can take over until then.
    gy, found = gy._data[0], {}
    while node is not None:
        function, node = node.creator_node, None
        backward = BACKWARD.get(type(function))
        if backward is None or function._n_local_function_hooks:
            return None
        indexes = [i for i, x in enumerate(function.inputs) if x.requires_grad]
        gradients = backward(function, indexes, gy) if indexes else ()
        if gradients is None:
            return None
        for i, gradient in zip(indexes, gradients):
            x = function.inputs[i]
            if x.creator_node is None:
                variable = x.get_variable_or_none()
                if (
                    variable is None
                    or x in found
                    or x._old_style_grad_generator is not None
                    or not variable._grad_valid
                    or variable.grad is not None
                ):
                    return None
                found[x] = variable, gradient
            elif node is not None:  # the graph branches
                return None
            else:
                node, gy = x, gradient
    for variable, gradient in found.values():
        variable._set_grad_without_check(gradient)
        variable._loss_scale = None
    return True


@replaces(AdamRule, 'update')
def update(self, param):
    if (
        type(self) is not AdamRule
        or not self.enabled
        or self._state is None
        or param._loss_scale is not None
        or self._hookable._pre_update_hooks
        or self._hookable._post_update_hooks
        or not param._grad_valid
        or param._has_chainerx_array
        or param._layout is not None
    ):
        return None
    self.t += 1
    done = adam(self, param)
    self.t -= not done
    return done


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
        (loops.linear_grad, array, array, array, array, array, array, size, size, size, integer),
        (loops.adam, array, array, array, array, size, real, real, real, real),
        (loops.relu, array, array, size),
        (loops.relu_grad, array, array, array, size),
        (loops.softmax_cross_entropy, array, array, array, size, size, integer, ctypes.POINTER(real)),
        (loops.softmax_cross_entropy_grad, array, array, array, size, size, integer, real),
        (loops.correct, array, array, size, size),
    ):
        function.argtypes, function.restype = types, None
    for function in loops.softmax_cross_entropy, loops.softmax_cross_entropy_grad, loops.correct:
        function.restype = size
    # Load a second BLAS with one thread: the threads of chainer_fast.c scale better. NumPy's keeps its own.
    blas = ctypes.CDLL(
        os.path.join(scipy_openblas64.get_lib_dir(), scipy_openblas64.get_library(fullname=True))
    )
    loops.set_up(blas.scipy_cblas_sgemm64_, blas.scipy_openblas_get_num_threads64_())
    blas.scipy_openblas_set_num_threads64_(1)
    return loops, blas


def install(owner, name, fast):
    """Replace owner's method of that name by one that calls fast, and the method if fast returns None."""
    slow = getattr(owner, name)

    @functools.wraps(slow)
    def method(*args, **kwargs):
        result = fast(*args, **kwargs)
        return slow(*args, **kwargs) if result is None else result

    setattr(owner, name, method)


if os.environ.get('CHAINER_FAST', '1') != '0':
    loops, blas = load()
    for replacement in replacements:
        install(*replacement)
