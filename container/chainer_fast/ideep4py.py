"""This module has the interface of iDeep, which Chainer's functions call on CPUs, for today's NumPy and oneDNN.

Arrays stay NumPy's. chainer_fast.c computes products, loops and, with oneDNN where the system has it, convolutions of
float32 arrays without gaps; Chainer itself computes all others. CHAINER_USE_IDEEP=never or CHAINER_FAST=0 turns it off.
"""

import collections
import ctypes
import functools
import importlib.util
import itertools
import math
import operator
import os
import re
import sysconfig

import numpy as np

__version__ = '2.0.0'  # Chainer asks for iDeep 2


class mdarray(np.ndarray):
    """This class marks the arrays that `to_intel64` sent here; their memory stays where it is."""

    def __new__(cls, a):
        return a.view(cls)

    def inplace_axpby(self, a, b, y):
        self *= a
        self += b * y


FLOAT32, ARRAYS = np.dtype(np.float32), {np.ndarray, mdarray}
FEW = 1000  # fewer numbers alone take NumPy less time than a call does
wgt_array = None  # a layout of iDeep's
basic_copyto = np.copyto


def array(a, itype=None):
    return a.view(mdarray) if a.dtype == FLOAT32 else a


def get_array_module(a):
    return np


def check_ndim(arrays, supported):
    """Return whether the arrays are in the form that this module takes: float32, not empty, and without gaps.

    Convolutions take arrays with gaps. Functions that ask for four dimensions alone would gain nothing.
    """
    first, several = arrays[0], len(arrays) > 1
    if supported == (4,) or first.ndim not in supported:
        return False
    if first.size < FEW and type(first) is np.ndarray and not several and first.ndim == 2:
        return False
    gaps = several and first.ndim == 4
    for a in arrays:  # all() would take longer
        if not ready(a, gaps):
            return False
    return True


def ready(a, gaps=False):
    if type(a) not in ARRAYS or a.dtype != FLOAT32 or not a.size:
        return False
    flags = a.flags
    return flags.carray or (flags.aligned and (gaps or flags.c_contiguous))


def contiguous(*arrays):
    return [np.ascontiguousarray(a, FLOAT32) for a in arrays]


def reference(a):
    """Return the address of an array's object, or None, as some functions of chainer_fast.c take it."""
    return None if a is None else id(a)


def multi_add(xs):
    return functools.reduce(operator.iadd, xs[2:], xs[0] + xs[1])


def adam(rule, param):
    """Do AdamRule's update in one pass; return False in cases that are left to Chainer."""
    p, g, m, v, hp = param.data, param.grad, rule.state['m'], rule.state['v'], rule.hyperparam
    usual = not (hp.weight_decay_rate or hp.amsgrad or hp.adabound) and hp.eps >= 1e-30
    if not usual or not all(map(ready, (p, g, m, v))) or not p.shape == g.shape == m.shape == v.shape:
        return False
    if not p.flags.writeable or np.ndim(rule.alpha_t):
        return False
    loops.adam(p, m, v, g, p.size, 1 - hp.beta1, 1 - hp.beta2, hp.eta * rule.alpha_t, hp.eps)
    return True


class linear:
    @staticmethod
    def Forward(x, W, b):
        return product(x, W, trans_b=1, bias=b)

    @staticmethod
    def BackwardData(W, gy):
        return np.asarray(gy).dot(np.asarray(W)) if len(gy) == 1 else product(gy, W)  # faster for a vector

    @staticmethod
    def BackwardWeights(x, gy):
        return product(gy, x, trans_a=1)


def product(a, b, trans_a=0, trans_b=0, bias=None):
    """Return a b, a' b, or a b' + bias, where bias may be None."""
    c = np.empty((a.shape[trans_a], b.shape[1 - trans_b]), FLOAT32)
    loops.product(c, a, b, reference(bias), *c.shape, b.shape[trans_b], trans_a, trans_b)
    return c


