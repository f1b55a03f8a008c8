"""These helpers serve all tests: names, requests, waiting, Docker, jobs, endpoints, drawing on the pad."""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time

import numpy as np
import pytest
import urllib3
from local_mode.docker import LABEL, image_uri
from local_mode.engines.docker import Docker
from local_mode.engines.docker import filters as filters_of
from local_mode.names import of_this_user
from sagemaker.chainer.estimator import Chainer
from sagemaker.chainer.model import ChainerModel
from sagemaker.s3 import S3Downloader

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT, DISTRIBUTED = (ROOT / f'chainer_mnist_{name}.py' for name in ('single_machine', 'distributed'))
MODULES = ROOT / 'chainer_mnist'  # imported by both
SERVER = ROOT / 'container' / 'sagemaker-chainer'  # the image's own code
CHANNELS = 'train', 'test'
TUTORIAL = ROOT / 'notebooks' / 'chainer_mnist_local_mode.ipynb'
IMAGE = image_uri('local')
ROLE = 'arn:aws:iam::123456789012:role/SageMakerRole'
NPY, JSON, CSV = 'application/x-npy', 'application/json', 'text/csv'
HTML = (ROOT / 'input.html').read_text(encoding='ascii')  # notebooks open() it with the locale's encoding
BLANK = [[0.0] * 784]
ONE = (0.4, 0.3), (0.5, 0.15), (0.5, 0.85)  # strokes, as fractions of the pad's sides
FOOT = (0.3, 0.85), (0.7, 0.85)
LISTEN = """digits = []; addEventListener('digit', event => digits.push(event.detail.data));"""
CHANGED = 'net::ERR_NETWORK_CHANGED'
http = urllib3.PoolManager(retries=False, timeout=30)


def free_port() -> int:
    """Return a port of loopback that nobody listens on, and that the system gives to no outgoing connection."""
    while True:
        port = random.SystemRandom().randrange(20000, 32768)  # hypothesis seeds the module's functions
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(('127.0.0.1', port))  # fails while an earlier server's connections linger
            return port


def run(*command, **options):
    """Run a command in the project's directory; return the finished process with its output as text."""
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    options = dict(cwd=ROOT, text=True) | streams | options
    return subprocess.run([str(word) for word in command], **options)


def python(*args, **options):
    return run(sys.executable, *args, **options)


