"""This benchmark measures how training scales over processes, and the cost of an MPI job in local mode.

    .venv/bin/python -m benchmarks.hosts          # some 4 minutes on two cores; needs Docker and the image

It runs the script's step (MLP 784-1000-1000-10, Adam, 128 and 1,024 images in all) in 1, 2 and 4 processes of
one container, which use this machine's cores, in turn. Then it runs an empty job in one container, and in two
with MPI over ssh.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.server import blas_settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROUNDS, STEPS = 5, 60


def step(batch_size):
    """Run in each process: print, as JSON, the seconds of a step and the fraction spent communicating."""
    import chainer
    import chainermn
    import numpy as np

    import chainer_mnist_single_machine as script

    comm = chainermn.create_communicator('naive')
    model = chainer.links.Classifier(script.MLP())
    optimizer = (
        chainermn.create_multi_node_optimizer(chainer.optimizers.Adam(), comm)
        if comm.size > 1
        else (chainer.optimizers.Adam())
    )
    optimizer.setup(model)
    spent = 0

    def timed(*args, mean=comm.multi_node_mean_grad):
        nonlocal spent
        start = time.perf_counter()
        mean(*args)
        spent += time.perf_counter() - start

    comm.multi_node_mean_grad = timed
    rng = np.random.default_rng(comm.rank)
    data = chainer.datasets.TupleDataset(
        rng.random((60000 // comm.size, 784), np.float32), rng.integers(0, 10, 60000 // comm.size, np.int32)
    )
    updater = chainer.training.updaters.StandardUpdater(
        chainer.iterators.SerialIterator(data, batch_size // comm.size), optimizer
    )
    for count in 20, STEPS:
        spent, start = 0, time.perf_counter()
        for _ in range(count):
            updater.update()
        comm.mpi_comm.Barrier()
        seconds = time.perf_counter() - start
    if comm.rank == 0:
        print(json.dumps([seconds / STEPS, spent / seconds]))


def run(processes, batch_size):
    """Return the seconds of a step, and the fraction of communication, for processes in one container."""
    settings = {**blas_settings(processes), 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}  # as training.py's
    environment = ' '.join(f'-e {name}={value}' for name, value in settings.items())
    mpirun = f'mpirun --allow-run-as-root --oversubscribe -bind-to none -n {processes}'
    shared = '-mca btl_vader_single_copy_mechanism none'
    done = subprocess.run(
        ['docker', 'run', '--rm', '-v', f'{ROOT}:/code:ro', '-w', '/code', *environment.split(), IMAGE]
        + f'{mpirun} {shared} python -m benchmarks.hosts step {batch_size}'.split(),
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Print the tables."""
    from benchmarks.training import machine

    print(machine())
    print('| processes | images in all | ms a step | images/s, x one process | communication, with waiting |')
    print('|---|---|---|---|---|')
    for batch_size in 128, 1024:
        results = {n: [] for n in (1, 2, 4)}
        for _ in range(ROUNDS):
            for n in results:
                results[n].append(run(n, batch_size))
        for n, rows in results.items():
            ratios = [one[0] / row[0] for one, row in zip(results[1], rows)]
            low, middle, high = statistics.quantiles(ratios)
            ms, communicating = (statistics.median(column) for column in zip(*rows))
            speed_up = f'{middle:.2f} ({low:.2f}-{high:.2f})'
            print(f'| {n} | {batch_size:,} | {1000 * ms:.1f} | {speed_up} | {communicating:.0%} |', flush=True)

    from local_mode.session import open_session
    from sagemaker.chainer.estimator import Chainer

    session = open_session(embedded=True)
    seconds = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as directory:
        (pathlib.Path(directory) / 'nothing.py').write_text('')
        for _ in range(5):
            for hosts in seconds:
                estimator = Chainer(
                    entry_point=directory + '/nothing.py',
                    role='arn:aws:iam::123456789012:role/Role',
                    instance_count=hosts,
                    instance_type='local',
                    image_uri=IMAGE,
                    sagemaker_session=session,
                )
                start = time.monotonic()
                estimator.fit()
                seconds[hosts].append(time.monotonic() - start)
    session.close()
    print('\n| an empty job | seconds, median of 5 |\n|---|---|')
    for hosts, values in seconds.items():
        print(
            '| {} | {:.1f} ({:.1f}-{:.1f}) |'.format(
                'one container' if hosts == 1 else 'two containers, MPI',
                statistics.median(values),
                min(values),
                max(values),
            )
        )


if __name__ == '__main__':
    if sys.argv[1:2] == ['step']:
        step(int(sys.argv[2]))
    else:
        from local_mode.docker import image_uri

        IMAGE = image_uri('local')
        main()
