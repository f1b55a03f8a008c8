"""input.html: the pixels it computes (in Node), and the pad in real front ends (in Chromium)."""
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import nbformat.v4
import numpy as np
import pytest

INPUT = pathlib.Path(__file__).resolve().parent.parent / 'input.html'
HTML = INPUT.read_text(encoding='ascii')  # notebooks open() it with the locale's encoding
BLANK = [[0.0] * 784]


def rasterise(*strokes):
    """The image (28, 28) that the pad makes of strokes in its coordinates, 280 x 280."""
    pure = re.search('// <pure>.*// </pure>', HTML, re.DOTALL).group()
    done = subprocess.run(['node', '-'], capture_output=True, text=True, check=True, input='{}\nconsole.log('
                          'JSON.stringify(rasterise({})))'.format(pure, json.dumps(strokes)))
    pixels = json.loads(done.stdout)
    assert len(pixels) == 784 and None not in pixels  # JSON's NaN
    assert all(0 <= pixel <= 1 for pixel in pixels)
    return np.reshape(pixels, (28, 28))


def arc(x, y, rx, ry, start=0, stop=360):
    angles = np.radians(np.linspace(start, stop, 60))
    return np.transpose([x + rx * np.cos(angles), y + ry * np.sin(angles)]).tolist()


def centre(image):
    rows, columns = np.mgrid[:28, :28]
    return (rows * image).sum() / image.sum(), (columns * image).sum() / image.sum()


def sides(image):
    return [np.ptp(np.flatnonzero((image > .5).any(axis))) + 1 for axis in (1, 0)]


def test_nothing_drawn_is_black():
    assert not rasterise().any()


@pytest.mark.parametrize('stroke', [[[3, 277]], [[140, 140], [140, 140], [141, 140]]])
def test_a_dot_is_a_small_blob(stroke):
    image = rasterise(stroke)
    assert 4 < image.sum() < 12 and max(sides(image)) <= 4
    assert centre(image) == pytest.approx((14, 14), abs=.1)


@pytest.mark.parametrize('strokes', [
    [[[40, 60], [200, 60]]],  # a horizontal line
    [[[30, 10], [31, 270]]],
    [[[100, 80], [140, 40], [140, 240]]],  # 1
    [arc(100, 180, 60, 80)],  # 0
    [arc(200, 60, 30, 30), arc(200, 120, 40, 30)],  # 8
    [[[60, 40], [220, 40], [110, 250]]],  # 7
    [[[150, 20], [60, 170], [230, 170]], [[190, 100], [190, 260]]],  # 4
    [[[270, 0], [0, 150], [279, 300]]],  # partly off the pad
])
def test_digits_have_mnist_size_and_place(strokes):
    image = rasterise(*strokes)
    assert max(sides(image)) == pytest.approx(20, abs=1)
    assert centre(image) == pytest.approx((14, 14), abs=.6)
    length = sum(np.hypot(*np.diff(stroke, axis=0).T).sum() for stroke in map(np.array, strokes))
    scale = 17.2 / max(np.ptp(np.concatenate(strokes), axis=0))
    assert image.sum() / (length * scale) == pytest.approx(2.8, abs=.6)  # the stroke's width
    assert .06 < image.mean() < .3


def test_a_line_is_even_and_soft_at_its_edges():
    image = rasterise([[40, 60], [200, 60]])
    assert image[14, 6:22].min() == 1 and image[[13, 15], 6:22].min() == pytest.approx(.9, abs=.01)
    assert image[:12].max() == image[17:].max() == 0


def test_no_ink_leaves_the_image():
    """An L whose centre of mass, put into the middle, would push its foot out."""
    stroke = [[20, 20], [20, 260], [260, 260], [20, 260], [250, 250], [20, 250]]
    image = rasterise(stroke)
    assert max(sides(image)) == pytest.approx(20, abs=1)
    assert sides(image) == sides(rasterise([[280 - x, 280 - y] for x, y in stroke]))


