"""chainer_fast gives the same results as plain Chainer, in cases that it handles and in others.

Every case below runs in two processes, one with CHAINER_FAST=0, and the returned arrays are compared. Convolutions are
oneDNN's where it is installed, as in the image, where this file's tests run, too.
"""

import operator
import os
import pathlib
import pickle
import platform
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def batch(n=32, dtype=np.float32):
    rng = np.random.RandomState(1)
    return rng.rand(n, 784).astype(dtype), rng.randint(0, 10, n).astype(np.int32)


def classifier():
    import chainer

    import chainer_mnist_single_machine as script

    np.random.seed(0)
    return chainer.links.Classifier(script.MLP(50, 10))


def steps(optimizer, hook=None, n=10, model=None, **options):
    """Return the losses and the final parameters of n steps; options: hyperparameters of the optimizer."""
    model = model or classifier()
    optimizer.setup(model)
    for name, value in options.items():
        setattr(optimizer.hyperparam, name, value)
    if hook:
        hook(optimizer)
    losses = []
    for _ in range(n):
        optimizer.update(model, *batch())
        losses.append(float(model.loss.array))
    return [np.array(losses)] + [p.array for _, p in sorted(model.namedparams())]


@case
def ten_steps_of_adam():
    from chainer.optimizers import Adam

    return steps(Adam())


@case
def accuracy():
    import chainer.functions as F

    rng = np.random.RandomState(0)
    y, t = rng.randint(0, 4, (64, 10)).astype(np.float32), rng.randint(0, 10, 64).astype(np.int32)
    nan = y.copy()
    nan[::3, 7] = np.nan  # argmax returns the index of a NaN
    return [
        F.accuracy(y, t).array,
        F.accuracy(y, np.full_like(t, 12)).array,
        F.accuracy(nan, t).array,
        F.accuracy(nan, np.full_like(t, 7)).array,
        F.accuracy(y, t.astype(np.int64)).array,
        F.accuracy(y, t, ignore_label=3).array,
        F.accuracy(y.astype(np.float64), t).array,
        F.accuracy(y[:, ::2], t).array,
        F.accuracy(y[:, :, None], t[:, None]).array,
    ]


@case
def adam_with_large_arrays_for_two_threads():
    import chainer

    import chainer_mnist_single_machine as script

    np.random.seed(0)
    adam = chainer.optimizers.Adam(eps=1e-5)  # a smaller eps would magnify rounding of gradients near zero
    return steps(adam, model=chainer.links.Classifier(script.MLP(400, 10)), n=3)


def a_linear_layer(rows, columns, out):
    """Return y and the gradients of x, W and b: of all three, of W alone, and of x alone."""
    import chainer
    import chainer.functions as F

    rng = np.random.RandomState(rows)
    arrays = [rng.rand(*shape).astype(np.float32) - 0.5 for shape in ((rows, columns), (out, columns), (out,))]
    results = []
    for wanted in (0, 1, 2), (1,), (0,):
        inputs = [chainer.Variable(a, requires_grad=i in wanted) for i, a in enumerate(arrays)]
        y = F.linear(*inputs)
        (F.sum(y * y) / 200).backward()
        results += [y.array] + [inputs[i].grad for i in wanted]
    return results


@case
def linear_layers_of_any_size():
    shapes = ((1, 784, 1000), (2, 1, 1), (33, 7, 5), (128, 784, 1000), (100, 1, 3001), (300, 999, 3), (64, 500, 17))
    return [array for shape in shapes for array in a_linear_layer(*shape)]


@case
def several_threads_and_a_forked_process():
    import multiprocessing
    from concurrent.futures import ThreadPoolExecutor

    shapes = [(100 + i, 300, 200) for i in range(20)]
    with ThreadPoolExecutor(4) as pool:
        results = [array for arrays in pool.map(lambda shape: a_linear_layer(*shape), shapes) for array in arrays]
    fork = multiprocessing.get_context('fork')
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: sender.send(a_linear_layer(*shapes[0])))
    process.start()
    try:
        assert receiver.poll(20), 'the forked process hangs'
        return results + receiver.recv()
    finally:
        process.kill()
        process.join()


@case
def adams_options():
    from chainer.optimizers import Adam

    results = []
    for options in ({'eta': 0.5}, {'weight_decay_rate': 0.1}, {'amsgrad': True}, {'eps': 0.1}):
        results += steps(Adam(**options))
    return results + steps(Adam(adabound=True))


@case
def hooks_of_the_optimizer_and_of_a_parameter():
    from chainer import optimizer_hooks
    from chainer.optimizers import Adam

    def hook(optimizer):
        optimizer.add_hook(optimizer_hooks.GradientClipping(0.1))
        optimizer.add_hook(optimizer_hooks.WeightDecay(0.01))
        optimizer.target.predictor.l1.W.update_rule.add_hook(optimizer_hooks.WeightDecay(0.1))
        optimizer.target.predictor.l2.disable_update()

    return steps(Adam(), hook)


