"""This benchmark compares the endpoint's speed with AWS's server and other servers in use today.

    .venv-bench/bin/python -m benchmarks.serving          # some 8 minutes on two cores

All servers have two workers, the same weights and settings for OpenBLAS, batching if they offer it, and their
usual body format; ours and FastAPI have both formats. Only MMS logs requests, as in AWS's images. wrk sends
requests to each server in turn, on the same cores, over keep-alive connections. Ratios compare ours in the
same format with theirs, in pairs, with quartiles.
"""

import collections
import contextlib
import http.client
import io
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import chainer
import numpy as np
import psutil

import chainer_mnist_single_machine as script
from benchmarks.report import section
from benchmarks.server import SERVER, blas_settings
from benchmarks.training import Size, data, machine, ratio

ROOT = pathlib.Path(__file__).resolve().parent.parent
OPPONENTS = ROOT / 'benchmarks' / 'opponents'
NPY, JSON = 'application/x-npy', 'application/json'
IMAGES, _ = data(Size(images=1000))
OURS, BOUND = 'ours', 'matrix products alone'

Start = collections.namedtuple('Start', 'command env', defaults=({},))
SCRIPT, PLAIN = 'chainer_mnist_single_machine.py', {'CHAINER_FAST': '0'}
SERVERS = {
    OURS: Start('gunicorn -c {server}/gunicorn.conf.py', {'SAGEMAKER_PROGRAM': SCRIPT}),
    'MMS': Start('python -m mms_handler', PLAIN),
    'MMS, OpenBLAS not set': Start('python -m mms_handler', PLAIN | dict.fromkeys(blas_settings(2), '')),
    'LitServe': Start('python -m litserve_server {port}'),
    'BentoML': Start('bentoml serve bentoml_server:Network --host 127.0.0.1 --port {port}'),
    'FastAPI': Start('uvicorn fastapi_server:app --workers 2 --port {port}'),
    'MLflow': Start('mlflow models serve -m mlflow_model --env-manager local --workers 2 --port {port}'),
}
PORTS = {name: 8380 + i for i, name in enumerate(SERVERS)}
RESTLESS = ['LitServe']  # it polls its queues: even idle it would take a third of a core from the others

# A kind of request; key: the name of the images in a JSON body, None for a bare list.
Ask = collections.namedtuple('Ask', 'server path format key', defaults=(None,))
ASKS = {
    'ours, npy': Ask(OURS, '/invocations', NPY),
    'ours, JSON': Ask(OURS, '/invocations', JSON),
    'MMS, npy': Ask('MMS', '/invocations', NPY),
    'MMS, npy, OpenBLAS not set': Ask('MMS, OpenBLAS not set', '/invocations', NPY),
    'FastAPI, npy': Ask('FastAPI', '/npy', NPY),
    'FastAPI, JSON': Ask('FastAPI', '/predict', JSON, 'images'),
    'LitServe, JSON': Ask('LitServe', '/predict', JSON, 'images'),
    'BentoML, JSON': Ask('BentoML', '/predict', JSON, 'images'),
    'MLflow, JSON': Ask('MLflow', '/invocations', JSON, 'inputs'),
}
FEW = ['ours, npy', 'MMS, npy', 'FastAPI, npy', BOUND]
SETTINGS = {  # (images, connections): (names of ASKS, seconds for each)
    (1, 1): ([*ASKS, BOUND], 1),
    (1, 16): ([*ASKS, BOUND], 1),
    (1, 64): ([*ASKS, BOUND], 1),
    (1000, 1): ([*ASKS, BOUND], 2),
    (1000, 4): (FEW, 2),
}
WRK = """
wrk.method = 'POST'
wrk.headers['Content-Type'], wrk.headers['Accept'] = '{format}', '{format}'
wrk.body = io.open('{body}', 'rb'):read('*a')
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('RESULT [%f, %f, %f, %d]\\n', (summary.requests - e.status) / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.status + e.read + e.write + e.connect + e.timeout))
end
"""
PRODUCTS = """
import sys, time
import numpy as np
from ideep4py import loops
rows, sizes = int(sys.argv[1]), (784, 1000, 1000, 10)
layers = [[np.ones(shape, np.float32) for shape in ((rows, m), (rows, n), (m, n), m)] + [rows, m, n]
          for n, m in zip(sizes, sizes[1:])]
count, start = 0, time.perf_counter()
while time.perf_counter() < start + 0.5:
    for y, x, W, b, *n in layers:
        loops.product(y, x, W, id(b), *n, 0, 1)
    count += rows
print(count / (time.perf_counter() - start))
"""


