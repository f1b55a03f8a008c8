"""local_mode.run executes notebooks and reports failures, here without Docker."""

import ast
import html
import json
import os
import re
import signal
import subprocess
import sys

import nbclient
import nbformat
import pytest
from local_mode import run
from support import HTML, ROOT, TUTORIAL, python, read_until, run_raster


@pytest.mark.parametrize('path', sorted((ROOT / 'notebooks').glob('*.ipynb')), ids=lambda path: path.stem)
def test_the_notebook_in_the_repository_holds_no_output(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(c.get('outputs') or c.get('execution_count') for c in notebook.cells)


CELLS = """
import os
import numpy as np
class predictor:
    delete_model = delete_endpoint = staticmethod(lambda: print('deleted'))
    predict = staticmethod(lambda images: [[images.sum()] + [0.0] * 9])
os.chdir('..')
"""


def cells(*parts):
    """Return a notebook of CELLS and the tutorial's cells that contain these texts."""
    sources = [c.source for part in parts for c in nbformat.read(TUTORIAL, 4).cells if part in c.source]
    assert len(sources) == len(parts)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (CELLS, *sources)])


def execute(notebook, **options):
    """Execute a notebook in the tutorial's directory, as JupyterLab would."""
    resources = {'metadata': {'path': str(TUTORIAL.parent)}}
    nbclient.NotebookClient(notebook, kernel_name='python3', resources=resources).execute(**options)


PAD, CLEAN_UP = "HTML(open('input.html')", 'predictor.delete_endpoint()'


def test_all_cells_leave_the_endpoint_until_a_digit_is_drawn():
    notebook = cells(PAD, CLEAN_UP, CLEAN_UP)
    notebook.cells.insert(3, nbformat.v4.new_code_cell('data[0][400] = 1.0'))
    execute(notebook)
    said = notebook.cells[2].outputs[0].text
    assert said.startswith('Nothing is drawn yet') and said.endswith('\n\npredictor.delete_endpoint()\n')
    assert notebook.cells[4].outputs[0].text == 'deleted\ndeleted\nThe model and the endpoint are deleted.\n'


@pytest.mark.slow
def test_ctrl_c_says_that_it_stopped(tmp_path):
    """Terminals send SIGINT to all of their processes; the kernel has a session of its own."""
    cell = nbformat.v4.new_code_cell("print('now'); import time; time.sleep(100)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / 'long.ipynb')
    command = [sys.executable, '-m', 'local_mode.run', 'long.ipynb']
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, cwd=tmp_path, **streams)
    read_until(process, 'now')
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1].strip().endswith('Stopped.') and process.returncode == 130


@pytest.mark.slow
def test_the_first_cell_says_nothing_that_looks_like_trouble():
    """This runs in a kernel like a reader's; one of `make run` already has local_mode's settings."""
    notebook = cells('open_session()')
    del notebook.cells[0]
    env = {name: value for name, value in os.environ.items() if not name.startswith('SAGEMAKER')}
    execute(notebook, env=env)
    assert {output.name for output in notebook.cells[0].outputs} == {'stdout'}
    lines = ''.join(output.text for output in notebook.cells[0].outputs).splitlines()
    assert [line.split()[0] for line in lines] == ['AWS:', 'Role:']


def test_an_unattended_run_draws_a_digit(tmp_path, monkeypatch):
    """Its pixels equal the pad's; the saved page shows the digit, and the clean-up deletes the endpoint."""
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'input.html').write_text(HTML)
    notebook = cells(PAD, CLEAN_UP)
    notebook.cells.append(nbformat.v4.new_code_cell('print(data)'))
    nbformat.write(notebook, tmp_path / 'sub' / 'drawn.ipynb')
    monkeypatch.chdir(tmp_path)
    assert run.main(tmp_path / 'sub' / 'drawn.ipynb') == 0
    _, pad, clean_up, data = nbformat.read(tmp_path / 'output' / 'drawn.ipynb', as_version=4).cells
    assert clean_up.outputs[0].text == 'deleted\ndeleted\nThe model and the endpoint are deleted.\n'
    drawn = json.loads(html.unescape(re.search("data-drawn='(.*?)'", pad.outputs[0].data['text/html'])[1]))
    (pixels,) = ast.literal_eval(data.outputs[0].text)
    assert run_raster(f'rasterise({drawn["strokes"]})') == pytest.approx(pixels, abs=2e-4)
    assert drawn['answer'] == pytest.approx([sum(pixels)] + [0] * 9, rel=1e-5) and sum(pixels) > 50