@case
def another_optimizer():
    from chainer.optimizers import MomentumSGD

    return steps(MomentumSGD())


@case
def double_precision():
    import chainer

    with chainer.using_config('dtype', np.float64):
        model = classifier()
    optimizer = chainer.optimizers.Adam().setup(model)
    optimizer.update(model, *batch(dtype=np.float64))
    assert model.predictor.l1.W.dtype == np.float64
    return [p.array for _, p in sorted(model.namedparams())]


@case
def other_functions_shared_parameters_and_several_losses():
    import chainer.functions as F
    import chainer.links as L

    np.random.seed(0)
    x = np.random.rand(4, 1, 8, 8).astype(np.float32)
    conv, norm, line = L.Convolution2D(1, 3, 3, nobias=True), L.BatchNormalization(3), L.Linear(108, 108)
    h = F.dropout(F.relu(norm(conv(x))), 0.2)
    a = F.relu(line(F.reshape(h, (4, 108))))
    b = F.concat([line(a), F.tanh(a)], axis=0) * 2 + 1
    loss = F.sum(b**2) + F.sum(a * a) / F.sum(F.get_item(b, (slice(0, 2), 3)))
    for link in conv, norm, line:
        link.cleargrads()
    loss.backward()
    F.sum(a).backward()  # adds to the gradients that are there
    return [loss.array, h.array] + [p.grad for link in (conv, norm, line) for _, p in sorted(link.namedparams())]


@case
def outputs_that_are_dead_or_cut_off():
    import chainer
    import chainer.functions as F

    x = chainer.Variable(np.arange(6, dtype=np.float32).reshape(2, 3))
    first, _, third = F.split_axis(x, 3, axis=1)
    third.unchain()
    y = F.sum(first * 2) + F.sum(third * 3)
    y.backward()
    return [x.grad, third.grad]


@case
def gradients_of_inputs_and_of_gradients():
    import chainer
    import chainer.functions as F

    x = chainer.Variable(np.array([[1, -2, 3]], np.float32))
    y = F.sum(F.relu(F.linear(x, np.eye(3, dtype=np.float32) * 2, np.ones(3, np.float32))) ** 3)
    (gx,) = chainer.grad([y], [x], enable_double_backprop=True)
    F.sum(gx**2).backward(retain_grad=True)
    first = x.grad
    x.cleargrad()
    y.backward(loss_scale=4)
    return [gx.array, first, x.grad]


@case
def labels_that_are_ignored_or_wrong():
    import chainer
    import chainer.functions as F

    x = chainer.Variable(np.array([[1, 2, 3], [0, 5, -5], [1e4, 0, 0]], np.float32))
    results = []
    for labels in ([0, -1, 0], [-1, -1, -1], [2, 1, -2]):
        x.cleargrad()
        loss = F.softmax_cross_entropy(x, np.array(labels, np.int32))
        loss.backward()
        results += [loss.array, x.grad]
    for options in (
        {'normalize': False},
        {'reduce': 'no'},
        {'cache_score': False},
        {'ignore_label': 2},
        {'class_weight': np.array([1, 2, 3], np.float32)},
        {'enable_double_backprop': True},
    ):
        x.cleargrad()
        loss = F.sum(F.softmax_cross_entropy(x, np.array([0, 2, 1], np.int32), **options))
        loss.backward()
        results += [loss.array, x.grad]
    try:
        F.softmax_cross_entropy(x, np.array([0, 1, 3], np.int32))
    except IndexError:
        results.append(np.array(1))
    return results


@case
def labels_to_ignore_that_are_no_small_int():
    import chainer.functions as F

    x, t = np.array([[1, 2, 3], [0, 5, -5]], np.float32), np.array([0, -1], np.int32)
    results = [F.softmax_cross_entropy(x, t * 0, ignore_label=None).array]
    return results + [F.softmax_cross_entropy(x, t, ignore_label=label).array for label in (-1.0, np.int64(-1))]


@case
def gradients_of_another_shape():
    import chainer
    import chainer.functions as F

    x = chainer.Variable(-np.arange(-6, 0, dtype=np.float32).reshape(2, 3))
    gy = chainer.Variable(np.arange(6, dtype=np.float32).reshape(2, 3)[:1])
    chainer.backward([F.relu(x)], [gy])
    return [x.grad]


@case
def parameters_that_are_read_only():
    import chainer

    link = chainer.Chain()
    with link.init_scope():
        link.p = chainer.Parameter(np.frombuffer(np.ones(3, np.float32).tobytes(), np.float32))
    optimizer = chainer.optimizers.Adam().setup(link)
    try:
        optimizer.update(lambda: chainer.functions.sum(link.p * link.p))
    except ValueError:
        return [link.p.array]


@case
def nan_is_seen():
    import chainer.functions as F

    x = np.array([[np.nan, 1, np.inf, -1]], np.float32)
    return [F.relu(x).array, F.softmax_cross_entropy(x[:, :2], np.array([1], np.int32)).array]