def wait_for(get, seconds=60):
    """The first true result of get()."""
    deadline = time.monotonic() + seconds
    while True:
        result = get()
        if result:
            return result
        assert time.monotonic() < deadline, 'waited {} s in vain'.format(seconds)
        time.sleep(.1)


@pytest.fixture(scope='module')
def chromium():
    executable = shutil.which('chromium')
    if not executable:
        pytest.fail("There is no 'chromium' on the PATH: run ./setup.sh tests, or install it.")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[
            '--no-sandbox', '--disable-gpu', '--disable-background-networking',
            '--disable-component-update', '--disable-sync', '--no-first-run'])
        yield browser
        browser.close()


# Only an event that bubbles arrives at the window.
LISTEN = '''digits = []; stop = false; addEventListener('digit', event => {
    digits.push(event.detail.data); if (stop) event.preventDefault(); });'''


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport={'width': 1300, 'height': 950}, has_touch=True)
    context.set_default_timeout(30000)
    context.add_init_script(LISTEN)
    yield context.new_page()
    context.close()


def show(page, html):
    page.set_content(html)  # takes the listeners away
    page.evaluate(LISTEN)


def draw(page, pad, *points):
    """Draw a stroke with the mouse; points are parts of the pad's sides. Return its digit event."""
    before = page.evaluate('digits.length')
    canvas = pad.locator('.ink')
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for i, (x, y) in enumerate(points):
        page.mouse.move(box['x'] + x * box['width'], box['y'] + y * box['height'], steps=8)
        if not i:
            page.mouse.down()
    page.mouse.up()
    assert page.evaluate('digits.length') == before + 1
    return page.evaluate('digits.at(-1)')


def touch(page, box, *events):
    session = page.context.new_cdp_session(page)
    for kind, x in events:
        session.send('Input.dispatchTouchEvent', {'type': 'touch' + kind, 'touchPoints': [] if x is None else [
            {'x': box['x'] + x, 'y': box['y'] + 100}]})


def says(pad, text):
    """Wait until the pad says this."""
    pad.get_by_role('status').filter(has_text=text).wait_for()


ONE = (.4, .3), (.5, .15), (.5, .85)
FOOT = (.3, .85), (.7, .85)


@pytest.mark.browser
def test_without_jupyter_the_pad_says_why_it_does_not_send(page):
    show(page, HTML)
    pad = page.locator('.digit-pad')
    data = draw(page, pad, *ONE)
    says(pad, 'Not sent: this page has no Jupyter server')
    assert len(data) == 1 and len(data[0]) == 784 and .04 < np.mean(data) < .2
    assert centre(np.reshape(data, (28, 28))) == pytest.approx((14, 14), abs=.6)


@pytest.mark.browser
def test_a_listener_can_take_the_digit_itself(page):
    show(page, HTML)
    pad = page.locator('.digit-pad')
    page.evaluate('stop = true')
    draw(page, pad, *ONE)
    assert pad.get_by_role('status').inner_text() == ''


@pytest.mark.browser
def test_undo_and_clear(page):
    show(page, HTML)
    pad = page.locator('.digit-pad')
    one = draw(page, pad, *ONE)
    assert draw(page, pad, *FOOT) != one
    pad.get_by_role('button', name='Undo').click()
    assert page.evaluate('digits.at(-1)') == one
    pad.get_by_role('button', name='Clear').click()
    assert page.evaluate('digits.at(-1)') == BLANK
    pad.get_by_role('button', name='Undo').click()  # there is nothing
    assert page.evaluate('digits.length') == 4


@pytest.mark.browser
def test_two_pads_and_other_buttons_and_keys(page):
    show(page, HTML + HTML)
    first, second = page.locator('.digit-pad').all()
    one = draw(page, first, *ONE)
    assert draw(page, second, *FOOT) != one
    page.evaluate('addEventListener("keydown", event => prevented = event.defaultPrevented)')
    page.keyboard.press('Control+s')
    assert page.evaluate('prevented') is False
    second.locator('.ink').click(button='right')
    assert page.evaluate('digits.length') == 2


