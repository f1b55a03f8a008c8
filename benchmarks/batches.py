"""This module gathers batches of arrays with one operation, on a GPU from data that stay there, for benchmarks.gpu.

A batch of a `TupleDataset` of arrays is the same list of views, made faster. If its examples have not been changed,
`concat_examples` gathers it from the arrays. Read-only arrays (`flags.writeable = False`) stay on the GPU once they are
there, if they take no more than an eighth of its free memory. Reports take one kernel for each value.
"""

import functools
import weakref

import numpy as np
from chainer.backends import cuda
from chainer.dataset import convert
from chainer.datasets import TupleDataset
from chainer.iterators import SerialIterator, _statemachine
from chainer.reporter import Summary


def replaces(owner, name):
    """Replace owner's method of that name by a function; if the function returns None, the method runs."""
    slow = getattr(owner, name)

    def decorate(fast):
        @functools.wraps(slow)
        def method(*args, **kwargs):
            result = fast(*args, **kwargs)
            return slow(*args, **kwargs) if result is None else result

        setattr(owner, name, method)
        return fast

    return decorate


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
