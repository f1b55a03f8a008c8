"""This benchmark compares training in the image's Chainer, plain Chainer, PyTorch, and bare matrix products.

    .venv-bench/bin/python -m benchmarks.training          # some 9 minutes on two cores

The network is an MLP 784-1000-1000-10 with Adam, batches of 128 and 60,000 float32 images. Every variant runs
in its own process. They take turns of a quarter of a second, so that the machine's other work affects all of
them alike. Ratios are medians over the rounds, with quartiles. Further tables show the time of a step for
other sizes, and of the whole script with three epochs and five seeds.
"""

import argparse
import collections
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.report import section
from benchmarks.server import blas_settings, cpus

ROOT = pathlib.Path(__file__).resolve().parent.parent
Size = collections.namedtuple('Size', 'batch units images', defaults=(128, 1000, 60000))
GROWTH = [
    Size(),
    *[Size(batch=n) for n in (32, 500, 1000)],
    *[Size(units=n) for n in (250, 500, 2000, 4000)],
    *[Size(images=n) for n in (6000, 240000)],
]


def machine():
    """Return one line: the CPU, its cores for this process, and the memory."""
    info = pathlib.Path('/proc/cpuinfo').read_text()
    fields = dict(re.findall(r'^(model name|cpu family|model)\s*: (.*)', info, re.MULTILINE))
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    return '{} cores of {} (family {}, model {}), {:.0f} GB\n'.format(
        cpus(), fields.get('model name', platform.machine()), fields.get('cpu family'), fields.get('model'), memory
    )


def data(size):
    """Return random images, float32 (N, 784), 80 % black like MNIST's, and labels, int32 (N,)."""
    rng = np.random.default_rng(0)
    images = rng.random((size.images, 784), np.float32)
    images[images < 0.8] = 0
    return images, rng.integers(0, 10, size.images, np.int32)


def matrix_products(images, labels, size):
    """Return run(steps) for a step's eight matrix products alone, with chainer_fast's BLAS and threads."""
    from ideep4py import loops

    layers = []
    for rows, columns in (size.units, 784), (size.units, size.units), (10, size.units):
        W, b = np.ones((rows, columns), np.float32), np.zeros(rows, np.float32)
        x, y = np.ones((size.batch, columns), np.float32), np.empty((size.batch, rows), np.float32)
        layers.append((x, W, b, y, x.copy(), W.copy()))
    layers[0][0][:] = images[: size.batch]

    def run(steps):
        for _ in range(steps):
            for x, W, b, y, _, _ in layers:
                loops.product(y, x, W, id(b), *y.shape, x.shape[1], 0, 1)
            for layer in 2, 1, 0:
                x, W, b, y, gx, gW = layers[layer]
                if layer:  # nobody wants the images' gradients
                    loops.product(gx, y, W, None, *gx.shape, len(W), 0, 0)
                loops.product(gW, y, x, None, *gW.shape, len(x), 1, 0)

    return run


def numpy_products(images, labels, size):
    """Return run(steps) for the same products with NumPy's BLAS and threads."""
    rng = np.random.RandomState(0)
    batch, units = size.batch, size.units
    W1, W2, W3 = [rng.rand(*s).astype(np.float32) for s in ((units, 784), (units, units), (10, units))]
    x, h, g = images[:batch].copy(), np.ones((batch, units), np.float32), np.ones((batch, 10), np.float32)
    y, scores, g1, g2, g3 = h.copy(), g.copy(), W1.copy(), W2.copy(), W3.copy()

    def run(steps):
        for _ in range(steps):
            np.dot(x, W1.T, out=y), np.dot(h, W2.T, out=y), np.dot(h, W3.T, out=scores)
            np.dot(g.T, h, out=g3), np.dot(g, W3, out=y)
            np.dot(h.T, y, out=g2), np.dot(h, W2, out=y), np.dot(h.T, x, out=g1)

    return run