class relu:
    @staticmethod
    def Forward(x, slope=0):
        y = np.empty(x.shape, FLOAT32)
        loops.rectify(y, x, None, y.size, slope)
        return y

    @staticmethod
    def Backward(condition, gy, slope=0):
        if condition.shape != gy.shape:
            return gy * np.where(condition > 0, np.float32(1), np.float32(slope))
        condition, gy = contiguous(condition, gy)
        gx = np.empty(gy.shape, FLOAT32)
        loops.rectify(gx, gy, id(condition), gx.size, slope)
        return gx


class dropout:
    @staticmethod
    def Forward(x, ratio):
        mask = (np.random.rand(*x.shape) >= ratio) * np.float32(1 / (1 - ratio))
        return mask, np.asarray(x) * mask

    @staticmethod
    def Backward(mask, gy):
        return np.asarray(mask) * np.asarray(gy)


class batchNormalization:
    @staticmethod
    def Forward(x, gamma, beta, mean, var, eps):
        given = mean is not None
        x, gamma, beta = contiguous(x, gamma, beta)
        mean, var = contiguous(mean, var) if given else (np.empty_like(gamma), np.empty_like(gamma))
        y, inverse = np.empty(x.shape, FLOAT32), np.empty_like(gamma)
        loops.norm(x, gamma, beta, y, mean, var, inverse, len(x), gamma.size, x[0].size // gamma.size, given, eps)
        return (y,) if given else (y, mean, var, inverse)

    @staticmethod
    def Backward(x, gy, mean, var, gamma, eps):
        x, gy, mean, var, gamma = contiguous(x, gy, mean, var, gamma)
        gx, ggamma, gbeta, inverse = np.empty(x.shape, FLOAT32), *[np.empty_like(gamma) for _ in range(3)]
        sizes = len(x), gamma.size, x[0].size // gamma.size
        loops.norm_gradient(x, gy, gamma, gx, mean, var, inverse, ggamma, gbeta, *sizes, eps)
        return gx, (ggamma, gbeta)


class lstm:
    """This class computes one direction of a layer of n_step_lstm, for which iDeep has nothing.

    x and hs have the rows of all steps, one after another; a step begins at a section.
    """

    @staticmethod
    def steps(sections, rows):
        return [(slice(a, b), b - a) for a, b in itertools.pairwise((0, *sections, rows))]

    @classmethod
    def Forward(cls, x, h, c, w, sections):
        h, c, gates = np.array(h), np.array(c), np.empty(x.shape, FLOAT32)
        hs, before, cells = np.empty((3, len(x), h.shape[1]), FLOAT32)
        for step, n in cls.steps(sections, len(x)):
            before[step], cells[step] = h[:n], c[:n]
            np.add(product(h[:n], w, trans_b=1), x[step], out=gates[step])
            loops.cell(gates[step], c, h, h[:n].size)
            hs[step] = h[:n]
        return hs, h, c, (gates, before, cells)

    @classmethod
    def Backward(cls, shape, w, gates, before, cells, ghs, gh, gc, sections):
        gx = np.empty(gates.shape, FLOAT32)
        gh, gc = [np.zeros(shape, FLOAT32) if g is None else np.array(g, FLOAT32, order='C') for g in (gh, gc)]
        for step, n in reversed(cls.steps(sections, len(gates))):
            if ghs is not None:
                gh[:n] += ghs[step]
            loops.cell_gradient(gx[step], gc, gh, gates[step], cells[step], gh[:n].size)
            gh[:n] = product(gx[step], w)
        return gx, gh, gc, product(gx, before, trans_a=1)


class pooling2DParam(collections.namedtuple('pooling2DParam', 'shape kh kw sy sx ph pw pd pr kind')):
    pooling_max, pooling_avg_include_padding = range(2)

    def numbers(self, x, y):
        return (ctypes.c_long * 14)(*x[2:], *y[2:], *self[1:7], x[0] * x[1])


class pooling2D:
    @staticmethod
    def Forward(x, param):
        y = np.empty(param.shape, FLOAT32)
        indexes = np.empty(param.shape, np.int32) if param.kind == param.pooling_max else None
        loops.pool(y, x, reference(indexes), param.numbers(x.shape, y.shape))
        return (y,) if indexes is None else (y, indexes.view(mdarray))

    @staticmethod
    def Backward(x, gy, *indexes_and_param):
        *indexes, param = indexes_and_param
        gx = np.empty(param.shape, FLOAT32)
        loops.unpool(gx, *contiguous(gy), reference(*indexes or [None]), param.numbers(gx.shape, gy.shape))
        return gx


convolution2DParam = collections.namedtuple('convolution2DParam', 'shape dy dx sy sx ph pw pd pr')


class convolution2D:
    @staticmethod
    def Forward(x, W, b, param):
        plan = plan_of('forward', x.shape, W.shape, param.shape, param[1:], b is not None)
        return plan(*contiguous(x, W), b if b is None else contiguous(b)[0])

    @staticmethod
    def BackwardData(W, gy, param):
        return plan_of('data', param.shape, W.shape, gy.shape, param[1:])(*contiguous(gy, W))

    @staticmethod
    def BackwardWeights(x, gy, param):
        return plan_of('weights', x.shape, param.shape, gy.shape, param[1:])(*contiguous(x, gy))


def structure(name, pointers, numbers, *others):
    fields = [(field, ctypes.c_void_p) for field in pointers.split()] + [*others]
    return type(name, (ctypes.Structure,), {'_fields_': fields + [(field, ctypes.c_long) for field in numbers.split()]})


# chainer_fast.c's structs of these names
Operand = structure('Operand', 'user inner reorder', 'argument size')
Kernel = structure('Kernel', 'primitive bias scratch', 'scratch_size', ('of', Operand * 3))
Piece = structure('Piece', '', 'part sum adds', ('kernel', ctypes.POINTER(Kernel)), ('offsets', ctypes.c_long * 4))
Plan = structure('Plan', '', 'count parts space output sums operations', ('pieces', ctypes.POINTER(Piece)))

# By kind: the arguments' and queries' numbers in oneDNN of both inputs and the output, and their indices in x, W, y.
KINDS = {
    'forward': ((1, 33, 17), (129, 131, 133), (0, 1, 2)),
    'data': ((145, 33, 129), (134, 131, 130), (2, 1, 0)),
    'weights': ((1, 145, 161), (129, 134, 132), (0, 2, 1)),
}
ANY, FLOAT, FORWARD, DIRECT, SCRATCHPAD, NAME = 1, 3, 64, 1, 136, 8  # more numbers of oneDNN
PIECE = 1 << 20  # bytes of x and y that a thread computes at a time, which fit its cache


class Made(ctypes.c_void_p):
    """This class is a handle of oneDNN's that destroys its object when it goes."""

    def __del__(self):
        if dnn:  # else the process ends
            dnn.library[f'dnnl_{self.kind}_destroy'](self)


class OneDNN:
    """This class calls oneDNN's C API, with one thread of OpenMP's: the team of chainer_fast.c divides the work."""

    def __init__(self):
        try:
            self.library = ctypes.CDLL('libdnnl.so.3')
        except OSError:
            self.library = ctypes.CDLL('libdnnl.so.3.6')
        self.engine = self.new('engine_create', 1, ctypes.c_size_t(0))
        self.stream, self.attributes = self.new('stream_create', self.engine, 1), self.new('primitive_attr_create')
        self.call('primitive_attr_set_scratchpad_mode', self.attributes, 1)
        for name in 'primitive_desc_query_md', 'memory_desc_get_size':
            getattr(self.library, 'dnnl_' + name).restype = ctypes.c_size_t
        names = 'dnnl_memory_create dnnl_memory_destroy dnnl_primitive_execute omp_get_max_threads omp_set_num_threads'
        functions = [ctypes.cast(getattr(self.library, name), ctypes.c_void_p) for name in names.split()]
        loops.set_up_dnn((ctypes.c_void_p * 7)(*functions, self.engine, self.stream))

    def call(self, name, *arguments):
        if status := getattr(self.library, 'dnnl_' + name)(*arguments):
            raise RuntimeError(f'{name} of oneDNN failed with status {status}')

    def new(self, name, *arguments):
        made = Made()
        made.kind = re.search('engine|stream|memory_desc|primitive_attr|primitive_desc|primitive', name)[0]
        self.call(name, ctypes.byref(made), *arguments)
        return made

    def layout(self, shape, whole=None):
        """Return the descriptor of a part of a contiguous array; without `whole` of any layout."""
        dims = numbers(shape)
        if whole is None:
            return self.new('memory_desc_create_with_tag', len(shape), dims, FLOAT, ANY)
        return self.new('memory_desc_create_with_strides', len(shape), dims, FLOAT, numbers(strides(whole)))

    def primitive(self, kind, parts, bias, geometry):
        """Return the descriptor of a convolution's primitive."""
        x, W, y = map(self.layout, parts)
        dy, dx, sy, sx, *padding = geometry
        options = (*map(numbers, ((sy, sx), (dy - 1, dx - 1), padding[:2], padding[2:])),)
        create = 'convolution_{}_primitive_desc_create'.format
        forward = self.new(create('forward'), self.engine, FORWARD, DIRECT, x, W, bias, y, *options, self.attributes)
        if kind == 'forward':
            return forward
        layouts = (x, W, bias, y) if kind == 'weights' else (x, W, y)
        return self.new(create('backward_' + kind), self.engine, DIRECT, *layouts, *options, forward, self.attributes)

    def reorder(self, source, target):
        ends = source, self.engine, target, self.engine
        return self.new('primitive_create', self.new('reorder_primitive_desc_create', *ends, self.attributes))

    def inner(self, made, number):
        return ctypes.c_void_p(self.library.dnnl_primitive_desc_query_md(made, number, 0))

    def size(self, layout):
        return padded(self.library.dnnl_memory_desc_get_size(layout))

    def name(self, made):
        name = ctypes.c_char_p()
        self.call('primitive_desc_query', made, NAME, 0, ctypes.byref(name))
        return name.value.decode()


def padded(size):
    return -(-size // 64) * 64


def numbers(values):
    return (ctypes.c_int64 * len(values))(*values)


def strides(shape):
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def ranges(n, parts, step=1):
    """Return the bounds of up to `parts` parts of n, as equal as multiples of the step allow."""
    bounds = [n * i // parts // step * step for i in range(parts)] + [n]
    return [(a, b) for a, b in itertools.pairwise(bounds) if a < b]


class Convolution:
    """This class computes a convolution, or a gradient of it, of arrays of one shape with oneDNN.

    The threads divide the images among them, or the channels where the weights are larger: less is copied twice.
    """

    def __init__(self, kind, x, W, y, geometry, bias):
        self.kind, self.shapes, self.geometry, self.bias, self.kernels = kind, (x, W, y), geometry, bias, {}
        operations = math.prod(y) * math.prod(W[1:])
        self.divide(threads if operations >= 1 << 18 else 1)
        pieces = [*self.pieces()]
        output = math.prod(W) if kind == 'weights' else 0
        space = max(k.scratch_size + sum(o.size for o in k.of) for k in self.kernels.values()) + padded(4 * output)
        sums = self.images - 1 if output else 0
        counts = len(pieces), self.images * self.channels, space, output, sums
        self.plan = Plan((Piece * len(pieces))(*pieces), *counts, operations)

    def __call__(self, a, b, bias=None):
        result = np.empty(self.shapes[KINDS[self.kind][2][2]], FLOAT32)
        if loops.convolve(ctypes.byref(self.plan), a, b, result, reference(bias)):
            raise MemoryError('oneDNN has not enough memory for a convolution')
        return result

    def divide(self, team):
        """Choose in how many parts to divide the images and the channels: x's for its gradient, else y's."""
        x, W, y = self.shapes
        shared, most = (y, W[1]) if self.kind == 'data' else (x, W[0])
        most = max(1, min(team, most // 16))
        if math.prod(W) <= math.prod(shared):
            self.images = min(team, x[0])
            self.channels = min(team // self.images, most)
        else:
            self.channels = most
            self.images = min(team // most, x[0])

    def pieces(self):
        x, W, y = self.shapes
        channels = ranges(W[self.kind == 'data'], self.channels, 8)
        image = 4 * (math.prod(x[1:]) + math.prod(y[1:]) // self.channels)
        piece = max(PIECE, (16 if self.kind == 'weights' else 8) * math.prod(W))  # else copies of W would cost more
        for (i, c), (j, (n0, n1)) in itertools.product(enumerate(channels), enumerate(ranges(x[0], self.images))):
            for k, (m0, m1) in enumerate(ranges(n1 - n0, min(n1 - n0, -(-(n1 - n0) * image // piece)))):
                sums = (j, k > 0) if self.kind == 'weights' else (0, False)
                yield self.piece(i * self.images + j, c, (n0 + m0, n0 + m1), *sums)

    def piece(self, part, channels, images, sum_, again):
        (n0, n1), (c0, c1), data = images, channels, self.kind == 'data'
        x, W, y = map(strides, self.shapes)
        offsets = n0 * x[0] + data * c0 * x[1], c0 * W[data], n0 * y[0] + (not data) * c0 * y[1]
        of = (ctypes.c_long * 4)(*[offsets[i] for i in KINDS[self.kind][2]], c0)
        kernel = ctypes.pointer(self.kernel(n1 - n0, c1 - c0))
        return Piece(kernel, of, part, sum_, again * (c1 - c0) * W[0])

    def kernel(self, n, c):
        if (n, c) not in self.kernels:
            before = dnn.library.omp_get_max_threads()
            dnn.library.omp_set_num_threads(1)  # as it will run
            try:
                self.kernels[n, c] = self.make(n, c)
            finally:
                dnn.library.omp_set_num_threads(before)
        return self.kernels[n, c]

    def make(self, n, c):
        (x, W, y), data = self.shapes, self.kind == 'data'
        parts = (n, x[1], *x[2:]), (c, *W[1:]), (n, c, *y[2:])
        if data:
            parts = (n, c, *x[2:]), (W[0], c, *W[2:]), (n, *y[1:])
        bias = dnn.layout((c,), (c,)) if self.bias else None
        made = dnn.primitive(self.kind, parts, bias, self.geometry)
        if 'ref' in dnn.name(made):
            raise NotImplementedError  # Chainer's own way is faster
        primitive, scratch = dnn.new('primitive_create', made), dnn.inner(made, SCRATCHPAD)
        kernel = Kernel(primitive, bias, scratch, scratch_size=dnn.size(scratch))
        kernel.kept = [primitive, made, bias]
        for o, argument, query, index in zip(kernel.of, *KINDS[self.kind]):
            user, inner = dnn.layout(parts[index], self.shapes[index]), dnn.inner(made, query)
            kernel.kept += self.operand(o, argument, user, inner)
        return kernel

    def operand(self, o, argument, user, inner):
        o.argument, o.user, o.inner, reorder = argument, user, inner, None
        if not dnn.library.dnnl_memory_desc_equal(inner, user):
            ends = (user, inner) if argument != KINDS[self.kind][0][2] else (inner, user)
            o.size = dnn.size(inner)
            o.reorder = reorder = dnn.reorder(*ends)
        return user, reorder


def as_chainer(kind, x, W, y, geometry, a, b, bias=None):
    """Do what Chainer does without iDeep."""
    from chainer.utils import conv

    dy, dx, sy, sx, ph, pw, *_ = geometry
    if kind == 'data':
        columns = np.rollaxis(np.tensordot(b, a, (0, 1)), 3)
        return conv.col2im_cpu(columns, sy, sx, ph, pw, *x[2:], dy=dy, dx=dx)
    columns = conv.im2col_cpu(a, *W[2:], sy, sx, ph, pw, dy=dy, dx=dx, out_h=y[2], out_w=y[3])
    if kind == 'weights':
        return np.tensordot(b, columns, ((0, 2, 3), (0, 4, 5)))
    found = np.tensordot(columns, b, ((1, 2, 3), (1, 2, 3)))
    return np.rollaxis(found if bias is None else found + bias, 3, 1)


@functools.lru_cache(maxsize=1000)
def plan_of(kind, x, W, y, geometry, bias=False):
    """Return what computes a convolution of these shapes."""
    try:
        if dnn:
            return Convolution(kind, x, W, y, geometry, bias)
    except (NotImplementedError, RuntimeError):
        pass
    return functools.partial(as_chainer, kind, x, W, y, geometry)


def load():
    """Return the library of chainer_fast.c, set up, and the BLAS that it calls. Raises ImportError."""
    if os.environ.get('CHAINER_FAST') == '0':
        raise ImportError('CHAINER_FAST=0')
    try:
        import scipy_openblas64

        loops = ctypes.CDLL(importlib.util.find_spec('_chainer_fast').origin)
        if sysconfig.get_config_var('Py_GIL_DISABLED'):
            raise ImportError('for Python with a GIL')
    except (ImportError, AttributeError, OSError) as e:
        raise ImportError(f'chainer_fast cannot be loaded ({e}); CHAINER_FAST=0 turns it off') from e
    array, maybe, size, real = ctypes.py_object, ctypes.c_void_p, ctypes.c_long, ctypes.c_float
    for function, *types in (
        (loops.set_up, ctypes.c_void_p, ctypes.c_int),
        (loops.product, array, array, array, maybe, *[size] * 5),
        (loops.adam, array, array, array, array, size, real, real, real, real),
        (loops.rectify, array, array, maybe, size, real),
        (loops.cell, array, array, array, size),
        (loops.cell_gradient, *[array] * 5, size),
        (loops.pool, array, array, maybe, ctypes.c_long * 14),
        (loops.unpool, array, array, maybe, ctypes.c_long * 14),
        (loops.convolve, ctypes.c_void_p, array, array, array, maybe),
        (loops.norm, *[array] * 7, *[size] * 4, ctypes.c_double),
        (loops.norm_gradient, *[array] * 9, *[size] * 3, ctypes.c_double),
    ):
        function.argtypes = types
    # Load a second BLAS with one thread: the threads of chainer_fast.c scale better.
    blas = ctypes.CDLL(os.path.join(scipy_openblas64.get_lib_dir(), scipy_openblas64.get_library(fullname=True)))
    wanted = blas.scipy_openblas_get_num_threads64_()
    threads = loops.set_up(blas.scipy_cblas_sgemm64_, wanted)
    blas.scipy_openblas_set_num_threads64_(1)
    if threads == wanted:  # else it keeps its own
        share_threads(loops)
    return loops, blas, threads


def share_threads(loops):
    """Have NumPy's OpenBLAS compute in the same threads: two teams would compete for the cores."""
    try:
        numpys = ctypes.CDLL(np._core._multiarray_umath.__file__)
        numpys.scipy_openblas_set_threads_callback_function64_(loops.run_jobs)
    except (AttributeError, OSError):
        pass  # another BLAS


loops, blas, threads = load()
try:
    dnn = OneDNN()
except (OSError, AttributeError, RuntimeError):
    dnn = None  # no oneDNN 3
