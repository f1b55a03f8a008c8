"""The notebook as a user runs it: `make run`, what it shows, and what it leaves behind."""

import os
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest

from local_mode.docker import LABEL, docker

pytestmark = pytest.mark.docker
ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
    """Run it from another directory than its own; return (what it printed, the notebook)."""
    done = subprocess.run(
        [sys.executable, '-m', 'local_mode.run'],
        cwd=tmp_path_factory.mktemp('elsewhere'),
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout, nbformat.read(ROOT / 'output' / 'chainer_mnist_local_mode.ipynb', as_version=4)


def text(notebook, source):
    """The text that the cell with this in its source has put out."""
    (cell,) = [c for c in notebook.cells if c.cell_type == 'code' and source in c.source]
    return ''.join(o.get('text', '') + o.get('data', {}).get('text/plain', '') for o in cell.outputs)


def images(notebook, source):
    (cell,) = [c for c in notebook.cells if c.cell_type == 'code' and source in c.source]
    return [o.data['image/png'] for o in cell.outputs if 'image/png' in o.get('data', {})]


def test_every_cell_ran(executed):
    _, notebook = executed
    assert all(c.execution_count for c in notebook.cells if c.cell_type == 'code')


def test_the_accuracy_after_three_epochs(executed):
    _, notebook = executed
    epochs = re.findall(r'(\d)( +\d+\.\d+){4} +(\d+\.\d+)', text(notebook, '.fit('))
    assert [e[0] for e in epochs] == ['1', '2', '3']
    accuracy = float(re.findall(r'3 +[\d.]+ +[\d.]+ +[\d.]+ +([\d.]+)', text(notebook, '.fit('))[-1])
    assert accuracy >= 0.97


def test_five_predictions(executed):
    _, notebook = executed
    labels, predicted = (
        re.findall(r'\d', line.split(':')[1])
        for line in text(notebook, "print('The predicted labels are:'").splitlines()
    )
    assert len(labels) == len(predicted) == 5
    assert sum(a == b for a, b in zip(labels, predicted)) >= 4
    assert len(images(notebook, 'num_samples = 5')) == 1


def test_the_plots_are_shown(executed):
    _, notebook = executed
    assert len(images(notebook, "'accuracy.png', 'loss.png'")) == 2
    assert len(set(images(notebook, "'accuracy.png', 'loss.png'"))) == 2


def test_the_blank_pad_does_not_stop_an_unattended_run(executed):
    _, notebook = executed
    assert 'What you wrote is: nothing yet' in text(notebook, 'What you wrote is')


def test_html_and_timings(executed):
    printed, notebook = executed
    html = (ROOT / 'output' / 'chainer_mnist_local_mode.html').read_text(encoding='utf-8')
    assert 'MNIST training and prediction' in html and 'digit-pad' in html
    assert 'Wall time' in text(notebook, '.fit(') and 'Wall time' in text(notebook, '.deploy(')
    assert re.search(r'^Deploy +[\d.]+$', printed, re.MULTILINE)


def test_no_secret_and_no_path_of_this_machine_is_kept(executed):
    _, notebook = executed
    code = nbformat.writes(notebook)
    assert 'AWS_SECRET' not in code and 'aws_secret' not in code and str(ROOT) not in code


def test_nothing_is_left(executed):
    assert docker('ps', '--all', '--quiet', '--filter', 'label=' + LABEL) == ''
    assert docker('ps', '--quiet', '--filter', 'publish=8080') == ''


def test_two_hosts():
    path = ROOT / 'notebooks' / 'chainer_mnist_two_hosts.ipynb'
    done = subprocess.run(
        [sys.executable, '-m', 'local_mode.run', path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    notebook = nbformat.read(ROOT / 'output' / path.name, as_version=4)
    log = text(notebook, '.fit(')
    assert 'Training on 60000 images, testing on 10000, 3 epochs, 2 processes' in log
    assert float(re.findall(r'3 +[\d.]+ +[\d.]+ +[\d.]+ +([\d.]+)', log)[-1]) >= 0.98
    assert docker('ps', '--all', '--quiet', '--filter', 'label=' + LABEL) == ''


@pytest.mark.parametrize('path', sorted((ROOT / 'notebooks').glob('*.ipynb')), ids=lambda path: path.stem)
def test_the_notebook_in_the_repository_holds_no_output(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(c.get('outputs') or c.get('execution_count') for c in notebook.cells)


def test_a_failing_cell_is_reported_and_the_rest_is_kept(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell('# A stage'),
            nbformat.v4.new_code_cell('print("before")'),
            nbformat.v4.new_code_cell('1 / 0'),
            nbformat.v4.new_code_cell('print("after")'),
        ]
    )
    nbformat.write(notebook, tmp_path / 'broken.ipynb')
    code = (
        'import pathlib, sys; from local_mode import run; p = pathlib.Path(sys.argv[1]); '
        'run.ROOT = p; sys.exit(run.main(p / "broken.ipynb"))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and 'ZeroDivisionError' in done.stderr
    kept = nbformat.read(tmp_path / 'output' / 'broken.ipynb', as_version=4)
    assert kept.cells[1].outputs[0].text == 'before\n'
    assert (tmp_path / 'output' / 'broken.html').exists()
