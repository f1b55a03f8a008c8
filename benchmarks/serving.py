"""How fast the endpoint answers, beside AWS's own stack on the same cores.

    .venv-bench/bin/python -m benchmarks.serving          # some 5 minutes on two cores

AWS's stack is multi-model-server (Java) with sagemaker-inference. Both servers stay, with two workers, the
same model and the same settings for OpenBLAS; wrk asks them in turn, over keep-alive connections, with npy
bodies of one and of 1,000 images. Then how both do with more connections, AWS's also without these settings.
"""

import contextlib
import http.client
import io
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import chainer
import numpy as np

import chainer_mnist_single_machine as script
from benchmarks.report import section
from benchmarks.training import machine
from container.sagemaker_chainer_container.cpus import blas_settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
NPY = 'application/x-npy'
OURS, AWS, UNSET = 'ours', "AWS's", "AWS's, OpenBLAS not set"
PORTS = {OURS: 8380, AWS: 8381, UNSET: 8382}
WRK = """
wrk.method = 'POST'
wrk.headers['Content-Type'], wrk.headers['Accept'] = '{npy}', '{npy}'
local file = io.open('{body}', 'rb')
wrk.body = file:read('*a')
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('RESULT [%f, %f, %f, %d]\\n', (summary.requests - e.status) / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.status + e.read + e.write + e.connect + e.timeout))
end
"""
HANDLER = """
import chainer
import chainer_mnist_single_machine as script
from sagemaker_inference.default_handler_service import DefaultHandlerService
from sagemaker_inference.default_inference_handler import DefaultInferenceHandler
from sagemaker_inference.transformer import Transformer


class HandlerService(DefaultHandlerService):
    def __init__(self):
        class Handler(DefaultInferenceHandler):
            def default_model_fn(self, model_dir, context=None):
                return script.model_fn({model!r})

            def default_predict_fn(self, data, model, context=None):
                with chainer.using_config('train', False), chainer.no_backprop_mode():
                    return model(data).array
        super().__init__(transformer=Transformer(default_inference_handler=Handler()))
"""


PRODUCTS = """
import time
import numpy as np
x, h = np.ones((1, 784), np.float32), np.ones((1, 1000), np.float32)
W1, W2, W3 = [np.ones(shape, np.float32) for shape in ((1000, 784), (1000, 1000), (10, 1000))]
count, end = 0, time.perf_counter() + 1
while time.perf_counter() < end:
    x.dot(W1.T), h.dot(W2.T), h.dot(W3.T)
    count += 1
print(count)
"""


def body(images):
    stream = io.BytesIO()
    np.save(stream, np.random.RandomState(0).rand(images, 784).astype(np.float32))
    return stream.getvalue()


