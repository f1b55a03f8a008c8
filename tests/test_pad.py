"""The pad: its arithmetic in plain Node, and drawing in a real browser on a real Jupyter server."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

import nbformat
import numpy as np
import pytest
import urllib3

PAD = pathlib.Path(__file__).resolve().parent.parent / 'input.html'
PURE = re.search(r'// \[pure.*?// pure\]', PAD.read_text(encoding='utf-8'), re.DOTALL)[0]


def normalise(*drawings):
    """Run the pad's normalise() on drawings (lists of strokes); return (N, 28, 28)."""
    code = PURE + '\nconsole.log(JSON.stringify({}.map(d => normalise(d))));'.format(
        json.dumps(drawings))
    out = subprocess.run(['node', '-e', code], capture_output=True, text=True, check=True).stdout
    assert 'null' not in out, 'NaN'
    return np.array(json.loads(out)).reshape(-1, 28, 28)


def circle(x, y, radius, count=40):
    angles = np.linspace(0, 2 * np.pi, count)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).tolist()


SEVEN = [[[80, 60], [200, 60], [120, 240]]]
EIGHT = [circle(140, 90, 40), circle(140, 190, 60)]


def centre_of_mass(image):
    y, x = np.mgrid[:28, :28]
    return (image * x).sum() / image.sum(), (image * y).sum() / image.sum()


def test_nothing_drawn_is_black():
    assert not normalise([]).any()


@pytest.mark.parametrize('drawing', [SEVEN, EIGHT, [[[10, 10], [10, 270]]], [[[0, 100], [280, 100]]]],
                         ids=['seven', 'eight', 'vertical', 'horizontal'])
@pytest.mark.parametrize('scale', [0.3, 1])
def test_a_drawing_has_mnists_size_and_centre(drawing, scale):
    small = [[[x * scale + 5, y * scale + 3] for x, y in stroke] for stroke in drawing]
    image, = normalise(small)
    assert 0 <= image.min() and image.max() == 1
    np.testing.assert_allclose(centre_of_mass(image), 14, atol=0.2)
    rows, columns = np.nonzero((image > 0.25).any(1))[0], np.nonzero((image > 0.25).any(0))[0]
    assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 21


def test_the_stroke_is_as_thick_as_mnists_whatever_the_size():
    line, = normalise([[[140, 20], [140, 260]]])
    np.testing.assert_allclose(line[10:18].sum(1), 2.8, atol=0.1)


def test_a_dot_is_a_small_blob_in_the_middle():
    for dot in [[[50, 50]]], [[[50, 50], [51, 50], [50, 51]]]:
        image, = normalise(dot)
        assert 4 < image.sum() < 12
        np.testing.assert_allclose(centre_of_mass(image), 14, atol=0.1)


def test_fast_strokes_have_no_gaps():
    image, = normalise([[[0, 0], [280, 280]]])
    assert (np.diag(image)[6:23] == 1).all()


http = urllib3.PoolManager(retries=False)


