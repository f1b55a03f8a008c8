"""This benchmark measures training and prediction on a GPU, of the script's network and a CNN, with PyTorch.

    python -m benchmarks.gpu     # some 5 minutes; needs CuPy and a PyTorch for GPUs

Every variant runs in its own process. They take turns of a quarter of a second, so that ratios compare
neighbouring turns. First the benchmark finds the best batch size of Chainer and of PyTorch; then it compares
all variants at 128 and at these. Chainer runs the script's make_model and make_trainer, with steps recorded
or not. PyTorch has the images as tensors on the GPU, fused Adam, the same schedule, and its default for TF32:
off for matrix products, on for convolutions.
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

from benchmarks.report import section
from benchmarks.training import ROOT, machine, ratio

BATCHES = 128, 256, 512, 1024, 2048, 4096, 8192
EPOCHS = 3
OURS, PLAIN, TORCH = "the image's Chainer, recorded", 'plain Chainer', 'PyTorch, eager'
HOST, COMPILED = TORCH + ', images on the CPU', 'PyTorch, torch.compile'
GRAPHS, WHOLE = COMPILED + ', reduce-overhead', 'PyTorch, whole steps as CUDA graphs'
VARIANTS = OURS, PLAIN, TORCH, HOST, COMPILED, GRAPHS, WHOLE


def rate(batch):
    return 0.002 * (batch / 128) ** 0.5


def mnist():
    import chainer

    return [[a.copy() for a in data._datasets] for data in chainer.datasets.get_mnist()]


def chainer_net(net):
    """Return the script's module, with its network or with a CNN in its place."""
    import chainer
    import chainer.functions as F
    import chainer.links as L

    import chainer_mnist_single_machine as script

    class CNN(chainer.Chain):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                self.c1, self.c2 = L.Convolution2D(1, 16, 5), L.Convolution2D(16, 32, 5)
                self.l1, self.l2 = L.Linear(512, 256), L.Linear(256, 10)

        def forward(self, x):
            h = F.max_pooling_2d(F.relu(self.c1(F.reshape(x, (-1, 1, 28, 28)))), 2)
            return self.l2(F.relu(self.l1(F.max_pooling_2d(F.relu(self.c2(h)), 2))))

    script.MLP = CNN if net == 'CNN' else script.MLP
    return script


def chainer_steps(variant, net, batch):
    """Train for EPOCHS; return (run(steps), the test accuracy, a function that returns bytes of memory)."""
    import chainer
    from chainer.backends import cuda

    from benchmarks import batches, graphs  # noqa: F401  # batches replaces methods
    from chainer_mnist import channels

    script, device = chainer_net(net), 0 if cuda.available else -1
    if device == 0:
        cuda.memory_pool.free_all_blocks()
    out = tempfile.mkdtemp()
    args = SimpleNamespace(epochs=EPOCHS, learning_rate=rate(batch), augment=0, output_data_dir=out)
    model = script.make_model(0, device)
    model.lossfun = chainer.functions.softmax_cross_entropy  # PyTorch's
    optimizer = chainer.optimizers.Adam(alpha=args.learning_rate).setup(model)
    train, test = [channels.shard(*arrays, 0, 1) for arrays in mnist()]
    trainer, evaluator = script.make_trainer(args, optimizer, train, test, batch, device)
    if variant == OURS:
        graphs.recorded(optimizer)
    trainer.extend(evaluator)
    trainer.extend(log := chainer.training.extensions.LogReport())
    trainer.run()

    def run(steps):
        updater = trainer.updater
        turn = chainer.training.Trainer(updater, (updater.iteration + steps, 'iteration'), out=out)
        turn.extend(chainer.training.extensions.LogReport())
        turn.run()
        if device == 0:
            cuda.Stream.null.synchronize()

    def memory():
        if device < 0:
            return 0
        recorded = getattr(optimizer.update, 'launch', None)
        pools = [cuda.memory_pool] + ([recorded.__defaults__[0][0]] if recorded else [])
        return sum([pool.total_bytes() for pool in pools])

    return run, log.log[-1]['validation/main/accuracy'], memory


