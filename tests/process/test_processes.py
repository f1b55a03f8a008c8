"""Local mode without Docker runs `train` and `serve` as processes, through the same estimator."""

import os
import re
import signal
import subprocess
import sys
import tempfile

import pytest
from support import LONG, ROOT, STOPPED_JOB, free_port, processes_with, read_until, run, stop_a_job, wait_for

# What a script does before it is asked to: `session`, and `estimator(script, **options)`.
START = """
import json, logging, os, signal, sys, time
import numpy as np
from local_mode.docker import image_uri
from local_mode.session import open_session
from sagemaker.chainer.estimator import Chainer
from sagemaker.s3 import S3Downloader

session = open_session(embedded=True, serving_port=int(sys.argv[1]))

def estimator(script, **options):
    options = dict(image_uri=image_uri('local'), instance_count=1) | options
    return Chainer(script, role='arn:aws:iam::123456789012:role/any', instance_type='local',
                   sagemaker_session=session, container_log_level=logging.WARNING, **options)
"""
TUTORIAL = """
inputs = {name: session.upload_data(f'{sys.argv[2]}/{name}', key_prefix=name) for name in ('train', 'test')}
job = estimator('chainer_mnist_single_machine.py', dependencies=['chainer_mnist'],
                hyperparameters={'epochs': 1, 'batch_size': 100})
job.fit(inputs)
out = f's3://{session.default_bucket()}/transformed'
transformer = job.transformer(1, 'local', output_path=out, accept='application/json')
rows = session.upload_string_as_file_body(','.join(['0'] * 784), session.default_bucket(), 'rows/row')
transformer.transform(rows, content_type='text/csv')
(answer,) = S3Downloader.list(out, session)
print('transformed', np.shape(json.loads(S3Downloader.read_file(answer, session))), os.listdir(session.directory))
predictor = job.deploy(1, 'local')
test = np.load(f'{sys.argv[2]}/test/test.npz')
print('accuracy', (predictor.predict(test['images']).argmax(axis=1) == test['labels']).mean())
sys.stdout.flush()
if os.fork() == 0:
    signal.alarm(60)  # rather than hang
    sys.exit()
print('child', os.waitstatus_to_exitcode(os.wait()[1]), session.upload_data('README.md'))
print('NAME', predictor.endpoint_name, flush=True)
input()
predictor.delete_endpoint()
"""
ELSEWHERE = """
from sagemaker.chainer.model import ChainerPredictor
predictor = ChainerPredictor(sys.argv[2], session)
print(predictor.predict(np.zeros((1, 784), np.float32)).shape)
"""
ENVIRONMENT = {'LOCAL_MODE': 'process', 'PYTHONPATH': str(ROOT)}


@pytest.fixture(autouse=True)
def own_directory(tmp_path_factory, monkeypatch):
    """Let sessions write below a directory of this test: another's killed kernel leaves its session's in TMPDIR."""
    directory = tmp_path_factory.mktemp('tmp')
    monkeypatch.setenv('TMPDIR', str(directory))
    monkeypatch.setattr(tempfile, 'tempdir', str(directory))


def script(code, *args, **environment):
    """Start a Python process of START and some code, with its session on a free port."""
    command = [sys.executable, '-c', START + code, str(free_port()), *map(str, args)]
    streams = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding='utf-8')
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT | environment, **streams)


def result(code, *args, **environment):
    process = script(code, *args, **environment)
    out, _ = process.communicate('', timeout=300)
    return process.returncode, out


def left():
    """Return the processes of train and serve outside containers, and the directories of sessions."""
    return processes_with(f'SAGEMAKER_BASE_DIR={tempfile.gettempdir()}'), [
        name for name in os.listdir(tempfile.gettempdir()) if name.startswith('chainer-mnist-local')
    ]


def test_the_tutorials_script_and_another_process_at_its_endpoint(small_mnist):
    with script(TUTORIAL, small_mnist) as process:
        log = read_until(process, 'NAME ')
        assert 'child 0 s3://' in log  # a fork that exits ends neither the endpoint nor the stand-in
        assert 'nothing isolates' in log and 'Training on 2000 images' in log
        assert 'transformed (1, 10) []' in log
        assert float(log.split('\naccuracy ')[1].split()[0]) > 0.7
        name = log.split()[-1]
        assert '(1, 10)' in result(ELSEWHERE, name)[1]
        process.communicate('\n', timeout=60)
        assert process.returncode == 0
    assert left() == ([], [])


def test_a_failing_script_is_reported_with_its_traceback(tmp_path):
    (tmp_path / 'fails.py').write_text('raise ArithmeticError("as it should")')
    status, out = result(f'estimator({str(tmp_path / "fails.py")!r}).fit()')
    assert status == 1 and 'ArithmeticError: as it should' in out.partition('JobError')[2]
    assert left() == ([], [])


COUNTS = """
import os
path = os.path.join(os.environ['SM_CHECKPOINT_DIR'], 'count')
count = int(open(path).read()) + 1 if os.path.exists(path) else 0
open(path, 'w').write(str(count))
print('count', count, 'PIP', os.environ['PIP_INDEX_URL'], 'stdin', os.read(0, 1))
"""
TWICE = """
job = estimator(sys.argv[2] + '/counts.py', checkpoint_s3_uri=f's3://{session.default_bucket()}/checkpoints')
for _ in range(2):
    start = time.monotonic()
    job.fit()
    print('it took', time.monotonic() - start)
"""


