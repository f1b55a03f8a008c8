"""Notebooks without Docker: those in the repository, and one that fails."""

import nbformat
import pytest
from local_mode import run
from support import ROOT


@pytest.mark.parametrize('path', sorted((ROOT / 'notebooks').glob('*.ipynb')), ids=lambda path: path.stem)
def test_the_notebook_in_the_repository_holds_no_output(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(c.get('outputs') or c.get('execution_count') for c in notebook.cells)


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