@pytest.mark.browser
@pytest.mark.parametrize('end', ['End', 'Cancel'])
def test_touch(page, end):
    show(page, HTML)
    box = page.locator('.ink').bounding_box()
    touch(page, box, ('Start', 50), ('Move', 90), ('Move', 200), (end, None))
    (pixels,), = page.evaluate('digits')
    assert sides(np.reshape(pixels, (28, 28))) == pytest.approx([3, 20], abs=1)
    says(page.locator('.digit-pad'), 'Not sent')


@pytest.mark.browser
def test_a_page_that_moves_does_not_bend_the_stroke(page):
    show(page, HTML)
    page.evaluate('addEventListener("pointermove", event => event.buttons && (document.body.style.marginTop = "40px"))')
    (pixels,) = draw(page, page.locator('.digit-pad'), (.2, .5), (.5, .5), (.8, .5))
    assert sides(np.reshape(pixels, (28, 28))) == pytest.approx([3, 20], abs=1)


@pytest.mark.browser
def test_sharp_on_a_dense_screen_and_right_where_the_pad_is_narrow(chromium):
    context = chromium.new_context(device_scale_factor=2)
    page = context.new_page()
    show(page, '<div style="width: 150px">' + HTML)
    assert page.locator('.ink').evaluate('canvas => canvas.width') == 560
    data = draw(page, page.locator('.digit-pad'), (.2, .5), (.8, .5))
    ink = page.locator('.ink').evaluate('''canvas => [120, 280, 440, 80].map(
        x => canvas.getContext('2d').getImageData(x, 280, 1, 1).data[0])''')
    assert ink == [255, 255, 255, 0]
    assert sides(np.reshape(data, (28, 28))) == pytest.approx([3, 20], abs=1)
    context.close()


FAILURES = {
    'down': 'the Jupyter server does not answer',
    'forbidden': 'the Jupyter server refused to list its kernels (403)',
    'no kernel': 'no kernel runs for sub/x y.ipynb (start it, then draw on)',
    'closed': 'the connection to the kernel broke',
    'died': 'the kernel stopped (dead)',
    'error': 'the kernel could not take it (NameError)',
    'outside': 'this pad is not inside its notebook',
}


@pytest.mark.browser
@pytest.mark.parametrize('failure', FAILURES)
def test_failures_are_said(page, failure):
    """Against a server that is made up."""
    paths = ['y.ipynb', 'x y.ipynb', 'a/sub/x y.ipynb'] + ['sub/x y.ipynb'] * (failure != 'no kernel')

    def serve(route):
        if 'api/sessions' not in route.request.url:
            route.fulfill(content_type='text/html', body=''.join([
                '<script id="jupyter-config-data" type="application/json">{"baseUrl": "/base/", "token": "t"}</script>',
                '<div class="jp-NotebookPanel">' * (failure != 'outside'), HTML]))
        elif failure == 'down':
            route.abort()
        else:
            assert route.request.headers['authorization'] == 'token t'
            route.fulfill(status=403 if failure == 'forbidden' else 200, json=[
                {'path': path, 'kernel': {'id': path[:3]}} for path in paths])

    def answer(socket):
        assert '/base/api/kernels/sub/channels' in socket.url

        def on_message(text):
            message = json.loads(text)
            assert message['content']['code'].startswith('data = [[0.0000, ')
            if failure == 'closed':
                return socket.close()
            kind, content = {'died': ('status', {'execution_state': 'dead'}),
                             'error': ('execute_reply', {'status': 'error', 'ename': 'NameError'})}[failure]
            socket.send(json.dumps({'msg_type': kind, 'content': content, 'parent_header': message['header']}))
        socket.on_message(on_message)

    page.route('http://jupyter.test/**', serve)
    page.route_web_socket('ws://jupyter.test/**', answer)
    page.goto('http://jupyter.test/base/lab/workspaces/auto-q/tree/sub/x%20y.ipynb')
    pad = page.locator('.digit-pad')
    draw(page, pad, *ONE)
    says(pad, 'Not sent: ' + FAILURES[failure])


