"""axe-core finds no fault in output/pad.html, nor in a notebook's exported page and the pad in it."""

import nbformat.v4
import numpy as np
from local_mode import run
from support import HTML, TUTORIAL, says

import chainer_mnist_single_machine as script
from digit_pad.page import write


def test_the_page_can_be_read_by_all(chromium, accessible, tmp_path):
    network, path = script.MLP(20), tmp_path / 'pad.html'
    write(network, path, images := np.eye(3, 784, dtype=np.float32), network(images).array)
    page = chromium.new_context(bypass_csp=True, viewport={'width': 390, 'height': 844}).new_page()
    page.goto(path.as_uri())
    says(page.locator('.digit-pad'), 'Draw a digit here')
    accessible(page)
    page.context.close()


def test_the_exported_notebook_can_be_read_by_all(page, accessible, tmp_path):
    """It has a title of its own, contrast, and links that differ from text, light and dark; so has the pad in it."""
    notebook = nbformat.read(TUTORIAL, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    for number, cell in enumerate(code, 1):
        cell.execution_count = number
        cell.outputs = [nbformat.v4.new_output('stream', text='AWS: http://127.0.0.1:1\n')]
    code[-2].outputs.append(nbformat.v4.new_output('display_data', {'text/html': HTML}))
    run.save(notebook, tmp_path / 'any.ipynb')
    page.goto((tmp_path / 'any.html').as_uri())
    assert page.title() == 'MNIST training and prediction with SageMaker Chainer'
    says(page.locator('.digit-pad'), 'Draw a digit here')
    accessible(page)
    page.emulate_media(color_scheme='dark')
    assert page.evaluate('getComputedStyle(document.body).backgroundColor') == 'rgb(17, 17, 17)'
