"""The pad in JupyterLab, Jupyter Notebook 7 and the classic notebook, with the real endpoint behind it."""

import asyncio
import concurrent.futures
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.parse
import urllib.request
import uuid

import nbformat.v4
import numpy as np
import pytest
from local_mode.docker import image_uri
from local_mode.session import open_session
from sagemaker.chainer.model import ChainerModel
from test_serving import free_port
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

import chainer_mnist_single_machine as script
from benchmarks.drawings import STYLES
from pad import BLANK, FOOT, ONE, ROOT, draw, says, wait_for

pytestmark = pytest.mark.browser

TUTORIAL = nbformat.read(ROOT / 'notebooks' / 'chainer_mnist_local_mode.ipynb', as_version=4)
(SHOW,) = [
    cell.source
    for cell in TUTORIAL.cells
    if "HTML(open('input.html').read())" in cell.source and cell.cell_type == 'code'
]
(PREDICT,) = [cell.source for cell in TUTORIAL.cells if "print('What you wrote is:'" in cell.source]
START = """import os, sys
os.chdir({root!r})
sys.path.insert(0, {root!r})
""".format(root=str(ROOT))
# The tutorial's predictor, without its training: the endpoint is another process's.
CONNECT = (
    START
    + """
import matplotlib.pyplot as plt
import numpy as np
from local_mode.session import open_session
from sagemaker.chainer.model import ChainerPredictor

predictor = ChainerPredictor('mnist', open_session(embedded=True, serving_port={}))
"""
)


class Server:
    """A Jupyter server with all three front ends, on a free port, which keeps to a directory."""

    def __init__(self, home, *options, token='secret'):
        self.token, self.root, self.runtime, self.log = token, home / 'root', home / 'runtime', home / 'log'
        self.root.mkdir()
        # Whoever runs the tests may have their own settings.
        env = {name: value for name, value in os.environ.items() if not name.startswith(('JUPYTER', 'JPY_'))}
        env.update(
            IPYTHONDIR=str(home / 'ipython'),
            **{f'JUPYTER_{name.upper()}_DIR': str(home / name) for name in ('config', 'data', 'runtime')},
        )
        with self.log.open('w') as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    '-m',
                    'jupyterlab',
                    '--no-browser',
                    '--allow-root',
                    '--ip=127.0.0.1',
                    '--port=0',
                    '--IdentityProvider.token=' + token,
                    '--ServerApp.root_dir=' + str(self.root),
                    '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
                    '--LabApp.news_url=',
                    '--LabApp.expose_app_in_browser=True',
                    '--JupyterNotebookApp.expose_app_in_browser=True',
                    *options,
                ],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self):
        info = self.runtime / f'jpserver-{self.process.pid}.json'

        def ready():
            assert self.process.poll() is None, self.log.read_text()
            try:
                self.url = json.loads(info.read_text())['url']
                return urllib.request.urlopen(self.url + 'api', timeout=30)
            except (OSError, ValueError):  # not yet, or half written
                return None

        wait_for(ready)

    def request(self, path, method='GET'):
        request = urllib.request.Request(
            self.url + path, method=method, headers={'Authorization': 'token ' + self.token}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or 'null')

    def stop(self):
        self.process.send_signal(signal.SIGTERM)  # stops its kernels, too
        try:
            self.process.wait(20)
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def add_notebook(self, path, *cells):
        path = self.root / path
        path.parent.mkdir(exist_ok=True)
        nbformat.write(
            nbformat.v4.new_notebook(
                cells=[nbformat.v4.new_code_cell(source) for source in cells],
                metadata={
                    'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
                },
            ),
            path,
        )

    def kernel(self, path):
        """Wait for the notebook's kernel to be idle; return its id."""
        return wait_for(
            lambda: [
                session['kernel']['id']
                for session in self.request('api/sessions')
                if session['path'] == path and session['kernel']['execution_state'] == 'idle'
            ]
        )[0]

    def data(self, kernel):
        """The variable's value, straight from the kernel; None from one that is just being restarted."""
        from jupyter_client import BlockingKernelClient

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


