"""This script joins the pad's sources in browser/ into one file, input.html, in the current directory:

    python -m digit_pad.build

A web server can serve the same pad unbuilt, as pad.html. package.json tells Node that scripts are modules.
"""

import pathlib
import re

BROWSER = pathlib.Path(__file__).parent / 'browser'


def build(folder: pathlib.Path = BROWSER) -> str:
    """Return the pad as HTML, from the sources in a folder."""

    def read(name: str) -> str:
        return (folder / name).read_text(encoding='ascii')  # a notebook's open() may use any encoding

    # Join the modules in one function, without `export` and imports, which stand on lines of their own.
    modules = '\n'.join(read(name) for name in ('raster.js', 'kernel.js', 'pad.js'))
    script = re.sub(r'^(import .*\n|export )', '', modules, flags=re.MULTILINE)
    page = read('pad.html')
    page = page.replace('<link rel="stylesheet" href="pad.css">', f'<style>\n{read("pad.css")}</style>')
    bundle = f"<script>\n(() => {{\n'use strict';\n\n{script}}})();\n</script>"
    page = page.replace('<script type="module" src="pad.js"></script>', bundle)
    return f'<!-- Built by python -m digit_pad.build: change the files in digit_pad/browser/. -->\n{page}'


if __name__ == '__main__':
    pathlib.Path('input.html').write_text(build(), encoding='ascii', newline='\n')
