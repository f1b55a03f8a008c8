"""This package is a pad to draw digits on, for notebooks and pages, and a simulated hand that draws on it.

DigitPad: the pad as a widget; needs the package anywidget, which nothing else here does.
build: the pad as HTML. page: the pad with a trained network in it, as one file.
hand, ways: a generator of synthetic handwriting, as strokes. raster: the pad's pixels of strokes.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from digit_pad.widget import DigitPad

__all__ = ['DigitPad', 'build', 'hand', 'page', 'raster', 'ways']


def __getattr__(name: str) -> object:
    """Return DigitPad, and import anywidget for it only here."""
    if name != 'DigitPad':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from digit_pad.widget import DigitPad

    return DigitPad