@pytest.fixture(scope='module')
def training(mnist, tmp_path_factory):
    """(process, directory) of the script, which trains on a third of MNIST while the first tests run."""
    directory = tmp_path_factory.mktemp('model')
    with np.load(mnist / 'train' / 'train.npz') as arrays:
        np.savez(directory / 'train', **{name: arrays[name][:20000] for name in arrays})
    process = subprocess.Popen(
        [
            sys.executable,
            script.__file__,
            '--epochs',
            '1',
            '--batch-size',
            '128',
            '--num-gpus',
            '0',
            '--train',
            str(directory),
            '--test',
            str(mnist / 'test'),
            '--model-dir',
            str(directory),
            '--output-data-dir',
            str(directory),
        ],
        stdout=subprocess.DEVNULL,
    )
    yield process, directory
    process.kill()
    process.wait()


@pytest.fixture(scope='module')
def server(training, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp('jupyter'))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


CELLS = '.jp-Notebook .jp-CodeCell, #notebook .code_cell'
EDITOR = '.jp-InputArea-editor, .CodeMirror'
CONNECTED = """() => window.IPython ? IPython.notebook?.kernel?.is_connected() :
    window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.connectionStatus === 'connected'"""


def run_all(page):
    """What the menu entry "Run All" does, once the notebook has its kernel."""
    page.wait_for_function(CONNECTED)
    page.evaluate(
        '() => window.IPython ? IPython.notebook.execute_all_cells() : '
        "void jupyterapp.commands.execute('notebook:run-all-cells')"
    )


def open_pad(server, page, front_end, path, *cells):
    """Write, open and run a notebook with a pad."""
    server.add_notebook(path, *cells)
    page.goto(f'{server.url}{front_end}/{urllib.parse.quote(path)}?token={server.token}')
    server.kernel(path)
    run_all(page)
    pad = page.locator('.digit-pad')
    says(pad, 'Draw a digit here')
    return pad


def run_in(page, cell, code=None):
    """Run a cell, with other code if given."""
    cell.locator(EDITOR).click()
    if code:
        page.keyboard.press('Control+a')
        page.keyboard.insert_text(code)
    page.keyboard.press('Control+Enter')


async def connect_and_ask(url, token):
    """Open a connection to a kernel as a page does, and wait for an answer over it."""
    session = uuid.uuid4().hex
    connection = await websocket_connect(
        HTTPRequest(
            '{}/channels?session_id={}'.format(url.replace('http', 'ws', 1), session),
            headers={'Authorization': 'token ' + token},
        )
    )
    try:
        await connection.write_message(
            json.dumps(
                {
                    'channel': 'shell',
                    'parent_header': {},
                    'metadata': {},
                    'content': {},
                    'header': {
                        'msg_id': uuid.uuid4().hex,
                        'msg_type': 'kernel_info_request',
                        'session': session,
                        'username': '',
                        'version': '5.3',
                    },
                }
            )
        )
        while json.loads(await connection.read_message())['header']['msg_type'] != 'kernel_info_reply':
            pass
    finally:
        connection.close()


def test_no_new_connection_to_a_kernel_stays_silent(server):
    """Else a notebook's cells wait for ever, now and then: with ipykernel 7.3 one connection in thirty does."""
    kernel = server.request('api/kernels', 'POST')['id']

    async def connect():
        for _ in range(150):
            await asyncio.wait_for(connect_and_ask(server.url + 'api/kernels/' + kernel, server.token), 20)

    try:
        with concurrent.futures.ThreadPoolExecutor(1) as thread:  # Playwright has this one's loop
            thread.submit(lambda: asyncio.run(connect())).result()
    finally:
        server.request('api/kernels/' + kernel, 'DELETE')


FRONT_ENDS = ['lab/tree', 'notebooks', 'nbclassic/notebooks']


@pytest.fixture(scope='module')
def endpoint(training):
    """The port of an endpoint in our container, with the model of `training`."""
    process, directory = training
    assert process.wait() == 0
    with tarfile.open(directory / 'model.tar.gz', 'w:gz') as tar:
        tar.add(directory / 'model.npz', 'model.npz')
    port = free_port()
    session = open_session(embedded=True, serving_port=port)
    try:
        model_data = session.upload_data(str(directory / 'model.tar.gz'), key_prefix='model')
        ChainerModel(
            model_data,
            'arn:aws:iam::123456789012:role/any',
            script.__file__,
            image_uri=image_uri('local'),
            sagemaker_session=session,
        ).deploy(1, 'local')
        yield port
    finally:
        session.close()