@pytest.mark.slow
def test_no_other_user_can_read_what_a_kernel_prints(tmp_path, monkeypatch):
    """Its channels are sockets in a directory of this user, and not ports."""
    code = """import ipykernel, json, os
with open(ipykernel.get_connection_file()) as file:
    info = json.load(file)
directory = os.path.dirname(info['ip'])
print(info['transport'], len(os.listdir(directory)), oct(os.stat(directory).st_mode & 0o777))"""
    cells = [nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / 'sockets.ipynb')
    monkeypatch.chdir(tmp_path)
    assert run.main(tmp_path / 'sockets.ipynb') == 0
    (cell,) = nbformat.read(tmp_path / 'output' / 'sockets.ipynb', as_version=4).cells
    assert cell.outputs[0].text == 'ipc 6 0o700\n'  # five sockets and the file that names them


@pytest.mark.slow
@pytest.mark.parametrize('answer', ['[[np.nan] * 10]', '[1.0, 2.0]', '1 / 0', '"0123456789"'])
def test_a_drawing_without_ten_scores_is_kept_without_bars(tmp_path, monkeypatch, answer):
    (tmp_path / 'input.html').write_text(HTML)
    notebook = cells(PAD)
    notebook.cells[0].source += f'predictor.predict = lambda images: {answer}\nos.chdir({str(tmp_path)!r})'
    nbformat.write(notebook, tmp_path / 'drawn.ipynb')
    monkeypatch.chdir(tmp_path)
    assert run.main(tmp_path / 'drawn.ipynb') == 0
    assert '"answer": null' in (tmp_path / 'output' / 'drawn.html').read_text()


def test_a_failing_cell_is_reported_and_the_rest_is_kept(tmp_path, monkeypatch, capsys):
    cells = [nbformat.v4.new_code_cell(code) for code in ('print("before")', '1 / 0', 'print("after")')]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# A stage'), *cells])
    nbformat.write(notebook, tmp_path / 'broken.ipynb')
    monkeypatch.chdir(tmp_path)
    assert run.main(tmp_path / 'broken.ipynb') == 1
    assert 'ZeroDivisionError' in capsys.readouterr().err
    kept = nbformat.read(tmp_path / 'output' / 'broken.ipynb', as_version=4)
    assert kept.cells[1].outputs[0].text == 'before\n'
    assert (tmp_path / 'output' / 'broken.html').exists()


@pytest.mark.slow
def test_the_reason_of_a_failure_is_the_last_that_the_terminal_shows(tmp_path):
    """Also once the SDK's dependency has replaced IPython's tracebacks by its own."""
    cells = [nbformat.v4.new_code_cell(code) for code in ('import sagemaker', 'raise OSError("the reason why")')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / 'broken.ipynb')
    done = python('-m', 'local_mode.run', tmp_path / 'broken.ipynb', cwd=tmp_path, stderr=subprocess.STDOUT)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith('OSError: the reason why')


REFUSED = """
from local_mode import open_session
from sagemaker.chainer.estimator import Chainer
open('script.py', 'w').close()
session = open_session(embedded=True)
options = dict(role='arn:aws:iam::123456789012:role/any', instance_count=1, instance_type='local', image_uri='none')
"""


@pytest.mark.slow
def test_a_notebook_shows_the_reason_as_a_paragraph(tmp_path, monkeypatch):
    """Neither a traceback through the SDK, nor its link to AWS's troubleshooting."""
    monkeypatch.setenv('LOCAL_MODE', 'process')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.chdir(tmp_path)
    fit = "%%time\nChainer('script.py', sagemaker_session=session, **options).fit()"
    cells = [nbformat.v4.new_code_cell(code) for code in (REFUSED, fit, '1 / 0')]
    for kept in cells[:2], cells[::2]:
        nbformat.write(nbformat.v4.new_notebook(cells=kept), tmp_path / 'refused.ipynb')
        assert run.main(tmp_path / 'refused.ipynb') == 1
        outputs = nbformat.read(tmp_path / 'output' / 'refused.ipynb', as_version=4).cells[1].outputs
        if kept[1].source == fit:
            assert [output.output_type for output in outputs if output.get('name') != 'stdout'] == ['error']
            (error,) = [output for output in outputs if output.output_type == 'error']
            assert error.traceback == [f'EngineError: {error.evalue}'] and 'not none.' in error.evalue
        else:
            assert 'ZeroDivisionError' in str(outputs)  # as it was
