"""What happens to this machine: notebooks side by side, kernels killed, an engine that stops. Part of `make test-faults`."""

import concurrent.futures
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import nbclient
import nbformat
import pytest
from test_faults import SEED, report  # noqa: F401
from test_leftovers import DEPLOY, ROOT, ours
from test_local_mode import IMAGE
from test_serving import free_port

from local_mode.docker import LABEL, docker

pytestmark = pytest.mark.docker

# The tutorial, in 15 seconds instead of a minute.
SHORT = {
    'train, test = chainer.datasets.get_mnist()': 'train, test = (d[:1000] for d in chainer.datasets.get_mnist())',
    "'epochs': 3, 'batch_size': 128, 'augment': True": "'epochs': 1",
    '[Path.cwd(), *Path.cwd().parents]': f"[Path('{ROOT}')]",
}
RUN = (
    'import pathlib, sys; from local_mode import run; run.ROOT = pathlib.Path(sys.argv[1]); '
    'sys.exit(run.main(run.ROOT / "notebook.ipynb"))'
)


def make_clean():
    subprocess.run(['make', 'clean'], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(autouse=True)
def nothing_of_ours():
    make_clean()  # what a test before has left, if it failed


def tutorial(directory, **replacements):
    """Write the tutorial, shortened and with these replacements, as notebook.ipynb; return it."""
    notebook = nbformat.read(ROOT / 'notebooks' / 'chainer_mnist_local_mode.ipynb', as_version=4)
    for old, new in {
        **SHORT,
        "Path('output/single_machine_mnist')": f"Path('{directory}/kept')",
        **replacements,
    }.items():
        (cell,) = [cell for cell in notebook.cells if old in cell.source]
        cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, directory / 'notebook.ipynb')
    return notebook


def test_two_notebooks_at_once(tmp_path):
    """Both train on two hosts, and host."""
    processes = []
    for name in 'first', 'second':
        directory = tmp_path / name
        directory.mkdir()
        tutorial(
            directory,
            **{
                'open_session()': f'open_session(embedded=True, serving_port={free_port()})',
                '    instance_count=1': '    instance_count=2',
            },
        )
        processes.append(
            subprocess.Popen(
                [sys.executable, '-c', RUN, str(directory)],
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    try:
        outs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, out in zip(processes, outs):
        assert process.returncode == 0 and '2 processes' in out, out[-6000:]
    assert ours() == ([], [], [])


class Victim(nbclient.NotebookClient):
    """Executes a notebook, and kills its kernel (-9) so many seconds after it has begun a cell."""

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


def processes_with(variable):
    """The command lines of all processes that have this in their environment."""
    found = []
    for process in pathlib.Path('/proc').glob('[0-9]*'):
        try:
            if variable.encode() in (process / 'environ').read_bytes():
                found.append((process / 'cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace'))
        except OSError:
            pass
    return found


def test_a_kernel_killed_in_each_cell(tmp_path, monkeypatch, report):  # noqa: F811
    """`make clean` then leaves nothing of ours, and what is not ours."""
    rng = random.Random(SEED)
    for name in 'tmp', 'elsewhere':
        (tmp_path / name).mkdir()
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'tmp'))
    monkeypatch.setenv('KILLED_BY_A_TEST', str(tmp_path))
    notebook = tutorial(tmp_path)

    def run(cell=None, after=None):
        copy = nbformat.from_dict(notebook)
        port = free_port()
        for part in copy.cells:
            part.source = part.source.replace('/kept', f'/kept-{port}').replace(
                'open_session()', f'open_session(embedded=True, serving_port={port})'
            )
        client = Victim(
            copy,
            kernel_name='python3',
            cell=cell,
            after=after,
            resources={'metadata': {'path': str(tmp_path / 'elsewhere')}},
        )
        if cell is None:
            client.execute()
        else:
            with pytest.raises(nbclient.exceptions.DeadKernelError):
                client.execute()
        return client

    def left():
        return *ours()[:2], processes_with('KILLED_BY_A_TEST=' + str(tmp_path)), os.listdir(tmp_path / 'tmp')

    stranger = docker('network', 'create', f'stranger-{free_port()}').strip()
    unused = docker('network', 'create', f'sagemaker-local-{free_port()}').strip()
    try:
        docker(
            'run',
            '--detach',
            '--name',
            stranger,
            '--network',
            stranger,
            '--entrypoint',
            'sleep',
            IMAGE,
            '3600',
        )
        whole = run().seconds
        assert left() == ([], [], [], [])
        found = {'containers': 0, 'networks': 0, 'processes': 0, 'temporary files': 0}
        cells = [
            (cell, rng.uniform(0, 0.9) * seconds)
            for cell, seconds in whole.items()
            if notebook.cells[cell].cell_type == 'code'
        ]
        rng.shuffle(cells)
        assert len(cells) % 2 == 0
        for pair in zip(cells[::2], cells[1::2]):
            with concurrent.futures.ThreadPoolExecutor(2) as threads:
                list(threads.map(lambda victim: run(*victim), pair))
            for name, what in zip(found, left()):
                found[name] += bool(what)
            make_clean()
            deadline = time.monotonic() + 10
            while processes_with('KILLED_BY_A_TEST=' + str(tmp_path)) and time.monotonic() < deadline:
                time.sleep(0.1)  # say a set-up that goes on
            assert left() == ([], [], [], []), pair
        report(
            'kernels killed in each of {} cells, two at a time (seed {}): left of {} pairs: {}; after make clean: nothing',
            len(cells),
            SEED,
            len(cells) // 2,
            ', '.join('{} {} times'.format(*item) for item in found.items()),
        )
        assert all(found.values())  # or this shows nothing
        assert docker('ps', '--quiet', '--filter', 'name=' + stranger).strip()
        assert docker('network', 'ls', '--quiet', '--no-trunc', '--filter', 'id=' + unused).strip() == unused
    finally:
        docker('rm', '--force', stranger)
        docker('network', 'rm', stranger, unused)