@pytest.mark.docker
@pytest.mark.parametrize('front_end', FRONT_ENDS)
def test_ten_digits_are_drawn_and_read(server, page, endpoint, front_end):
    """With the mouse; then one with a finger and one with a pen; then the tutorial's next cell."""
    path = 'sub/zehn Ziffern f\u00fcr 100%.ipynb'
    pad = open_pad(server, page, front_end, path, CONNECT.format(endpoint), SHOW, PREDICT)
    kernel = server.kernel(path)
    assert server.data(kernel) == BLANK
    read = []
    for digit, styles in STYLES.items():
        for points in styles[0]:
            data = draw(pad, *(points[::6] * 0.7 + 0.15).tolist())
        says(pad, 'Looks like')
        assert server.data(kernel) == data
        read.append(int(pad.locator('li.best').inner_text().split()[0]))
        says(pad, f'Looks like {read[-1]}. Sent to data.')
        pad.get_by_role('button', name='Clear').click()
        says(pad, 'Sent to data.')
        wait_for(lambda: pad.locator('li.best').count() == 0)
    assert server.data(kernel) == BLANK
    assert sum(a == b for a, b in zip(read, range(10))) >= 9, read

    for pointer in 'touch', 'pen':
        data = draw(pad, *(STYLES[7][0][0][::7] * 0.7 + 0.15).tolist(), pointer=pointer)
        says(pad, 'Looks like 7. Sent to data.')
        got = server.data(kernel)
        assert got == data and {type(value) for value in got[0]} == {float}
        if pointer == 'touch':
            pad.get_by_role('button', name='Clear').click()
    run_in(page, page.locator(CELLS).last)
    page.get_by_text('What you wrote is: 7').wait_for()


def rename(page, front_end, name):
    """As a reader does it, in a dialog."""
    if front_end.startswith('nbclassic'):
        page.locator('#notebook_name').click()
        page.locator('.modal-body input').fill(name)
        page.get_by_role('button', name='Rename').click()
        page.locator('.modal').wait_for(state='detached')
    else:
        if front_end == 'notebooks':
            page.locator('#jp-title').click()
        else:
            page.evaluate(
                "void jupyterapp.commands.execute('docmanager:rename')"
            )  # promises the dialog's end
        page.locator('.jp-Dialog input').fill(name + '.ipynb')
        page.locator('.jp-Dialog .jp-mod-accept').click()


@pytest.mark.parametrize('front_end', ['lab/workspaces/renamed/tree', 'notebooks', 'nbclassic/notebooks'])
def test_renamed_restarted_reloaded(server, page, front_end):
    before, name = (
        'before {}.ipynb'.format(front_end.split('/')[0]),
        'after \u00e4 ' + front_end.split('/')[0],
    )
    after = name + '.ipynb'
    pad = open_pad(server, page, front_end, before, START, SHOW)
    kernel = server.kernel(before)
    data = draw(pad, *ONE)
    says(pad, 'Sent to data. Deploy an endpoint as predictor to see here what it reads.')
    assert server.data(kernel) == data

    rename(page, front_end, name)
    assert server.kernel(after) == kernel
    data = draw(pad, *FOOT)
    says(pad, 'Sent to data.')
    assert server.data(kernel) == data

    server.request(f'api/kernels/{kernel}/restart', 'POST')
    wait_for(lambda: server.data(server.kernel(after)) == 'NameError')
    pad.get_by_role('button', name='Undo').click()
    says(pad, 'Sent to data.')
    assert server.data(kernel) == page.evaluate('digits.at(-1)')

    page.keyboard.press('Control+s')  # straight after drawing
    wait_for(lambda: 'digit-pad' in (server.root / after).read_text(encoding='utf-8'))
    page.on('dialog', lambda dialog: dialog.accept())
    page.goto(f'{server.url}{front_end}/{urllib.parse.quote(after)}')
    pad = page.locator('.digit-pad')
    says(pad, 'Draw a digit here')  # without running the cell again
    server.kernel(after)
    data = draw(pad, *FOOT)
    says(pad, 'Sent to data.')
    assert server.data(kernel) == data