@case
def nothing_is_kept_without_backprop():
    import chainer

    model = classifier().predictor
    with chainer.no_backprop_mode():
        y = model(batch()[0])
    assert y.creator_node is None
    return [y.array]


@case
def wrong_shapes_are_refused():
    import chainer
    import chainer.functions as F

    messages = []
    for x, W, b in ((3, 4), (5, 3), (5,)), ((2, 3), (5, 3), (4,)), ((2, 3, 4), (5, 12), (6,)):
        try:
            F.linear(np.zeros(x, np.float32), np.zeros(W, np.float32), np.zeros(b, np.float32))
        except chainer.utils.type_check.InvalidType as e:
            messages.append(str(e))
    assert len(messages) == 3
    return [np.array(messages)]


@case
def function_hooks_and_debug_mode():
    import chainer
    import chainer.functions as F

    model, calls = classifier(), []

    class Hook(chainer.FunctionHook):
        def forward_postprocess(self, function, in_data):
            calls.append('forward ' + function.label)

        def backward_postprocess(self, function, in_data, out_grad):
            calls.append('backward ' + function.label)

    with Hook():
        model(*batch()).backward()
    function = F.activation.relu.ReLU()
    function.add_hook(Hook())
    (y,) = function.apply((chainer.Variable(np.ones((1, 3), np.float32)),))
    F.sum(y).backward()
    with chainer.using_config('debug', True):
        try:
            F.log(np.array([-1], np.float32))
        except RuntimeError as e:
            calls.append(str(e))
    assert len(calls) > 20
    return [np.array(calls)]


@case
def batches_of_an_iterator():
    import chainer

    np.random.seed(0)
    x, t = batch(10)
    data = chainer.datasets.TupleDataset(x, t)
    results = []
    for dataset in data, chainer.datasets.TupleDataset(list(x), t), chainer.datasets.SubDataset(data, 2, 9):
        iterator = chainer.iterators.SerialIterator(dataset, 4)
        for _ in range(5):
            examples = iterator.next()
            results += [*chainer.dataset.concat_examples(examples), *chainer.dataset.concat_examples(examples[1:3], -1)]
            results += [np.array(len(examples)), *examples[2], np.array([label for _, label in examples])]
            results.append(np.array([iterator.epoch, iterator.is_new_epoch, iterator.epoch_detail]))
    return results


@case
def a_batch_is_a_list_of_views():
    import chainer

    images, labels = batch(10)
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(images, labels), 4, shuffle=False)
    examples = next(iterator)
    assert type(examples) is list and type(examples[0]) is tuple and examples[0][0].base is images
    return [examples[0][1]]


@case
def batches_that_were_changed_and_a_converter_that_was_pickled():
    import chainer

    images, labels = batch(10)
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(images, labels), 4, shuffle=False)
    concat, results = chainer.dataset.concat_examples, []
    for change in (
        lambda examples: examples.reverse(),
        lambda examples: examples.pop(),
        lambda examples: examples.append(examples[0]),
        lambda examples: examples[1][0].fill(7),
        lambda examples: examples.__setitem__(2, (images[9], 3)),
    ):
        examples = next(iterator)
        change(examples)
        results += [*concat(examples, None), *concat(examples, -1), *concat(examples[1:], padding=2)]
    return results + [*pickle.loads(pickle.dumps(concat))(next(iterator), None)]


@case
def batches_of_which_something_else_changed():
    """Changes to the data set's labels, of which a batch has copies, and to the shape of a batch's images."""
    import chainer

    images, labels = batch(8)
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(images, labels), 4, shuffle=False)
    examples = next(iterator)
    labels[:] = 9
    results = [*chainer.dataset.concat_examples(examples, None)]
    examples = next(iterator)
    for image, _ in examples:
        image.shape = 28, 28
    return results + [*chainer.dataset.concat_examples(examples, None)]


@case
def data_sets_of_other_arrays():
    """Arrays in another byte order, of objects or of words give Chainer's result, or its error."""
    import chainer

    results = []
    for images in batch(4)[0].astype('>f4'), np.array([*batch(4)[0], None], object)[:4], np.array(['a'] * 4):
        data = chainer.datasets.TupleDataset(images, np.arange(4, dtype='>i4'))
        try:
            made = chainer.dataset.concat_examples(next(chainer.iterators.SerialIterator(data, 4)), -1)
            results += [*made, np.array([a.dtype.str for a in made])]
        except Exception as e:
            results.append(np.array(repr(e)))
    return results


@case
def a_learning_rate_that_is_an_array():
    import chainer

    return steps(chainer.optimizers.Adam(alpha=np.array([0.001], np.float32)), n=3)