FIT = """
from sagemaker.chainer.estimator import Chainer
Chainer(sys.argv[2], role='arn:aws:iam::123456789012:role/r', instance_count=1, instance_type='local',
        image_uri=image_uri('local'), sagemaker_session=session).fit()
"""
WRITES = """
import os, time
for name in 'SM_MODEL_DIR', 'SM_OUTPUT_DATA_DIR':
    open(os.environ[name] + '/written', 'w').close()
print('both are written')
time.sleep(300)
"""


def test_nothing_of_roots_is_left_to_another_user(tmp_path):
    """Killed with an endpoint and in the middle of a job: every file is the user's, and `make clean` can remove it."""
    user, as_user = os.getuid(), []
    if user == 0:  # be somebody else, who may use Docker and read our Python
        user = 12345
        as_user = [
            'setpriv',
            '--reuid=12345',
            '--regid=12345',
            '--groups={}'.format(os.stat('/var/run/docker.sock').st_gid),
            '--inh-caps=+dac_read_search',
            '--ambient-caps=+dac_read_search',
        ]
    home = tmp_path / 'home'
    home.mkdir()
    os.chown(home, user, -1)
    (tmp_path / 'writes.py').write_text(WRITES)
    environment = {**os.environ, 'TMPDIR': str(home), 'HOME': str(home), 'USER': 'somebody'}
    with subprocess.Popen(
        [*as_user, sys.executable, '-c', DEPLOY + FIT, str(free_port()), str(tmp_path / 'writes.py')],
        cwd=ROOT,
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        log = []
        for line in process.stdout:
            log.append(line)
            if 'both are written' in line:
                break
        process.kill()
    paths = list(home.rglob('*'))
    assert {path.stat().st_uid for path in paths} == {user}, ''.join(log)
    assert len([path for path in paths if path.name == 'written']) == 2, ''.join(log)
    subprocess.run(
        [*as_user, 'make', 'clean'], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    assert ours()[:2] == ([], []) and not list(home.glob(LABEL + '-*'))


class Island:
    """A network with nothing in it but a Docker engine of its own, which has our image. What leaves it is counted, and lost."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())  # a short path: sockets are in it
        self.holder = subprocess.Popen(
            ['unshare', '--net', 'sh', '-c', 'echo; exec sleep 3600'], stdout=subprocess.PIPE
        )
        self.holder.stdout.readline()
        self.enter = ['nsenter', f'--net=/proc/{self.holder.pid}/ns/net']
        self.engine = None
        self.environment = {**os.environ, 'DOCKER_HOST': f'unix://{self.directory}/socket'}

    def connect(self):
        """Give it a way out, to nowhere."""
        for command in (
            'sysctl -qw net.ipv6.conf.default.disable_ipv6=1',
            'ip link set lo up',
            'ip link add out type veth peer name world',
            'ip address add 192.0.2.1/24 dev out',
            'ip link set out up',
            'ip link set world up',
            'ip route add default dev out',
        ):
            subprocess.run([*self.enter, *command.split()], check=True)

    def start(self):
        """Start the engine, or start it again."""
        with (self.directory / 'log').open('ab') as log:
            self.engine = subprocess.Popen(
                [
                    *self.enter,
                    'dockerd',
                    '--host',
                    self.environment['DOCKER_HOST'],
                    *[
                        arg
                        for name in ('data-root', 'exec-root', 'pidfile')
                        for arg in ('--' + name, self.directory / name)
                    ],
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while subprocess.run(['docker', 'info'], env=self.environment, capture_output=True).returncode:
            assert time.monotonic() < deadline and self.engine.poll() is None, (
                self.directory / 'log'
            ).read_text()
            time.sleep(0.1)

    def stop(self):
        """Stop the engine, and with it its containers."""
        self.engine.terminate()
        self.engine.wait(30)

    def run(self, *command, **options):
        return subprocess.run(
            [*self.enter, *command],
            **{**dict(env=self.environment, check=True, capture_output=True, timeout=300), **options},
        )

    def packets(self):
        """How many packets have been sent to the world."""
        return json.loads(self.run('ip', '-json', '-statistics', 'link', 'show', 'out').stdout)[0]['stats64'][
            'tx'
        ]['packets']

    def close(self):
        try:
            if self.engine:
                self.stop()
        finally:
            self.holder.kill()
        self.holder.wait()
        shutil.rmtree(self.directory)


@pytest.fixture(scope='module')
def island():
    if os.getuid():
        pytest.skip('a network and an engine of its own need root')
    island = Island()
    try:
        island.connect()
        island.start()
        with subprocess.Popen(['docker', 'save', IMAGE], stdout=subprocess.PIPE) as saved:
            island.run('docker', 'load', stdin=saved.stdout)
        yield island
    finally:
        island.close()


def test_with_credentials_nothing_leaves_this_machine_and_they_are_not_shown(island, tmp_path):
    """The tutorial with an account's credentials at hand, asked for the stand-in: no packet, no secret in what it keeps and prints."""
    tutorial(
        tmp_path,
        **{
            'open_session()': 'open_session(embedded=True)',
            'container_log_level=logging.WARNING': 'container_log_level=logging.DEBUG',
        },
    )
    secrets = {
        'AWS_ACCESS_KEY_ID': 'AKIAIOSFODNN7EXAMPLE',
        'AWS_SECRET_ACCESS_KEY': 'wJalrXUtnFEMI/K7MDENG',
        'AWS_SESSION_TOKEN': 'FwoGZXIvYXdzEXAMPLE',
    }
    environment = {**island.environment, **secrets, 'AWS_DEFAULT_REGION': 'eu-central-1'}
    del (
        environment['AWS_ENDPOINT_URL'],
        environment['AWS_EC2_METADATA_DISABLED'],
    )  # what keeps other tests here
    before = island.packets()
    done = island.run(
        sys.executable, '-c', RUN, str(tmp_path), cwd=ROOT, env=environment, check=False, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert island.packets() == before
    kept = [path.read_text() for path in (tmp_path / 'output').iterdir()]
    assert (
        len(kept) == 2
        and 'SM_MODEL_DIR' in kept[0]
        and not [
            secret
            for secret in secrets.values()
            for text in (*kept, done.stdout, done.stderr)
            if secret in text
        ]
    )
    island.run('curl', '--max-time', '1', 'http://192.0.2.2/', check=False)
    assert island.packets() > before  # or the count shows nothing


ENGINE = """
import faulthandler
import numpy as np
from sagemaker.chainer.estimator import Chainer

def say(name, call):
    try:
        print(name, 'returned', call(), flush=True)
    except Exception as e:
        print(name, type(e).__name__, ' '.join(str(e).split()), flush=True)

def predict():
    return predictor.predict(np.zeros((1, 784), np.float32)).shape

def deploy():
    global predictor
    predictor = model.deploy(initial_instance_count=1, instance_type='local')

faulthandler.dump_traceback_later(240, exit=True)  # rather than hang
say('predict', predict)
input()
say('predict', predict)
say('deploy', deploy)
input()
say('predict', predict)
predictor.delete_endpoint()
say('deploy', deploy)
say('predict', predict)
say('fit', Chainer(sys.argv[2], role='arn:aws:iam::123456789012:role/r', instance_count=1, instance_type='local',
                   image_uri=image_uri('local'), sagemaker_session=session).fit)
input()
"""


def test_the_engine_stops_and_starts(island, tmp_path, monkeypatch):
    """What fails meanwhile says why; afterwards all goes on, and nothing is left."""
    (tmp_path / 'tmp').mkdir()
    (tmp_path / 'long.py').write_text('import time\nprint("the script runs")\ntime.sleep(300)')
    with subprocess.Popen(
        [*island.enter, sys.executable, '-c', DEPLOY + ENGINE, '8080', str(tmp_path / 'long.py')],
        cwd=ROOT,
        text=True,
        env={**island.environment, 'TMPDIR': str(tmp_path / 'tmp')},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:

        def expect(*parts):
            log = []
            for line in process.stdout:
                log.append(line)
                if all(part in line for part in parts):
                    return
            pytest.fail('no {} in:\n{}'.format(parts, ''.join(log)))

        def go_on():
            process.stdin.write('\n')
            process.stdin.flush()

        expect('predict returned (1, 10)')
        island.stop()
        done = island.run(
            'make', 'clean', cwd=ROOT, env={**island.environment, 'TMPDIR': str(tmp_path)}, text=True
        )
        assert 'Docker does not answer: start it' in done.stdout
        go_on()
        expect('predict ConnectionError Nothing answers on port 8080')
        expect('deploy RuntimeError Docker does not answer: start it')
        island.start()
        go_on()
        expect('predict ConnectionError Nothing answers on port 8080')
        expect('deploy returned')
        expect('predict returned (1, 10)')
        expect('the script runs')
        start = time.monotonic()
        island.stop()
        expect('fit RuntimeError Training job')
        assert time.monotonic() - start < 30
        go_on()  # to its end, without an engine
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and 'Could not remove containers' in out, out
    assert not list((tmp_path / 'tmp').iterdir())
    island.start()
    island.run('make', 'clean', cwd=ROOT)
    monkeypatch.setenv('DOCKER_HOST', island.environment['DOCKER_HOST'])
    assert ours()[:2] == ([], [])
