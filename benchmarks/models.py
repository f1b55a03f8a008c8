"""This module compares steps and predictions of other models in the image's Chainer, plain Chainer and PyTorch.

    .venv-bench/bin/python -m benchmarks.models            # writes docs/performance.md, as benchmarks.training does
    .venv-bench/bin/python -m benchmarks.models cnn vgg    # these rows alone, and writes nothing

Chainer runs in the image, which has oneDNN, or BENCH_IMAGE; `none` is this machine. The name of a row is its model;
`predict` is a prediction, the number is the batch. PyTorch has no row for the models that AWS's samples do not have.
"""

import contextlib
import os
import statistics
import sys

import numpy as np
from local_mode.docker import image_uri

from benchmarks.report import section
from benchmarks.training import OURS, PLAIN, ROOT, TORCH, machine, ratio, take_orders, take_turns

VGG = [64, 64, 'M', 128, 128, 'M', 256, 256, 256, 'M', 512, 512, 512, 'M', 512, 512, 512, 'M']
# The shape of an example and the batches of steps and predictions; 0 is a prediction only.
MODELS = {
    'cnn': ((1, 28, 28), [128], [1, 8, 32, 1000]),
    'vgg': ((3, 32, 32), [64], [1, 8]),
    'resnet': ((3, 224, 224), [], [8]),
    'lstm': ((30, 300), [64], [1, 8, 32]),
    'dcgan': ((100,), [64], [1, 8, 32]),
    'average': ((3, 32, 32), [64], [1, 8, 32]),
    'normalized': ((784,), [128], [1, 8, 32]),
    'autoencoder': ((784,), [100], [1, 8, 32]),
    'attention': ((32, 128), [32], [1, 8, 32]),
}


def of_chainer(name):
    """Return a model of Chainer's."""
    import chainer.functions as F
    import chainer.links as L
    from chainer import Chain, Sequential

    class LSTM(Chain):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                self.rnn, self.last = L.NStepLSTM(2, 300, 300, 0.4), L.Linear(300, 10)

        def forward(self, x):
            return self.last(self.rnn(None, None, [*x])[0][-1])

    class Attention(Chain):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                self.qkv, self.mlp = (
                    L.Linear(128, 384, nobias=True),
                    Sequential(L.Linear(128, 512), F.relu, L.Linear(512, 128)),
                )
                self.norm, self.last = L.LayerNormalization(128), L.Linear(32 * 128, 10)

        def forward(self, x):
            shape = x.shape
            q, k, v = F.split_axis(self.qkv(x, n_batch_axes=2), 3, 2)
            h = F.matmul(F.softmax(F.matmul(q, k, transb=True) / 128**0.5, axis=2), v) + x
            return self.last(self.mlp(self.norm(h.reshape(-1, 128))).reshape(shape))

    class ResNet(L.ResNet50Layers):
        def __init__(self):
            super().__init__(pretrained_model=None)

        def forward(self, x):
            return super().forward(x, ['fc6'])['fc6']

    def vgg():
        layers, channels = [], 3
        for n in VGG:
            layers += [lambda x: F.max_pooling_2d(x, 2)] if n == 'M' else block(channels, n)
            channels = channels if n == 'M' else n
        return Sequential(*layers, F.dropout, L.Linear(512, 512), L.BatchNormalization(512), F.relu, L.Linear(512, 10))

    def block(channels, n, pool=None):
        convolution = L.Convolution2D(channels, n, 3, pad=1, nobias=True)
        return [convolution, L.BatchNormalization(n), F.relu] + [lambda x: F.average_pooling_2d(x, pool)] * bool(pool)

    def up(n, m, last=()):
        return [L.Deconvolution2D(n, m, 4, 2, 1), *(last or (L.BatchNormalization(m), F.relu))]

    def pool(x):
        return F.max_pooling_2d(F.relu(x), 2)

    return {
        'cnn': lambda: Sequential(
            *[L.Convolution2D(1, 16, 5), pool, L.Convolution2D(16, 32, 5), pool],
            *[L.Linear(512, 256), F.relu, L.Linear(256, 10)],
        ),
        'vgg': vgg,
        'resnet': ResNet,
        'lstm': LSTM,
        'dcgan': lambda: Sequential(
            *[L.Linear(100, 4096), lambda x: x.reshape(-1, 256, 4, 4), L.BatchNormalization(256), F.relu],
            *[*up(256, 128), *up(128, 64), *up(64, 3, [F.tanh]), L.Convolution2D(3, 64, 4, 2, 1), F.leaky_relu],
            *[L.Convolution2D(64, 128, 4, 2, 1), L.BatchNormalization(128), F.leaky_relu, L.Linear(8192, 10)],
        ),
        'average': lambda: Sequential(*block(3, 32, 2), *block(32, 64, 16), L.Linear(64, 10)),
        'normalized': lambda: Sequential(
            *[L.Linear(784, 500), L.BatchNormalization(500), F.relu, F.dropout],
            *[L.Linear(500, 500), L.BatchNormalization(500), F.relu, F.dropout, L.Linear(500, 10)],
        ),
        'autoencoder': lambda: Sequential(L.Linear(784, 128), F.relu, L.Linear(128, 784)),
        'attention': Attention,
    }[name]()