def once(tmp_path_factory, name, fill):
    """Return a directory that the first process which needs it makes and fills, for all that test."""
    top = tmp_path_factory.getbasetemp()
    directory = (top.parent if 'PYTEST_XDIST_WORKER' in os.environ else top) / name
    with open(f'{directory}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            part = directory.with_suffix('.part')
            shutil.rmtree(part, ignore_errors=True)  # of one that failed
            part.mkdir()
            fill(part)
            part.rename(directory)
    return directory


# The tutorial, in 15 seconds instead of a minute.
SHORT = {
    '= chainer.datasets.get_mnist()': '= (data[:1000] for data in chainer.datasets.get_mnist())',
    'hand.drawings(hand.N, seed=0, no_digit=hand.NO_DIGIT)': 'hand.drawings(100, seed=0)',
    "'epochs': 3, 'batch_size': 128, 'learning_rate': 0.002, 'augment': 0.5": "'epochs': 1",
}


def edit(notebook, replacements):
    """Replace each text in the one cell that has it."""
    for old, new in replacements.items():
        (cell,) = [cell for cell in notebook.cells if old in cell.source]
        cell.source = cell.source.replace(old, new)


def find_python(version):
    """The path of this Python, '3.6' for instance, on the PATH or pyenv's; None where there is none."""
    pyenv = pathlib.Path(os.environ.get('PYENV_ROOT', pathlib.Path.home() / '.pyenv'))
    for candidate in (shutil.which(f'python{version}'), *sorted(pyenv.glob(f'versions/{version}.*/bin/python'))):
        if candidate and run(candidate, '-c', 'import venv').returncode == 0:
            return candidate


def run_raster(expression):
    """Evaluate a JavaScript expression in Node with the exports of raster.js; return its value."""
    code = f"""import {{probabilities, rasterise}} from './digit_pad/browser/raster.js';
        console.log(JSON.stringify({expression}));"""
    done = run('node', '--input-type=module', input=code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wait_for(get, seconds=60, why=lambda: ''):
    """Wait for a true result of get() and return it; on a timeout fail with why()."""
    deadline = time.monotonic() + seconds
    while not (result := get()):
        assert time.monotonic() < deadline, f'waited {seconds} s in vain {why()}'
        time.sleep(0.05)
    return result


def read_until(process, part):
    """Return the output of a process, up to the line that contains `part`."""
    log = []
    for line in process.stdout:
        log.append(line)
        if part in line:
            return ''.join(log)
    pytest.fail(f'no {part} in:\n{"".join(log)}')


def processes_with(variable):
    """Return the command lines of all processes whose environment contains `variable`."""
    found = []
    for process in pathlib.Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if variable.encode() in (process / 'environ').read_bytes():
                found.append((process / 'cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace'))
    return found


def answers(port):
    with socket.socket() as s:
        return s.connect_ex(('127.0.0.1', port)) == 0


def ping(url):
    with contextlib.suppress(urllib3.exceptions.HTTPError):
        return http.request('GET', url + '/ping').status == 200


def post(url, body, content_type=NPY, accept=NPY):
    headers = {k: v for k, v in (('Content-Type', content_type), ('Accept', accept)) if v}
    return http.request('POST', url + '/invocations', body=body, headers=headers)


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def load(path_or_bytes):
    """Return the array in a .npy, or {name: array} of an .npz."""
    loaded = np.load(io.BytesIO(path_or_bytes) if isinstance(path_or_bytes, bytes) else path_or_bytes)
    return loaded if isinstance(loaded, np.ndarray) else dict(loaded)


class Canary:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def pack(archive, *paths):
    """Write a .tar.gz of these files and directories; return its path."""
    with tarfile.open(archive, 'w:gz') as tar:
        for path in paths:
            tar.add(path, path.name)
    return str(archive)


def docker(line, *args):
    """Run a docker command; return its output. line: is split as by a shell."""
    return Docker()(*shlex.split(line), *args)


def containers(session, *states):
    """Return the ids of the session's containers, in any state or in one of `states`."""
    states = ' '.join(f'--filter status={state}' for state in states)
    return docker(f'ps --all --quiet --filter label={LABEL}={session.name} {states}').split()


def ours(user=None):
    """Return the project's containers by name, its networks by id, and its temporary directories."""
    labels = of_this_user() | {f'{LABEL}.user': str(user)} if user else of_this_user()
    filters = filters_of(labels)
    return (
        Docker()('ps', '--all', '--format={{.Names}}', *filters).split(),
        Docker()('network', 'ls', '--quiet', *filters).split(),
        sorted(pathlib.Path(tempfile.gettempdir()).glob(LABEL + '-*')),
    )


# A job that ends at once, and the second time not before it is stopped; it then writes `ended`.
LONG = """
import os, signal, sys, time
if __name__ == '__main__':
    def end(*_):
        time.sleep(0.5)
        sys.exit(open(os.environ['SM_MODEL_DIR'] + '/ended', 'w').close())
    signal.signal(signal.SIGTERM, end)
    if '--long' in sys.argv:
        print('it runs', flush=True)
        time.sleep(1000)
"""
STOPPED = f"""
import pathlib, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from local_mode import open_session
from support import LABEL, make_estimator, open_tar

session = open_session(embedded=True)
job = make_estimator(session, sys.argv[1])
job.fit()
job.set_hyperparameters(long=1)
try:
    print('fit returned', job.fit())
except KeyboardInterrupt:
    print('KeyboardInterrupt')
name = job._current_job_name
print(session.sagemaker_client.describe_training_job(name)['TrainingJobStatus'])
print(session.engine.find({{LABEL: session.name}}))
with open_tar(session, f'{{job.output_path}}/{{name}}/output/model.tar.gz') as tar:
    print(tar.getnames())
try:
    print('deployed', job.deploy(1, 'local'))
except ValueError as e:
    print(e)
"""


def stop_a_job(directory, engine):
    """Stop a job as Ctrl-C does; return what its script then prints."""
    (directory / 'long.py').write_text(LONG)
    command = [sys.executable, '-c', STOPPED, directory / 'long.py']
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    options = dict(env=os.environ | {'LOCAL_MODE': engine}, start_new_session=True)
    with subprocess.Popen(command, **options, **streams) as process:
        read_until(process, 'it runs')
        os.killpg(process.pid, signal.SIGINT)
        try:
            return process.communicate(timeout=60)[0]
        finally:
            process.kill()


STOPPED_JOB = r"KeyboardInterrupt\nStopped\n{}\n\['ended'\]\n.*not associated with a training job"


@contextlib.contextmanager
def container(options, command, image=IMAGE):
    """Run a container in the background; yield its name, and remove it at the end."""
    name = docker(f'run --detach --label {LABEL}=by-hand {options} {image} {command}').strip()
    try:
        yield name
    finally:
        docker(f'rm --force {name}')


@contextlib.contextmanager
def serve(options, program=SCRIPT.name, image=IMAGE):
    """Run a container with `serve`; yield (name, URL) once it answers. An option may contain {port}."""
    port = free_port()
    options = options.replace('{port}', str(port)) + f' --env SAGEMAKER_PROGRAM={program}'
    url = f'http://127.0.0.1:{port}'
    with container(f'--publish 127.0.0.1:{port}:8080 {options}', 'serve', image) as name:
        wait_for(lambda: ping(url), 120, lambda: docker(f'logs {name}'))
        yield name, url


def arguments(data, out, options=''):
    """Return the script's arguments for a directory with the channels, and one for all output."""
    channels = f'--train {data}/train --test {data}/test'
    return f'--num-gpus 0 {channels} --model-dir {out} --output-data-dir {out} {options}'.split()


def common(session, entry_point):
    dependencies = [MODULES] + [SCRIPT] * (entry_point == DISTRIBUTED)
    given = dict(role=ROLE, image_uri=IMAGE, sagemaker_session=session)
    return dict(entry_point=str(entry_point), dependencies=[str(path) for path in dependencies], **given)


def make_estimator(session, entry_point=SCRIPT, options=(), **hyperparameters):
    where = dict(instance_count=1, instance_type='local', output_path=f's3://{session.default_bucket()}/model')
    given = common(session, entry_point) | where | dict(options)
    return Chainer(hyperparameters=hyperparameters, **given)


def make_model(session, model_data, entry_point=SCRIPT):
    """Return a ChainerModel of a model.tar.gz, on this machine or on S3."""
    if not model_data.startswith('s3:'):
        model_data = session.upload_data(model_data, key_prefix='model')
    return ChainerModel(model_data, **common(session, entry_point))


def open_tar(session, uri):
    """Return a tar file on S3 or this machine, open."""
    if not uri.startswith('file://'):
        return tarfile.open(fileobj=io.BytesIO(S3Downloader.read_bytes(uri, sagemaker_session=session)))
    return tarfile.open(uri.removeprefix('file://'))


def output(estimator):
    """Return a context manager of the job's open output.tar.gz, also of a failed job."""
    uri = f'{estimator.output_path}/{estimator._current_job_name}/output/output.tar.gz'
    return open_tar(estimator.sagemaker_session, uri)


def draw(pad, *points, pointer='mouse'):
    """Draw a stroke with the 'mouse', a finger ('touch') or a 'pen'; return its digit event's data."""
    page, canvas = pad.page, pad.locator('.ink')
    before = page.evaluate('digits.length')
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    places = [(box['x'] + x * box['width'], box['y'] + y * box['height']) for x, y in points]
    session = page.context.new_cdp_session(page)
    for i, place in enumerate(places):
        move(session, pointer, 'Move' if i else 'Start', *place)
    move(session, pointer, 'End', *places[-1])
    session.detach()
    wait_for(lambda: page.evaluate('digits.length') > before)
    assert page.evaluate('digits.length') == before + 1
    return page.evaluate('digits.at(-1)')


def move(session, pointer, kind, x=0, y=0):
    if pointer == 'touch':
        points = [{'x': x, 'y': y}] if kind in ('Start', 'Move') else []
        session.send('Input.dispatchTouchEvent', {'type': 'touch' + kind, 'touchPoints': points})
    else:
        event = dict(x=x, y=y, pointerType=pointer, force=0.5, button='left', clickCount=1)
        event['type'] = {'Start': 'mousePressed', 'Move': 'mouseMoved', 'End': 'mouseReleased'}[kind]
        session.send('Input.dispatchMouseEvent', event | {'buttons': int(kind != 'End')})


def visit(page, url):
    """Open a page, again if the network changed: Chromium then drops parts of it, with each container of Docker."""
    dropped = []

    def note(request):
        if request.failure == CHANGED:
            dropped.append(request)

    page.on('requestfailed', note)
    for _ in range(10):
        dropped.clear()
        try:
            page.goto(url, wait_until='networkidle')
        except Exception as e:  # of Playwright, which not all tiers have
            if CHANGED not in str(e):
                raise
        else:
            if not dropped:
                return page.remove_listener('requestfailed', note)
    pytest.fail(f'{url}: the network changes again and again')


def says(pad, text):
    """Wait until the pad shows a text."""
    pad.get_by_role('status').filter(has_text=text).wait_for()


def readmes_cnn():
    """Return README's network, as a script has it that it replaces."""
    import chainer_mnist_single_machine as script  # Chainer is not in all tiers

    code = re.search(r'```python\n(class MLP.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)[1]
    exec(code, names := {'chainer': script.chainer, 'F': script.F, 'L': script.L})
    return names['MLP']


def centre(image):
    rows, columns = np.mgrid[:28, :28]
    return (rows * image).sum() / image.sum(), (columns * image).sum() / image.sum()


def sides(image, above=0.5):
    return [np.ptp(np.flatnonzero((np.reshape(image, (28, 28)) > above).any(axis))) + 1 for axis in (1, 0)]
