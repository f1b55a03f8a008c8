"""Notebooks without Docker: those in the repository, and one that fails."""

import os

import nbclient
import nbformat
import pytest
from local_mode import run
from support import ROOT, TUTORIAL


@pytest.mark.parametrize('path', sorted((ROOT / 'notebooks').glob('*.ipynb')), ids=lambda path: path.stem)
def test_the_notebook_in_the_repository_holds_no_output(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(c.get('outputs') or c.get('execution_count') for c in notebook.cells)


CELLS = """
import os
import numpy as np
class predictor:
    delete_model = delete_endpoint = staticmethod(lambda: print('deleted'))
data = [[0.0] * 784]
"""


@pytest.mark.parametrize('unattended', [False, True])
def test_all_cells_leave_the_endpoint_until_a_digit_is_drawn(unattended):
    (clean_up,) = [c for c in nbformat.read(TUTORIAL, 4).cells if 'predictor.delete_endpoint()' in c.source]
    sources = CELLS, clean_up.source, 'data[0][400] = 1.0', clean_up.source
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    env = {name: value for name, value in os.environ.items() if name != 'UNATTENDED'}
    nbclient.NotebookClient(notebook, kernel_name='python3').execute(
        env=env | {'UNATTENDED': '1'} if unattended else env
    )
    _, first, _, second = (''.join(o.text for o in cell.outputs) for cell in notebook.cells)
    assert first == 'deleted\ndeleted\n' if unattended else first.startswith('Nothing is drawn yet')
    assert second == 'deleted\ndeleted\n'


def test_a_failing_cell_is_reported_and_the_rest_is_kept(tmp_path, monkeypatch, capsys):
    cells = [nbformat.v4.new_code_cell(code) for code in ('print("before")', '1 / 0', 'print("after")')]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# A stage'), *cells])
    nbformat.write(notebook, tmp_path / 'broken.ipynb')
    monkeypatch.setattr(run, 'ROOT', tmp_path)
    assert run.main(tmp_path / 'broken.ipynb') == 1
    assert 'ZeroDivisionError' in capsys.readouterr().err
    kept = nbformat.read(tmp_path / 'output' / 'broken.ipynb', as_version=4)
    assert kept.cells[1].outputs[0].text == 'before\n'
    assert (tmp_path / 'output' / 'broken.html').exists()
