"""How fast training is: the image's Chainer, plain Chainer and PyTorch beside the step's matrix products alone.

    .venv-bench/bin/python -m benchmarks.training          # some 10 minutes on two cores

MLP 784-1000-1000-10, batches of 128, Adam, 60,000 float32 images. Every variant is a process that stays;
they take turns for a dozen steps each, so that what else the machine does meets all of them alike. Ratios
are medians over the rounds, with quartiles. Then the whole script, three epochs, five seeds.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
BATCH, UNITS = 128, 1000


def data():
    """60,000 images like MNIST's (four pixels in five are black), float32, and int32 labels."""
    rng = np.random.RandomState(0)
    images = rng.rand(60000, 784).astype(np.float32)
    images[images < 0.8] = 0
    return images, rng.randint(0, 10, 60000).astype(np.int32)


def matrix_products(images, labels):
    """The step's eight matrix products, into arrays that are there."""
    rng = np.random.RandomState(0)
    W1, W2, W3 = [rng.rand(*s).astype(np.float32) for s in ((UNITS, 784), (UNITS, UNITS), (10, UNITS))]
    x, h, g = images[:BATCH].copy(), np.ones((BATCH, UNITS), np.float32), np.ones((BATCH, 10), np.float32)
    y, scores, g1, g2, g3 = h.copy(), g.copy(), W1.copy(), W2.copy(), W3.copy()

    def run(steps):
        for _ in range(steps):
            np.dot(x, W1.T, out=y), np.dot(h, W2.T, out=y), np.dot(h, W3.T, out=scores)
            np.dot(g.T, h, out=g3), np.dot(g, W3, out=y)
            np.dot(h.T, y, out=g2), np.dot(h, W2, out=y), np.dot(h.T, x, out=g1)
    return run


def chainer_steps(images, labels):
    """The script's network in Chainer's Trainer; CHAINER_FAST says whose."""
    import chainer
    import chainer_fast  # noqa: F401
    import chainer_mnist_single_machine as script
    model = chainer.links.Classifier(script.MLP(UNITS, 10))
    optimizer = chainer.optimizers.Adam().setup(model)
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(images, labels), BATCH)
    updater = chainer.training.updaters.StandardUpdater(iterator, optimizer)

    def run(steps):
        with tempfile.TemporaryDirectory() as out:
            trainer = chainer.training.Trainer(updater, (updater.iteration + steps, 'iteration'), out=out)
            trainer.extend(chainer.training.extensions.LogReport())
            trainer.run()
    return run


def torch_steps(images, labels, compiled=False):
    """The same in PyTorch: fused Adam, no DataLoader, accuracy of each batch as Chainer has it."""
    import torch
    torch.set_num_threads(int(os.environ['OPENBLAS_NUM_THREADS']))
    model = torch.nn.Sequential(torch.nn.Linear(784, UNITS), torch.nn.ReLU(), torch.nn.Linear(UNITS, UNITS),
                                torch.nn.ReLU(), torch.nn.Linear(UNITS, 10))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    forward, loss_of = torch.compile(model) if compiled else model, torch.nn.CrossEntropyLoss()
    images, labels = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
    order = torch.randperm(len(images))

    def run(steps):
        for i in range(steps):
            index = order[i * BATCH:(i + 1) * BATCH]
            x, t = images[index], labels[index]
            optimizer.zero_grad()
            y = forward(x)
            loss_of(y, t).backward()
            optimizer.step()
            (y.argmax(1) == t).float().mean()
    return run


VARIANTS = {
    'matrix products alone': (matrix_products, '1'),
    "the image's Chainer": (chainer_steps, '1'),
    'plain Chainer': (chainer_steps, '0'),
    'PyTorch, eager': (torch_steps, '1'),
    'PyTorch, torch.compile': (lambda *arrays: torch_steps(*arrays, compiled=True), '1')}