def test_a_job_in_an_odd_place_resumes_from_its_checkpoints(tmp_path):
    """LC_ALL=C, no home, a temporary directory with a space, a colon and an é; a private index; no stdin."""
    odd = tmp_path / 'my é : tmp'
    odd.mkdir()
    (tmp_path / 'counts.py').write_text(COUNTS)
    environment = dict(LC_ALL='C', HOME='/proc/none', TMPDIR=str(odd), PIP_INDEX_URL='http://127.0.0.1:9/simple')
    status, out = result(TWICE, tmp_path, **environment)
    for count in 0, 1:
        assert f"count {count} PIP http://127.0.0.1:9/simple stdin b''" in out, out
    assert status == 0 and min(map(float, re.findall(r'it took ([\d.]+)', out))) < 10
    assert not list(odd.iterdir())


TAKEN = """
from local_mode import endpoints
from local_mode.engines.interface import Container
from local_mode.session import Session

own = session.in_own_directory()
labels = own.labels() | {endpoints.label('port'): str(session.serving_port)}
container = Container('a-process', image_uri('local'), ['serve'], labels=labels, port=session.serving_port)
container.environment = {'SAGEMAKER_PROGRAM': 'any.py', 'SAGEMAKER_SUBMIT_DIRECTORY': sys.argv[2]}
session.engine.run([container])
while endpoints.is_free('127.0.0.1', session.serving_port):
    time.sleep(0.1)
other = Session(session.boto_session, session.serving_port)
try:
    endpoints.check_serving_port(other)
except RuntimeError as e:
    print(e)
other.close()
"""


def test_a_port_that_a_process_has_taken_is_freed_by_kill(tmp_path):
    (tmp_path / 'any.py').write_text('def model_fn(model_dir): pass')
    _, out = result(TAKEN, tmp_path)
    assert re.search(r'another notebook, container a-process; .* remove it:\n\nkill \d+\n', out), out
    assert left() == ([], [])


@pytest.mark.parametrize('options', ["image_uri='debian:trixie'", 'instance_count=2'])
def test_what_needs_docker_says_so(options, tmp_path):
    (tmp_path / 'any.py').write_text('')
    status, out = result(f'estimator({str(tmp_path / "any.py")!r}, {options}).fit()')
    assert status == 1 and 'Without Docker only `train` and `serve` of our image run, on one host' in ' '.join(
        out.split()
    )


def test_stop_during_fit_stops_the_job(tmp_path):
    """The process ends before its directory is packed; nobody deploys the model of the job before."""
    assert re.search(STOPPED_JOB, out := stop_a_job(tmp_path, 'process')), out
    assert left() == ([], [])


TAKES = """
import socket

class Late(type(session.engine)):
    def fetch(self, *_):  # between the choice of a port and the start
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # earlier connections may linger
        stranger.bind(('127.0.0.1', session.serving_port))
        stranger.listen()

model = estimator(sys.argv[2] + '/any.py')
model.fit()
session.engine.__class__ = Late
for port in None, int(sys.argv[1]):
    session.set_serving_port(port)
    with socket.socket() as stranger:
        try:
            predictor = model.deploy(1, 'local')
            endpoint = session.sagemaker_client._endpoints[predictor.endpoint_name]
            print('after', endpoint.port - stranger.getsockname()[1], predictor.predict(np.zeros((1, 2), np.float32)))
        except RuntimeError as e:
            print('deploy', e)
"""


CANCELLED = """
from sagemaker.chainer.estimator import Chainer
from local_mode import image_uri

def test_long(local_sagemaker):
    options = dict(instance_count=1, instance_type='local', image_uri=image_uri('local'))
    options['role'] = 'arn:aws:iam::123456789012:role/any'
    Chainer('long.py', sagemaker_session=local_sagemaker, hyperparameters={'long': 1}, **options).fit()

def test_another():
    print('it goes on')
"""


def test_sigterm_ends_tests_with_the_clean_up(tmp_path):
    """So does CI cancel a job."""
    (tmp_path / 'long.py').write_text(LONG)
    (tmp_path / 'test_cancelled.py').write_text(CANCELLED)
    command = [sys.executable, '-m', 'pytest', '-s', '-p', 'no:cacheprovider', tmp_path]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | ENVIRONMENT, **streams) as process:
        read_until(process, 'it runs')
        process.terminate()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and 'it goes on' not in out, out
    assert left() == ([], [])


def test_a_port_that_is_taken_meanwhile(tmp_path):
    """Then the next one is taken, if the session may choose; else `deploy` raises. No stranger's answer counts."""
    (tmp_path / 'any.py').write_text('def model_fn(model_dir): pass\ndef predict_fn(data, model): return data')
    _, out = result(TAKES, tmp_path)
    assert re.search(r'after [1-9]\d? \[\[0. 0.\]\]', out), out
    assert re.search(r'could not be started. Port \d+: Address already in use', out), out
    assert left() == ([], [])


def test_make_clean_ends_what_a_killed_process_has_left(tmp_path):
    (tmp_path / 'long.py').write_text('import time\nprint("it runs")\ntime.sleep(1000)')
    with script(f'estimator({str(tmp_path / "long.py")!r}).fit()') as process:
        read_until(process, 'it runs')
        process.send_signal(signal.SIGKILL)
    assert left()[0]
    run('make', 'clean', env=os.environ | {'LOCAL_MODE': 'process'}, check=True)
    wait_for(lambda: left() == ([], []))