def test_in_lab_a_finger_draws_in_its_own_notebook(server, page):
    """Side by side with another one, which is active and whose path ends alike; and in no other view."""
    first = open_pad(server, page, 'lab/workspaces/two/tree', 'two.ipynb', START, SHOW)
    server.add_notebook('a/two.ipynb', START, SHOW)
    page.evaluate(
        """jupyterapp.commands.execute('docmanager:open', {path: 'a/two.ipynb', options: {mode: 'split-right'}})"""
    )
    other = page.locator('.jp-NotebookPanel').nth(1)
    other.locator('.jp-InputArea-editor').last.click()
    page.wait_for_url('**/a/two.ipynb')
    kernels = server.kernel('two.ipynb'), server.kernel('a/two.ipynb')
    run_all(page)
    second = other.locator('.digit-pad')
    says(second, 'Draw a digit here')
    first = page.locator('.jp-NotebookPanel').first.locator('.digit-pad')

    one = draw(first, *ONE, pointer='touch')
    says(first, 'Sent to data.')
    assert [server.data(kernel) for kernel in kernels] == [one, BLANK]
    foot = draw(second, *FOOT, pointer='touch')
    says(second, 'Sent to data.')
    assert [server.data(kernel) for kernel in kernels] == [one, foot]
    both = draw(first, *FOOT, pointer='pen')
    says(first, 'Sent to data.')
    assert [server.data(kernel) for kernel in kernels] == [both, foot]

    page.locator('.jp-NotebookPanel').first.locator('.jp-InputArea-editor').nth(1).click()
    page.evaluate('jupyterapp.commands.execute("notebook:create-output-view")')
    view = page.locator('.jp-LinkedOutputView .digit-pad')
    says(view, 'Draw a digit here')
    draw(view, *ONE)
    says(view, 'Not sent: this pad is not inside its notebook (draw in the notebook itself).')
    assert [server.data(kernel) for kernel in kernels] == [both, foot]


RESTART = """() => window.IPython ? void IPython.notebook.kernel.restart() :
    void jupyterapp.shell.currentWidget.context.sessionContext.restartKernel()"""
SHUT_DOWN = """() => window.IPython ? void IPython.notebook.session.delete() :
    void jupyterapp.shell.currentWidget.context.sessionContext.shutdown()"""


@pytest.mark.parametrize(
    'front_end, why',
    [
        ('lab/workspaces/busy/tree', 'no kernel runs for lab-busy.ipynb'),
        ('nbclassic/notebooks', 'this notebook has no kernel at present'),
    ],
)
def test_strokes_wait_for_a_busy_kernel_and_its_end_is_said(server, page, front_end, why):
    path = front_end.split('/')[0] + '-busy.ipynb'
    pad = open_pad(server, page, front_end, path, START, SHOW, '')
    kernel = server.kernel(path)
    run_in(
        page, page.locator(CELLS).last, 'import time; time.sleep(2.5); 1/0'
    )  # the error aborts what is queued
    last = draw(pad, *ONE)
    says(pad, 'Waiting for the kernel')
    says(pad, 'Sent to data.')
    assert server.data(kernel) == last
    draw(pad, *FOOT)
    last = draw(pad, (0.2, 0.2), (0.4, 0.2))  # without waiting
    says(pad, 'Sent to data.')
    assert server.data(kernel) == last

    for end in 'restart', 'shut down':
        run_in(page, page.locator(CELLS).last, 'import time; time.sleep(60)')
        draw(pad, *FOOT)
        says(pad, 'Waiting for the kernel')
        if end == 'restart':
            page.evaluate(RESTART)
            # Either it says that it stops, or it is silent, and the next one is sent the drawing again.
            says(pad, re.compile('Not sent: the kernel stopped|Sent to data'))
            wait_for(lambda: server.data(server.kernel(path)) not in (None, BLANK, last))
            last = draw(pad, *ONE)
            says(pad, 'Sent to data.')
            assert server.data(kernel) == last
        else:
            page.evaluate(SHUT_DOWN)
            says(pad, 'Not sent: the kernel stopped.')

    wait_for(lambda: path not in [session['path'] for session in server.request('api/sessions')])
    # A stroke would not do: the classic notebook puts a dialog in front.
    pad.get_by_role('button', name='Clear').dispatch_event('click')
    says(pad, 'Not sent: ' + why)


class Endpoint(http.server.BaseHTTPRequestHandler):
    """An endpoint that takes its time, and then answers with the server's `reply`."""

    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        self.server.requests += 1
        time.sleep(self.server.seconds)
        status, body = self.server.reply
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def npy(numbers):
    stream = io.BytesIO()
    np.save(stream, np.array(numbers, np.float32))
    return stream.getvalue()