def chainer_steps(images, labels, size):
    """Return run(steps) for the script's network in Chainer's Trainer; CHAINER_FAST selects the variant."""
    import chainer

    import chainer_mnist_single_machine as script

    model = chainer.links.Classifier(script.MLP(size.units, 10))
    optimizer = chainer.optimizers.Adam().setup(model)
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(images, labels), size.batch)
    updater = chainer.training.updaters.StandardUpdater(iterator, optimizer)

    def run(steps):
        with tempfile.TemporaryDirectory() as out:
            trainer = chainer.training.Trainer(updater, (updater.iteration + steps, 'iteration'), out=out)
            trainer.extend(chainer.training.extensions.LogReport())
            trainer.run()

    return run


def torch_steps(images, labels, size, compiled=False, flush=True):
    """Return run(steps) for PyTorch: fused Adam, no DataLoader, and each batch's accuracy as in Chainer."""
    import torch

    torch.set_num_threads(int(os.environ['OPENBLAS_NUM_THREADS']))
    torch.set_flush_denormal(flush)  # as chainer_fast.c does
    units = size.units
    model = torch.nn.Sequential(
        torch.nn.Linear(784, units),
        torch.nn.ReLU(),
        torch.nn.Linear(units, units),
        torch.nn.ReLU(),
        torch.nn.Linear(units, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    forward, loss_of = torch.compile(model) if compiled else model, torch.nn.CrossEntropyLoss()
    images, labels = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
    order = torch.randperm(len(images))
    batches = len(images) // size.batch

    def run(steps):
        for i in range(steps):
            i %= batches
            index = order[i * size.batch : (i + 1) * size.batch]
            x, t = images[index], labels[index]
            optimizer.zero_grad()
            y = forward(x)
            loss_of(y, t).backward()
            optimizer.step()
            (y.argmax(1) == t).float().mean()

    return run


BOUND, OURS, PLAIN, TORCH = 'matrix products alone', "the image's Chainer", 'plain Chainer', 'PyTorch, eager'
VARIANTS = {
    BOUND: (matrix_products, '1'),
    "matrix products alone, NumPy's": (numpy_products, '1'),
    OURS: (chainer_steps, '1'),
    PLAIN: (chainer_steps, '0'),
    TORCH: (torch_steps, '1'),
    'PyTorch, eager, subnormals kept': (lambda *arrays: torch_steps(*arrays, flush=False), '1'),
    'PyTorch, torch.compile': (lambda *arrays: torch_steps(*arrays, compiled=True), '1'),
}


def environment(fast):
    """Return the image's environment variables for training; plain Chainer gets only OpenBLAS's."""
    env = {**os.environ, **blas_settings(), 'CHAINER_FAST': fast, 'PYTHONPATH': str(ROOT)}
    if fast == '1':
        env['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    return env


def work(name, size):
    """Run a variant's process: for each line on stdin take steps for 0.25 s.

    Prints the seconds of a step and the peak memory in kB.
    """
    take_orders(VARIANTS[name][0](*data(size), size))


def take_orders(run):
    start = time.perf_counter()
    run(3)
    step = (time.perf_counter() - start) / 3
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # resets the peak memory
    print(flush=True)
    for _ in sys.stdin:
        steps = max(1, round(0.25 / step))
        start = time.perf_counter()
        run(steps)
        step = (time.perf_counter() - start) / steps
        peak = re.search(r'VmHWM:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1]
        print(step, peak, flush=True)


def ratio(these, those):
    """Return the median and quartiles of the pairs' ratios, a str."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(these, those)], n=4)
    return f'{median:.2f} ({low:.2f}-{high:.2f})'


def take_turns(names, size, rounds, command=lambda *_: [sys.executable, '-m', 'benchmarks.training']):
    """Return {variant: [seconds of a step]} and {variant: peak memory in MB}; the command is a worker's."""
    processes, seconds, memory = {}, {}, {}
    for name in names:
        env = environment(VARIANTS[name][1])
        processes[name] = process = subprocess.Popen(
            [*command(name, env), '--worker', name, *map(str, size)],
            cwd=ROOT,
            text=True,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout.readline() == '\n', name
        seconds[name] = []
    for _ in range(rounds + 1):
        for name, process in processes.items():
            time.sleep(0.05)  # the idle threads of the variant before still spin
            print(file=process.stdin, flush=True)
            step, peak = process.stdout.readline().split()
            seconds[name].append(float(step))
            memory[name] = int(peak) / 1024
    for name, process in processes.items():
        process.stdin.close()
        process.wait()
        del seconds[name][0]  # the first round only warms up
    return seconds, memory


def steps(rounds):
    """Print the table of single steps."""
    seconds, memory = take_turns(VARIANTS, Size(), rounds)
    print(
        '| one step of 128 images | ms | fraction of the bound | x PyTorch eager | peak memory, MB |\n'
        '|---|---|---|---|---|'
    )
    for name, values in seconds.items():
        print(
            '| {} | {:.1f} | {} | {} | {} |'.format(
                name,
                statistics.median(values) * 1000,
                ratio(seconds[BOUND], values),
                ratio(seconds[TORCH], values),
                '' if 'alone' in name else round(memory[name]),
            ),
            flush=True,
        )


def growth(rounds):
    """Print the table of steps of other sizes, for the image's Chainer, the bound and PyTorch."""
    print(
        '\n| batch | units | images | ms a step | bound, ms | fraction of the bound | x PyTorch eager |\n'
        '|---|---|---|---|---|---|---|'
    )
    for size in GROWTH:
        seconds, _ = take_turns((BOUND, OURS, TORCH), size, rounds)
        print(
            '| {:,} | {:,} | {:,} | {:.3g} | {:.3g} | {} | {} |'.format(
                *size,
                statistics.median(seconds[OURS]) * 1000,
                statistics.median(seconds[BOUND]) * 1000,
                ratio(seconds[BOUND], seconds[OURS]),
                ratio(seconds[TORCH], seconds[OURS]),
            ),
            flush=True,
        )


def jobs(seeds, directory):
    """Print the table of whole jobs of three epochs: the script as a process, with imports and plots."""
    import chainer

    channels = {}
    for name, dataset in zip(('train', 'test'), chainer.datasets.get_mnist()):
        channels[name] = os.path.join(directory, name)
        os.mkdir(channels[name])
        images, labels = chainer.dataset.concat_examples(dataset)
        np.savez(os.path.join(channels[name], name), images=images, labels=labels)
    seconds, accuracy = {'0': [], '1': []}, {'0': [], '1': []}
    for seed in range(seeds):
        for fast in ('0', '1') if seed % 2 else ('1', '0'):
            start = time.perf_counter()
            subprocess.run(
                [
                    sys.executable,
                    str(ROOT / 'chainer_mnist_single_machine.py'),
                    '--epochs',
                    '3',
                    '--batch-size',
                    '128',
                    '--seed',
                    str(seed),
                    '--train',
                    channels['train'],
                    '--test',
                    channels['test'],
                    '--model-dir',
                    directory,
                    '--output-data-dir',
                    directory,
                ],
                env=environment(fast),
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds[fast].append(time.perf_counter() - start)
            log = json.loads(pathlib.Path(directory, 'log').read_text())
            accuracy[fast].append(log[-1]['validation/main/accuracy'])
    print(
        '\n| three epochs, the whole script | seconds, median | x plain '
        f'| test accuracy, mean of {seeds} seeds |\n|---|---|---|---|'
    )
    for name, fast in (OURS, '1'), (PLAIN, '0'):
        ratios = [p / s for p, s in zip(seconds['0'], seconds[fast])]
        print(
            f'| {name} | {statistics.median(seconds[fast]):.1f} '
            f'| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) '
            f'| {statistics.mean(accuracy[fast]):.4f} ({min(accuracy[fast]):.4f}-{max(accuracy[fast]):.4f}) |'
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--worker', nargs=4, help=argparse.SUPPRESS)
    parser.add_argument('--rounds', type=int, default=40)
    parser.add_argument('--seeds', type=int, default=5)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker[0], Size(*map(int, args.worker[1:])))
    from benchmarks import models  # imports this module

    with tempfile.TemporaryDirectory() as directory:
        print(here := machine(), flush=True)
        with section('benchmarks.training.step', here):
            steps(args.rounds)
        with section('benchmarks.training.models', here):
            models.table(max(4, args.rounds // 4))
        with section('benchmarks.training.growth', here):
            growth(max(2, args.rounds // 5))
        with section('benchmarks.training.job', here):
            jobs(args.seeds, directory)


if __name__ == '__main__':
    main()