class Jupyter:
    """A Jupyter server on loopback with its own configuration, and a browser page on it."""

    def __init__(self, root):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        self.root = root / 'notebooks'
        self.root.mkdir()
        env = {**os.environ, 'IPYTHONDIR': str(root / 'ipython'), **{
            'JUPYTER_{}_DIR'.format(kind): str(root / kind) for kind in ('CONFIG', 'DATA', 'RUNTIME')}}
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ServerApp.ip=127.0.0.1',
             '--ServerApp.port={}'.format(self.port), '--ServerApp.port_retries=0',
             '--ServerApp.base_url=/base/', '--IdentityProvider.token=secret',
             '--ServerApp.root_dir={}'.format(self.root), '--LabApp.news_url=None',
             '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if self.get('api/status').status == 200:
                    break
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < deadline, 'Jupyter did not start'
            time.sleep(0.1)

    def get(self, path):
        return http.request('GET', 'http://127.0.0.1:{}/base/{}'.format(self.port, path),
                            headers={'Authorization': 'token secret'})

    def url(self, frontend, name):
        return 'http://127.0.0.1:{}/base/{}{}?token=secret&reset'.format(
            self.port, frontend, urllib.parse.quote(name))

    def write(self, name):
        """Write a notebook as the tutorial has it: pad, then a cell that reads `data`."""
        cells = ['from IPython.display import HTML\ndata = [[0.0] * 784]\n'
                 'HTML(open({!r}).read())'.format(str(PAD)),
                 'print("sum", round(sum(data[0]), 3), len(data), len(data[0]))']
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells],
            metadata={'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}})
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, self.root / name)

    def wait_for_idle_kernel(self, name):
        deadline = time.monotonic() + 60
        while not any(s['path'] == name and s['kernel']['execution_state'] == 'idle'
                      for s in json.loads(self.get('api/sessions').data)):
            assert time.monotonic() < deadline, 'no idle kernel for ' + name
            time.sleep(0.1)

    def stop(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.communicate(timeout=30)


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    chromium = shutil.which('chromium') or pytest.fail('The browser tests need a chromium on the PATH.')
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[
            '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-sync'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def jupyter(tmp_path_factory):
    server = Jupyter(tmp_path_factory.mktemp('jupyter'))
    yield server
    server.stop()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={'width': 1200, 'height': 1000})
    context.set_default_timeout(30000)
    yield context.new_page()
    context.close()


def draw(page, pad, points):
    """Draw one stroke with the mouse; points in pad coordinates."""
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    at = [(box['x'] + x, box['y'] + y) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for x, y in at[1:]:
        page.mouse.move(x, y, steps=5)
    page.mouse.up()


ARRIVED = 'Your drawing is in data'
FRONTENDS = {'lab/tree/': '.jp-OutputArea', 'notebooks/': '.jp-OutputArea',
             'nbclassic/notebooks/': '.output_subarea'}


def run_cell(page, frontend, index):
    """Run one cell, by mouse and keyboard as a person does."""
    if 'nbclassic' in frontend:
        page.evaluate('i => { IPython.notebook.select(i); IPython.notebook.execute_cell(); }', index)
    else:
        page.locator('.jp-CodeCell .jp-InputArea-editor').nth(index).click()
        page.keyboard.press('Shift+Enter')


@pytest.mark.browser
@pytest.mark.parametrize('frontend', FRONTENDS)
@pytest.mark.parametrize('name', ['pad.ipynb', 'ein Ordner/Übung 1.ipynb'])
def test_a_drawn_digit_reaches_the_notebook(jupyter, page, frontend, name):
    jupyter.write(name)
    page.goto(jupyter.url(frontend, name))
    jupyter.wait_for_idle_kernel(name)
    run_cell(page, frontend, 0)
    pad = page.locator('.digit-ink')
    draw(page, pad, SEVEN[0])
    page.get_by_text(ARRIVED).wait_for()
    run_cell(page, frontend, 1)
    expected = np.round(normalise(SEVEN)[0], 3).sum()
    output = page.get_by_text(re.compile(r'^sum [\d.]+ 1 784')).last.text_content()
    assert abs(float(output.split()[1]) - expected) < 0.03 * expected
    page.get_by_role('button', name='Clear').click()
    page.get_by_text(ARRIVED).wait_for()
    run_cell(page, frontend, 1)
    page.get_by_text(re.compile(r'^sum 0(\.0)? 1 784')).wait_for()


@pytest.mark.browser
def test_without_a_kernel_the_pad_says_so_and_keeps_the_drawing(page):
    page.set_content(PAD.read_text(encoding='utf-8'))
    draw(page, page.locator('.digit-ink'), SEVEN[0])
    page.get_by_text('there is no Jupyter server behind this page').wait_for()
    assert page.locator('.digit-preview').evaluate(
        'c => c.getContext("2d").getImageData(0, 0, 28, 28).data.some((v, i) => i % 4 < 3 && v)')


@pytest.mark.browser
def test_who_takes_the_event_takes_over(page):
    page.set_content(2 * PAD.read_text(encoding='utf-8'))
    page.evaluate('window.got = []; addEventListener("digit", e => '
                  '{ e.preventDefault(); window.got.push(e.detail.data); })')
    for pad in page.locator('.digit-ink').all():  # two pads on a page
        draw(page, pad, SEVEN[0])
        draw(page, pad, [[60, 140], [400, 140]])  # leaves the pad, and ends outside
    page.get_by_role('button', name='Undo').first.click()
    page.wait_for_function('got.length == 5')
    got = np.array(page.evaluate('got'))
    assert got.shape == (5, 1, 784) and 0 <= got.min() and got.max() == 1
    np.testing.assert_array_equal(got[0], got[4])
    np.testing.assert_array_equal(got[1], got[3])
    assert page.get_by_text('Draw a digit.').count() == 2