@case
def examples_that_do_not_fit_together():
    import chainer

    results = []
    for examples in (
        [np.zeros(3), np.zeros(4)],
        [np.zeros(3), np.zeros((1, 3))],
        [np.zeros(3), [1, 2, 3]],
        [object()] * 2,
    ):
        try:
            chainer.dataset.concat_examples(examples)
        except (ValueError, TypeError, AttributeError) as e:
            results.append(type(e).__name__)
    assert len(results) == 4
    mixed = chainer.dataset.concat_examples([np.zeros(3, np.float32), np.ones(3)])
    return [
        np.array(results),
        mixed,
        chainer.dataset.concat_examples([[1, 2], [3, 4]]),
        chainer.dataset.concat_examples([np.zeros(3, np.float32), np.ones(2, np.float32)], padding=9),
    ]


@case
def a_model_that_was_pickled():
    """Without the fix, the optimizer of an unpickled model could not update it."""
    import copy

    import chainer

    results = []
    for restore in (lambda model: pickle.loads(pickle.dumps(model))), copy.deepcopy:
        for optimizer in 'Adam', 'SGD', 'MomentumSGD':
            model = classifier()
            chainer.optimizers.Adam().setup(model).update(model, *batch())
            results += steps(getattr(chainer.optimizers, optimizer)(), model=restore(model), n=2)
    return results


@case
def arrays_without_a_dimension():
    """Sums of zero-dimensional gradients stay arrays; F.gaussian and F.squared_error once refused scalars."""
    import chainer
    import chainer.functions as F

    x, y = [chainer.Variable(np.array(n, np.float32)) for n in (0.3, 0.7)]
    np.random.seed(0)
    loss = F.squared_error(x, y) + F.gaussian(x, y) * x + F.sum(F.relu(x) + x * x)
    loss.backward()
    loss = F.squared_error(x, y) * 2
    loss.backward()  # adds to the gradients that are there
    assert type(x.grad) is type(loss.array) is np.ndarray
    return [loss.array, x.grad, y.grad]


@case
def gradients_of_a_chain_that_are_added_or_shared():
    import chainer
    import chainer.functions as F

    model, (x, t) = classifier(), batch()
    l1, l2 = model.predictor.l1, model.predictor.l2
    x = chainer.Variable(x)
    x.cleargrad()
    model.cleargrads()
    for _ in range(2):  # the first gradients are new, the second are added to them
        model(x, t).backward()
    shared = F.softmax_cross_entropy(l2(F.relu(l2(F.relu(l1(x))))), t)  # uses l2 twice
    shared.backward()
    h = F.relu(l1(x))
    branches = F.softmax_cross_entropy(F.linear(h, F.relu(l2(h))[:10], np.zeros(10, np.float32)), t)
    branches.backward(retain_grad=True)
    return [shared.array, branches.array, h.grad, x.grad] + [p.grad for _, p in sorted(model.namedparams())]


@case
def gradients_of_hidden_layers_and_parts_of_a_chain():
    import chainer
    import chainer.functions as F

    model, (x, t) = classifier().predictor, batch()
    h = F.relu(model.l1(x))
    y = model.l3(F.relu(model.l2(h)))
    y.grad = np.ones_like(y.array)
    h.grad = np.full_like(h.array, 9)  # must not be part of the result
    model.cleargrads()
    y.backward()
    cut = F.relu(model.l1(x))
    cut.unchain_backward()
    F.softmax_cross_entropy(model.l3(F.relu(model.l2(cut))), t).backward()
    (gx,) = chainer.grad([F.softmax_cross_entropy(model(chainer.Variable(x)), t)], [model.l1.W])
    return [h.grad, cut.grad, gx.array, model.l1.W.grad_var.array] + [p.grad for _, p in sorted(model.namedparams())]


@case
def scaled_losses_and_parameters_that_come_late():
    import chainer
    import chainer.links as L

    np.random.seed(0)
    results = steps(chainer.optimizers.Adam(), lambda optimizer: optimizer.loss_scaling(scale=8), n=3)
    late = L.Classifier(chainer.Sequential(L.Linear(None, 20), chainer.functions.relu, L.Linear(None, 10)))
    return results + steps(chainer.optimizers.Adam(), model=late, n=3)


@case
def gradients_of_gradients_of_an_old_function():
    """Chainer refuses them, with and without chainer_fast."""
    import chainer

    class Square(chainer.Function):
        def forward(self, inputs):
            self.retain_inputs((0,))
            return (inputs[0] ** 2,)

        def backward(self, inputs, gys):
            return (2 * inputs[0] * gys[0],)

    x = chainer.Variable(np.ones((2, 3), np.float32))
    y = Square()(chainer.functions.relu(x))
    (gx,) = chainer.grad([y], [x], [chainer.Variable(np.ones((2, 3), np.float32))], enable_double_backprop=True)
    try:
        chainer.functions.sum(gx).backward()
    except RuntimeError as e:
        return [np.array(str(e))]


@case
def a_function_in_the_old_style():
    import chainer

    class Double(chainer.Function):
        def forward(self, inputs):
            return (inputs[0] * 2,)

        def backward(self, inputs, gys):
            return (gys[0] * 2,)

    x = chainer.Variable(np.ones((2, 3), np.float32))
    chainer.functions.sum(Double()(x) * Double()(x)).backward()
    return [x.grad]