@contextlib.contextmanager
def server(name, directory):
    """Start a server; yield (process, seconds to the first answered prediction)."""
    env = {
        **os.environ,
        **({} if name == UNSET else blas_settings(2)),
        'SAGEMAKER_BIND_TO_PORT': str(PORTS[name]),
        'SAGEMAKER_MODEL_SERVER_WORKERS': '2',
        'SM_MODEL_DIR': directory,
        'PATH': '{}:{}'.format(os.path.dirname(sys.executable), os.environ['PATH']),
    }
    if name == OURS:
        env.update(
            PYTHONPATH='{}:{}'.format(directory, ROOT / 'container'),
            SAGEMAKER_PROGRAM='chainer_mnist_single_machine.py',
            SAGEMAKER_SUBMIT_DIRECTORY=directory,
        )
        command = [sys.executable, '-m', 'gunicorn', '-c', str(ROOT / 'container' / 'gunicorn.conf.py')]
    else:
        base = os.path.join(directory, str(PORTS[name]))  # its model directory, process id and sockets
        os.makedirs(os.path.join(base, 'model'), exist_ok=True)
        env.update(
            PYTHONPATH=f'{directory}:{ROOT}',
            CHAINER_FAST='0',
            SAGEMAKER_BASE_DIR=base,
            TMPDIR=base,
            TEMP=base,
        )
        command = [
            sys.executable,
            '-c',
            'from sagemaker_inference.model_server import start_model_server; '
            'start_model_server("mms_handler")',
        ]
    start = time.perf_counter()
    with open(os.path.join(directory, name + '.log'), 'w') as log:
        process = subprocess.Popen(
            command, cwd=directory, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while True:
            assert process.poll() is None and time.perf_counter() - start < 60, (
                'The server {} does not start: {}'.format(
                    name, pathlib.Path(directory, name + '.log').read_text()[-3000:]
                )
            )
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection('127.0.0.1', PORTS[name], timeout=20)
                connection.request('POST', '/invocations', body(1), {'Content-Type': NPY, 'Accept': NPY})
                response = connection.getresponse()
                if response.status == 200 and len(response.read()) == 168:
                    yield process, time.perf_counter() - start
                    break
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def memory(process):
    """The proportional set size of a process group, in MB."""
    total = 0
    for path in pathlib.Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if os.getpgid(int(path.name)) == process.pid:
                text = (path / 'smaps_rollup').read_text()
                total += int(text.split('\nPss:')[1].split()[0])
    return total / 1024


def ask(name, directory, images, connections):
    """Have wrk ask a server for a second or two; return answers/s, p50 and p99 in ms, and how many errors."""
    lua = pathlib.Path(directory, f'wrk-{images}.lua')
    if not lua.exists():
        sent = lua.with_suffix('.npy')
        sent.write_bytes(body(images))
        lua.write_text(WRK.format(npy=NPY, body=sent))
    done = subprocess.run(
        [
            'wrk',
            '-t1',
            f'-c{connections}',
            f'-d{2 if images > 1 else 1}s',
            '-s',
            str(lua),
            f'http://127.0.0.1:{PORTS[name]}/invocations',
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.split('RESULT')[1])


def products():
    """Return how many images a second the matrix products alone take, in two processes with a thread each."""
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', PRODUCTS], env={**os.environ, **blas_settings(2)}, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    return sum([int(process.communicate()[0]) for process in processes])


def growth(directory, rounds=3):
    """Print how the servers do with more connections, in answers a second."""
    print(
        '\n| connections, 1 image each | ours: requests/s | p50, ms | p99, ms '
        f'| {AWS}: requests/s | p50, ms | p99, ms '
        f'| {UNSET}: requests/s | matrix products alone: images/s |\n|---|---|---|---|---|---|---|---|---|'
    )
    with server(UNSET, directory):
        ask(UNSET, directory, 1, 16)  # warms up
        for connections in 1, 4, 16, 64:
            results, bound = {name: [] for name in PORTS}, []
            for _ in range(rounds):
                for name in PORTS:
                    results[name].append(ask(name, directory, 1, connections))
                bound.append(products())
            ours, aws, unset = [
                [statistics.median(column) for column in zip(*results[name])] for name in PORTS
            ]
            print(
                '| {} | {:.4g} | {:.3g} | {:.3g} | {:.4g} | {:.3g} | {:.3g} | {:.4g} | {:.4g} |'.format(
                    connections, *ours[:3], *aws[:3], unset[0], statistics.median(bound)
                ),
                flush=True,
            )


def main(rounds=10):
    """Print one table: medians, and the ratio of ours and AWS's with its quartiles; then that of growth."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        print(here := machine(), flush=True)
        np.random.seed(0)
        chainer.serializers.save_npz(
            os.path.join(directory, 'model.npz'), chainer.links.Classifier(script.MLP())
        )
        shutil.copy(script.__file__, directory)
        shutil.copytree(ROOT / 'chainer_mnist', os.path.join(directory, 'chainer_mnist'))
        pathlib.Path(directory, 'mms_handler.py').write_text(HANDLER.format(model=directory))
        starts, servers = {OURS: [], AWS: []}, {}
        for _ in range(2):
            for name in starts:
                with server(name, directory) as (_, seconds):
                    starts[name].append(seconds)
        for name in starts:
            servers[name], seconds = stack.enter_context(server(name, directory))
            starts[name].append(seconds)
        rows = []
        for images, connections in (1, 1), (1, 16), (1000, 1), (1000, 4):
            results = {OURS: [], AWS: []}
            for i in range(rounds + 1):
                for name in results:
                    result = ask(name, directory, images, connections)
                    if i:  # the first round warms up, Java above all
                        results[name].append(result)
            for column, what in enumerate(('requests/s', 'p50, ms', 'p99, ms', 'errors')):
                rows.append(
                    (
                        '{:,} image{}, {} connection{}: {}'.format(
                            images, 's' * (images > 1), connections, 's' * (connections > 1), what
                        ),
                        *[[r[column] for r in results[name]] for name in results],
                    )
                )
        rows.append(('start to the first answer, s', starts[OURS], starts[AWS]))
        rows.append(('memory (PSS), MB', *[[memory(servers[name])] * 3 for name in (OURS, AWS)]))
        with section('benchmarks.serving.endpoint', here):
            print("| endpoint, two workers | ours | AWS's | ours / AWS's |\n|---|---|---|---|")
            for what, ours, aws in rows:
                if what.endswith('errors'):
                    print(f'| {what} | {int(sum(ours))} | {int(sum(aws))} | |')
                else:
                    low, median, high = statistics.quantiles([a / b for a, b in zip(ours, aws)], n=4)
                    print(
                        f'| {what} | {statistics.median(ours):.4g} | {statistics.median(aws):.4g} '
                        f'| {median:.2f} ({low:.2f}-{high:.2f}) |'
                    )
        with section('benchmarks.serving.connections', here):
            growth(directory)


if __name__ == '__main__':
    main()
