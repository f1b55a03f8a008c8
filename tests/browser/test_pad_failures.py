"""The pad explains failures of Jupyter, which a mock server simulates."""

import json

import pytest
from support import HTML, ONE, draw, says

FAILURES = {
    'silent once': None,
    'closed once': None,
    'down once': None,  # the network has changed, as each container of Docker changes it
    'down': 'the Jupyter server does not answer',
    'forbidden': 'the Jupyter server refused to list its kernels (403)',
    'no kernel': 'no kernel runs for sub/x y.ipynb (start one, then draw on)',
    'closed': 'the connection to the kernel broke',
    'died': 'the kernel stopped.',
    'shut down': 'the kernel stopped.',
    'gone': 'the kernel stopped.',
    'idle without an answer': 'the kernel stopped.',
    'error': 'the kernel could not take the drawing (MemoryError)',
    'outside': 'this pad is not inside its notebook',
}
ANSWERS = {  # the kernel's; else it is silent
    'died': ('status', {'execution_state': 'dead'}),
    'shut down': ('shutdown_reply', {'restart': True}),
    'error': ('execute_reply', {'status': 'error', 'ename': 'MemoryError'}),
}


@pytest.mark.parametrize('failure', FAILURES)
def test_failures_are_said(page, failure):
    paths = ['y.ipynb', 'x y.ipynb', 'a/sub/x y.ipynb'] + ['sub/x y.ipynb'] * (failure != 'no kernel')
    sessions = [{'path': path, 'type': 'notebook', 'kernel': {'id': path[:3]}} for path in paths]
    console = {'path': 'sub/x y.ipynb', 'type': 'console', 'kernel': {'id': 'console'}}
    panel = '<div class="jp-NotebookPanel">' * (failure != 'outside')
    config = '{"baseUrl": "/base/", "token": "t"}'
    body = f'<script id="jupyter-config-data" type="application/json">{config}</script>{panel}{HTML}'
    messages, dropped = [], []

    def serve(route):
        if '/api/' not in route.request.url:
            route.fulfill(content_type='text/html', body=body)
        elif failure == 'down' or failure == 'down once' and not dropped:
            dropped.append(route)
            route.abort()
        elif 'api/kernels/sub' in route.request.url:
            route.fulfill(status=404 if failure == 'gone' else 200, json={'execution_state': 'idle'})
        else:
            assert route.request.headers['authorization'] == 'token t'
            route.fulfill(status=403 if failure == 'forbidden' else 200, json=[console, *sessions])

    def answer(socket):
        assert '/base/api/kernels/sub/channels' in socket.url

        def on_message(text):
            message = json.loads(text)
            assert message['content']['code'].startswith('data = [[0.0000, ')
            messages.append(message)
            if failure == 'closed' or failure == 'closed once' and len(messages) == 1:
                return socket.close()
            if failure.endswith('once') or failure in ANSWERS:
                if failure == 'silent once' and len(messages) == 1:
                    return
                kind, content = ANSWERS.get(failure, ('execute_reply', {'status': 'ok'}))
                answer = {'msg_type': kind, 'content': content, 'parent_header': message['header']}
                socket.send(json.dumps(answer))

        socket.on_message(on_message)

    page.route('http://jupyter.test/**', serve)
    page.route_web_socket('ws://jupyter.test/**', answer)
    page.goto('http://jupyter.test/base/lab/workspaces/auto-q/tree/sub/x%20y.ipynb')
    pad = page.locator('.digit-pad')
    draw(pad, *ONE)
    if failure.endswith('once'):
        says(pad, 'Sent to data.')
        assert len(messages) + len(dropped) == 2 and messages[0]['content'] == messages[-1]['content']
    else:
        says(pad, 'Not sent: ' + FAILURES[failure])
        assert len(messages) + len(dropped) <= 6