def gradients(function, *arrays, again=True):
    """Return a function's output and its gradients, and with `again` theirs, for random gradients of the outputs."""
    import chainer

    inputs, rng = [chainer.Variable(a) for a in arrays], np.random.RandomState(1)
    y = function(*inputs)
    gy = chainer.Variable(rng.rand(*y.shape).astype(y.dtype))
    given = [v for v in inputs if v.dtype.kind == 'f']
    first = chainer.grad([y], given, [gy], enable_double_backprop=again)
    found = [y.array] + [g.array for g in first]
    if again:
        loss = sum(chainer.functions.sum(g * rng.rand(*g.shape).astype(g.dtype)) for g in first)
        found += [g.array for g in chainer.grad([loss], [*given, gy]) if g is not None]
    return found


def random(*shape, dtype=np.float32):
    return (np.random.RandomState(sum(shape)).rand(*shape) - 0.5).astype(dtype)


# The shapes of x and W, and what else a convolution gets.
CONVOLUTIONS = [
    ((4, 1, 12, 12), (16, 1, 5, 5), {}),
    ((64, 16, 12, 12), (32, 16, 5, 5), {}),  # in several parts and pieces
    ((1, 40, 9, 7), (33, 40, 3, 3), {'pad': 1}),  # channels divide among the threads
    ((2, 256, 3, 3), (200, 256, 3, 3), {'pad': 1}),
    ((7, 3, 11, 10), (5, 3, 3, 2), {'stride': (2, 3), 'pad': (1, 0), 'cover_all': True}),
    ((2, 3, 10, 10), (4, 3, 1, 1), {'stride': 3}),
    ((2, 3, 10, 10), (4, 3, 2, 2), {'stride': 5}),
    ((2, 3, 12, 12), (4, 3, 3, 3), {'dilate': (2, 3), 'pad': 2}),
    ((2, 4, 9, 9), (6, 2, 3, 3), {'groups': 2}),
    ((2, 3, 4, 4), (4, 3, 3, 3), {'pad': 5}),
    ((3, 5, 3, 3), (7, 5, 3, 3), {}),  # one output
    ((5, 7, 1, 1), (3, 7, 1, 1), {}),
]


@case
def convolutions_and_their_gradients_gradients():
    import chainer.functions as F

    found = []
    for x, W, options in CONVOLUTIONS:
        arrays = random(*x), random(*W), random(W[0])
        found += gradients(lambda *inputs, options=options: F.convolution_2d(*inputs, **options), *arrays)
        found += gradients(
            lambda *inputs, options=options: F.convolution_2d(*inputs, **options), *arrays[:2], again=False
        )
    return found


@case
def deconvolutions():
    import chainer.functions as F

    found = []
    for x, W, options in (
        ((8, 64, 4, 4), (64, 32, 4, 4), {'stride': 2, 'pad': 1}),
        ((2, 5, 3, 4), (5, 6, 2, 3), {'stride': (3, 2), 'outsize': (9, 9)}),
        ((2, 4, 5, 5), (4, 2, 3, 3), {'groups': 2}),
        ((2, 4, 5, 5), (4, 3, 3, 3), {'dilate': 2}),
    ):
        channels = W[1] * options.get('groups', 1)
        function = lambda *inputs, options=options: F.deconvolution_2d(*inputs, **options)  # noqa: E731
        found += gradients(function, random(*x), random(*W), random(channels))
    return found


@case
def convolutions_of_other_arrays():
    """Other dtypes and layouts, empty batches, NaN and infinity, in the arrays and in the gradients."""
    import chainer.functions as F

    found = []
    for dtype in np.float16, np.float64:
        arrays = [random(*shape, dtype=dtype) for shape in ((2, 3, 6, 6), (4, 3, 3, 3), (4,))]
        found += [y.astype(np.float32) for y in gradients(F.convolution_2d, *arrays, again=dtype == np.float64)]
    x, W = random(6, 6, 3, 8), random(4, 3, 3, 3)
    for other in x.transpose(1, 2, 3, 0)[:4], np.asfortranarray(x.transpose(0, 2, 1, 3)), x[:, :3, :, ::-1]:
        channels = other.shape[1]
        found += gradients(F.convolution_2d, other, random(4, channels, 3, 3))
    found += gradients(lambda a: F.convolution_2d(a, W), x.transpose(0, 2, 1, 3))
    try:
        found.append(F.convolution_2d(np.zeros((0, 3, 6, 6), np.float32), W).array)
    except ValueError as e:
        found.append(np.array(type(e).__name__))
    x = random(2, 3, 6, 6)
    x[0, 1, 2, 3], x[1, 0, 0, 0] = np.nan, np.inf
    return found + [np.isfinite(a) for a in gradients(F.convolution_2d, x, W, again=False)]