def of_torch(name):
    """Return the same model of PyTorch's, or None."""
    from torch import nn

    class LSTM(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.last = nn.LSTM(300, 300, 2, batch_first=True, dropout=0.4), nn.Linear(300, 10)

        def forward(self, x):
            return self.last(self.rnn(x)[1][0][-1])

    class Bottleneck(nn.Module):
        def __init__(self, n, m, stride):
            super().__init__()
            one, norm = lambda i, o, s: nn.Conv2d(i, o, 1, s, bias=False), nn.BatchNorm2d
            middle = [norm(m), nn.ReLU(), nn.Conv2d(m, m, 3, padding=1, bias=False), norm(m), nn.ReLU()]
            self.way = nn.Sequential(one(n, m, stride), *middle, one(m, 4 * m, 1), norm(4 * m))
            self.past = nn.Identity() if n == 4 * m else nn.Sequential(one(n, 4 * m, stride), norm(4 * m))

        def forward(self, x):
            return nn.functional.relu(self.way(x) + self.past(x))

    def resnet():
        layers, n = [nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)], 64
        for m, count, stride in (64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2):
            for i in range(count):
                layers.append(Bottleneck(n, m, 1 if i else stride))
                n = 4 * m
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))

    def vgg():
        layers, channels = [], 3
        for n in VGG:
            layers += [nn.MaxPool2d(2)] if n == 'M' else block(channels, n)
            channels = channels if n == 'M' else n
        last = [nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(), *last)

    def block(channels, n, pool=None):
        convolution = nn.Conv2d(channels, n, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(n), nn.ReLU()] + ([nn.AvgPool2d(pool)] if pool else [])

    def up(n, m, last=()):
        return [nn.ConvTranspose2d(n, m, 4, 2, 1), *(last or (nn.BatchNorm2d(m), nn.ReLU()))]

    known = {
        'cnn': lambda: nn.Sequential(
            *[nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)],
            *[nn.Flatten(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)],
        ),
        'vgg': vgg,
        'resnet': resnet,
        'lstm': LSTM,
        'dcgan': lambda: nn.Sequential(
            *[nn.Linear(100, 4096), nn.Unflatten(1, (256, 4, 4)), nn.BatchNorm2d(256), nn.ReLU()],
            *[*up(256, 128), *up(128, 64), *up(64, 3, [nn.Tanh()]), nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2)],
            *[nn.Conv2d(64, 128, 4, 2, 1), nn.BatchNorm2d(128), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8192, 10)],
        ),
        'average': lambda: nn.Sequential(*block(3, 32, 2), *block(32, 64, 16), nn.Flatten(), nn.Linear(64, 10)),
        'normalized': lambda: nn.Sequential(
            *[nn.Linear(784, 500), nn.BatchNorm1d(500), nn.ReLU(), nn.Dropout()],
            *[nn.Linear(500, 500), nn.BatchNorm1d(500), nn.ReLU(), nn.Dropout(), nn.Linear(500, 10)],
        ),
    }
    return known[name]() if name in known else None


