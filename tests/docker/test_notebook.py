"""The notebooks succeed in `make run`, show the expected output and leave nothing behind."""

import os
import re

import nbformat
import pytest
from support import ROOT, TUTORIAL, ours, python


def executed(path, **options):
    """Run a notebook; return (its printed output, the executed notebook)."""
    done = python('-m', 'local_mode.run', path, **options)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    return done.stdout, nbformat.read(options.get('cwd', ROOT) / 'output' / path.name, as_version=4)


@pytest.fixture(scope='module')
def tutorial(tmp_path_factory):
    """Run the tutorial from a directory that is not its own."""
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    printed, notebook = executed(TUTORIAL, cwd=elsewhere, env=os.environ | {'PYTHONPATH': str(ROOT)})
    return printed, notebook, (elsewhere / 'output' / TUTORIAL.with_suffix('.html').name).read_text('utf-8')


@pytest.fixture
def printed(tutorial):
    return tutorial[0]


@pytest.fixture
def notebook(tutorial):
    return tutorial[1]


def outputs(notebook, source):
    """Return the outputs of the cell that contains a text."""
    (cell,) = [c for c in notebook.cells if c.cell_type == 'code' and source in c.source]
    return cell.outputs


def text(notebook, source):
    found = outputs(notebook, source)
    return ''.join(o.get('text', '') + o.get('data', {}).get('text/plain', '') for o in found)


def images(notebook, source):
    return [o.data['image/png'] for o in outputs(notebook, source) if 'image/png' in o.get('data', {})]


def accuracy(log):
    """Return the test accuracy after three epochs."""
    return float(re.findall(r'3 +[\d.]+ +[\d.]+ +[\d.]+ +([\d.]+)', log)[-1])


def test_every_cell_ran(notebook):
    assert all(c.execution_count for c in notebook.cells if c.cell_type == 'code')


def test_the_accuracy_after_three_epochs(notebook):
    log = text(notebook, '.fit(')
    epochs = re.findall(r'(\d)( +\d+\.\d+){4} +(\d+\.\d+)', log)
    assert [epoch[0] for epoch in epochs] == ['1', '2', '3'] and accuracy(log) >= 0.97


def test_five_predictions(notebook):
    lines = text(notebook, "print('The predicted labels are:'").splitlines()
    labels, predicted = (re.findall(r'\d', line.split(':')[1]) for line in lines)
    assert len(labels) == len(predicted) == 5
    assert sum(a == b for a, b in zip(labels, predicted)) >= 4
    assert len(images(notebook, 'num_samples = 5')) == 1


def test_the_plots_are_shown(notebook):
    plots = images(notebook, "'accuracy.png', 'loss.png'")
    assert len(plots) == len(set(plots)) == 2


def test_the_endpoint_reads_what_an_unattended_run_draws(notebook):
    assert 'What you wrote is: 3' in text(notebook, 'What you wrote is')
    (pad,) = outputs(notebook, "HTML(open('input.html')")
    assert re.search(r'data-drawn=.*answer&quot;: \[-?\d', pad.data['text/html'])


def test_drawings_are_trained_on(notebook):
    assert 'Training on 100000 images, testing on 10000, 3 epochs' in text(notebook, '.fit(')


def test_the_heart_of_the_script_is_shown(notebook):
    (output,) = outputs(notebook, 'inspect.getsource')
    assert all(name in output.data['text/markdown'] for name in ('class MLP', 'def model_fn', 'def train'))


def test_nothing_is_printed_that_looks_like_trouble(printed, notebook):
    streams = [o for c in notebook.cells for o in c.get('outputs', []) if o.output_type == 'stream']
    assert {o.name for o in streams} == {'stdout'} and '\x1b' not in printed
    assert 'not found' not in ''.join(o.text for o in streams)
    lines = text(notebook, '.fit(').splitlines()
    assert [line.split()[0] for line in lines[:5]] == ['Training', 'epoch', '1', '2', '3']
    assert re.match(r'The endpoint \S+ answers on port \d+\.\nCPU times', text(notebook, '.deploy('))
    assert text(notebook, 'delete_endpoint') == 'The model and the endpoint are deleted.\n'
    assert re.search(r'\[#+\.+\] epoch 2 of 3, batch \d+ of 781, accuracy of the batch [01]\.\d+, \d+ s left', printed)


def test_html_and_timings(printed, notebook, tutorial):
    html = tutorial[2]
    assert not re.search(r'<(script|link)[^>]* (src|href)="?http', html)  # it asks no other server
    assert (ROOT / 'output' / 'pad.html').stat().st_size > 1_000_000
    assert 'MNIST training and prediction' in html and 'digit-pad' in html
    assert 'elapsed_time' in text(notebook, '.fit(') and 'Wall time' in text(notebook, '.deploy(')
    assert re.search(r'^Deploy +[\d.]+$', printed, re.MULTILINE)


def test_no_secret_and_no_path_of_this_machine_is_kept(notebook):
    code = nbformat.writes(notebook)
    assert 'AWS_SECRET' not in code and 'aws_secret' not in code and str(ROOT) not in code


def test_nothing_is_left(tutorial):
    assert ours()[0] == []


def test_two_hosts():
    _, notebook = executed(ROOT / 'notebooks' / 'chainer_mnist_two_hosts.ipynb')
    log = text(notebook, '.fit(')
    assert 'Training on 60000 images, testing on 10000, 3 epochs, 2 processes' in log
    assert accuracy(log) >= 0.98
    assert ours()[0] == []
