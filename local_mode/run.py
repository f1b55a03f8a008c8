"""This module runs a notebook unattended, by default the tutorial: `python -m local_mode.run [NOTEBOOK]`.

It writes the notebook to output/ in the current directory, as .ipynb and .html, also if a cell fails (exit status 1).
It prints what the cells print, then how long each stage took and, last, why it failed. It draws a digit on a pad.
"""

import html
import json
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

import nbclient
import nbconvert
import nbformat
import numpy as np
import traitlets
from jupyter_client.utils import ensure_async
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor
from traitlets.config import Config

from digit_pad import hand, raster, ways

PAD = 'class="digit-pad"'
# The notebook computes this: the predictor's scores for data. The pad's kernel.js asks for the same.
NUMPY = '__import__("numpy")'
PREDICT = f'{NUMPY}.asarray(predictor.predict({NUMPY}.array(data, "float32")), float).ravel().tolist()'
NOTEBOOK = pathlib.Path('notebooks', 'chainer_mnist_local_mode.ipynb')
HEADING = re.compile(r'^#+ (.*)', re.MULTILINE)
# In nbconvert's page prompts and comments are too pale, links look like text, and there is no dark theme.
STYLE = """<style>
:root { --jp-cell-prompt-not-active-font-color: #707070; --jp-cell-prompt-not-active-opacity: 1;
  --jp-mirror-editor-comment-color: #357070; --jp-mirror-editor-operator-color: #90d;
  --jp-mirror-editor-number-color: #070; }
.jp-RenderedMarkdown pre { font-family: var(--jp-code-font-family); font-size: var(--jp-code-font-size); }
.jp-RenderedHTMLCommon a:link { text-decoration: underline; }
@media (prefers-color-scheme: dark) { DARK
:root { --jp-cell-prompt-not-active-font-color: #aaa;
  --jp-mirror-editor-comment-color: #6bb; --jp-mirror-editor-operator-color: #c8f;
  --jp-mirror-editor-number-color: #6b6; }
.jp-RenderedImage img { background: #fff; } }
</style>
"""


class Client(nbclient.NotebookClient):
    """A NotebookClient that shows the cells' text as it comes, and times the stages."""

    stage = ''
    stages: Any = traitlets.Dict()  # {stage: seconds}

    async def async_execute_cell(self, cell: Any, cell_index: int, **kwargs: Any) -> Any:  # type: ignore[override]
        if cell.cell_type == 'code':
            if self.stage not in self.stages:
                print(f'\n== {self.stage}', flush=True)
        elif cell.cell_type == 'markdown' and (heading := HEADING.search(cell.source)):
            self.stage = heading[1]
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

    async def draw(self) -> dict[str, Any]:
        """Draw a digit into data, and ask the endpoint, as the pad does; return the strokes, and ten scores or None."""
        [[drawing], _] = hand.drawings(1, 0, {3: ways.WAYS[3]})
        strokes = [np.round(stroke, 1).tolist() for stroke in drawing]
        pixels = [round(pixel, 4) for pixel in raster.rasterise([strokes])[0].tolist()]
        kernel: Any = self.kc
        options: Any = dict(silent=True, user_expressions={'answer': PREDICT}, reply=True, timeout=60)
        sent = kernel.execute(f'data = [{pixels}]', **options)
        answer = (await ensure_async(sent))['content']['user_expressions']['answer']
        try:
            scores = json.loads(answer['data']['text/plain'])
        except (KeyError, ValueError):  # there is no predictor, it failed, or it answers NaN
            scores = None
        return {'strokes': strokes, 'answer': scores if np.shape(scores) == (10,) else None}

    def output(self, outs: Any, msg: Any, display_id: Any, cell_index: int) -> Any:
        if msg['msg_type'] == 'stream':
            print(msg['content']['text'], end='', flush=True)
        return super().output(outs, msg, display_id, cell_index)


def main(path: pathlib.Path = NOTEBOOK, output: pathlib.Path = pathlib.Path('output')) -> int:
    """Execute a notebook, save it in a directory, and report; return the exit status."""
    start = time.monotonic()
    notebook = nbformat.read(path, as_version=4)
    resources = {'metadata': {'path': str(path.absolute().parent)}}
    failure = ''
    directory = tempfile.TemporaryDirectory(prefix='chainer-mnist-local-mode-', dir='/tmp')  # a socket's path is short
    # Not ports: whoever connects to a kernel's reads all that it prints.
    own = Config(KernelManager={'transport': 'ipc', 'connection_file': f'{directory.name}/kernel.json'})
    client = Client(notebook, timeout=None, kernel_name='python3', resources=resources, config=own)
    try:
        with directory:
            client.execute()
    except Exception as e:
        if getattr(client, '_async_cleanup_kernel_future', None):  # Ctrl-C, or SIGTERM: nbclient ends the kernel
            print('\nStopped.', file=sys.stderr)
            return 130
        if not isinstance(e, nbclient.exceptions.CellExecutionError):
            raise
        print(e, file=sys.stderr)
        failure = f'{e.ename}: {e.evalue}'
    finally:
        saved = save(notebook, output / path.name)
    report(client.stages, time.monotonic() - start)
    print(f'\n{saved}\n{saved.with_suffix(".html")}', flush=True)
    if failure:  # last: the SDK's dependency rich has tracebacks end in boxes, and nbclient shows none of it
        print(f'\nThe notebook failed in "{client.stage}". {failure}', file=sys.stderr)
    return bool(failure)


def save(notebook: nbformat.NotebookNode, path: pathlib.Path) -> pathlib.Path:
    """Write a notebook to this path, and as a page beside it; return the path, absolute."""
    # Adjacent outputs of a stream become one, without text that a progress bar has overwritten.
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    # A page that asks no other server. No cell has formulas or needs RequireJS.
    exporter = nbconvert.HTMLExporter(mathjax_url='', require_js_url='', jquery_url='')
    texts = [cell.source for cell in notebook.cells if cell.cell_type == 'markdown']
    title = next((match[1] for text in texts if (match := HEADING.search(text))), path.stem)
    page, _ = exporter.from_notebook_node(notebook, {'metadata': {'name': title}})
    themes = (f for folder in exporter.template_paths for f in pathlib.Path(folder).glob('static/theme-dark.css'))
    style = STYLE.replace('DARK', next(themes).read_text())
    path.with_suffix('.html').write_text(page.replace('</head>', f'{style}</head>', 1), encoding='utf-8')
    return path.absolute()


def report(stages: dict[str, float], total: float) -> None:
    """Print how long each stage took."""
    print('\n{:<44} seconds'.format('stage'))
    for stage, seconds in stages.items():
        if seconds >= 0.05:
            print(f'{stage:<44} {seconds:7.1f}')
    print('{:<44} {:7.1f}'.format('in all, with start and end of the kernel', total))


if __name__ == '__main__':
    sys.exit(main(*map(pathlib.Path, sys.argv[1:])))
