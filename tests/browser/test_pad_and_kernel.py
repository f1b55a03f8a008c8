"""The pad handles a busy or dead kernel and a slow or failing endpoint, also as a widget."""

import asyncio
import concurrent.futures
import http.server
import json
import re
import threading
import uuid

import numpy as np
import pytest
from support import BLANK, FOOT, NPY, ONE, draw, npy, says, wait_for
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect


async def connect_and_ask(url, token):
    """Connect to a kernel as a page does, and wait for a reply over the connection."""
    session = uuid.uuid4().hex
    channels = f'{url.replace("http", "ws", 1)}/channels?session_id={session}'
    connection = await websocket_connect(HTTPRequest(channels, headers={'Authorization': 'token ' + token}))
    header = dict(msg_id=uuid.uuid4().hex, msg_type='kernel_info_request', session=session, username='')
    header['version'] = '5.3'
    question = dict(channel='shell', parent_header={}, metadata={}, content={}, header=header)
    try:
        await connection.write_message(json.dumps(question))
        while json.loads(await connection.read_message())['header']['msg_type'] != 'kernel_info_reply':
            pass
    finally:
        connection.close()


def test_no_new_connection_to_a_kernel_stays_silent(server):
    """With ipykernel 7.3 one connection in 30 gets no replies, and a notebook's cells then wait for ever."""
    kernel = server.request('api/kernels', 'POST')['id']

    async def connect():
        for _ in range(150):
            await asyncio.wait_for(connect_and_ask(f'{server.url}api/kernels/{kernel}', server.token), 20)

    try:
        with concurrent.futures.ThreadPoolExecutor(1) as thread:  # Playwright has this one's loop
            thread.submit(lambda: asyncio.run(connect())).result()
    finally:
        server.request('api/kernels/' + kernel, 'DELETE')


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
    pad = server.open_pad(page, front_end, path, '')
    kernel = server.kernel(path)
    server.run_last(page, 'import time; time.sleep(2.5); 1/0')  # the error aborts what is queued
    last = draw(pad, *ONE)
    says(pad, 'Waiting for the kernel')
    says(pad, 'Sent to data.')
    assert server.data(kernel) == last
    draw(pad, *FOOT)
    last = server.takes(kernel, pad, (0.2, 0.2), (0.4, 0.2))  # without waiting

    server.run_last(page, 'import time; time.sleep(60)')
    draw(pad, (0.2, 0.5), (0.4, 0.5))  # nothing that is there already: the data are others
    says(pad, 'Waiting for the kernel')
    page.evaluate(RESTART)
    # Either it says that it stops, or it is silent, and the next one is sent the drawing again.
    says(pad, re.compile('Not sent: the kernel stopped|Sent to data'))
    wait_for(lambda: server.data(server.kernel(path)) not in (None, BLANK, last))
    server.takes(kernel, pad, *ONE)

    server.run_last(page, 'import time; time.sleep(60)')
    draw(pad, *FOOT)
    says(pad, 'Waiting for the kernel')
    page.evaluate(SHUT_DOWN)
    says(pad, 'Not sent: the kernel stopped.')
    wait_for(lambda: path not in [session['path'] for session in server.request('api/sessions')])
    # A stroke would not do: the classic notebook puts a dialog in front.
    pad.get_by_role('button', name='Clear').dispatch_event('click')
    says(pad, 'Not sent: ' + why)


class Endpoint(http.server.BaseHTTPRequestHandler):
    """An endpoint that answers with the server's `reply` once its event `go` is set."""

    def do_POST(self):
        self.server.bodies.append(self.rfile.read(int(self.headers['Content-Length'])))
        self.server.go.wait(90)
        status, body = self.server.reply
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.send_header('Content-Type', NPY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def scores(*numbers):
    return 200, npy(np.array([numbers], np.float32))


NOT_TEN = 'The endpoint did not answer with ten numbers.'
FAILURE = 'The script failed on this request.'
REPLIES = [  # and what the pad says
    ((500, FAILURE.encode()), f'Received error 500 from the container: {FAILURE}'),
    ((200, b'not npy'), 'Sent to data, but the endpoint gave no answer:'),
    (scores(1, 2, 3), NOT_TEN),
    (scores(*[float('nan')] * 10), NOT_TEN),
]


def test_a_slow_and_a_failing_endpoint(server, page):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Endpoint) as endpoint:
        endpoint.bodies, endpoint.go, endpoint.reply = [], threading.Event(), scores(*[0] * 8, 9, 1)
        threading.Thread(target=endpoint.serve_forever).start()
        try:
            front_end, path = 'lab/workspaces/failing/tree', 'failing.ipynb'
            pad = server.open_pad(page, front_end, path, endpoint=endpoint.server_port)
            kernel = server.kernel(path)
            draw(pad, *ONE)
            says(pad, 'Waiting for the kernel and the endpoint')
            draw(pad, *FOOT)
            data = draw(pad, (0.2, 0.2), (0.4, 0.2))
            endpoint.go.set()
            says(pad, 'Looks like 8. Sent to data.')
            assert len({*endpoint.bodies}) == 2  # the stroke between was out of date already; others may come twice
            assert server.data(kernel) == data
            for endpoint.reply, sentence in REPLIES:
                server.takes(kernel, pad, *FOOT, then=sentence)
                assert pad.locator('li b').all_inner_texts() == [''] * 10
        finally:
            endpoint.shutdown()
    silence = 'Sent to data, but the endpoint gave no answer: Nothing answers on port'
    server.takes(kernel, pad, *FOOT, then=silence)


WIDGET = """
from digit_pad import DigitPad

class Predictor:
    def predict(self, images):
        if images[0].sum() > 120:
            raise ValueError('too much ink')
        return [0, 0, 0, 0, 0, 0, 0, 9, 0, images[0, 0]]

pad = DigitPad(Predictor())
pad"""


def test_the_widget_needs_no_jupyter_server(server, page):
    """The widget works in JupyterLab with requests to the server's API blocked."""
    path = 'widget.ipynb'
    pad = server.open_pad(page, 'lab/workspaces/widget/tree', path, 'data = pad.data', show=WIDGET)
    page.route('**/api/sessions*', lambda route: route.abort())
    data = draw(pad, *ONE)
    says(pad, "Looks like 7. Sent to this widget's data.")
    server.run_last(page)
    kernel = server.kernel(path)
    wait_for(lambda: server.data(kernel) == data)
    for y in 0.2, 0.4, 0.6:
        draw(pad, (0.15, y), (0.85, y))
    says(pad, 'The endpoint gave no answer: too much ink')
    pad.get_by_role('button', name='Clear').click()
    says(pad, "Sent to this widget's data.")
    server.run_last(page)
    wait_for(lambda: server.data(kernel) == BLANK)

    page.evaluate('jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()')
    wait_for(lambda: server.data(server.kernel(path)) == 'NameError')
    draw(pad, *ONE)
    says(pad, 'If it was restarted, run this cell again.')
