"""These fixtures start a browser and Jupyter servers, and train a model."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request

import nbformat.v4
import pytest
from jupyter_client import BlockingKernelClient
from jupyter_server.auth import passwd
from support import LISTEN, ROOT, SCRIPT, TUTORIAL, arguments, draw, once, python, run, says, visit, wait_for


@pytest.fixture(scope='session')
def chromium():
    executable = shutil.which('chromium')
    if not executable:
        pytest.fail("There is no 'chromium' on the PATH: run ./setup.sh tests, or install it.")
    from playwright.sync_api import sync_playwright

    quiet = '--disable-background-networking --disable-component-update --disable-sync --no-first-run'
    with sync_playwright() as playwright:
        args = f'--no-sandbox --disable-gpu {quiet}'.split()
        browser = playwright.chromium.launch(executable_path=executable, args=args)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """Return a page whose list `digits` holds the data of all digit events."""
    context = chromium.new_context(viewport={'width': 1300, 'height': 950}, has_touch=True)
    context.set_default_timeout(90000)
    context.add_init_script(LISTEN)
    yield context.new_page()
    context.close()


AXE = 'axe-core@4.14.1', '29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c'  # of axe.min.js


@pytest.fixture(scope='session')
def accessible(tmp_path_factory):
    """Return a function that fails if axe-core, fetched from npm, finds a fault in a page, but for these."""
    directory = tmp_path_factory.mktemp('axe')
    run('npm', 'pack', '--silent', AXE[0], cwd=directory, check=True)
    (archive,) = directory.glob('*.tgz')
    with tarfile.open(archive) as tar:
        script = tar.extractfile('package/axe.min.js').read()
    assert hashlib.sha256(script).hexdigest() == AXE[1]

    def accessible(page):
        for scheme in 'light', 'dark':
            page.emulate_media(color_scheme=scheme)
            page.evaluate(script.decode())
            found = page.evaluate('axe.run()')
            faults = [(fault['id'], node['html'][:200]) for fault in found['violations'] for node in fault['nodes']]
            assert found['passes'] and not faults, (scheme, faults)

    return accessible


@pytest.fixture(scope='session')
def model(mnist, tmp_path_factory):
    """Return a directory with the model of one epoch of the tutorial's training."""

    def train(directory):
        python(SCRIPT, *arguments(mnist, directory, '--epochs 1 --batch-size 128 --augment 0.5'), check=True)

    return once(tmp_path_factory, 'model_of_one_epoch', train)


START = f"""import os, sys
os.chdir({str(ROOT)!r})
sys.path.insert(0, {str(ROOT)!r})
"""
# The tutorial's predictor, without its training: the endpoint is another process's, or, given a port, a fake.
CONNECT = f"""{START}
import matplotlib.pyplot as plt
import numpy as np
from types import SimpleNamespace
from local_mode.session import open_session
from sagemaker.chainer.model import ChainerPredictor

session = open_session(embedded=True)
if isinstance(ENDPOINT, int):
    alive = SimpleNamespace(container=SimpleNamespace(is_alive=lambda: True))
    variant = dict(VariantName='AllTraffic')
    fake = SimpleNamespace(port=ENDPOINT, local_session=None, container=alive, production_variant=variant)
    session.sagemaker_client._endpoints[ENDPOINT] = fake
predictor = ChainerPredictor(ENDPOINT, session)
"""
CELLS = '.jp-Notebook .jp-CodeCell, #notebook .code_cell'
EDITOR = '.jp-InputArea-editor, .CodeMirror'
CONNECTED = """() => window.IPython ? IPython.notebook?.kernel?.is_connected() :
    window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.connectionStatus
    === 'connected'"""
RUN_ALL = """() => window.IPython ? IPython.notebook.execute_all_cells() :
    void jupyterapp.commands.execute('notebook:run-all-cells')"""