class Server:
    """A Jupyter server with all three front ends, on a free port, which keeps to a directory."""

    def __init__(self, home):
        self.root = home / 'root'
        self.root.mkdir()
        # The one who tests may have his own settings.
        env = {name: value for name, value in os.environ.items() if not name.startswith(('JUPYTER', 'JPY_'))}
        env.update(IPYTHONDIR=str(home / 'ipython'), **{
            'JUPYTER_{}_DIR'.format(name.upper()): str(home / name) for name in ('config', 'data', 'runtime')})
        self.log = home / 'log'
        with self.log.open('w') as log:
            self.process = subprocess.Popen([
                sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1',
                '--port=0', '--IdentityProvider.token=secret', '--ServerApp.root_dir=' + str(self.root),
                '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
                '--LabApp.news_url=', '--LabApp.expose_app_in_browser=True',
            ], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.runtime = home / 'runtime'
        self.numbers = itertools.count()

    def wait_until_ready(self):
        info = self.runtime / 'jpserver-{}.json'.format(self.process.pid)

        def ready():
            assert self.process.poll() is None, self.log.read_text()
            try:
                self.url = json.loads(info.read_text())['url']
                return self.get('api/status')
            except (OSError, ValueError):  # not yet, or half written
                return None
        wait_for(ready)

    def get(self, path):
        request = urllib.request.Request(self.url + path, headers={'Authorization': 'token secret'})
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)  # stops its kernels, too
        try:
            self.process.wait(20)
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def add_notebook(self, path):
        """Write a notebook with the pad and a cell that uses `data`."""
        path = self.root / path
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (
            'from IPython.display import HTML\n\ndata = [[0.0] * 784]\nHTML(open({!r}).read())'.format(str(INPUT)),
            'print("ink:", round(sum(data[0]), 4))',
        )], metadata={'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}), path)

    def kernel(self, path):
        """Wait for the notebook's kernel to be idle; return its id."""
        return wait_for(lambda: [session['kernel']['id'] for session in self.get('api/sessions')
                                 if session['path'] == path and session['kernel']['execution_state'] == 'idle'])[0]

    def data(self, path):
        """The variable's value, straight from the kernel."""
        from jupyter_client import BlockingKernelClient
        client = BlockingKernelClient(connection_file=str(self.runtime / 'kernel-{}.json'.format(self.kernel(path))))
        client.load_connection_file()
        client.start_channels()
        try:
            reply = client.execute('', silent=True, user_expressions={'data': 'data'}, reply=True, timeout=30)
        finally:
            client.stop_channels()
        return eval(reply['content']['user_expressions']['data']['data']['text/plain'])


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp('jupyter'))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def open_pad(server, page, front_end, path):
    """Open a notebook that has a pad, and run its first cell."""
    page.goto('{}{}/{}?token=secret'.format(server.url, front_end, urllib.parse.quote(path)))
    cell = page.locator('.jp-Notebook .jp-CodeCell, #notebook .code_cell').first
    cell.locator('.jp-InputArea-editor, .CodeMirror').click()
    server.kernel(path)
    page.keyboard.press('Shift+Enter')
    pad = cell.locator('.digit-pad')
    says(pad, 'Draw a digit here')
    return pad