@case
def pooling_and_its_gradients_gradients():
    import chainer.functions as F

    found, x = [], random(3, 5, 9, 11)
    x[0, 0, :4, :4], x[1, 1, 3, 3], x[2] = 0.25, np.nan, np.maximum(x[2], 0)  # equals have one that gets the gradient
    low = np.full((1, 1, 5, 5), -np.inf, np.float32)
    for size in 2, 3, (2, 3), (3, 2):
        for options in {}, {'stride': 1}, {'stride': (2, 1), 'pad': 1}, {'stride': 4}:
            found += gradients(lambda a: F.average_pooling_2d(a, size, **options), x)  # noqa: B023
            for array in x, x[:, :, 1:, 1:], low:
                for cover_all in True, False:
                    found += gradients(lambda a: F.max_pooling_2d(a, size, cover_all=cover_all, **options), array)  # noqa: B023
    y, indexes = F.max_pooling_2d(x, 2, return_indices=True)
    found += [indexes.astype(np.int64), F.upsampling_2d(y, indexes, 2, cover_all=True, outsize=x.shape[2:]).array]
    return (
        found
        + gradients(lambda a: F.max_pooling_2d(a, 2), x.astype(np.float64))
        + gradients(lambda a: F.unpooling_2d(a, 2), x)
    )


@case
def batch_normalization():
    import chainer
    import chainer.functions as F
    import chainer.links as L

    found = []
    for shape, axis in (
        ((33, 20), None),
        ((6, 20, 5, 7), None),
        ((2, 20, 1, 1), None),
        ((4, 5, 6, 20), (0, 1, 2)),
        ((20, 9), 1),
    ):
        x, gamma, beta = 3 * random(*shape) + 5, random(20), random(20)
        found += gradients(lambda *a: F.batch_normalization(*a, axis=axis), x, gamma, beta)  # noqa: B023
        fixed = random(20), random(20) ** 2
        found += gradients(lambda *a: F.fixed_batch_normalization(*a, *fixed, axis=axis), x, gamma, beta)  # noqa: B023
    link = L.BatchNormalization(20)
    for n in 1, 2:
        link(random(n + 10, 20, 3, 3) + n)
    for dtype in np.float16, np.float64:
        found.append(link(random(4, 20, 3, 3, dtype=dtype)).array.astype(np.float32))
    with chainer.using_config('train', False):
        found.append(link(random(4, 20, 3, 3)).array)
    return found + [link.avg_mean, link.avg_var]


@case
def other_functions_of_the_interface():
    import chainer
    import chainer.functions as F

    np.random.seed(0)
    found, x = [], random(6, 8, 5, 5)
    x[0, 0, 0, :3] = 0, np.nan, np.inf
    for array in x, x[:, :, ::2], x.reshape(48, 25), x.astype(np.float64):
        found += gradients(F.relu, array) + gradients(lambda a: F.leaky_relu(a, 0.3), array)
        found += gradients(lambda a: F.dropout(a, 0.4), array)
        found += gradients(lambda a: F.concat([a, 2 * a, a]), array) + gradients(
            lambda a: F.split_axis(a, [1, 3], 1)[1], array
        )
        found += gradients(lambda a: F.add(a, a, a), array)
    found += gradients(lambda a: F.local_response_normalization(a), random(2, 8, 3, 3), again=False)
    mask = (random(6, 8) > 0) * np.float32(2)
    found += gradients(lambda a: F.dropout(a, mask=mask), random(6, 8))
    found += gradients(lambda c, a: F.lstm(c, a)[1], random(5, 7), random(4, 28))
    found += gradients(F.linear, random(90, 70), random(80, 70)) + gradients(F.linear, random(3, 70), random(80, 70))
    with chainer.using_config('use_ideep', 'never'):
        return found + gradients(F.convolution_2d, random(2, 3, 6, 6), random(4, 3, 3, 3), again=False)


@case
def recurrent_layers():
    """Sequences of several lengths, both directions, dropout, NaN, and layouts and dtypes that are left to Chainer."""
    import chainer.functions as F
    import chainer.links as L

    np.random.seed(0)
    found, nan = [], random(5, 6)
    nan[2, 1] = np.nan
    for link in L.NStepLSTM(2, 6, 40, 0.3), L.NStepBiLSTM(2, 6, 7, 0.0), L.NStepBiGRU(1, 6, 7, 0.0):
        for xs in (
            [random(3, 6), random(9, 6), random(9, 6), random(1, 6)],
            [random(4, 6)] * 30,
            [random(2, 6)],
            [nan, random(3, 6)],
            [np.asfortranarray(random(5, 6))],
        ):
            n = link.n_cells
            ends = [random(len(link.ws), len(xs), link.out_size) for _ in range(n)]
            for again in True, False:
                found += gradients(lambda *a: F.concat(link(*a[:n], [*a[n:]])[-1], 0), *ends, *xs, again=again)  # noqa: B023
        link.cleargrads()
        *ends, ys = link(*[None] * link.n_cells, [random(5, 6), random(3, 6)])
        F.sum(ends[-1] * ends[0]).backward()  # hs has no gradient
        found += [p.grad for _, p in sorted(link.namedparams())]
    wide = L.NStepLSTM(1, 6, 7, 0.0)
    for p in wide.params():
        p.array = p.array.astype(np.float64)
    return found + gradients(lambda x: wide(None, None, [x])[2][0], random(4, 6, dtype=np.float64))


