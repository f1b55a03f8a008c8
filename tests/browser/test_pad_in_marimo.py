"""The pad works as a widget in marimo, and a cell that uses its data runs again after each stroke."""

import contextlib
import os
import subprocess
import sys

import pytest
from playwright.sync_api import TimeoutError
from support import ONE, ROOT, answers, draw, free_port, says, visit, wait_for

NOTEBOOK = f"""
import marimo
app = marimo.App()

@app.cell
def _():
    import sys, marimo
    sys.path.insert(0, {str(ROOT)!r})
    from digit_pad import DigitPad

    class Predictor:
        def predict(self, images):
            return [0, 0, 0, 0, 0, 0, 0, 9, 0, images[0, 0]]

    pad = marimo.ui.anywidget(DigitPad(Predictor()))
    pad
    return (pad,)

@app.cell
def _(pad):
    f'data = {{pad.data}}'
"""


@pytest.mark.parametrize('command', ['edit', 'run'])
def test_the_widget_is_drawn_on_and_read(page, tmp_path, command):
    (tmp_path / 'notebook.py').write_text(NOTEBOOK)
    (tmp_path / '.marimo.toml').write_text('runtime.auto_instantiate = true')  # else `edit` waits for a click
    port, log = free_port(), tmp_path / 'log'
    # Whoever runs the tests may have their own settings.
    env = {name: value for name, value in os.environ.items() if not name.startswith(('MARIMO', 'XDG_'))}
    env |= {'HOME': str(tmp_path), 'MARIMO_SKIP_UPDATE_CHECK': '1'}
    words = f'-m marimo {command} notebook.py --headless --no-token --port={port}'.split()
    with log.open('w') as file:
        streams = dict(stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        process = subprocess.Popen([sys.executable, *words], cwd=tmp_path, env=env, **streams)
    try:
        wait_for(lambda: answers(port), why=log.read_text)
        pad = page.locator('.digit-pad')
        for _ in range(3):  # marimo does not connect anew where a container of another test has broken its connection
            visit(page, f'http://127.0.0.1:{port}')
            with contextlib.suppress(TimeoutError):
                pad.get_by_role('status').filter(has_text='Draw a digit here').wait_for(timeout=30000)
                break
        says(pad, 'Draw a digit here')
        # The event stays in marimo's shadow tree.
        pad.evaluate("pad => pad.addEventListener('digit', event => digits.push(event.detail.data))")
        (pixels,) = draw(pad, *ONE)
        says(pad, "Looks like 7. Sent to this widget's data.")
        page.get_by_text(f'data = {[[float(value) for value in pixels]]}').wait_for()
    finally:
        process.terminate()
        process.wait(20)