@pytest.mark.browser
@pytest.mark.parametrize('front_end, path', [
    ('lab/tree', 'lab.ipynb'),
    ('lab/workspaces/one/tree', 'meine Ziffer \u00e4.ipynb'),
    ('notebooks', 'seven.ipynb'),
    ('notebooks', 'sub/Ziffer f\u00fcr 100%.ipynb'),
    ('nbclassic/notebooks', 'classic.ipynb'),
])
def test_strokes_arrive_in_the_notebook(server, page, front_end, path):
    server.add_notebook(path)
    pad = open_pad(server, page, front_end, path)
    assert server.data(path) == BLANK
    first = draw(page, pad, *ONE)
    says(pad, 'Sent to data.')
    assert server.data(path) == first
    second = draw(page, pad, *FOOT)
    says(pad, 'Sent to data.')
    assert second != first
    got = server.data(path)
    assert got == second and {type(value) for value in got[0]} == {float}

    # the next cell, as the notebook's reader runs it
    page.locator('.jp-Notebook .jp-CodeCell, #notebook .code_cell').last.locator('.jp-InputArea-editor, .CodeMirror').click()
    page.keyboard.press('Control+Enter')
    page.get_by_text('ink: {}'.format(round(sum(second[0]), 4)), exact=True).wait_for()

    pad.get_by_role('button', name='Clear').click()
    wait_for(lambda: server.data(path) == BLANK)


@pytest.mark.browser
def test_in_lab_a_touch_draws_in_its_own_notebook(server, page):
    """Side by side with another one, which is active and whose path ends alike."""
    for path in 'two.ipynb', 'a/two.ipynb':
        server.add_notebook(path)
    open_pad(server, page, 'lab/workspaces/two/tree', 'two.ipynb')
    page.evaluate('''jupyterapp.commands.execute('docmanager:open', {path: 'a/two.ipynb', options: {mode: 'split-right'}})''')
    other = page.locator('.jp-NotebookPanel').nth(1)
    other.locator('.jp-InputArea-editor').last.click()
    page.wait_for_url('**/a/two.ipynb')
    server.kernel('a/two.ipynb')
    page.evaluate('jupyterapp.commands.execute("notebook:run-all-cells")')
    other.get_by_text('ink: 0').wait_for()

    pad = page.locator('.jp-NotebookPanel').first.locator('.digit-pad')
    touch(page, pad.locator('.ink').bounding_box(), ('Start', 50), ('Move', 90), ('Move', 200), ('End', None))
    says(pad, 'Sent to data.')
    assert server.data('two.ipynb') == page.evaluate('digits.at(-1)')
    assert server.data('a/two.ipynb') == BLANK


@pytest.mark.browser
@pytest.mark.parametrize('front_end, why', [
    ('lab/workspaces/busy/tree', 'no kernel runs for lab-busy.ipynb'),
    ('nbclassic/notebooks', 'this notebook has no kernel at present'),
])
def test_strokes_wait_for_a_busy_kernel_and_its_end_is_said(server, page, front_end, why):
    path = front_end.split('/')[0] + '-busy.ipynb'
    server.add_notebook(path)
    pad = open_pad(server, page, front_end, path)
    cell = page.locator('.jp-Notebook .jp-CodeCell, #notebook .code_cell').last
    cell.locator('.jp-InputArea-editor, .CodeMirror').click()
    page.keyboard.press('Control+a')
    page.keyboard.type('import time; time.sleep(3); 1/0')  # the error aborts what is queued
    page.keyboard.press('Control+Enter')
    last = draw(page, pad, *ONE)
    says(pad, 'Waiting for the kernel')
    says(pad, 'Sent to data.')
    assert server.data(path) == last
    draw(page, pad, *FOOT)
    last = draw(page, pad, (.2, .2), (.4, .2))  # without waiting
    says(pad, 'Sent to data.')
    assert server.data(path) == last

    session, = [session for session in server.get('api/sessions') if session['path'] == path]
    urllib.request.urlopen(urllib.request.Request(
        server.url + 'api/sessions/' + session['id'], method='DELETE', headers={'Authorization': 'token secret'}))
    # A stroke would not do: the classic notebook puts a dialog in front.
    pad.get_by_role('button', name='Clear').dispatch_event('click')
    says(pad, 'Not sent: ' + why)