def environment(fast, directory):
    """The variables that the image's entry point sets for training; plain Chainer has none of them."""
    env = {**os.environ, 'CHAINER_FAST': fast, 'OPENBLAS_NUM_THREADS': str(os.cpu_count()),
           'PYTHONPATH': os.pathsep.join([directory, str(ROOT)])}
    if fast == '1':
        env['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    return env


def work(name):
    """A variant's process: for each line, a number of steps, print the seconds that they took."""
    run = VARIANTS[name][0](*data())
    run(20)
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak from here on
    print(flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        run(int(line))
        seconds = time.perf_counter() - start
        peak = re.search(r'VmHWM:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1]
        print(seconds, peak, flush=True)


def spread(values):
    low, median, high = statistics.quantiles(values, n=4)
    return '{:.2f} ({:.2f}-{:.2f})'.format(median, low, high)


def steps(rounds, length, directory):
    """Print the table of single steps."""
    processes, seconds, memory = {}, {}, {}
    for name, (_, fast) in VARIANTS.items():
        process = subprocess.Popen([sys.executable, '-m', 'benchmarks.training', '--worker', name], cwd=ROOT, text=True,
                                   env=environment(fast, directory), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == '\n', name
        processes[name], seconds[name] = process, []
    for _ in range(rounds):
        for name, process in processes.items():
            time.sleep(0.04)  # idle BLAS threads of the one before go on spinning for 30 ms
            process.stdin.write('{}\n'.format(length))
            process.stdin.flush()
            took, peak = process.stdout.readline().split()
            seconds[name].append(float(took) / length)
            memory[name] = int(peak) / 1024
    for process in processes.values():
        process.stdin.close()
        process.wait()

    print('| one step of 128 images | ms | share of the bound | x PyTorch eager | peak memory, MB |\n|---|---|---|---|---|')
    bound, torch = seconds['matrix products alone'], seconds['PyTorch, eager']
    for name, values in seconds.items():
        print('| {} | {:.1f} | {} | {} | {:.0f} |'.format(
            name, statistics.median(values) * 1000, spread([b / v for b, v in zip(bound, values)]),
            spread([t / v for t, v in zip(torch, values)]), memory[name]))


def jobs(seeds, directory):
    """Print the table of whole three-epoch jobs: the script as a process, imports and plots and all."""
    import chainer
    channels = {}
    for name, dataset in zip(('train', 'test'), chainer.datasets.get_mnist()):
        channels[name] = os.path.join(directory, name)
        os.mkdir(channels[name])
        images, labels = chainer.dataset.concat_examples(dataset)
        np.savez(os.path.join(channels[name], name), images=images, labels=labels)
    code = 'import chainer_fast, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
    seconds, accuracy = {'0': [], '1': []}, {'0': [], '1': []}
    for seed in range(seeds):
        for fast in '0', '1':
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, '-c', code, str(ROOT / 'chainer_mnist_single_machine.py'), '--epochs', '3',
                 '--batch-size', '128', '--seed', str(seed), '--train', channels['train'], '--test', channels['test'],
                 '--model-dir', directory, '--output-data-dir', directory],
                env=environment(fast, directory), check=True, stdout=subprocess.DEVNULL)
            seconds[fast].append(time.perf_counter() - start)
            log = json.loads(pathlib.Path(directory, 'log').read_text())
            accuracy[fast].append(log[-1]['validation/main/accuracy'])
    print('\n| three epochs, the whole script | seconds, median | x plain | test accuracy, mean of {} seeds |\n|---|---|---|---|'
          .format(seeds))
    for name, fast in ("the image's Chainer", '1'), ('plain Chainer', '0'):
        ratios = [p / s for p, s in zip(seconds['0'], seconds[fast])]
        print('| {} | {:.1f} | {:.2f} ({:.2f}-{:.2f}) | {:.4f} ({:.4f}-{:.4f}) |'.format(
            name, statistics.median(seconds[fast]), statistics.median(ratios), min(ratios), max(ratios),
            statistics.mean(accuracy[fast]), min(accuracy[fast]), max(accuracy[fast])))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--worker', choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument('--rounds', type=int, default=40)
    parser.add_argument('--length', type=int, default=24, help='steps in a turn')
    parser.add_argument('--seeds', type=int, default=5)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker)
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([ROOT / 'container' / 'fast' / 'build.sh', directory], check=True)
        steps(args.rounds, args.length, directory)
        jobs(args.seeds, directory)


if __name__ == '__main__':
    main()
