"""The engines without a container: commands that Docker gets, its failures, and others' files in /tmp."""

import json
import os
import signal
import subprocess
import time

import boto3
import local_mode.docker
import psutil
import pytest
from local_mode import clean, images, open_session
from local_mode.engines.docker import Docker
from local_mode.engines.interface import Container
from local_mode.engines.processes import MARK, Processes
from local_mode.errors import EngineError, LocalModeError
from local_mode.names import LABEL, image_uri, label, of_this_user
from moto.server import ThreadedMotoServer
from support import answers, free_port, wait_for


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Return a function that puts a program on the PATH, which writes its arguments to `calls` and runs a script."""
    directory = tmp_path / 'bin'
    directory.mkdir()
    monkeypatch.setenv('PATH', str(directory))

    def put(script, name='docker'):
        (directory / name).write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\necho "$@" >> {tmp_path}/calls\n{script}')
        (directory / name).chmod(0o700)
        return lambda: (tmp_path / 'calls').read_text()

    return put


def test_values_with_line_breaks_are_not_on_the_command_line(program, tmp_path):
    calls = program(f'if [ $1 = run ]; then cat > {tmp_path}/stdin; printf %s "$KEY" > {tmp_path}/key; fi')
    key = '-----BEGIN\nsecret\r\n-----END'
    Docker().run([Container('name', 'image', environment={'KEY': key, 'PLAIN': 'a secret'})])
    assert '--env=KEY ' in calls() and 'secret' not in calls()
    assert (tmp_path / 'key').read_bytes().decode() == key
    assert (tmp_path / 'stdin').read_text() == 'PLAIN=a secret\n'


@pytest.mark.parametrize('host', ['localhost:2375', '127.0.0.1:2375', '127.0.1.1:2375', '[::1]:2375'])
def test_an_engine_on_loopback_publishes_on_loopback(program, monkeypatch, host):
    monkeypatch.setenv('DOCKER_HOST', f'tcp://{host}')
    calls = program('')
    Docker().run([Container('name', 'image', port=8081)])
    assert '--publish=127.0.0.1:8081:8080' in calls()
    monkeypatch.setenv('DOCKER_HOST', 'tcp://192.0.2.1:2375')
    Docker().run([Container('name', 'image', port=8082)])
    assert '--publish=8082:8080' in calls()


FAILS = """
case "$1 $2" in
    'ps '*) echo container ;;
    'rm '*) echo 'cannot remove it' >&2; exit 1 ;;
    'network ls') echo first; echo second ;;
    'network rm') [ $3 = second ] || { echo "$3 has endpoints" >&2; exit 1; } ;;
