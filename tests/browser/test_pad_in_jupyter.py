"""The pad works in JupyterLab, Jupyter Notebook 7 and the classic notebook, with a real endpoint."""

import re
import urllib.parse

import numpy as np
import pytest
from support import BLANK, FOOT, ONE, draw, make_model, pack, says, visit, wait_for

from digit_pad import hand
from digit_pad.ways import WAYS

FRONT_ENDS = ['lab/tree', 'notebooks', 'nbclassic/notebooks']


@pytest.fixture(scope='module')
def endpoint(session, model):
    """Deploy the tutorial's model in our container; return the endpoint's name."""
    model_data = pack(model / 'model.tar.gz', model / 'model.npz')
    return make_model(session, model_data).deploy(1, 'local').endpoint_name


def steady(text):
    """Return a digit's first style without variation: strokes, as fractions of the pad's sides."""
    table = np.concatenate([*(hand.parse(row[0]) for row in hand.parts(text)[0]), hand.parse('+')])
    at, begins, corner = hand.outline(table)
    points, stroke = hand.smooth(table[at, hand.POINT] * 0.7 + 0.15, begins, corner, 3)
    return [points[stroke == i].tolist() for i in range(stroke[-1] + 1)]


@pytest.mark.docker
@pytest.mark.parametrize('front_end', FRONT_ENDS)
def test_ten_digits_are_drawn_and_read(server, page, endpoint, front_end):
    """Ten digits by mouse, one by finger and one by pen are predicted right, also by the next cell."""
    path = 'sub/zehn Ziffern f\u00fcr 100%.ipynb'
    predict = server.cell_with("print('What you wrote is:'")
    pad = server.open_pad(page, front_end, path, predict, endpoint=endpoint)
    kernel = server.kernel(path)
    assert server.data(kernel) == BLANK
    read = []
    for text in WAYS.values():
        *first, last = steady(text)
        for points in first:
            draw(pad, *points)
        server.takes(kernel, pad, *last, then=re.compile('Looks like|Perhaps'))
        read.append(int(pad.locator('li.best').inner_text().split()[0]))
        says(pad, re.compile(rf'(Looks like|Perhaps an?) {read[-1]}(,? (perhaps|or an?) \d)?\. Sent to data\.'))
        pad.get_by_role('button', name='Clear').click()
        says(pad, 'Cleared: data is blank.')
        wait_for(lambda: pad.locator('li.best').count() == 0)
    assert server.data(kernel) == BLANK
    assert sum(a == b for a, b in zip(read, range(10))) >= 9, read

    (seven,) = steady(WAYS[7])
    for pointer in 'touch', 'pen':
        server.takes(kernel, pad, *seven, then='Looks like 7. Sent to data.', pointer=pointer)
        assert {type(value) for value in server.data(kernel)[0]} == {float}
        if pointer == 'touch':
            pad.get_by_role('button', name='Clear').click()
    server.run_last(page)
    page.get_by_text('What you wrote is: 7').wait_for()


def rename(page, front_end, name):
    """Rename a notebook in the dialog of its front end."""
    if front_end.startswith('nbclassic'):
        page.locator('#notebook_name').click()
        page.locator('.modal-body input').fill(name)
        page.get_by_role('button', name='Rename').click()
        page.locator('.modal').wait_for(state='detached')
        return
    if front_end == 'notebooks':
        page.locator('#jp-title').click()
    else:
        page.evaluate("void jupyterapp.commands.execute('docmanager:rename')")  # promises the dialog's end
    page.locator('.jp-Dialog input').fill(name + '.ipynb')
    page.locator('.jp-Dialog .jp-mod-accept').click()


