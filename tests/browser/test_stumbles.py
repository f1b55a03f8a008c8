"""In JupyterLab a learner's stumbles end in a message that says what to do."""

import re
import shutil

import pytest
from playwright.sync_api import expect
from support import FOOT, ONE, ROOT, TUTORIAL, free_port, ours, pack, says, visit, wait_for

pytestmark = pytest.mark.docker
BAR = """
import time
if __name__ == '__main__':
    print('\\r[##..................] epoch 1 of 3, 102 s left', flush=True)
    time.sleep(1000)
"""
SESSION = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
from local_mode.session import open_session
from support import make_estimator, make_model

sagemaker_session = open_session(embedded=True)"""
HELD = """import contextlib, socket

with contextlib.suppress(OSError):  # another program has it already
    stranger = socket.create_server(('127.0.0.1', 8080))"""
SIXES = """
import numpy as np
def model_fn(model_dir): pass
def predict_fn(x, model): return np.float32([[0] * 6 + [20] + [0] * 3] * len(x))"""
TAKEN = """import socket

stranger = socket.create_server(('127.0.0.1', {0}))
sagemaker_session.set_serving_port({0})
model.deploy(1, 'local')"""


@pytest.fixture
def lab(server, page):
    """Return a function that opens a notebook with these cells in JupyterLab, runs all, and returns its kernel.

    With the kernel all that it runs must end.
    """
    kernels = []

    def open_lab(path, *cells):
        server.add_notebook(path, *cells, show=SESSION)
        visit(page, f'{server.url}lab/workspaces/{path[:-6]}/tree/{path}?token={server.token}')
        kernels.append(server.kernel(path))
        server.run_all(page)
        return kernels[0]

    yield open_lab
    for kernel in kernels:
        server.request(f'api/kernels/{kernel}', 'DELETE')
    wait_for(lambda: ours()[0] == [])


def model(directory, code):
    """Return an expression for a model whose script is this code."""
    script = directory / 'script.py'
    script.write_text(code)
    return f'make_model(sagemaker_session, {pack(directory / "model.tar.gz", script)!r}, {str(script)!r})'


def output(page, part):
    """Return the output of the cell whose code contains a text."""
    return page.locator('.jp-CodeCell', has_text=part).locator('.jp-OutputArea-output')


def test_it_opens_at_the_top_and_links_lead_back_from_the_end(server, page):
    """Run All jumps to the last cell; above it links lead to the training and to the pad."""
    shutil.copy(TUTORIAL, server.root)
    visit(page, f'{server.url}lab/workspaces/view/tree/{TUTORIAL.name}?token={server.token}')
    server.kernel(TUTORIAL.name)
    content = 'jupyterapp.shell.currentWidget.content'
    expect(page.get_by_role('heading', name='MNIST training and prediction')).to_be_in_viewport()
    assert page.evaluate(f'{content}.activeCellIndex') == 0
    page.evaluate(f'{content}.scrollToItem({content}.widgets.length - 1)')
    for link, heading in ('the pad', 'Draw a digit'), ('the training', 'Train'):
        page.get_by_role('link', name=link).last.click()
        expect(page.get_by_role('heading', name=heading, exact=True)).to_be_in_viewport()
        page.evaluate(f'{content}.scrollToItem({content}.widgets.length - 1)')


def test_a_stopped_training_says_what_to_do(server, page, lab, tmp_path):
    (tmp_path / 'bar.py').write_text(BAR)
    fit = f'make_estimator(sagemaker_session, {str(tmp_path / "bar.py")!r}, dict(container_log_level=30)).fit()'
    kernel = lab('stopped.ipynb', fit, 'print("below")')
    shown = output(page, '.fit()')
    shown.get_by_text('102 s left').wait_for()
    server.request(f'api/kernels/{kernel}/interrupt', 'POST')
    shown.get_by_text('Training was stopped: run this cell again.').wait_for()
    text = '\n'.join(shown.all_inner_texts())
    assert text.strip() == 'KeyboardInterrupt: Training was stopped: run this cell again.'

    server.kernel('stopped.ipynb')
    slow = model(tmp_path, 'def model_fn(model_dir): import time; time.sleep(1000)')
    server.run_last(page, f"{slow}.deploy(1, 'local')")
    wait_for(lambda: ours()[0])
    server.request(f'api/kernels/{kernel}/interrupt', 'POST')
    output(page, '.deploy(').get_by_text('The deployment was stopped: run this cell again.').wait_for()
    wait_for(lambda: ours()[0] == [])


def test_cells_that_run_again_replace_what_they_had(server, page, lab, tmp_path):
    """Run All a second time, and Deploy run again, leave one endpoint, and say what they end; then a taken port."""
    deploy = f"model = {model(tmp_path, 'def model_fn(model_dir): pass')}\nmodel.deploy(1, 'local')"
    lab('twice.ipynb', deploy)
    first = endpoint(page)
    session, deployed = output(page, 'open_session'), output(page, '.deploy(')
    server.run_all(page)
    session.filter(has_text=f'replaces the one before, whose endpoint {first} is deleted').wait_for()
    second = endpoint(page, first)
    server.run_last(page)
    deployed.filter(has_text=f"The endpoint {second} of this cell's earlier run is deleted.").wait_for()
    endpoint(page, second)
    assert len(ours()[0]) == 1

    port = free_port()
    server.run_last(page, f'{deploy.splitlines()[0]}\n{TAKEN.format(port)}')
    deployed.filter(has_text=f'Port {port} is taken by another program').wait_for()
    remedy = '\n'.join(deployed.all_inner_texts()).split('\n\n')[-1]
    server.kernel('twice.ipynb')  # is idle: what comes while an error is handled is aborted
    server.run_last(page, remedy + "\nmodel.deploy(1, 'local')")
    last = page.locator('.jp-CodeCell').last
    wait_for(lambda: 'answers on port' in last.inner_text(), why=last.inner_text)


def test_a_taken_port_is_passed_over(server, page, lab, tmp_path):
    """Where port 8080 is another's, the next free one answers, the output says which, and the pad asks there.

    Stop, while the kernel is idle, ends no endpoint; of one that is deleted the pad says what to do.
    """
    deploy = f"{HELD}\npredictor = {model(tmp_path, SIXES)}.deploy(1, 'local')"
    kernel = lab('held.ipynb', deploy, server.cell_with("HTML(open('input.html').read())"), '1 + 1')
    told = output(page, '.deploy(').filter(has_text='answers on port')
    assert re.search(r'answers on port (808[1-9]|809\d)\.', told.inner_text())
    pad = page.locator('.digit-pad')
    says(pad, 'Draw a digit here')
    server.request(f'api/kernels/{kernel}/interrupt', 'POST')
    server.takes(kernel, pad, *ONE, then='Looks like 6. Sent to data.')
    server.run_last(page, 'predictor.delete_endpoint()')
    server.kernel('held.ipynb')
    wait_for(lambda: ours()[0] == [])
    server.takes(kernel, pad, *FOOT, then=re.compile('deploy it first'))


def endpoint(page, *before):
    """Wait for an endpoint that was not there before; return its name."""
    told = output(page, '.deploy(').filter(has_text='answers on port')

    def name():
        names = re.findall(r'The endpoint (\S+) answers', '\n'.join(told.all_inner_texts()))
        return [name for name in names if name not in before]

    return wait_for(name)[0]
