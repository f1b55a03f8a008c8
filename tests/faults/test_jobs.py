"""Jobs survive kills and stops, and report missing resources."""

import contextlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from support import SCRIPT, arguments, container, containers, docker, load, make_estimator, run, wait_for


def command(data, out, options):
    return [sys.executable, SCRIPT, *arguments(data, out, f'--batch-size 100 --epochs 3 {options}')]


def test_jobs_killed_at_random(small_mnist, tmp_path, rng, seed, report):
    """After 40 kills (-9 or SIGTERM) at random all files are complete, and the result is the same."""
    start = time.monotonic()
    run(*command(small_mnist, tmp_path / 'whole', ''), check=True)
    seconds = time.monotonic() - start
    expected = load(tmp_path / 'whole' / 'model.npz')
    kills, jobs, checked, resumed, writing = 0, 0, 0, 0, 0

    def epoch(checkpoints):
        return max([0, *(int(path.name.split('_')[1]) for path in checkpoints.glob('epoch_*.npz'))])

    def unfinished():
        found = set()
        for path in [*checkpoints.glob('*.tmp'), *out.glob('*.tmp')]:
            with contextlib.suppress(FileNotFoundError):  # it has just been finished
                found.add((path, path.stat().st_mtime_ns))
        return found

    while kills < 40:
        jobs += 1
        out, checkpoints = tmp_path / f'job-{jobs}', tmp_path / f'checkpoints-{jobs}'
        job, returncode = command(small_mnist, out, f'--checkpoint-dir {checkpoints}'), None
        while returncode != 0:
            left = unfinished()  # by jobs that were killed
            process = subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            # By its progress, as beside other work a job may take many times as long as the first.
            last = min(epoch(checkpoints) + rng.randrange(3), rng.choice([2, 2, 2, 3]))
            while process.poll() is None and epoch(checkpoints) < last:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.5) * seconds)
            if rng.random() < 0.5:  # the next time that a file is being written
                while process.poll() is None and not unfinished() - left:
                    time.sleep(0.0005)
                writing += process.poll() is None
            if process.poll() is None and kills < 40:
                process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
                kills += 1
            resumed += 'Resuming' in process.communicate(timeout=60)[0]
            returncode = process.returncode
            assert returncode in (0, -signal.SIGKILL, -signal.SIGTERM)
            for path in [*checkpoints.glob('*.npz'), *out.glob('model.npz'), *out.glob('snapshot_epoch_*')]:
                if path.suffix != '.tmp':
                    load(path)  # or it is not whole
                    checked += 1
        np.testing.assert_equal(load(out / 'model.npz'), expected)
    report(
        f'jobs killed at random (seed {seed}): {kills} kills, {writing} of them while a file was being '
        f'written, in {jobs} jobs; {resumed} starts resumed, {checked} files checked: all whole; '
        'the same weights at the end, to the bit'
    )
    assert resumed > 5 and writing > 5 and checked > 40


@pytest.fixture
def job(small_mnist, opt_ml):
    """Return a function that runs a job by hand in job.root: (exit code, failure file, log)."""

    def run_job(options, while_it_runs=lambda name: None):
        with container(f'--hostname algo-1 -v {run_job.root}:/opt/ml {options}', 'train') as name:
            while_it_runs(name)
            code = int(docker(f'wait {name}'))
            failure = run_job.root / 'output' / 'failure'
            done = run('docker', 'logs', name)
            return code, failure.read_text() if failure.exists() else '', done.stdout + done.stderr

    run_job.root = opt_ml(small_mnist, epochs='3', batch_size='100')
    return run_job


LISTS = """
import atexit, os
atexit.register(lambda: print("left", os.listdir("/opt/ml/{}")))
"""


@pytest.mark.parametrize(
    'directory, size, left',
    [
        ('model', '3m', '[]'),  # it takes 7 MB
        ('checkpoints', '30m', "['epoch_1_process_0_of_1.npz']"),  # the second epoch's does not fit
    ],
)
def test_a_full_disk(job, directory, size, left):
    """Earlier files stay; a partial file does not."""
    path = job.root / 'code' / SCRIPT.name
    path.write_text(LISTS.format(directory) + path.read_text())
    code, failure, log = job(f'--tmpfs /opt/ml/{directory}:size={size}')
    assert code == 1 and 'No space left on device' in failure and 'left ' + left in log


@pytest.mark.parametrize('directory', ['model', 'output/data', 'checkpoints'])
def test_a_read_only_directory_is_found_before_training(job, tmp_path, directory):
    (tmp_path / 'empty').mkdir()
    code, failure, log = job(f'-v {tmp_path}/empty:/opt/ml/{directory}:ro')
    assert code == 1 and f'Cannot write to /opt/ml/{directory}: Read-only file system.' in failure
    assert 'Training on' not in log


def test_out_of_memory(job):
    (job.root / 'code' / SCRIPT.name).write_text('hog = b"x" * 10 ** 9')
    code, failure, _ = job('--memory 400m --memory-swap 400m')
    assert code == 1 and 'not enough memory' in failure


def test_a_stopped_job_says_so_and_resumes(job, tmp_path, report):
    """SIGTERM reaches the script; restarted, the job resumes from its checkpoint."""
    checkpoints, model = tmp_path / 'checkpoints', job.root / 'model' / 'model.npz'

    def stop(name):
        wait_for(lambda: list(checkpoints.glob('epoch_1_*.npz')), 60, lambda: docker(f'logs {name}'))
        start = time.monotonic()
        docker(f'stop --time 30 {name}')
        seconds = time.monotonic() - start
        report(f'SIGTERM to a training container: ended after {seconds:.1f} s')
        assert seconds < 10

    mount = f'-v {checkpoints}:/opt/ml/checkpoints'
    code, failure, _ = job(mount, while_it_runs=stop)
    assert code == 1 and 'Stopped by SIGTERM' in failure and not model.exists()
    (job.root / 'output' / 'failure').unlink()
    code, failure, log = job(mount)
    assert code == 0 and not failure and 'Resuming after epoch' in log
    load(model)  # it is whole


def test_the_sdk_says_that_a_container_was_killed(session, inputs):
    """The container is killed from outside, during fit()."""

    def kill():
        (name,) = wait_for(lambda: containers(session, 'running'))
        time.sleep(2)
        docker(f'kill {name}')

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(RuntimeError, match='failed.*137'):
        make_estimator(session, epochs=300).fit(inputs)
    thread.join()
