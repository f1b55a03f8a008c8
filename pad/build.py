"""This script joins the pad's sources into one file, input.html:

    python pad/build.py

A web server can serve the same pad unbuilt, as pad.html. package.json tells Node that scripts are modules.
"""

import pathlib
import re

PAD = pathlib.Path(__file__).parent


def build(folder=PAD):
    """Return the text of input.html, built from the sources in a folder."""

    def read(name):
        return (folder / name).read_text(encoding='ascii')  # a notebook's open() may use any encoding

    # Join the modules in one function, without `export` and imports, which stand on lines of their own.
    modules = '\n'.join(read(name) for name in ('raster.js', 'kernel.js', 'pad.js'))
    script = re.sub(r'^(import .*\n|export )', '', modules, flags=re.MULTILINE)
    page = read('pad.html')
    page = page.replace('<link rel="stylesheet" href="pad.css">', f'<style>\n{read("pad.css")}</style>')
    page = page.replace(
        '<script type="module" src="pad.js"></script>',
        f"<script>\n(() => {{\n'use strict';\n\n{script}}})();\n</script>",
    )
    return f'<!-- Built by pad/build.py: change the files in pad/. -->\n{page}'


if __name__ == '__main__':
    (PAD.parent / 'input.html').write_text(build(), encoding='ascii', newline='\n')