def chainer_run(name, mode, x, t):
    """Return run(steps) of Chainer's model."""
    import chainer

    model = of_chainer(name)
    loss = chainer.functions.mean_squared_error if name == 'autoencoder' else chainer.functions.softmax_cross_entropy
    optimizer = chainer.optimizers.MomentumSGD() if name == 'autoencoder' else chainer.optimizers.Adam()
    optimizer.setup(model)

    def step():
        optimizer.update(lambda: loss(model(x), t))

    def predict():
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            model(x)

    return lambda steps: [(step if mode == 'step' else predict)() for _ in range(steps)]


def torch_run(name, mode, x, t):
    """Return run(steps) of PyTorch's model."""
    import torch

    torch.set_num_threads(int(os.environ['OPENBLAS_NUM_THREADS']))
    torch.set_flush_denormal(True)
    model, x, t = of_torch(name), torch.from_numpy(x), torch.from_numpy(t.astype(np.int64))
    optimizer, loss = torch.optim.Adam(model.parameters(), fused=True), torch.nn.CrossEntropyLoss()

    def step():
        optimizer.zero_grad()
        loss(model(x), t).backward()
        optimizer.step()

    def predict():
        with torch.no_grad():
            model.eval()(x)

    return lambda steps: [(step if mode == 'step' else predict)() for _ in range(steps)]


def work(variant, name, mode, batch):
    np.random.seed(0)  # other weights could have other units that die, whose momenta become subnormal: slow numbers
    rng = np.random.RandomState(0)
    x = rng.rand(int(batch), *MODELS[name][0]).astype(np.float32)
    t = x if name == 'autoencoder' else rng.randint(0, 10, len(x)).astype(np.int32)
    take_orders((torch_run if variant == TORCH else chainer_run)(name, mode, x, t))


def command(variant, environment):
    """Return the start of a worker's command: Chainer's runs in the image."""
    image = os.environ.get('BENCH_IMAGE') or image_uri('local')
    module = ['-m', 'benchmarks.models']
    if variant == TORCH or image == 'none':
        return [sys.executable, *module]
    names = 'OPENBLAS_NUM_THREADS', 'CHAINER_FAST', 'GLIBC_TUNABLES'
    given = [f'--env={name}={environment[name]}' for name in names if name in environment]
    options = ['--rm', '--interactive', f'--volume={ROOT}:/repository:ro', '--workdir=/repository', *given]
    return ['docker', 'run', *options, '--entrypoint=python', image, *module]


def table(rounds, names=MODELS):
    """Print the table of models."""
    print("| model | batch | ms | x plain Chainer | x PyTorch eager | peak memory, MB, and PyTorch's |")
    print('|---|---|---|---|---|---|')
    for name in names:
        _, steps, predictions = MODELS[name]
        for mode, batch in [('step', n) for n in steps] + [('predict', n) for n in predictions]:
            variants = [OURS, PLAIN] + [TORCH] * (name not in ('autoencoder', 'attention'))
            seconds, memory = take_turns(variants, (name, mode, batch), rounds, command)
            others = [ratio(seconds[v], seconds[OURS]) if v in seconds else '' for v in (PLAIN, TORCH)]
            peaks = ', '.join(f'{memory[v]:.0f}' for v in (OURS, TORCH) if v in memory)
            ms = statistics.median(seconds[OURS]) * 1000
            print(f'| {name}, {mode} | {batch:,} | {ms:.3g} | {others[0]} | {others[1]} | {peaks} |', flush=True)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--worker']:
        work(*sys.argv[2:])
    else:
        print(here := machine())
        with contextlib.nullcontext() if sys.argv[1:] else section('benchmarks.training.models', here):
            table(8, sys.argv[1:] or MODELS)