def body(name, images):
    ask, stream = ASKS[name], io.BytesIO()
    if ask.format == NPY:
        np.save(stream, IMAGES[:images])
        return stream.getvalue()
    rows = IMAGES[:images].tolist()
    return json.dumps({ask.key: rows} if ask.key else rows).encode()


def answer(name, images):
    """Return a server's scores for the first images. Raises OSError or HTTPException if it gives none."""
    ask = ASKS[name]
    connection = http.client.HTTPConnection('127.0.0.1', PORTS[ask.server], timeout=20)
    headers = {'Content-Type': ask.format, 'Accept': ask.format}
    connection.request('POST', ask.path, body(name, images), headers)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise http.client.HTTPException(f'{name}: {response.status} {content[:500]}')
    if ask.format == NPY:
        return np.load(io.BytesIO(content))
    scores = json.loads(content)
    return np.array(scores if isinstance(scores, list) else [*scores.values()][0])


def processes(name, directory):
    """Return all processes of a server, by its mark in their environment.

    BentoML's processes have their own process groups, and MMS's Java process loses its parent.
    """
    mark = os.path.join(directory, name)
    return [p for p in psutil.process_iter(['environ']) if (p.info['environ'] or {}).get('SERVER') == mark]


@contextlib.contextmanager
def server(name, directory):
    """Start a server; yield the seconds to its first answer."""
    base = os.path.join(directory, str(PORTS[name]))  # for MMS's model directory, process id and sockets
    os.makedirs(os.path.join(base, 'model'), exist_ok=True)
    env = {
        **os.environ,
        **blas_settings(2),
        'SERVER': os.path.join(directory, name),
        'PATH': '{}:{}'.format(os.path.dirname(sys.executable), os.environ['PATH']),
        'PYTHONPATH': f'{directory}:{SERVER}:{OPPONENTS}',
        'TMPDIR': base,
        'TEMP': base,
        'SAGEMAKER_BASE_DIR': base,
        'SAGEMAKER_BIND_TO_PORT': str(PORTS[name]),
        'SAGEMAKER_MODEL_SERVER_WORKERS': '2',
        'SAGEMAKER_SUBMIT_DIRECTORY': directory,
        'SM_MODEL_DIR': directory,
        'UVICORN_ACCESS_LOG': '0',
        'BENTOML_CONFIG_OPTIONS': 'api_server.logging.access.enabled=false',
        'BENTOML_HOME': base,
        'BENTOML_DO_NOT_TRACK': 'True',  # no telemetry
        'MLFLOW_DISABLE_TELEMETRY': 'true',
        'DO_NOT_TRACK': 'true',
        **SERVERS[name].env,
    }
    title = next(title for title, ask in ASKS.items() if ask.server == name)
    log = pathlib.Path(directory, name + '.log')
    start = time.perf_counter()
    with log.open('w') as output:
        process = subprocess.Popen(
            [part.format(server=SERVER, port=PORTS[name]) for part in SERVERS[name].command.split()],
            cwd=directory,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while True:
            assert process.poll() is None and time.perf_counter() - start < 60, (
                f'The server {name} does not start: {log.read_text()[-3000:]}'
            )
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer(title, 1)
                break
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        rest(name, directory)
        yield seconds
    finally:
        left = processes(name, directory)
        for p in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                p.resume()
                p.terminate()
        for p in psutil.wait_procs(left, timeout=10)[1]:
            p.kill()
        process.wait()


def rest(name, directory):
    """Suspend a server that would take CPU time while others are measured."""
    if name in RESTLESS:
        for p in processes(name, directory):
            p.suspend()


@contextlib.contextmanager
def awake(name, directory):
    """Resume a server for the time of its measurement."""
    if name in RESTLESS:
        for p in processes(name, directory):
            p.resume()
    yield
    rest(name, directory)


def measure(name, directory, images, connections, seconds):
    """Measure a server with wrk; return [answers/s, p50 in ms, p99 in ms, number of errors]."""
    if name == BOUND:
        return [products(images, connections), float('nan'), float('nan'), 0]
    lua = pathlib.Path(directory, f'{name} {images}.lua')
    if not lua.exists():
        sent = lua.with_suffix('.body')
        sent.write_bytes(body(name, images))
        lua.write_text(WRK.format(format=ASKS[name].format, body=sent))
    url = f'http://127.0.0.1:{PORTS[ASKS[name].server]}{ASKS[name].path}'
    command = ['wrk', '-t1', f'-c{connections}', f'-d{seconds}s', '--timeout=20s', '-s', str(lua), url]
    with awake(ASKS[name].server, directory):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.split('RESULT')[1])


