"""Chainer 7.8.1 on CPUs without most of its overhead; in the image `import chainer` loads this, too.

Graph, links, optimizers and trainer stay Chainer's. Each function here takes the place of one of
Chainer's: it does the common case (NumPy arrays, no hooks, no debug mode) and leaves all else to
the original. chainer_fast.c has the matrix products of linear layers, and loops that go over memory
once where NumPy goes several times; as many threads as BLAS would use share what is large.
CHAINER_FAST=0 turns it off.
"""
import collections.abc
import ctypes
import heapq
import os
import weakref

import chainer
from chainer import _backprop, optimizer
from chainer.backends import cuda
from chainer.dataset import convert
from chainer.datasets import TupleDataset
from chainer.function_node import FunctionNode
from chainer.functions.activation.relu import ReLU
from chainer.functions.connection.linear import LinearFunction
from chainer.functions.evaluation.accuracy import Accuracy
from chainer.functions.loss.softmax_cross_entropy import SoftmaxCrossEntropy
from chainer.iterators import SerialIterator, _statemachine
from chainer.optimizers.adam import AdamRule
from chainer.variable import Variable, VariableNode, _check_grad_type
import numpy as np

original = {}


def plain(*arrays):
    """Return whether all are what the loops take: contiguous float32 NumPy arrays."""
    for a in arrays:
        if type(a) is not np.ndarray or a.dtype != np.float32 or not (a.flags.c_contiguous and a.flags.aligned):
            return False
    return True


def is_int(n):
    """Return whether n fits into C's int."""
    return type(n) is int and -2 ** 31 <= n < 2 ** 31


def wrap(array, requires_grad, creator=None):
    """Return a Variable like those that FunctionNode.apply makes."""
    x = Variable.__new__(Variable)
    x._requires_grad = requires_grad
    x._loss_scale = x._grad_var = x._device = x._layout = x._grad = None
    x._grad_valid = True
    x._data = [array]
    x._node = node = VariableNode.__new__(VariableNode)
    node._variable = weakref.ref(x)
    node._requires_grad = requires_grad
    node.name = node._layout = None
    if array is not None:
        node.dtype, node.shape = array.dtype, array.shape
    if creator is not None:
        node._creator_node = creator
        node._rank = creator.rank + 1
    return x


def linear(function, arrays):
    """LinearFunction's forward pass for x, W and b; None for what the loops do not take."""
    if len(arrays) != 3 or not plain(*arrays):
        return None
    x, W, b = arrays
    if x.ndim != 2 or W.ndim != 2 or x.shape[1] != W.shape[1] or b.shape != W.shape[:1] or not x.size or not W.size:
        return None
    if len(x) == 1:  # a matrix and a vector
        y = x.dot(W.T)
        y += b
    else:
        y = np.empty((len(x), len(W)), np.float32)
        loops.linear(y, x, W, b, len(x), *W.T.shape)
    function.retain_inputs((0, 1))
    return y,


def linear_grad(function, indexes, gys):
    """LinearFunction's backward pass: gradients for the inputs of these indexes, or None."""
    x, W = function.inputs[0]._data, function.inputs[1]._data
    gy, = gys
    if (not plain(x, W, gy) or x.ndim != 2 or W.ndim != 2 or x.shape[1] != W.shape[1]
            or gy.shape != (len(x), len(W)) or not gy.size):
        return None
    shapes = x.shape, W.shape, W.shape[:1]
    gradients = {i: np.empty(shapes[i], np.float32) for i in indexes}
    gx, gW, gb = [gradients.get(i, gy) for i in range(3)]
    loops.linear_grad(gx, gW, gb, x, W, gy, *x.shape, len(W), sum([1 << i for i in indexes]))
    return list(gradients.values())


def relu(function, arrays):
    """ReLU's forward pass, or None."""
    x, = arrays
    if not plain(x):
        return None
    y = np.empty_like(x)
    loops.relu(y, x, x.size)
    function.retain_outputs((0,))
    return y,


