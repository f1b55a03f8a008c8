"""The package digit_pad in other projects: without this checkout and, but for the widget, anywidget."""

import os
import shutil

from support import HTML, ROOT, python

USED = """
import sys
sys.modules['anywidget'] = None  # as where it is not installed
import chainer
import digit_pad
from digit_pad import build, hand, page, raster
strokes, digits = hand.drawings(10, 0)
images = raster.rasterise(strokes)
network = chainer.links.Linear(784, 10)
page.write(network, 'pad.html', images, images @ network.W.array.T)
assert build.build() in open('pad.html').read()
try:
    digit_pad.DigitPad
except ImportError:
    del sys.modules['anywidget']
from digit_pad import DigitPad
assert DigitPad()._html == build.build()
print(DigitPad.__module__, digit_pad.__file__)
"""


def test_it_works_where_it_is_installed(tmp_path):
    ignore = shutil.ignore_patterns('__pycache__')
    package = shutil.copytree(ROOT / 'digit_pad', tmp_path / 'digit_pad', ignore=ignore)
    env = os.environ | {'PYTHONPATH': str(tmp_path)}
    done = python('-c', USED, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['digit_pad.widget', str(package / '__init__.py')]
    done = python('-m', 'digit_pad.build', cwd=tmp_path, env=env)
    assert done.returncode == 0 and (tmp_path / 'input.html').read_text() == HTML
