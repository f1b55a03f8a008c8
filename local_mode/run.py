"""Run a notebook, by default the tutorial, without a person: `python -m local_mode.run [NOTEBOOK]`.

Writes it to output/ as .ipynb and .html, also where a cell fails (exit status 1),
and prints what the cells print, then how long each stage took.
"""

import os
import pathlib
import re
import sys
import time

import nbclient
import nbconvert
import nbformat
from local_mode import ROOT

NOTEBOOK = ROOT / 'notebooks' / 'chainer_mnist_local_mode.ipynb'


class Client(nbclient.NotebookClient):
    """A NotebookClient that shows the cells' text as it comes, and times the stages."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.stages = {}

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if cell.cell_type == 'markdown':
            heading = re.search(r'^#+ (.*)', cell.source, re.MULTILINE)
            if heading:
                self.stage = heading[1]
        elif cell.cell_type == 'code':
            print(f'\n== {self.stage}', flush=True)
        start = time.monotonic()
        try:
            return await super().async_execute_cell(cell, cell_index, **kwargs)
        finally:
            self.stages[self.stage] = self.stages.get(self.stage, 0) + time.monotonic() - start

    def output(self, outs, msg, display_id, cell_index):
        if msg['msg_type'] == 'stream':
            print(msg['content']['text'], end='', flush=True)
        return super().output(outs, msg, display_id, cell_index)


def join(outputs):
    """Return outputs, adjacent ones of a stream as one, without what a progress bar has written over."""
    joined = []
    for output in outputs:
        if joined and output.output_type == 'stream' and joined[-1].get('name') == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == 'stream':
            output.text = re.sub(r'[^\n]*\r(?!\n)', '', output.text)
    return joined


def main(path=NOTEBOOK):
    """Execute, save, and report; return the exit status."""
    start = time.monotonic()
    notebook = nbformat.read(path, as_version=4)
    client = Client(
        notebook, timeout=None, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}
    )
    try:
        # Nobody will draw, so the notebook need not wait for that to clean up.
        client.execute(env={**os.environ, 'UNATTENDED': '1'})
        status = 0
    except nbclient.exceptions.CellExecutionError as e:
        print(e, file=sys.stderr)
        status = 1
    finally:
        for cell in notebook.cells:
            if cell.cell_type == 'code':
                cell.outputs = join(cell.outputs)
        output = ROOT / 'output' / path.name
        output.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, output)
        # A page that asks no other server. No cell has formulas or needs RequireJS.
        exporter = nbconvert.HTMLExporter(mathjax_url='', require_js_url='', jquery_url='')
        html, _ = exporter.from_notebook_node(notebook)
        output.with_suffix('.html').write_text(html, encoding='utf-8')
    total = time.monotonic() - start
    print('\n{:<44} seconds'.format('stage'))
    for stage, seconds in client.stages.items():
        if seconds >= 0.05:
            print(f'{stage:<44} {seconds:7.1f}')
    print('{:<44} {:7.1f}'.format('in all, with start and end of the kernel', total))
    print('\n{}\n{}'.format(output, output.with_suffix('.html')))
    return status


if __name__ == '__main__':
    sys.exit(main(*map(pathlib.Path, sys.argv[1:])))