def relu_grad(function, indexes, gys):
    """ReLU's backward pass, or None."""
    y, = function._retained_output_data
    gy, = gys
    if not plain(y, gy) or gy.shape != y.shape:
        return None
    gx = np.empty_like(y)
    loops.relu_grad(gx, y, gy, y.size)
    return gx,


def softmax_cross_entropy(function, arrays):
    """SoftmaxCrossEntropy's forward pass for int32 labels and the mean of the losses, or None."""
    x, t = arrays
    if (not plain(x) or x.ndim != 2 or not x.size or t.dtype != np.int32 or t.shape != x.shape[:1]
            or not t.flags.c_contiguous or not is_int(function.ignore_label)
            or function.class_weight is not None or function.reduce != 'mean' or not function.cache_score or not function.normalize):
        return None
    y, loss = np.empty_like(x), ctypes.c_float()
    count = loops.softmax_cross_entropy(y, x, t, *x.shape, function.ignore_label, loss)
    if count < 0:  # a label that there is no score for
        return None
    function.retain_inputs((0, 1))
    function.y, function._coeff = y, 1.0 / max(count, 1)
    return np.array(loss.value, np.float32),


def softmax_cross_entropy_grad(function, indexes, gys):
    """SoftmaxCrossEntropy's backward pass, or None."""
    x, t = function.inputs[0]._data, function.inputs[1]._data
    y, gy = function.y, gys[0]
    if (not plain(x, y) or x.ndim != 2 or t.dtype != np.int32 or not t.flags.c_contiguous
            or t.shape != x.shape[:1] or y.shape != x.shape or function.class_weight is not None
            or function.reduce != 'mean' or not is_int(function.ignore_label)):
        return None
    gx = np.empty_like(y)
    if loops.softmax_cross_entropy_grad(gx, y, t, *y.shape, function.ignore_label, float(gy) * function._coeff) < 0:
        return None
    return gx, None


def accuracy(function, arrays):
    """Accuracy's forward pass for int32 labels and no ignored ones, or None."""
    y, t = arrays
    if (not plain(y) or y.ndim != 2 or not y.size or t.dtype != np.int32 or t.shape != y.shape[:1]
            or not t.flags.c_contiguous or function.ignore_label is not None):
        return None
    count = loops.correct(y, t, *y.shape)
    return None if count < 0 else (np.array(count / len(y), np.float32),)


FORWARD = {LinearFunction: linear, ReLU: relu, SoftmaxCrossEntropy: softmax_cross_entropy, Accuracy: accuracy}
BACKWARD = {LinearFunction: linear_grad, ReLU: relu_grad, SoftmaxCrossEntropy: softmax_cross_entropy_grad}


def apply(self, inputs):
    """FunctionNode.apply for NumPy arrays."""
    config = chainer.config
    arrays, requires_grad = [], False
    for x in inputs:
        if isinstance(x, Variable):
            requires_grad = requires_grad or x._requires_grad
            x = x._data[0] if x._layout is None else None
        if type(x) is not np.ndarray:
            return original['apply'](self, inputs)
        arrays.append(x)
    if config.debug or config.schedule_func or self._local_function_hooks or chainer.get_function_hooks():
        return original['apply'](self, inputs)
    arrays = tuple(arrays)
    self._input_layouts = (None,) * len(arrays)
    self._input_indexes_to_retain = self._output_indexes_to_retain = None
    forward = FORWARD.get(type(self))
    outputs = forward and forward(self, arrays)
    if outputs is None:
        if config.type_check:
            self._check_data_type_forward(arrays)
        outputs = self.forward(arrays)
        if type(outputs) is not tuple or not all([y is None or isinstance(y, np.ndarray) for y in outputs]):
            raise TypeError('forward output must be a tuple of ndarrays ({}): {}'.format(self.label, outputs))
    self._output_count = len(outputs)
    self._output_layouts = (None,) * len(outputs)
    if not config.enable_backprop:
        return tuple([wrap(y, requires_grad) for y in outputs])
    inputs = [x if isinstance(x, Variable) else wrap(x, False) for x in inputs]
    self.inputs = tuple([x._node for x in inputs])
    self.rank = max([node._rank for node in self.inputs], default=0)
    results = tuple([wrap(y, requires_grad, self) for y in outputs])
    self.outputs = tuple([weakref.ref(y._node) for y in results])
    for i in self._input_indexes_to_retain or ():
        self.inputs[i]._data = arrays[i]
    if self._output_indexes_to_retain is not None:
        for i in self._output_indexes_to_retain:
            results[i]._node._data = outputs[i]
        self._retained_output_data = tuple([outputs[i] for i in self._output_indexes_to_retain])
    self.lazy_grad_sum = config.lazy_grad_sum
    return results