class Server:
    """A Jupyter server with all three front ends, on a free port, with its files in one directory."""

    def __init__(self, home, *options, token='secret'):
        self.token, self.root, self.runtime, self.log = token, home / 'root', home / 'runtime', home / 'log'
        self.root.mkdir()
        # Whoever runs the tests may have their own settings.
        env = {name: value for name, value in os.environ.items() if not name.startswith(('JUPYTER', 'JPY_'))}
        for name in 'config', 'data', 'runtime':
            env[f'JUPYTER_{name.upper()}_DIR'] = str(home / name)
        env['IPYTHONDIR'] = str(home / 'ipython')
        command = f"""-m jupyterlab --no-browser --allow-root --ip=127.0.0.1 --port=0
            --IdentityProvider.token={token} --ServerApp.root_dir={self.root}
            --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.news_url=
            --LabApp.expose_app_in_browser=True --JupyterNotebookApp.expose_app_in_browser=True"""
        command = [sys.executable, *command.split(), *options]
        with self.log.open('w') as log:
            streams = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self.process = subprocess.Popen(command, env=env, start_new_session=True, **streams)

    def wait_until_ready(self):
        info = self.runtime / f'jpserver-{self.process.pid}.json'

        def ready():
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError, ValueError):  # not yet, or half written
                self.url = json.loads(info.read_text())['url']
                return urllib.request.urlopen(self.url + 'api', timeout=30)

        wait_for(ready)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)  # stops its kernels, too
        try:
            self.process.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def request(self, path, method='GET'):
        headers = {'Authorization': 'token ' + self.token}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or 'null')

    def kernel(self, path):
        """Wait for the notebook's kernel to be idle; return its id."""

        def idle():
            sessions = [s['kernel'] for s in self.request('api/sessions') if s['path'] == path]
            return [kernel['id'] for kernel in sessions if kernel['execution_state'] == 'idle']

        return wait_for(idle)[0]

    def data(self, kernel):
        """Return the value of `data`, straight from the kernel; None if the kernel is restarting."""
        client = BlockingKernelClient(connection_file=str(self.runtime / f'kernel-{kernel}.json'))
        client.load_connection_file()
        client.start_channels()
        try:
            reply = client.execute('', silent=True, user_expressions={'data': 'data'}, reply=True, timeout=10)
        except TimeoutError:
            return None
        finally:
            client.stop_channels()
        answer = reply['content']['user_expressions']['data']
        return eval(answer['data']['text/plain']) if answer['status'] == 'ok' else answer['ename']

    def cell_with(self, part):
        """Return the code of the tutorial's cell that contains a text."""
        cells = nbformat.read(TUTORIAL, as_version=4).cells
        (source,) = [cell.source for cell in cells if part in cell.source and cell.cell_type == 'code']
        return source

    def add_notebook(self, path, *more, endpoint=None, show=None):
        """Write a notebook with a first cell, which may connect to an endpoint, the pad, and more cells."""
        first = CONNECT.replace('ENDPOINT', repr(endpoint)) if endpoint else START
        sources = [first, show or self.cell_with("HTML(open('input.html').read())"), *more]
        python = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': python})
        (self.root / path).parent.mkdir(exist_ok=True)
        nbformat.write(notebook, self.root / path)

    def open_pad(self, page, front_end, path, *more, **options):
        """Write, open and run a notebook with a pad; return the pad."""
        self.add_notebook(path, *more, **options)
        visit(page, f'{self.url}{front_end}/{urllib.parse.quote(path)}?token={self.token}')
        self.kernel(path)
        self.run_all(page)
        pad = page.locator('.digit-pad')
        says(pad, 'Draw a digit here')
        return pad

    def run_all(self, page):
        """Run all cells, like the menu entry "Run All", once the notebook has its kernel."""
        page.wait_for_function(CONNECTED)
        page.evaluate(RUN_ALL)

    def takes(self, kernel, pad, *points, then='Sent to data.', **options):
        """Draw a stroke, and check that pad and kernel get the data; return the data."""
        data = draw(pad, *points, **options)
        says(pad, then)
        assert self.data(kernel) == data
        return data

    def run_last(self, page, code=None):
        """Run the last cell; code: replaces its code."""
        page.locator(CELLS).last.locator(EDITOR).click()
        if code:
            page.keyboard.press('Control+a')
            page.keyboard.insert_text(code)
        page.keyboard.press('Control+Enter')


@contextlib.contextmanager
def running(server):
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope='session')
def server(tmp_path_factory):
    with running(Server(tmp_path_factory.mktemp('jupyter'))) as server:
        yield server


@pytest.fixture(scope='module')
def server_with_password(tmp_path_factory):
    password = '--PasswordIdentityProvider.hashed_password=' + passwd('geheim', 'sha256')
    home = tmp_path_factory.mktemp('password')
    with running(Server(home, '--ServerApp.base_url=/user/anna/', password, token='')) as server:
        yield server
