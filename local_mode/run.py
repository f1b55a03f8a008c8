"""Run a notebook, by default the tutorial, without a person: `python -m local_mode.run [NOTEBOOK]`.

Writes it to output/ as .ipynb and .html, also where a cell fails (exit status 1),
and prints what the cells print, then how long each stage took. On a pad that a cell shows it draws a digit.
"""

import html
import json
import pathlib
import re
import sys
import time

import nbclient
import nbconvert
import nbformat
import numpy as np
from jupyter_client.utils import ensure_async
from local_mode import ROOT

from digit_pad import hand, raster, ways

PAD = 'class="digit-pad"'
# In the notebook: what predictor makes of data. The pad's kernel.js asks it, too.
PREDICT = (
    '__import__("numpy").asarray(predictor.predict(__import__("numpy").array(data, "float32")), float)'
    '.ravel().tolist()'
)
NOTEBOOK = ROOT / 'notebooks' / 'chainer_mnist_local_mode.ipynb'


class Client(nbclient.NotebookClient):
    """A NotebookClient that shows the cells' text as it comes, and times the stages."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.stage, self.stages = '', {}

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if cell.cell_type == 'markdown':
            heading = re.search(r'^#+ (.*)', cell.source, re.MULTILINE)
            if heading:
                self.stage = heading[1]
        elif cell.cell_type == 'code':
            print(f'\n== {self.stage}', flush=True)
        start = time.monotonic()
        try:
            executed = await super().async_execute_cell(cell, cell_index, **kwargs)
            for output in cell.get('outputs', []):
                if PAD in (page := output.get('data', {}).get('text/html', '')):
                    drawn = html.escape(json.dumps(await self.draw()))
                    output.data['text/html'] = page.replace(PAD, f"{PAD} data-drawn='{drawn}'")
            return executed
        finally:
            self.stages[self.stage] = self.stages.get(self.stage, 0) + time.monotonic() - start

    async def draw(self):
        """Do what a reader and the pad do: draw a digit, put it into the notebook's data, ask the endpoint.

        Returns what the pad in the saved page shows: strokes, and ten scores or None.
        """
        (way, *_) = hand.parse(ways.WAYS[3])
        strokes = [np.round(stroke, 1).tolist() for stroke in hand.write(way, np.random.default_rng(0))]
        pixels = [round(pixel, 4) for pixel in raster.rasterise([strokes])[0].tolist()]
        sent = self.kc.execute(
            f'data = [{pixels}]', silent=True, user_expressions={'answer': PREDICT}, reply=True, timeout=60
        )
        answer = (await ensure_async(sent))['content']['user_expressions']['answer']
        try:
            scores = json.loads(answer['data']['text/plain'])
        except (KeyError, ValueError):  # there is no predictor, it failed, or it answers NaN
            scores = None
        return {'strokes': strokes, 'answer': scores if np.shape(scores) == (10,) else None}

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
        client.execute()
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
        page, _ = exporter.from_notebook_node(notebook)
        output.with_suffix('.html').write_text(page, encoding='utf-8')
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