def torch_graph(step, x, t):
    """Return step(x, t) as a CUDA graph, recorded as in PyTorch's documentation."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(x, t)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(x, t)
    return lambda *arrays: (x.copy_(arrays[0]), t.copy_(arrays[1]), graph.replay())


def torch_steps(variant, net, batch):
    """Train for EPOCHS in PyTorch; return the same as chainer_steps."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if net == 'MLP':
        layers = [nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10)]
    else:
        layers = [nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        layers += [nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)]
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    here = 'cpu' if variant == HOST else device
    if device == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model, mode = nn.Sequential(*layers).to(device), 'reduce-overhead' if variant == GRAPHS else None
    options = dict(lr=torch.tensor(0.0, device=device), capturable=True) if variant == WHOLE else {}
    optimizer, loss_of = torch.optim.Adam(model.parameters(), fused=True, **options), nn.CrossEntropyLoss()
    forward = torch.compile(model, mode=mode) if variant in (COMPILED, GRAPHS) else model
    data = [[torch.from_numpy(images), torch.from_numpy(labels).long()] for images, labels in mnist()]
    (images, labels), test = [a.to(here) for a in data[0]], [a.to(device) for a in data[1]]
    steps, taken, order, right = -(-len(images) * EPOCHS // batch), 0, None, torch.zeros((), device=device)

    def step(x, t):
        optimizer.zero_grad()
        y = forward(x)
        loss_of(y, t).backward()
        optimizer.step()
        right.copy_((y.detach().argmax(1) == t).float().mean())

    if variant == WHOLE:
        step = torch_graph(step, images[:batch].clone(), labels[:batch].clone())

    def run(n):
        nonlocal taken, order
        for _ in range(n):
            start = taken * batch % (len(images) // batch * batch)
            if not start:
                order = torch.randperm(len(images), device=here)
            index = order[start : start + batch]
            x, t = images[index].to(device), labels[index].to(device)
            done = (taken - steps // 3) / (steps - steps // 3)
            now = rate(batch) * min(1, max(0, 1 - done))
            if variant == WHOLE:
                optimizer.param_groups[0]['lr'].fill_(now)
            else:
                optimizer.param_groups[0]['lr'] = now
            step(x, t)
            taken += 1
        return right.item()  # waits for the GPU

    run(steps)
    with torch.no_grad():
        accuracy = (model(test[0]).argmax(1) == test[1]).float().mean().item()
    return run, accuracy, lambda: torch.cuda.max_memory_reserved() if device == 'cuda' else 0


def work(variant, net):
    """Run a variant's process: for each line, a batch size, take steps for 0.25 s.

    Prints [seconds a step, bytes of memory, test accuracy] as JSON.
    """
    make, made = torch_steps if 'PyTorch' in variant else chainer_steps, {}
    for line in sys.stdin:
        batch = int(line)
        if batch not in made:
            made.clear()
            run = None
            gc.collect()  # frees the memory of the batch size before
            run, right, memory = make(variant, net, batch)
            run(3)
            made[batch], step = (run, right, memory()), 0.01
        run, right, memory = made[batch]
        steps = max(1, round(0.25 / step))
        start = time.perf_counter()
        run(steps)
        step = (time.perf_counter() - start) / steps
        print(json.dumps([step, memory, right]), flush=True)


def start(variant, net):
    env = {**os.environ, 'CHAINER_FAST': str(int(variant != PLAIN)), 'PYTHONWARNINGS': 'ignore'}
    command = [sys.executable, '-m', 'benchmarks.gpu', '--worker', variant, net]
    return subprocess.Popen(command, cwd=ROOT, text=True, env=env, stdin=-1, stdout=-1)


def ask(process, batch):
    with contextlib.suppress(BrokenPipeError):  # the process has failed
        print(batch, file=process.stdin, flush=True)


def take_turns(processes, batch, rounds):
    """Return {variant: [seconds of a step]} and {variant: (memory, accuracy)}."""
    for process in processes.values():  # all train at once, before the turns
        ask(process, batch)
    first = {name: process.stdout.readline() for name, process in processes.items()}
    others = {name: json.loads(line)[1:] for name, line in first.items() if line}  # no line: it has failed
    processes = {name: processes[name] for name in others}
    seconds = {name: [] for name in processes}
    for i in range(rounds + 1):
        for name, process in processes.items():
            ask(process, batch)
            step = json.loads(process.stdout.readline())[0]
            if i:  # the first one warms up
                seconds[name].append(step)
    return seconds, others


def training(net, rounds):
    processes = {name: start(name, net) for name in VARIANTS}
    pair, best = {name: processes[name] for name in (OURS, TORCH)}, {}
    print(f'| {net}: batch | {OURS}: s an epoch | {TORCH}: s an epoch | x | accuracy | PyTorch: accuracy |')
    print('|---|---|---|---|---|---|')
    for batch in BATCHES:
        seconds, others = take_turns(pair, batch, max(3, rounds // 4))
        epoch = {name: statistics.median(seconds[name]) * 60000 / batch for name in pair}
        right = {name: others[name][1] for name in pair}
        columns = *epoch.values(), ratio(seconds[TORCH], seconds[OURS]), *right.values()
        print('| {:,} | {:.3f} | {:.3f} | {} | {:.4f} | {:.4f} |'.format(batch, *columns), flush=True)
        for name in pair:  # the fastest batch size with an accuracy at most 0.003 below that of 128
            fastest, _, wanted = best.get(name, (float('inf'), 0, right[name] - 0.003))
            if epoch[name] < fastest and right[name] >= wanted:
                best[name] = epoch[name], batch, wanted
    print(f'\n| {net} | batch | ms a step | s an epoch | x PyTorch eager | memory, MB | accuracy |')
    print('|---|---|---|---|---|---|---|')
    for batch in sorted({128, *[b for _, b, _ in best.values()]}):
        seconds, others = take_turns(processes, batch, rounds)
        for name, values in seconds.items():
            step = statistics.median(values)
            memory, right = others[name]
            print(
                f'| {name} | {batch:,} | {step * 1000:.3f} | {step * 60000 / batch:.3f} '
                f'| {ratio(seconds[TORCH], values)} | {memory / 2**20:.0f} | {right:.4f} |',
                flush=True,
            )
    for process in processes.values():
        process.terminate()
        process.wait()


def prediction():
    """Print how long the default predict_fn takes with what model_fn returns, and with that on the GPU."""
    from chainer.backends import cuda
    from sagemaker_chainer_container.hooks import default_predict_fn

    from chainer_mnist import saving

    images = mnist()[1][0]
    print('| images | MLP: CPU, ms | GPU, ms | x | CNN: CPU, ms | GPU, ms | x |')
    print('|---|---|---|---|---|---|---|')
    rows = {n: [] for n in (1, 100, 10000)}
    for net in 'MLP', 'CNN':
        script = chainer_net(net)
        with tempfile.TemporaryDirectory() as directory:
            saving.save(os.path.join(directory, 'model.npz'), script.make_model(0, -1))
            models = [script.model_fn(directory) for _ in range(2)]
        if cuda.available:
            models[1].to_device('@cupy:0')
        for n, row in rows.items():
            times = [[], []]
            for _ in range(60 if n < 1000 else 12):
                for i, model in enumerate(models):
                    begin = time.perf_counter()
                    default_predict_fn(images[:n], model)
                    times[i].append(time.perf_counter() - begin)
            times = [t[5:] for t in times]
            row += [f'{statistics.median(t) * 1000:.3g}' for t in times] + [ratio(*times)]
    for n, row in rows.items():
        print(f'| {n:,} | ' + ' | '.join(row) + ' |', flush=True)


def gpu():
    """Return one line: the GPU and the versions."""
    import torch
    from chainer.backends import cuda

    if not cuda.available:
        return 'no GPU, '
    name = cuda.cupy.cuda.runtime.getDeviceProperties(0)['name'].decode()
    with_cudnn = 'with' if cuda.cudnn_enabled else 'without'
    return f'one {name}, CuPy {cuda.cupy.__version__} {with_cudnn} cuDNN, PyTorch {torch.__version__}, '


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('--rounds', type=int, default=20)
    args = parser.parse_args()
    if args.worker:
        return work(*args.worker)
    print(here := gpu() + machine(), flush=True)
    for net in 'MLP', 'CNN':
        with section(f'benchmarks.gpu.{net}', here):
            training(net, args.rounds)
    with section('benchmarks.gpu.prediction', here):
        prediction()


if __name__ == '__main__':
    main()
