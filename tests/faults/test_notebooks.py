"""Concurrent notebooks, killed kernels and killed jobs leave nothing that `make clean` does not remove."""

import concurrent.futures
import os
import signal
import subprocess
import tempfile
import threading
import time

import nbclient
import nbformat
import pytest
from support import IMAGE, LABEL, ROOT, docker, free_port, ours, processes_with, run, wait_for

pytestmark = pytest.mark.usefixtures('nothing_of_ours')
STREAMS = dict(cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
ON_TWO_HOSTS = {
    '    instance_count=1': '    instance_count=2',
    "entry_point='chainer_mnist_single_machine.py'": "entry_point='chainer_mnist_distributed.py'",
    "dependencies=['chainer_mnist']": "dependencies=['chainer_mnist', 'chainer_mnist_single_machine.py']",
}


def test_two_notebooks_at_once(tutorial, tmp_path):
    """Both notebooks train on two hosts and deploy."""
    processes = []
    for name in 'first', 'second':
        (tmp_path / name).mkdir()
        session = {'open_session()': f'open_session(embedded=True, serving_port={free_port()})'}
        _, command = tutorial(tmp_path / name, session | ON_TWO_HOSTS)
        processes.append(subprocess.Popen(command, **STREAMS))
    try:
        outs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, out in zip(processes, outs):
        assert process.returncode == 0 and '2 processes' in out, out[-6000:]
    assert ours() == ([], [], [])


class Victim(nbclient.NotebookClient):
    """Executes a notebook, and kills its kernel (-9) some seconds after the start of a cell."""

    def __init__(self, *args, cell=None, after=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.cell, self.after, self.seconds = cell, after, {}

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        start = time.monotonic()
        timer = threading.Timer(self.after or 0, os.kill, (self.km.provisioner.pid, signal.SIGKILL))
        if cell_index == self.cell:
            timer.start()
        try:
            await super().async_execute_cell(cell, cell_index, **kwargs)
            if cell_index == self.cell:  # quicker than it was
                timer.cancel()
                os.kill(self.km.provisioner.pid, signal.SIGKILL)
                raise nbclient.exceptions.DeadKernelError
        finally:
            self.seconds[cell_index] = time.monotonic() - start
        return cell


def test_a_kernel_killed_in_each_cell(tutorial, tmp_path, monkeypatch, rng, seed, report):
    """`make clean` then removes everything of ours, and nothing of others."""
    for name in 'tmp', 'elsewhere':
        (tmp_path / name).mkdir()
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'tmp'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
    monkeypatch.setenv('KILLED_BY_A_TEST', str(tmp_path))
    notebook, _ = tutorial(tmp_path)

    def execute(cell=None, after=None):
        copy = nbformat.from_dict(notebook)
        port = free_port()
        session = f'open_session(embedded=True, serving_port={port})'
        for part in copy.cells:
            part.source = part.source.replace('/kept', f'/kept-{port}').replace('open_session()', session)
        where = {'metadata': {'path': str(tmp_path / 'elsewhere')}}
        client = Victim(copy, kernel_name='python3', cell=cell, after=after, resources=where)
        if cell is None:
            client.execute()
        else:
            with pytest.raises(nbclient.exceptions.DeadKernelError):
                client.execute()
        return client

    def processes():
        return processes_with(f'KILLED_BY_A_TEST={tmp_path}')

    def left():
        return *ours()[:2], processes(), os.listdir(tmp_path / 'tmp')

    stranger = docker(f'network create stranger-{free_port()}').strip()
    unused = docker(f'network create sagemaker-local-{free_port()}').strip()
    try:
        options = f'--name {stranger} --network {stranger} --entrypoint sleep'
        docker(f'run --detach {options} {IMAGE} 3600')
        seconds = execute().seconds
        assert left() == ([], [], [], [])
        found = dict.fromkeys(['containers', 'networks', 'processes', 'temporary files'], 0)
        code = [cell for cell in seconds if notebook.cells[cell].cell_type == 'code']
        cells = [(cell, rng.uniform(0, 0.9) * seconds[cell]) for cell in code]
        rng.shuffle(cells)
        cells += cells[: len(cells) % 2]  # in pairs
        for pair in zip(cells[::2], cells[1::2]):
            with concurrent.futures.ThreadPoolExecutor(2) as threads:
                list(threads.map(lambda victim: execute(*victim), pair))
            for name, what in zip(found, left()):
                found[name] += bool(what)
            run('make', 'clean', check=True)
            wait_for(lambda: not processes(), 10)  # say a set-up that goes on
            assert left() == ([], [], [], []), pair
        times = ', '.join(f'{name} {n} times' for name, n in found.items())
        report(
            f'kernels killed in each of {len(cells)} cells, two at a time (seed {seed}): left of '
            f'{len(cells) // 2} pairs: {times}; after make clean: nothing'
        )
        assert all(found.values())  # or this shows nothing
        assert docker(f'ps --quiet --filter name={stranger}').strip()
        assert docker(f'network ls --quiet --no-trunc --filter id={unused}').strip() == unused
    finally:
        docker(f'rm --force {stranger}')
        docker(f'network rm {stranger} {unused}')


WRITES = """
import os, time
for name in 'SM_MODEL_DIR', 'SM_OUTPUT_DATA_DIR':
    open(os.environ[name] + '/written', 'w').close()
print('both are written')
time.sleep(300)
"""


def test_nothing_of_roots_is_left_to_another_user(deploy, tmp_path, monkeypatch):
    """After a kill during a job all files belong to the user, and `make clean` removes them."""
    user, as_user = os.getuid(), []
    if user == 0:  # be somebody else, who may use Docker and read our Python
        user, group = 12345, os.stat('/var/run/docker.sock').st_gid
        read = '--inh-caps=+dac_read_search --ambient-caps=+dac_read_search'
        as_user = f'setpriv --reuid={user} --regid={user} --groups={group} {read}'.split()
    home = tmp_path / 'home'
    home.mkdir()
    os.chown(home, user, -1)
    (tmp_path / 'writes.py').write_text(WRITES)
    environment = os.environ | {'TMPDIR': str(home), 'HOME': str(home), 'USER': 'somebody'}
    command = deploy(free_port(), 'make_estimator(session, sys.argv[2]).fit()', tmp_path / 'writes.py')
    log = []
    with subprocess.Popen([*as_user, *command], env=environment, **STREAMS) as process:
        for line in process.stdout:
            log.append(line)
            if 'both are written' in line:
                break
        process.kill()
    monkeypatch.setattr(tempfile, 'tempdir', str(home))
    assert len(ours(user)[0]) == 2, ''.join(log)
    paths = list(home.rglob('*'))
    assert {path.stat().st_uid for path in paths} == {user}, ''.join(log)
    assert len([path for path in paths if path.name == 'written']) == 2, ''.join(log)
    run(*as_user, 'make', 'clean', env=environment, check=True)
    assert ours(user)[:2] == ([], []) and not list(home.glob(LABEL + '-*'))
