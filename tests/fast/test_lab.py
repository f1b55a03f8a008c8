"""JupyterLab, as `make lab` starts it, obeys its user only."""

import json
import os
import pathlib
import re
import subprocess

import psutil
import pytest
from jupyter_client import BlockingKernelClient
from support import ROOT, free_port, http, run, wait_for

pytestmark = pytest.mark.slow


class Lab:
    """A running JupyterLab: its process, URL, token and runtime directory."""

    def __init__(self, home):
        (home / 'browser').write_text(f'#!/bin/sh\necho "$@" > {home}/opened\n')
        (home / 'browser').chmod(0o700)
        recipe = run('make', '--dry-run', 'lab').stdout
        command = recipe[recipe.index('runtime=') :].strip() + f' --ServerApp.port={free_port()}'
        env = {name: value for name, value in os.environ.items() if not name.startswith(('JUPYTER', 'XDG'))}
        env |= {'HOME': str(home), 'BROWSER': f'{home}/browser %s', 'DISPLAY': ':9'}
        with (home / 'log').open('wb') as log:
            self.process = subprocess.Popen(['sh', '-c', command], cwd=ROOT, env=env, stdout=log, stderr=log)
        opened = home / 'opened'
        wait_for(lambda: opened.exists() and opened.read_text(), 60, (home / 'log').read_text)
        self.opened = opened.read_text()
        assert 'localhost' not in pathlib.Path(self.opened.strip().removeprefix('file://')).read_text()  # may be ::1
        (server, *_) = psutil.Process(self.process.pid).children()
        self.runtime = pathlib.Path(server.environ()['JUPYTER_RUNTIME_DIR'])
        (file,) = self.runtime.glob('jpserver-*.json')
        self.url, self.token = (json.loads(file.read_text())[name] for name in ('url', 'token'))

    def ask(self, method, path, **headers):
        return http.request(method, self.url + path, headers=headers, redirect=False).status

    def processes(self):
        if self.process.poll() is not None:
            return []
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]


@pytest.mark.parametrize(
    'command, python, notebooks',
    [
        ('lab', '.venv/bin/python', ['chainer_mnist_local_mode', 'chainer_mnist_two_hosts']),
        ('lab-sdk3', '.venv-sdk3/bin/python', ['chainer_mnist_sdk_v3']),
    ],
)
def test_each_notebook_opens_where_it_works(command, python, notebooks):
    recipe = run('make', '--dry-run', command).stdout
    assert f' {python} -m jupyterlab' in recipe
    assert set(re.findall(r'chainer_mnist_\w+', recipe)) == {*notebooks}
    first = notebooks[0].removeprefix('chainer_mnist_')  # in the file browser long names that begin alike are cut
    assert f'default_url=/lab/tree/my-notebooks/{first}.ipynb' in recipe


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp('lab'))
    yield lab
    lab.ask('POST', 'api/shutdown', Authorization=f'token {lab.token}')
    try:
        lab.process.wait(30)
        assert not lab.runtime.exists()
    finally:
        for process in lab.processes():
            process.kill()


def test_without_its_token_it_answers_nothing(lab):
    for path in (
        'api/contents',
        'api/kernels',
        'api/terminals',
        'files/README.md',
        'nbconvert/html/README.md',
        'metrics',
    ):
        assert lab.ask('GET', path) in (302, 403) and lab.ask('GET', f'{path}?token=wrong') in (302, 403)
    for path in 'api/kernels', 'api/sessions', 'api/terminals', 'api/contents', 'api/shutdown':
        assert lab.ask('POST', path) == 403 and lab.ask('POST', path, Authorization='token ') == 403
    assert lab.ask('GET', 'api/contents', Authorization=f'token {lab.token}') == 200 and len(lab.token) > 40


def test_no_page_of_another_server_reaches_it(lab):
    mine = {'Authorization': f'token {lab.token}'}
    assert lab.ask('GET', 'api/contents', Host='evil.example', **mine) == 403  # a name that leads here
    logged_in = http.request('GET', f'{lab.url}tree?token={lab.token}', redirect=False)
    cookies = '; '.join(value.split(';')[0] for value in logged_in.headers.getlist('Set-Cookie'))
    assert lab.ask('GET', 'api/contents', Cookie=cookies) == 200  # a browser's, which also other pages' requests have
    page = {'Cookie': cookies, 'Origin': 'http://evil.example', 'Referer': 'http://evil.example/'}
    for path in 'api/kernels', 'api/contents', 'api/terminals':
        assert lab.ask('POST', path, **page) in (403, 404)
    upgrade = {
        'Connection': 'Upgrade',
        'Upgrade': 'websocket',
        'Sec-WebSocket-Key': 'YQ==',
        'Sec-WebSocket-Version': '13',
    }
    assert lab.ask('GET', 'api/events/subscribe', **page, **upgrade) == 403
    answer = http.request('GET', lab.url + 'api/contents', headers=page)
    assert not [name for name in answer.headers if name.lower().startswith('access-control-allow')]


def test_no_other_user_finds_its_token_or_a_port_of_its_kernels(lab):
    headers = {'Authorization': f'token {lab.token}'}
    started = http.request('POST', lab.url + 'api/kernels', headers=headers, body=b'{}')
    assert started.status == 201
    wait_for(lambda: len([c for p in lab.processes()[2:] for c in p.net_connections('all')]) > 5)  # the kernel listens
    ports = [c for p in lab.processes() for c in p.net_connections('inet') if c.status == psutil.CONN_LISTEN]
    port = int(lab.url.split(':')[2].split('/')[0])
    assert {c.laddr.ip for c in ports} <= {'127.0.0.1', '::1'}
    # One is ipykernel's, for what its forks print: it sends nothing, and takes only what has its secret.
    assert len({c.laddr.port for c in ports} - {port}) <= 1, ports
    commands = [' '.join(p.cmdline()) for p in lab.processes()] + [lab.opened]
    assert not [command for command in commands if lab.token in command]
    assert lab.runtime.stat().st_mode & 0o077 == 0 and list(lab.runtime.glob('kernel-*-ipc-*'))
    name = json.loads(started.data)['id']
    for _ in range(2):  # also after a restart
        client = BlockingKernelClient(connection_file=str(lab.runtime / f'kernel-{name}.json'))
        client.load_connection_file()
        client.start_channels()
        client.wait_for_ready(30)
        assert client.execute_interactive('6 * 7', timeout=30, output_hook=print)['content']['status'] == 'ok'
        client.stop_channels()
        assert http.request('POST', f'{lab.url}api/kernels/{name}/restart', headers=headers).status == 200
