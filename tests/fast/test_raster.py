"""input.html is built from its sources, and computes the right pixels, in Node without a browser."""

import json
import shutil

import numpy as np
import pytest
from support import HTML, centre, run_raster, sides

from digit_pad.build import BROWSER, build

WIDTH = 2.79  # of a stroke in MNIST, in pixels


def test_input_html_is_built_from_its_sources(tmp_path):
    """A change to any source changes the built file."""
    assert build() == HTML, 'python -m digit_pad.build'
    for source in 'pad.html', 'pad.css', 'raster.js', 'kernel.js', 'pad.js':
        folder = shutil.copytree(BROWSER, tmp_path / source)
        with (folder / source).open('a') as file:
            file.write('changed\n')
        assert build(folder) != HTML, source


def rasterise(*strokes):
    """Return the pad's image (28, 28) of strokes in its coordinates, 280 x 280."""
    pixels = run_raster(f'rasterise({json.dumps(strokes)})')
    assert len(pixels) == 784 and None not in pixels  # JSON's NaN
    assert all(0 <= pixel <= 1 for pixel in pixels)
    return np.reshape(pixels, (28, 28))


def arc(x, y, rx, ry, start=0, stop=360):
    angles = np.radians(np.linspace(start, stop, 60))
    return np.transpose([x + rx * np.cos(angles), y + ry * np.sin(angles)]).tolist()


def test_nothing_drawn_is_black():
    assert not rasterise().any()


@pytest.mark.parametrize('stroke', [[[3, 277]], [[140, 140], [140, 140], [141, 140]]])
def test_a_dot_is_a_small_blob(stroke):
    image = rasterise(stroke)
    assert 4 < image.sum() < 12 and max(sides(image)) <= 4
    assert centre(image) == pytest.approx((14, 14), abs=0.51)


@pytest.mark.parametrize(
    'strokes',
    [
        [[[40, 60], [200, 60]]],  # a horizontal line
        [[[30, 10], [31, 270]]],
        [[[100, 80], [140, 40], [140, 240]]],  # 1
        [arc(100, 180, 60, 80)],  # 0
        [arc(200, 60, 30, 30), arc(200, 120, 40, 30)],  # 8
        [[[60, 40], [220, 40], [110, 250]]],  # 7
        [[[150, 20], [60, 170], [230, 170]], [[190, 100], [190, 260]]],  # 4
        [[[270, 0], [0, 150], [279, 300]]],  # partly off the pad
    ],
)
def test_digits_have_mnist_size_place_and_stroke(strokes):
    image = rasterise(*strokes)
    assert max(sides(image, above=0)) == 20
    assert centre(image) == pytest.approx((14, 14), abs=0.51)
    length = sum(np.hypot(*np.diff(stroke, axis=0).T).sum() for stroke in map(np.array, strokes))
    scale = (20 - WIDTH) / max(np.ptp(np.concatenate(strokes), axis=0))
    assert image.sum() / (length * scale) == pytest.approx(WIDTH, abs=0.5)  # less at crossings, more at ends


def test_a_stroke_is_as_wide_as_in_mnist():
    angles = np.linspace(0, np.pi, 30)
    x, y = np.cos(angles), np.sin(angles)
    lines = [[[[140, 140], [140 + 100 * dx, 140 + 100 * dy]]] for dx, dy in zip(x, y)]
    ink = np.sum(run_raster(f'{json.dumps(lines)}.map(rasterise)'), axis=1)
    lengths = (20 - WIDTH) / np.maximum(abs(x), abs(y)) + np.pi / 4 * WIDTH  # the ends are two half discs
    widths = ink / lengths
    assert widths == pytest.approx([WIDTH] * 30, abs=0.15)
    assert np.mean(widths) == pytest.approx(WIDTH, abs=0.03)


def test_a_line_is_even_and_soft_at_its_edges():
    image = rasterise([[40, 60], [200, 60]])
    across = image[12:17, 7:21]
    assert (across == across[:, :1]).all()
    assert across[2, 0] == 1 and 0.6 < across[1, 0] == across[3, 0] < 0.9 and 0 < across[0, 0] == across[4, 0] < 0.3
    assert image[:12].max() == image[17:].max() == 0


def test_size_and_place_on_the_pad_do_not_count():
    stroke = np.array(arc(50, 60, 20, 35, 10, 300))
    assert abs(rasterise(stroke.tolist()) - rasterise((stroke * 2.5 + 30).tolist())).max() < 0.002


def test_no_ink_leaves_the_image():
    """Moving the centre of mass of this L to the middle would push its foot out of the image."""
    stroke = [[20, 20], [20, 260], [260, 260], [20, 260], [250, 250], [20, 250]]
    image = rasterise(stroke)
    assert sides(image, above=0) == sides(rasterise([[280 - x, 280 - y] for x, y in stroke]), above=0) == [20, 20]


def test_probabilities_of_scores():
    scores = [3.5, -2, 0, 1, 1000, 999, 2, 2, 2, 2]
    expected = np.exp(np.array(scores) - 1000)
    assert run_raster(f'probabilities({scores})') == pytest.approx(list(expected / expected.sum()))


def test_probabilities_stay_what_they_are():
    given = [0.02, 0.9, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.008]  # rounded
    assert run_raster(f'probabilities({given})') == given
    assert run_raster(f'probabilities({[given]})') == given


@pytest.mark.parametrize('answer', ['[1, 2]', '[1, 2, 3, 4, 5, 6, 7, 8, 9, NaN]', '"0123456789"', '{}'])
def test_what_is_not_ten_numbers_is_no_answer(answer):
    code = f'(() => {{ try {{ probabilities({answer}) }} catch ({{message}}) {{ return message }} }})()'
    assert run_raster(code) == 'The endpoint did not answer with ten numbers.'
