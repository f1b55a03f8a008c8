"""These fixtures serve the fault tests: a seed, a report, an endpoint in the real container, the tutorial.

Each fault test prints its faults and results; FAULTS_SEED chooses other random requests and moments.
"""

import contextlib
import http.client
import os
import random
import socket
import sys
import time

import nbformat
import pytest
from support import NPY, ROOT, SCRIPT, SHORT, TUTORIAL, arguments, docker, edit, python, run, serve


@pytest.fixture(scope='session')
def seed():
    return int(os.environ.get('FAULTS_SEED', 0))


@pytest.fixture
def rng(seed):
    return random.Random(seed)


@pytest.fixture
def report(record_property):
    """Return a function that has a line printed when all tests are over."""
    return lambda text: record_property('report', text)


def pytest_terminal_summary(terminalreporter):
    for done in terminalreporter.getreports('passed') + terminalreporter.getreports('failed'):
        for _, text in done.user_properties:
            terminalreporter.line(text)


@pytest.fixture(scope='session')
def trained(small_mnist, tmp_path_factory):
    """Return a directory with the script's model.npz after one epoch."""
    directory = tmp_path_factory.mktemp('model')
    for path in directory.parent, directory:
        path.chmod(0o755)
    words = arguments(small_mnist, directory, '--epochs 1 --batch-size 100')
    python(SCRIPT, *words, check=True)
    return directory


class Endpoint:
    """A container with the server, and ways to send it requests and measure its processes."""

    def __init__(self, name, url):
        self.name, self.port = name, int(url.rpartition(':')[2])

    def connect(self, timeout=30):
        return http.client.HTTPConnection('127.0.0.1', self.port, timeout=timeout)

    def post(self, connection, body, content_type=NPY, accept=NPY):
        connection.request('POST', '/invocations', body, {'Content-Type': content_type, 'Accept': accept})
        response = connection.getresponse()
        return response.status, response.read()

    def send(self, data):
        """Send bytes and close this side; return (status, sentence), or (0, b'') if there is no answer."""
        with socket.create_connection(('127.0.0.1', self.port), timeout=20) as connection:
            with contextlib.suppress(OSError):  # the server may have closed before all is sent
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection, method='POST')
            try:
                response.begin()
                return response.status, response.read()
            except (http.client.HTTPException, ConnectionError):
                return 0, b''

    def processes(self):
        """Return the server's processes, {pid in the container: private memory (RssAnon) in MB}."""
        code = (
            "cd /proc; for p in [0-9]*; do grep -qs '[g]unicorn' $p/cmdline && "
            'echo $p $(grep -s ^RssAnon: $p/status | tr -dc 0-9); done; true'
        )
        lines = [line.split() for line in docker(f'exec {self.name} sh -c', code).splitlines()]
        return {int(line[0]): int(line[1]) / 1024 for line in lines if len(line) == 2}

    @contextlib.contextmanager
    def same(self, spare=0):
        """Check that no process dies or grows in this context; yield [MB before, MB after]."""
        before = self.processes()
        memory = [sum(before.values())]
        yield memory
        after = self.processes()
        memory.append(sum(after.values()))
        assert len(before) >= 2 and before.keys() == after.keys()  # no worker died
        assert memory[1] < 1.1 * memory[0] + spare


@pytest.fixture(scope='session')
def endpoint(code, trained):
    """Return a context manager that serves the trained model, or another script, with two workers."""

    @contextlib.contextmanager
    def endpoint(code=code, program=SCRIPT.name):
        mounts = f'-v {trained}:/opt/ml/model:ro -v {code}:/opt/ml/code:ro'
        with serve(f'{mounts} -e SAGEMAKER_MODEL_SERVER_WORKERS=2', program) as (name, url):
            try:
                yield Endpoint(name, url)
            except TimeoutError as e:  # SIGABRT has faulthandler write into the log where each thread is
                run('docker', 'exec', name, 'sh', '-c', 'kill -ABRT $(cat /proc/1/task/1/children)')
                time.sleep(1)
                shown = run('docker', 'logs', name)
                e.add_note(f'The log of the container:\n{shown.stdout}{shown.stderr}')
                raise

    return endpoint


@pytest.fixture(scope='module')
def served(endpoint):
    with endpoint() as served:
        yield served


RUN = (
    'import pathlib, sys; from local_mode import run; directory = pathlib.Path(sys.argv[1]); '
    'sys.exit(run.main(directory / "notebook.ipynb", directory / "output"))'
)


@pytest.fixture
def tutorial():
    """Return a function that writes a shortened, edited tutorial: (notebook, command that runs it)."""

    def tutorial(directory, replacements=()):
        notebook = nbformat.read(TUTORIAL, as_version=4)
        kept = {"Path('output/single_machine_mnist')": f"Path('{directory}/kept')"}
        kept['[Path.cwd(), *Path.cwd().parents]'] = f"[Path('{ROOT}')]"
        edit(notebook, SHORT | kept | dict(replacements))
        nbformat.write(notebook, directory / 'notebook.ipynb')
        return notebook, [sys.executable, '-c', RUN, str(directory)]

    return tutorial


@pytest.fixture
def nothing_of_ours():
    run('make', 'clean', check=True)  # what a test before has left, if it failed