@case
def a_static_graph():
    """It records functions as Chainer itself does them, and repeats them."""
    import chainer
    import chainer.functions as F

    class Net(chainer.Chain):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                self.first, self.last = chainer.links.Linear(20, 30), chainer.links.Linear(30, 5)

        @chainer.static_graph
        def __call__(self, x):
            return self.last(F.relu(self.first(x)))

    np.random.seed(0)
    net, found = Net(), []
    for i in range(4):
        y = net(chainer.Variable(random(8, 20) * (i + 1)))
        net.cleargrads()
        F.sum(y * y).backward()
        found += [y.array.copy()] + [p.grad.copy() for _, p in sorted(net.namedparams())]
    return found


@case
def a_convolutional_network():
    """It gives the same to the bit in each run, in several threads at once, and in a process forked from a thread."""
    import multiprocessing
    import threading
    from concurrent.futures import ThreadPoolExecutor

    import chainer
    import chainer.functions as F
    import chainer.links as L

    def train(_=0):
        np.random.seed(0)
        convolution, norm, last = L.Convolution2D(1, 32, 5), L.BatchNormalization(32), L.Linear(32 * 36, 10)
        forward = lambda x: last(F.max_pooling_2d(F.relu(norm(convolution(x))), 4))  # noqa: E731
        optimizer, loss = chainer.optimizers.Adam(eps=1e-4), L.Classifier(chainer.Sequential(forward))
        with loss.init_scope():
            loss.convolution, loss.norm, loss.last = convolution, norm, last
        optimizer.setup(loss)
        images, labels = batch(40)
        for _ in range(3):
            optimizer.update(loss, images.reshape(-1, 1, 28, 28), labels)
        return [p.array for _, p in sorted(loss.namedparams())]

    def forked():
        fork = multiprocessing.get_context('fork')
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=lambda: sender.send(train()))
        process.start()
        assert receiver.poll(60), 'the forked process hangs'
        process.join(60)
        assert process.exitcode == 0
        return receiver.recv()

    expected, found = train(), [train()]
    for function in train, forked:
        thread = threading.Thread(target=lambda function=function: found.append(function()))
        thread.start()
        thread.join()
    assert len(found) == 3
    for other in found:
        for a, b in zip(expected, other):
            np.testing.assert_array_equal(a, b)
    x, W = random(40, 16, 12, 12), random(32, 16, 5, 5)
    with ThreadPoolExecutor(4) as pool:
        products = pool.map(lambda _: [*gradients(F.convolution_2d, x, W), x[:, 0, 0] @ x[:, 0, 0].T], range(8))
        first, *others = products
    for a, b in [pair for other in others for pair in zip(first, other)]:
        np.testing.assert_array_equal(a, b)
    return expected + first


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """Return {case: [arrays]} of plain Chainer, and of Chainer with chainer_fast."""
    directory = tmp_path_factory.mktemp('fast')
    found = []
    for fast in '0', '1':
        path = directory / f'results{fast}.npz'
        subprocess.run(
            [sys.executable, '-P', __file__, str(path)],
            check=True,
            timeout=300,
            # -P: import the installed package, not the source beside this file
            env={
                **os.environ,
                'CHAINER_FAST': fast,
                'OPENBLAS_NUM_THREADS': '2',
                'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}',
            },
        )
        with np.load(path) as arrays:
            found.append({name: [arrays[key] for key in sorted(arrays) if key.split(' ')[0] == name] for name in CASES})
    return found


@pytest.mark.parametrize('name', CASES)
def test_fast_chainer_does_what_plain_chainer_does(results, name):
    plain, fast = results[0][name], results[1][name]
    assert len(plain) == len(fast) > 0
    for a, b in zip(plain, fast):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.dtype.kind in 'fc':
            largest = abs(a[np.isfinite(a)]).max(initial=1)
            np.testing.assert_allclose(b, a, rtol=2e-4, atol=5e-6 * largest)
        else:
            np.testing.assert_array_equal(b, a)


def run(code, **env):
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, env={**os.environ, **env}
    )
    return done.stdout.strip()


@pytest.mark.parametrize('columns, out', [(784, 1000), (21, 13), (8, 1)])
def test_a_row_gives_the_same_to_the_bit_beside_others(columns, out):
    """A prediction does not depend on the other rows of its batch."""
    import chainer.functions as F

    rng = np.random.RandomState(0)
    x, W, b = [rng.rand(*shape).astype(np.float32) - 0.5 for shape in ((64, columns), (out, columns), (out,))]
    apart = np.concatenate([F.linear(row[None], W, b).array for row in x])
    np.testing.assert_allclose(apart, x @ W.T + b, rtol=1e-4, atol=1e-5)
    for rows in *range(2, 10), 32, 64:
        np.testing.assert_array_equal(F.linear(x[:rows], W, b).array, apart[:rows])
    pickled = [pickle.loads(pickle.dumps(array)) for array in (x, W, b)]  # their dtypes are other objects
    np.testing.assert_array_equal(F.linear(*pickled).array, apart)