def test_a_slow_and_a_failing_endpoint(server, page):
    path = 'sub/zehn Ziffern f\u00fcr 100%.ipynb'  # whose kernel has the SDK imported already
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Endpoint) as http_server:
        http_server.requests, http_server.seconds, http_server.reply = 0, 3, (200, npy([[0] * 8 + [9, 1]]))
        threading.Thread(target=http_server.serve_forever).start()
        try:
            pad = open_pad(
                server,
                page,
                'lab/workspaces/failing/tree',
                path,
                CONNECT.format(http_server.server_port),
                SHOW,
            )
            kernel = server.kernel(path)
            draw(pad, *ONE)
            says(pad, 'Waiting for the kernel and the endpoint')
            draw(pad, *FOOT)
            data = draw(pad, (0.2, 0.2), (0.4, 0.2))
            http_server.seconds = 0
            says(pad, 'Looks like 8. Sent to data.')
            assert http_server.requests == 2  # the stroke between was out of date already
            assert server.data(kernel) == data

            for reply, sentence in (
                (
                    (500, b'The script failed on this request.\n'),
                    'Received error 500 from the container: The script failed on this request.',
                ),
                ((200, b'not npy'), ''),
                ((200, npy([1, 2, 3])), 'The endpoint did not answer with ten numbers.'),
                ((200, npy([[float('nan')] * 10])), 'The endpoint did not answer with ten numbers.'),
            ):
                http_server.reply = reply
                data = draw(pad, *FOOT)
                says(pad, sentence or 'Sent to data, but the endpoint gave no answer:')
                assert server.data(kernel) == data
                assert pad.locator('li b').all_inner_texts() == [''] * 10
        finally:
            http_server.shutdown()
    data = draw(pad, *FOOT)
    says(pad, 'Sent to data, but the endpoint gave no answer: Nothing answers on port')
    assert server.data(kernel) == data


@pytest.fixture(scope='module')
def server_with_password(tmp_path_factory):
    from jupyter_server.auth import passwd

    server = Server(
        tmp_path_factory.mktemp('password'),
        '--ServerApp.base_url=/user/anna/',
        '--PasswordIdentityProvider.hashed_password=' + passwd('geheim', 'sha256'),
        token='',
    )
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize('front_end', FRONT_ENDS)
def test_a_server_with_a_password_and_a_base_url(server_with_password, page, front_end):
    server, path = server_with_password, front_end.replace('/', ' ') + '.ipynb'
    server.add_notebook(path, START, SHOW)
    page.goto('{}login?next={}'.format(server.url, urllib.parse.quote(f'/user/anna/{front_end}/{path}')))
    page.locator('input[type=password]').fill('geheim')
    page.keyboard.press('Enter')
    run_all(page)
    pad = page.locator('.digit-pad')
    says(pad, 'Draw a digit here')
    data = draw(pad, *ONE)
    says(pad, 'Sent to data.')
    sessions = page.evaluate("fetch('/user/anna/api/sessions').then(response => response.json())")
    (kernel,) = [session['kernel']['id'] for session in sessions if session['path'] == path]
    assert server.data(kernel) == data


def test_the_widget_needs_no_jupyter_server(server, page):
    """In Lab, where anywidget works; requests to the server's API fail."""
    path = 'widget.ipynb'
    pad = open_pad(
        server,
        page,
        'lab/workspaces/widget/tree',
        path,
        START
        + """
from digit_pad import DigitPad

class Predictor:
    def predict(self, images):
        if images[0].sum() > 120:
            raise ValueError('too much ink')
        return [0, 0, 0, 0, 0, 0, 0, 9, 0, images[0, 0]]

pad = DigitPad(Predictor())
pad""",
        'data = pad.data',
    )
    page.route('**/api/sessions*', lambda route: route.abort())
    data = draw(pad, *ONE)
    says(pad, "Looks like 7. Sent to this widget's data.")
    run_in(page, page.locator(CELLS).last)
    kernel = server.kernel(path)
    wait_for(lambda: server.data(kernel) == data)
    for y in 0.2, 0.4, 0.6:
        draw(pad, (0.15, y), (0.85, y))
    says(pad, 'The endpoint gave no answer: too much ink')
    pad.get_by_role('button', name='Clear').click()
    says(pad, "Sent to this widget's data.")
    run_in(page, page.locator(CELLS).last)
    wait_for(lambda: server.data(kernel) == BLANK)

    page.evaluate('jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()')
    wait_for(lambda: server.data(server.kernel(path)) == 'NameError')
    draw(pad, *ONE)
    says(pad, 'If it was restarted, run this cell again.')
