"""The tutorial works on a machine without a network; sessions survive a restart of the Docker engine."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest
from support import IMAGE, ROOT, ours, read_until, run, wait_for

pytestmark = pytest.mark.usefixtures('nothing_of_ours')
NETWORK = """
sysctl -qw net.ipv6.conf.default.disable_ipv6=1
ip link set lo up
ip link add out type veth peer name world
ip address add 192.0.2.1/24 dev out
ip link set out up
ip link set world up
ip route add default dev out
"""


class Island:
    """An isolated network with a Docker engine that has our image; packets that leave it are lost."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())  # a short path: sockets are in it
        holder = ['unshare', '--net', 'sh', '-c', 'echo; exec sleep 3600']
        self.holder = subprocess.Popen(holder, stdout=subprocess.PIPE)
        self.holder.stdout.readline()
        self.enter = ['nsenter', f'--net=/proc/{self.holder.pid}/ns/net']
        self.engine = None
        self.environment = os.environ | {'DOCKER_HOST': f'unix://{self.directory}/socket'}

    def connect(self):
        """Add a default route that leads nowhere."""
        for command in NETWORK.strip().splitlines():
            self.run(*command.split())

    def start(self):
        """Start or restart the engine."""
        directories = [f'--{name}={self.directory}/{name}' for name in ('data-root', 'exec-root', 'pidfile')]
        command = [*self.enter, 'dockerd', '--host', self.environment['DOCKER_HOST'], *directories]
        log = self.directory / 'log'
        with log.open('ab') as file:
            self.engine = subprocess.Popen(command, stdout=file, stderr=file)

        def answers():
            assert self.engine.poll() is None, log.read_text()
            return run('docker', 'info', env=self.environment).returncode == 0

        wait_for(answers, 60, log.read_text)

    def stop(self):
        """Stop the engine and its containers."""
        self.engine.terminate()
        self.engine.wait(30)

    def run(self, *command, **options):
        return run(*self.enter, *command, **dict(env=self.environment, check=True, timeout=300) | options)

    def packets(self):
        """Return the number of packets sent out of the network."""
        link = self.run('ip', '-json', '-statistics', 'link', 'show', 'out').stdout
        return json.loads(link)[0]['stats64']['tx']['packets']

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


ACCOUNT = {
    'AWS_ACCESS_KEY_ID': 'AKIAIOSFODNN7EXAMPLE',
    'AWS_SECRET_ACCESS_KEY': 'wJalrXUtnFEMI/K7MDENG',
    'AWS_SESSION_TOKEN': 'FwoGZXIvYXdzEXAMPLE',
}
KEEPS_OTHERS_HERE = 'AWS_ENDPOINT_URL', 'AWS_EC2_METADATA_DISABLED'  # in tests


def test_with_credentials_nothing_leaves_this_machine_and_they_are_not_shown(island, tutorial, tmp_path):
    """The tutorial has credentials but uses the stand-in: it sends no packet and shows no secret."""
    embedded = {'open_session()': 'open_session(embedded=True)'}
    verbose = {'container_log_level=logging.WARNING': 'container_log_level=logging.DEBUG'}
    _, command = tutorial(tmp_path, embedded | verbose)
    environment = island.environment | ACCOUNT | {'AWS_DEFAULT_REGION': 'eu-central-1'}
    for name in KEEPS_OTHERS_HERE:
        del environment[name]
    before = island.packets()
    done = island.run(*command, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert island.packets() == before
    kept = [path.read_text() for path in (tmp_path / 'output').iterdir()]
    assert len(kept) == 2 and 'SM_MODEL_DIR' in kept[0]
    texts = [*kept, done.stdout, done.stderr]
    assert not [secret for secret in ACCOUNT.values() for text in texts if secret in text]
    island.run('curl', '--max-time', '1', 'http://192.0.2.2/', check=False)
    assert island.packets() > before  # or the count shows nothing


ENGINE = """
import faulthandler
import numpy as np

def say(name, call):
    try:
        print(name, 'returned', call(), flush=True)
    except Exception as e:
        print(name, type(e).__name__, ' '.join(str(e).split()), flush=True)

def predict():
    return predictor.predict(np.zeros((1, 784), np.float32)).shape

def deploy():
    global predictor
    predictor = model.deploy(1, 'local')

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
say('fit', make_estimator(session, sys.argv[2]).fit)
input()
"""


def test_the_engine_stops_and_starts(island, deploy, tmp_path, monkeypatch):
    """Failures meanwhile give the reason; afterwards everything works again, and nothing is left."""
    (tmp_path / 'tmp').mkdir()
    (tmp_path / 'long.py').write_text('import time\nprint("the script runs")\ntime.sleep(300)')
    command = [*island.enter, *deploy(8080, ENGINE, tmp_path / 'long.py')]
    environment = island.environment | {'TMPDIR': str(tmp_path / 'tmp')}
    streams = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with subprocess.Popen(command, cwd=ROOT, text=True, env=environment, **streams) as process:

        def go_on():
            process.stdin.write('\n')
            process.stdin.flush()

        read_until(process, 'predict returned (1, 10)')
        island.stop()
        done = island.run('make', 'clean', env=island.environment | {'TMPDIR': str(tmp_path)})
        assert 'Docker does not answer: start it' in done.stdout
        go_on()
        read_until(process, 'predict ConnectionError Nothing answers on port 8080')
        read_until(process, 'deploy EngineError Docker does not answer: start it')
        island.start()
        go_on()
        read_until(process, 'predict ConnectionError Nothing answers on port 8080')
        read_until(process, 'deploy returned')
        read_until(process, 'predict returned (1, 10)')
        read_until(process, 'the script runs')
        start = time.monotonic()
        island.stop()
        read_until(process, 'fit FailedJob Training job')
        assert time.monotonic() - start < 30
        go_on()  # to its end, without an engine
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and 'Could not remove containers' in out, out
    assert not list((tmp_path / 'tmp').iterdir())
    island.start()
    island.run('make', 'clean', env=environment)
    monkeypatch.setenv('DOCKER_HOST', island.environment['DOCKER_HOST'])
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
    assert ours()[:2] == ([], [])
