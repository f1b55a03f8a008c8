"""The engines without a container: commands that Docker gets, its failures, and others' files in /tmp."""

import json
import os
import signal
import subprocess
import sys
import time

import boto3
import local_mode.docker
import psutil
import pytest
from local_mode import clean, images, open_session
from local_mode.engines.docker import Docker
from local_mode.engines.interface import Container
from local_mode.engines.processes import Processes, Record
from local_mode.errors import EngineError, LocalModeError
from local_mode.names import LABEL, image_uri, label, of_this_user
from moto.server import ThreadedMotoServer
from support import answers, free_port


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
    with pytest.raises(EngineError, match='(?s)cannot remove it.*first has endpoints'):
        Docker().remove({LABEL: 'any'})
    assert 'network rm second' in calls()
    clean.clean()
    said = capsys.readouterr().out
    assert 'first has endpoints' in said and 'does not answer' not in said and 'clean: done' not in said
    program('echo "Cannot connect to the Docker daemon" >&2; exit 1')
    clean.clean()
    assert 'clean: Docker does not answer: start it' in capsys.readouterr().out


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
    with pytest.raises(LocalModeError, match='no-such-program is not installed'):
        images.run('no-such-program')


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


def test_a_stopped_process_keeps_its_exit_code(tmp_path):
    """Whoever ends it must not take the code from whoever waits for it."""
    engine = Processes()
    with subprocess.Popen(['sleep', '60'], start_new_session=True) as process:
        Record(tmp_path, 'any', {}, process.pid, psutil.Process(process.pid).create_time()).end(5)
        engine.started['any'] = process, tmp_path
        assert engine.wait('any') == 128 + signal.SIGTERM


def test_a_process_may_be_removed_while_others_follow_it(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    directory = tmp_path / f'{LABEL}-a' / 'job'
    directory.mkdir(parents=True)
    (tmp_path / 'any.py').write_text('def model_fn(model_dir): pass')
    environment = {'SAGEMAKER_PROGRAM': 'any.py', 'SAGEMAKER_SUBMIT_DIRECTORY': str(tmp_path)}
    labels = {label('directory'): str(directory)}
    port = free_port()
    engine = Processes()
    engine.run([Container('a', image_uri('local'), ['serve'], environment=environment, labels=labels, port=port)])
    lines = engine.logs('a')
    assert 'gunicorn' in next(lines)
    with pytest.raises(EngineError, match=f'Port {port}: Address already in use'):
        engine.run([Container('b', image_uri('local'), ['serve'], labels=labels, port=port)])
    engine.remove(labels)
    assert all(lines)
    for call in lambda: next(engine.logs('a')), lambda: engine.wait('a'):
        with pytest.raises(EngineError, match='a has been removed'):
            call()
    assert not answers(port)


PLANT = """
import json, os, sys
os.umask(0)
top, victim, target = sys.argv[1:]
record = json.dumps(dict(name='any', labels=json.loads(victim)['labels'], **json.loads(victim)['process']))
os.makedirs(top + '/chainer-mnist-local-mode-mine/job')
open(top + '/chainer-mnist-local-mode-mine/job/process-x.json', 'w').write(record)
os.symlink(target, top + '/chainer-mnist-local-mode-link')
"""


@pytest.mark.skipif(os.getuid() != 0, reason='needs another user')
def test_what_another_user_plants_is_not_followed(tmp_path, monkeypatch):
    """Neither a record that names a process of ours, nor a link to a directory of ours with records in it."""
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o777 == 0o700:
            directory.chmod(0o755)
    tmp_path.chmod(0o1777)
    (tmp_path / 'elsewhere' / 'job').mkdir(parents=True, mode=0o755)
    with subprocess.Popen(['sleep', '60']) as mine:
        created = psutil.Process(mine.pid).create_time()
        victim = dict(labels=of_this_user(), process=dict(pid=mine.pid, created=created))
        (tmp_path / 'elsewhere' / 'job' / 'process-y.json').write_text(
            json.dumps(dict(name='any', labels=of_this_user(), **victim['process']))
        )
        user = 'setpriv --reuid=65534 --regid=65534 --clear-groups'.split()
        command = [*user, sys.executable, '-c', PLANT, tmp_path, json.dumps(victim), tmp_path / 'elsewhere']
        subprocess.run([str(word) for word in command], check=True)
        try:
            Processes().remove(of_this_user())
            assert mine.poll() is None and (tmp_path / 'elsewhere' / 'job' / 'process-y.json').exists()
        finally:
            mine.kill()