@pytest.mark.slow
def test_the_switches():
    code = 'from chainer.backends import intel64; print(intel64.should_use_ideep(">=auto"))'
    assert [run(code, **env) for env in ({}, {'CHAINER_FAST': '0'}, {'CHAINER_USE_IDEEP': 'never'})] == [
        'True',
        'False',
        'False',
    ]


def test_it_has_every_name_that_chainer_uses():
    import chainer
    import ideep4py

    assert type(ideep4py.mdarray(np.ones(1, np.float32))) is ideep4py.mdarray
    assert ideep4py.check_ndim([ideep4py.array(np.ones((1, 1), np.float32))], (2, 4))  # small, but sent there

    source = '\n'.join(path.read_text() for path in pathlib.Path(chainer.__file__).parent.rglob('*.py'))
    names = {name for name in re.findall(r'\bideep\.([\w.]+)', source) if name[0] != '_'} | {'mdarray'}
    left_to_chainer = {name for name in names if re.match('concat|localResponse|mdarrayVector|intVector', name)}
    assert len(names) > 20
    for name in names - left_to_chainer:
        operator.attrgetter(name)(ideep4py)
    assert not ideep4py.check_ndim([np.ones((1, 1, 1, 1), np.float32)], (4,))  # asked by these alone


@pytest.mark.skipif(platform.machine() not in ('x86_64', 'aarch64'), reason='other CPUs keep subnormal numbers')
def test_adams_averages_become_zero_and_not_subnormal():
    """Subnormal numbers would be a hundred times as slow; arithmetic outside chainer_fast does not change."""
    assert (
        run(
            """
import chainer, numpy as np
link = chainer.links.Linear(1000, 1000)
optimizer = chainer.optimizers.Adam().setup(link)
for p in link.params():
    p.grad = np.zeros_like(p.data)
optimizer.update()
for p in link.params():
    for average in 'm', 'v':
        p.update_rule.state[average][:] = 1e-39
    p.grad = np.zeros_like(p.data)
optimizer.update()
print([not p.update_rule.state[average].any() for p in link.params() for average in 'mv'],
      np.float32(1.2e-38) / np.float32(2) > 0)
""",
            CHAINER_FAST='1',
        )
        == '[True, True, True, True] True'
    )


@pytest.mark.slow
@pytest.mark.skipif(os.cpu_count() < 2, reason='on one core OpenBLAS has one thread')
def test_a_process_that_gets_no_threads_says_so_and_ends():
    """The jobs of NumPy's OpenBLAS wait for each other: with fewer threads than jobs it would hang for ever."""
    code = """
import os, resource, numpy as np, chainer.functions as F
a = np.ones((500, 500), np.float32)
if not os.fork():
    os.getuid() or os.setuid(65534)  # root has no limit
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    print(F.linear(a, a).array[0, 0], flush=True)
    a @ a
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    env = {**os.environ, 'OPENBLAS_NUM_THREADS': '2'}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout == f'500.0\n{-signal.SIGABRT}\n'
    assert 'refuses threads' in done.stderr


if __name__ == '__main__':
    fast, used = os.environ['CHAINER_FAST'] == '1', set()

    def note(name, loop):
        return lambda *args: (used.add((name, args[-2:] if name == 'product' else None)), loop(*args))[1]

    if fast:
        import chainer  # noqa: F401
        import ideep4py

        # Use more threads than there are cores, and than some arrays have cache lines.
        ideep4py.threads = 5
        ideep4py.loops.set_up(ideep4py.blas.scipy_cblas_sgemm64_, 5)
        LOOPS = 'adam pool unpool rectify norm norm_gradient cell cell_gradient'.split()
        LOOPS += ['convolve'] * bool(ideep4py.dnn)
        for name in [*LOOPS, 'product']:
            setattr(ideep4py.loops, name, note(name, getattr(ideep4py.loops, name)))
        from benchmarks import batches  # noqa: F401  # its replacements have their cases here, too
    np.savez(
        sys.argv[1],
        **{f'{name} {i:03}': array for name, function in CASES.items() for i, array in enumerate(function())},
    )
    if fast:
        expected = {('product', kind) for kind in ((0, 0), (1, 0), (0, 1))} | {(name, None) for name in LOOPS}
        # On arm64 without SVE oneDNN has nothing faster than Chainer.
        either = {('convolve', None)} if platform.machine() == 'aarch64' else set()
        assert used | either == expected | either, expected - used
    else:
        assert 'ideep4py' not in sys.modules
