"""This module copies the tables that a benchmark prints into a document."""

import contextlib
import datetime
import io
import pathlib
import platform
import sys

from local_mode.docker import image_uri

PAGE = pathlib.Path(__file__).resolve().parent.parent / 'docs' / 'performance.md'


@contextlib.contextmanager
def section(name, machine, page=PAGE):
    """Print as usual; at the end replace the text between the page's markers of this name by the output."""
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    assert begin in page.read_text().partition(end)[0], f'{page} has no markers of {name}'
    printed, write = io.StringIO(), sys.stdout.write
    printed.write = lambda text: io.StringIO.write(printed, text) and write(text)
    printed.flush = sys.stdout.flush
    with contextlib.redirect_stdout(printed):
        yield
    before, _, rest = page.read_text().partition(begin)
    where = f'{datetime.date.today()}, {machine.strip()}, Python {platform.python_version()}'
    new = f'{begin}\n{printed.getvalue().strip()}\n\n{where}, Chainer as in {image_uri("local")}\n'
    page.write_text(before + new + end + rest.partition(end)[2])