def slow_backward(function, indexes, gys):
    """Return the gradients of a function that has no fast backward pass, with its own checks and hooks."""
    data = [x._data for x in function.inputs]
    hooks = function.local_function_hooks.values() if function._local_function_hooks else ()
    variables = tuple([gy if gy is None else wrap(gy, True) for gy in gys])
    with chainer.using_device(chainer.backend.get_device_from_array(*data, *gys)):
        for hook in hooks:
            hook.backward_preprocess(function, tuple(data), tuple(gys))
        if type(function).backward_accumulate is FunctionNode.backward_accumulate:
            gxs = function.backward(indexes, variables)
        else:
            gxs = function.backward_accumulate(indexes, variables, (None,) * len(indexes))
        for hook in hooks:
            hook.backward_postprocess(function, tuple(data), tuple(gys))
    if len(gxs) == len(function.inputs):
        gxs = [gxs[i] for i in indexes]
    elif len(gxs) != len(indexes):
        raise ValueError('number of gradients returned from backward is incorrect: {} != expected {} ({})'
                         .format(len(gxs), len(indexes), function.label))
    for i, gx in zip(indexes, gxs):
        if gx is not None and gx.array is not None:
            _check_grad_type(function, function.inputs[i], True, gx.array)
    return [None if gx is None else gx.array for gx in gxs]


def backprop_to_all(outputs, retain_grad, loss_scale):
    """_backprop._backprop_to_all: functions pass on arrays, and Variables are made for slow ones only."""
    config = chainer.config
    if (retain_grad or loss_scale is not None or config.debug or config.enable_backprop
            or chainer.get_function_hooks()
            or any([gy is None or type(gy._data[0]) is not np.ndarray for _, gy in outputs])):
        return original['_backprop_to_all'](outputs, retain_grad, loss_scale)
    gradients, functions, seen = {}, [], set()

    def accumulate(node, gradient):
        creator = node._creator_node
        if node in gradients:
            gradient = gradients[node] + gradient
        elif creator is None:
            x = node._variable()
            if x is not None and x.grad_var is not None:
                gradient = x.grad_var.array + gradient
        elif creator not in seen:
            seen.add(creator)
            heapq.heappush(functions, (-creator.rank, len(seen), creator))
        gradients[node] = gradient

    for node, gy in outputs:
        accumulate(node, gy._data[0])
    while functions:
        function = heapq.heappop(functions)[2]
        indexes = tuple([i for i, x in enumerate(function.inputs) if x._requires_grad])
        outputs = [y() for y in function.outputs]
        gys = [gradients.pop(y) if y in gradients and y._creator_node else None for y in outputs]
        if not indexes:
            continue
        backward = BACKWARD.get(type(function))
        gxs = backward and not function._local_function_hooks and backward(function, indexes, gys)
        for i, gx in zip(indexes, gxs or slow_backward(function, indexes, gys)):
            if gx is not None:
                accumulate(function.inputs[i], gx)
    for node, gradient in gradients.items():
        x = node._variable()
        if x is not None:
            x._grad_var, x._grad, x._loss_scale = None, gradient, None


def adam(self, param):
    """AdamRule.update for plain Adam; chainer.optimizers.Adam's options go to the original."""
    p, g, state, hp = param._data[0], param._grad, self._state, self.hyperparam
    if (type(self) is not AdamRule or not self.enabled or state is None
            or not plain(p, g, state['m'], state['v']) or not p.flags.writeable
            or not p.shape == g.shape == state['m'].shape == state['v'].shape
            or self._hookable._pre_update_hooks or self._hookable._post_update_hooks or param._loss_scale is not None
            or hp.weight_decay_rate or hp.amsgrad or hp.adabound or hp.eps < 1e-30):
        return original['update'](self, param)
    self.t += 1
    loops.adam(p, state['m'], state['v'], g, p.size,
               1 - hp.beta1, 1 - hp.beta2, hp.eta * self.alpha_t, hp.eps)