esac
"""


def test_what_cannot_be_removed_keeps_nothing_else(program, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    calls = program(FAILS)
    with pytest.raises(EngineError, match='first has endpoints'):
        Docker().remove({LABEL: 'any'})
    assert 'network rm second' in calls()
    clean.clean()
    said = capsys.readouterr().out
    assert 'first has endpoints' in said and 'does not answer' not in said
    program('echo "Cannot connect to the Docker daemon" >&2; exit 1')
    clean.clean()
    assert 'clean: Docker does not answer: start it' in capsys.readouterr().out


@pytest.mark.slow
def test_an_engine_that_hangs_is_given_up(program, monkeypatch, capsys):
    monkeypatch.setattr(Docker, 'limit', 0.5)
    program('exec sleep 60')
    start = time.monotonic()
    with pytest.raises(EngineError, match='docker ps did not answer within 0.5 s'):
        Docker().remove({LABEL: 'any'})
    open_session(embedded=True).close()
    assert 'Could not remove containers of this session: docker ps did not' in capsys.readouterr().out
    assert time.monotonic() - start < 10


@pytest.mark.parametrize('engine', ['docker', 'podman'])
def test_the_image_is_not_built_before_the_engine_answers(program, monkeypatch, engine):
    monkeypatch.setenv('LOCAL_MODE', engine)
    with pytest.raises(LocalModeError, match=f'{engine.capitalize()} is not installed: .*LOCAL_MODE=process'):
        images.get()
    calls = program('echo "no daemon" >&2; exit 1', engine)
    with pytest.raises(LocalModeError, match=f'{engine.capitalize()} does not answer: start it.*no daemon'):
        images.get()
    assert calls() == 'info\n'


def test_has_image_asks_the_chosen_engine(program, monkeypatch):
    monkeypatch.setenv('LOCAL_MODE', 'podman')
    calls = program('echo id', 'podman')
    assert local_mode.docker.has_image('any') and 'images --quiet any' in calls()
    monkeypatch.setenv('LOCAL_MODE', 'process')
    assert local_mode.docker.has_image(image_uri('local')) and not local_mode.docker.has_image('any')


def test_an_image_of_ecr_is_pulled_by_the_chosen_engine(program, tmp_path):
    image = '123456789012.dkr.ecr.eu-west-1.amazonaws.com/mine:1'
    calls = program(f'[ $1 != login ] || cat > {tmp_path}/password', 'podman')
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    try:
        url = 'http://{}:{}'.format(*server.get_host_and_port())
        session = boto3.Session('key', 'secret', region_name='eu-west-1')
        create = session.client
        session.client = lambda *args, **kwargs: create(*args, **{**kwargs, 'endpoint_url': url})
        Docker('podman').fetch(image, session)
    finally:
        server.stop()
    lines = calls().splitlines()
    assert [line.split()[0] for line in lines] == ['images', 'login', 'pull'] and lines[2].endswith(image)
    assert '--username AWS --password-stdin' in lines[1] and (tmp_path / 'password').read_text()
    program('echo id', 'podman')
    Docker('podman').fetch(image, None)
    Docker('podman').fetch('python:3.13', None)
    assert len(calls().splitlines()) == 4  # it is here already; the other is not ECR's


def test_a_process_may_be_removed_while_others_follow_it(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    directory = tmp_path / f'{LABEL}-a' / 'job'
    directory.mkdir(parents=True)
    (tmp_path / 'any.py').write_text('def model_fn(model_dir): pass')
    environment = {'SAGEMAKER_PROGRAM': 'any.py', 'SAGEMAKER_SUBMIT_DIRECTORY': str(tmp_path)}
    labels = {label('directory'): str(directory)}
    port, name = free_port(), f'a-{os.getpid()}'
    engine = Processes()
    engine.run([Container(name, image_uri('local'), ['serve'], environment=environment, labels=labels, port=port)])
    lines = engine.logs(name)
    assert 'gunicorn' in next(lines)
    with pytest.raises(EngineError, match=f'Port {port}: Address already in use'):
        engine.run([Container('b', image_uri('local'), ['serve'], labels=labels, port=port)])
    engine.stop([name], 0)
    assert engine.wait(name) == 128 + signal.SIGKILL  # whoever ends it leaves the exit code to whoever waits
    engine.remove(labels)
    assert all(lines)
    for call in lambda: next(engine.logs(name)), lambda: engine.wait(name):
        with pytest.raises(EngineError, match=f'{name} has been removed'):
            call()
    assert not answers(port)


@pytest.mark.skipif(os.getuid() != 0, reason='needs another user')
def test_another_users_processes_pass_for_none_of_ours():
    """Nobody else's process is found or ended, whatever its environment says."""
    labels = of_this_user() | {LABEL: 'a-strangers'}
    mark = {MARK: json.dumps(labels)}
    user = 'setpriv --reuid=65534 --regid=65534 --clear-groups'.split()
    with subprocess.Popen([*user, 'sleep', '60'], env=os.environ | mark) as stranger:
        try:
            wait_for(lambda: psutil.Process(stranger.pid).uids().real == 65534)
            Processes().remove(labels)
            assert stranger.poll() is None and not Processes().find(labels)
        finally:
            stranger.kill()


def test_a_bundle_that_cannot_be_used_is_told(program, tmp_path, monkeypatch):
    """Its server is down, it is of another version, or its image is cut off."""
    program('[ $1 != load ] || cat >/dev/null')
    bundle = tmp_path / 'a bundle'
    bundle.mkdir()
    monkeypatch.setenv('BUNDLE', bundle.as_uri())
    with pytest.raises(LocalModeError, match='cannot be read: copy it again, whole'):
        images.load('an-image')
    (bundle / 'version').write_text('of old\n')
    with pytest.raises(LocalModeError, match='of another version: .* there:\n\nmake bundle\n'):
        images.load('an-image')
    (bundle / 'version').write_text(images.source())
    with pytest.raises(LocalModeError, match='cannot be read: copy it again, whole'):
        images.load('an-image')
    (bundle / 'image.tar.gz').write_bytes(b'cut off')
    with pytest.raises(LocalModeError, match='could not load the image in .*: copy it again'):
        images.load('an-image')