def products(images, connections):
    """Return the requests/s of two processes that only multiply, in batches as large as connections allow."""
    count = min(2, connections)
    command = [sys.executable, '-c', PRODUCTS, str(images * connections // count)]
    env = {**os.environ, **blas_settings(2)}
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(count)]
    return sum([float(process.communicate()[0]) for process in running]) / images


def requests(directory, rounds):
    """Print the table of requests; each server is compared with ours in the same format."""
    print(
        '| images | connections | server, format | requests/s | p50, ms | p99, ms | errors '
        '| ours / theirs: requests/s | p99 |\n|---|---|---|---|---|---|---|---|---|'
    )
    for (images, connections), (names, seconds) in SETTINGS.items():
        results = {name: [] for name in names}
        warm = connections == 1  # the first round only warms up, above all Java
        for i in range(warm + rounds):
            for name in names:
                result = measure(name, directory, images, connections, seconds)
                if i >= warm:
                    results[name].append(result)
        columns = {name: list(zip(*results[name])) for name in names}
        for name, (rate, p50, p99, errors) in columns.items():
            like = 'ours, JSON' if name.endswith(', JSON') else 'ours, npy'
            ours = columns[like]
            compared = ['', ''] if name == like else [ratio(ours[0], rate), ratio(ours[2], p99)]
            cells = [f'{statistics.median(column):.4g}' for column in (rate, p50, p99)]
            row = [f'{images:,}', connections, name, *cells, sum(errors), *compared]
            print('| {} |'.format(' | '.join(map(str, row))).replace('nan (nan-nan)', '').replace('nan', ''))


def main(rounds=7):
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        print(here := machine(), flush=True)
        np.random.seed(0)
        model = chainer.links.Classifier(script.MLP())
        chainer.serializers.save_npz(os.path.join(directory, 'model.npz'), model)
        shutil.copy(script.__file__, directory)
        shutil.copytree(ROOT / 'chainer_mnist', os.path.join(directory, 'chainer_mnist'))
        subprocess.run(
            [sys.executable, OPPONENTS / 'mlflow_model.py'],
            cwd=directory,
            env={**os.environ, 'MLFLOW_DISABLE_TELEMETRY': 'true'},
            capture_output=True,
            check=True,
        )
        starts = {name: [] for name in SERVERS}
        for _ in range(2):
            for name in starts:
                with server(name, directory) as seconds:
                    starts[name].append(seconds)
        for name in starts:
            starts[name].append(stack.enter_context(server(name, directory)))
        for name, ask in ASKS.items():
            with awake(ask.server, directory):
                right = model.predictor(IMAGES[:3]).array
                assert np.allclose(answer(name, 3), right, atol=1e-5), f'{name} has other scores'
        with section('benchmarks.serving.requests', here):
            requests(directory, rounds)
        with section('benchmarks.serving.start', here):
            print('| server, two workers | start to the first answer, s | ours / theirs | memory (PSS), MB |')
            print('|---|---|---|---|')
            for name, seconds in starts.items():
                pss = sum([p.memory_full_info().pss for p in processes(name, directory)]) / 2**20
                compared = ratio(starts[OURS], seconds)
                print(f'| {name} | {statistics.median(seconds):.3g} | {compared} | {pss:.0f} |')


if __name__ == '__main__':
    main()