@pytest.mark.parametrize('front_end', ['lab/workspaces/renamed/tree', 'notebooks', 'nbclassic/notebooks'])
def test_renamed_restarted_reloaded(server, page, front_end):
    kind = front_end.split('/')[0]
    before, after = f'before {kind}.ipynb', f'after \u00e4 {kind}.ipynb'
    pad = server.open_pad(page, front_end, before)
    kernel = server.kernel(before)
    unread = 'Sent to data. Deploy an endpoint as predictor to see its prediction here.'
    server.takes(kernel, pad, *ONE, then=unread)

    rename(page, front_end, after.removesuffix('.ipynb'))
    assert server.kernel(after) == kernel
    one = server.data(kernel)
    server.takes(kernel, pad, *FOOT)
    if kind != 'nbclassic':  # which gets no focus
        page.keyboard.press('Control+z')
        wait_for(lambda: server.data(kernel) == one)
        page.keyboard.press('Tab')
        page.keyboard.press('Tab')
        page.keyboard.press('Enter')  # on Clear; in JupyterLab a shortcut to edit the cell
        wait_for(lambda: server.data(kernel) == BLANK)
        server.takes(kernel, pad, *ONE)
        server.takes(kernel, pad, *FOOT)

    server.request(f'api/kernels/{kernel}/restart', 'POST')
    wait_for(lambda: server.data(server.kernel(after)) == 'NameError')
    pad.get_by_role('button', name='Undo').click()
    says(pad, 'Sent to data.')
    assert server.data(kernel) == page.evaluate('digits.at(-1)')

    page.keyboard.press('Control+s')  # straight after drawing
    wait_for(lambda: 'digit-pad' in (server.root / after).read_text(encoding='utf-8'))
    page.on('dialog', lambda dialog: dialog.accept())
    visit(page, f'{server.url}{front_end}/{urllib.parse.quote(after)}')
    pad = page.locator('.digit-pad')
    says(pad, 'Draw a digit here')  # without running the cell again
    server.kernel(after)
    server.takes(kernel, pad, *FOOT)


def test_in_lab_a_finger_draws_in_its_own_notebook(server, page):
    """Another notebook is active beside it, with the same end of its path; other views of the pad refuse."""
    server.open_pad(page, 'lab/workspaces/two/tree', 'two.ipynb')
    server.add_notebook('a/two.ipynb')
    options = "{path: 'a/two.ipynb', options: {mode: 'split-right'}}"
    page.evaluate(f"jupyterapp.commands.execute('docmanager:open', {options})")
    panels = page.locator('.jp-NotebookPanel')
    panels.nth(1).locator('.jp-InputArea-editor').last.click()
    page.wait_for_url('**/a/two.ipynb')
    kernels = server.kernel('two.ipynb'), server.kernel('a/two.ipynb')
    server.run_all(page)
    first, second = (panels.nth(i).locator('.digit-pad') for i in (0, 1))
    says(second, 'Draw a digit here')

    one = server.takes(kernels[0], first, *ONE, pointer='touch')
    assert server.data(kernels[1]) == BLANK
    foot = server.takes(kernels[1], second, *FOOT, pointer='touch')
    assert server.data(kernels[0]) == one
    both = server.takes(kernels[0], first, *FOOT, pointer='pen')
    assert server.data(kernels[1]) == foot

    panels.first.locator('.jp-InputArea-editor').nth(1).click()
    page.evaluate('jupyterapp.commands.execute("notebook:create-output-view")')
    view = page.locator('.jp-LinkedOutputView .digit-pad')
    says(view, 'Draw a digit here')
    draw(view, *ONE)
    says(view, 'Not sent: this pad is not inside its notebook (draw in the notebook itself).')
    assert [server.data(kernel) for kernel in kernels] == [both, foot]


@pytest.mark.parametrize('front_end', FRONT_ENDS)
def test_a_server_with_a_password_and_a_base_url(server_with_password, page, front_end):
    server, path = server_with_password, front_end.replace('/', ' ') + '.ipynb'
    server.add_notebook(path)
    after = urllib.parse.quote(f'/user/anna/{front_end}/{path}')
    page.goto(f'{server.url}login?next={after}')
    page.locator('input[type=password]').fill('geheim')
    page.keyboard.press('Enter')
    server.run_all(page)
    pad = page.locator('.digit-pad')
    says(pad, 'Draw a digit here')
    data = draw(pad, *ONE)
    says(pad, 'Sent to data.')
    sessions = page.evaluate("fetch('/user/anna/api/sessions').then(response => response.json())")
    (kernel,) = [session['kernel']['id'] for session in sessions if session['path'] == path]
    assert server.data(kernel) == data


def test_in_lab_the_address_may_name_a_folder(server, page):
    """After a reload, and while folders are browsed, the pad still finds the notebook that it is in."""
    pad = server.open_pad(page, 'lab/workspaces/folder/tree', 'folder/pad.ipynb')
    server.add_notebook('pad.ipynb')  # whose path is the end of the other's
    kernel = server.kernel('folder/pad.ipynb')
    page.evaluate("jupyterapp.commands.execute('filebrowser:open-path', {path: 'folder'})")
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    wait_for(lambda: 'digit-pad' in (server.root / 'folder/pad.ipynb').read_text(encoding='utf-8'))
    page.wait_for_timeout(2000)  # JupyterLab saves its layout
    page.reload()
    says(pad, 'Draw a digit here')
    server.kernel('folder/pad.ipynb')
    server.takes(kernel, pad, *ONE)
    page.evaluate("history.replaceState(null, '', '/lab/workspaces/folder/tree/folder')")
    server.takes(kernel, pad, *FOOT)