def reallocate_cleared_grads(self):
    """GradientMethod.reallocate_cleared_grads, which mostly has nothing to do."""
    if any([param._grad is None for param in self.target.params(False)]):
        original['reallocate_cleared_grads'](self)


class Batch(collections.abc.Sequence):
    """Examples of a TupleDataset of arrays, which concat_examples need not take apart first."""

    def __init__(self, arrays, indices):
        self.arrays, self.indices = arrays, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return Batch(self.arrays, self.indices[i])
        return tuple([array[self.indices[i]] for array in self.arrays])


def next_batch(self):
    """SerialIterator.__next__ for a TupleDataset of arrays, a GPU's among them."""
    dataset = self.dataset
    if type(dataset) is not TupleDataset or not all([type(a) in (np.ndarray, cuda.ndarray) for a in dataset._datasets]):
        return original['__next__'](self)
    self._previous_epoch_detail = self.epoch_detail
    self._state, indices = _statemachine.iterator_statemachine(
        self._state, self.batch_size, self.repeat, self.order_sampler, len(dataset))
    if indices is None:
        raise StopIteration
    return Batch(dataset._datasets, indices)


def gather(array, indices):
    """Return array[indices], on the GPU where the array is."""
    if type(array) is np.ndarray:
        return array[indices]
    with cuda.get_device_from_array(array):
        return array[cuda.cupy.asarray(indices)]


def concat_examples(batch, device=None, padding=None):
    """chainer.dataset.concat_examples: one gather for each array of a Batch."""
    if type(batch) is Batch and len(batch):
        return tuple([convert.to_device(device, gather(array, batch.indices)) for array in batch.arrays])
    return original['base_callable'](batch, device, padding)


def load():
    """Return the library of chainer_fast.c, ready to use, and the BLAS that it calls."""
    import scipy_openblas64
    loops = ctypes.CDLL(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'libchainer_fast.so'))
    array, pointer, size, integer, real = ctypes.py_object, ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
    for function, *types in (
            (loops.set_up, pointer, integer),
            (loops.adam, array, array, array, array, size, real, real, real, real),
            (loops.linear, array, array, array, array, size, size, size),
            (loops.linear_grad, array, array, array, array, array, array, size, size, size, integer),
            (loops.relu, array, array, size),
            (loops.relu_grad, array, array, array, size),
            (loops.softmax_cross_entropy, array, array, array, size, size, integer, ctypes.POINTER(real)),
            (loops.softmax_cross_entropy_grad, array, array, array, size, size, integer, real),
            (loops.correct, array, array, size, size)):
        function.argtypes, function.restype = types, None
    for function in loops.softmax_cross_entropy, loops.softmax_cross_entropy_grad, loops.correct:
        function.restype = size
    # OpenBLAS of 2026; NumPy 1.26 brings one of 2023. The threads in chainer_fast.c scale better than its own.
    blas = ctypes.CDLL(os.path.join(scipy_openblas64.get_lib_dir(), scipy_openblas64.get_library(fullname=True)))
    loops.set_up(blas.scipy_cblas_sgemm64_, blas.scipy_openblas_get_num_threads64_())
    blas.scipy_openblas_set_num_threads64_(1)
    return loops, blas


if os.environ.get('CHAINER_FAST', '1') != '0':
    loops, blas = load()
    for owner, name, fast in (
            (FunctionNode, 'apply', apply),
            (_backprop, '_backprop_to_all', backprop_to_all),
            (AdamRule, 'update', adam),
            (optimizer.GradientMethod, 'reallocate_cleared_grads', reallocate_cleared_grads),
            (SerialIterator, '__next__', next_batch),
            (convert.concat_examples, 'base_callable', concat_examples)):
        original[name] = getattr(owner, name)
        setattr(owner, name, fast)
    SerialIterator.next = next_batch
