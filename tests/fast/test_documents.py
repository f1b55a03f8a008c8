"""The documents' links and commands exist, and README and the script keep their limits of length."""

import argparse
import json
import os
import re
import urllib.parse

import numpy as np
import pytest
from support import ROOT, TUTORIAL

ELSEWHERE = re.compile(r'(\.|output/|.*/build/)')  # not ours, or made
DOCUMENTS = [path for path in sorted(ROOT.rglob('*.md')) if not ELSEWHERE.match(str(path.relative_to(ROOT)))]


def anchors(path):
    """Return the anchors that GitHub makes from a document's headings."""
    headings = re.findall(r'^#+ (.*)', path.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = re.sub(r'^(```|    ).*?(^```|$)', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r'\]\(([^)\s]+)\)|(?:src|srcset)="([^"]+)"', text)
    for target in (urllib.parse.unquote(a or b) for a, b in targets):
        file, _, anchor = target.partition('#')
        if ':' in file:
            continue  # the web, which a test does not ask
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_no_document_holds_both_sides_of_a_merge():
    for path in DOCUMENTS:
        assert not re.search('^(<<<<<<<|>>>>>>>) ', path.read_text(), re.MULTILINE), path


def test_readme_can_be_read_to_the_end():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 120


def test_the_script_can_be_read_to_the_end():
    assert len((ROOT / 'chainer_mnist_single_machine.py').read_text().splitlines()) <= 150


def test_every_command_that_a_document_names_is_in_the_makefile():
    commands = set(re.findall(r'^([a-z0-9 -]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    commands = {name for line in commands for name in line.split()}
    for path in DOCUMENTS:
        named = re.findall(r'(?:`|^    |^)make ([a-z0-9-]+)', path.read_text(), re.MULTILINE)
        assert {*named} <= commands, path


def test_everything_that_python_is_told_to_run_is_there():
    for path in DOCUMENTS:
        for module in re.findall(r'python -m ((?:benchmarks|local_mode)\.\w+)', path.read_text()):
            assert (ROOT / (module.replace('.', '/') + '.py')).exists(), (path, module)


def test_the_notebooks_examples_work(monkeypatch):
    cells = json.loads(TUTORIAL.read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')
    arguments, request = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    for name in 'CHANNEL_TRAIN', 'MODEL_DIR':
        monkeypatch.setenv(f'SM_{name}', f'/{name}')
    monkeypatch.setattr('sys.argv', ['script.py', '--epochs', '3'])
    names = {'__name__': '__main__', 'argparse': argparse, 'os': os, 'np': np}
    exec(arguments + request, names)
    assert vars(names['args']) == dict(epochs=3, train='/CHANNEL_TRAIN', model_dir='/MODEL_DIR')
    images = names['input_fn'](bytes([0, 255] * 784), 'application/octet-stream')
    assert images.shape == (2, 784) and images.dtype == np.float32 and images.max() == 1
