"""digit_pad gives the same pixels in Python as in the browser, and the statistics of MNIST."""

import json
import math

import numpy as np
import pytest
from support import centre, run_raster, sides

from digit_pad import hand
from digit_pad.raster import SIZE, rasterise
from digit_pad.ways import SIGNS, WAYS

AWKWARD = [
    [],
    [[]],
    [[[3, 277]]],  # a dot
    [[[140, 140], [140, 140], [141, 140]]],
    [[[40, 60], [200, 60]], []],
    [[[270, 0], [0, 150], [279, 300]]],  # partly off the pad
    [[[20, 20], [20, 260], [260, 260], [20, 260], [250, 250], [20, 250]]],  # its box meets the image's edge
]


@pytest.fixture(scope='module')
def many():
    return hand.drawings(1000, seed=2)


def test_pixels_are_those_of_the_pad(many):
    """The pixels of any drawing equal the pad's within 0.0001, to which the pad rounds."""
    strokes = [[stroke.tolist() for stroke in drawing] for drawing in many[0]] + AWKWARD
    there = np.array(run_raster(f'{json.dumps(strokes)}.map(rasterise)'))
    here = rasterise(strokes)
    assert here.dtype == np.float32 and here.shape == there.shape == (1007, 784)
    assert abs(here - there).max() <= 0.00006


def test_drawings_have_the_statistics_of_mnist(many):
    """In MNIST's training images the longer side is 20 pixels, the centre of mass 14 before rounding
    to whole pixels, mean ink 0.131, and 29 % of the inked pixels are white (0.99 or more). Drawings have
    more ink, and more of it white: MNIST has no slashed zeros and few filled loops."""
    images = rasterise(many[0]).reshape(-1, 28, 28)
    assert {max(sides(image, above=0)) for image in images} == {20}
    centres = np.array([centre(image) for image in images])
    assert abs(centres - 14).max() < 0.52
    assert centres.mean(0) == pytest.approx([14, 14], abs=0.05)
    assert images.mean() == pytest.approx(0.131, abs=0.018)
    assert (images >= 0.99).sum() / (images > 0).sum() == pytest.approx(0.29, abs=0.03)


def test_every_digit_is_written_as_often_and_no_two_alike(many):
    strokes, digits = many
    assert digits.dtype == np.int32 and np.bincount(digits).tolist() == [100] * 10
    assert digits.tolist() != sorted(digits)
    assert len(np.unique(rasterise(strokes), axis=0)) == 1000
    points = np.concatenate([stroke for drawing in strokes for stroke in drawing])
    assert points.min() >= 0 and points.max() <= SIZE


def test_a_seed_gives_the_same_drawings(many):
    again, digits = hand.drawings(1000, seed=2)
    assert (rasterise(again) == rasterise(many[0])).all() and (digits == many[1]).all()
    assert (hand.drawings(1000, seed=3)[1] != digits).any()


@pytest.mark.parametrize('digit', [*WAYS, None])
def test_each_way_is_a_skeleton_within_the_square(digit):
    families = hand.parts(SIGNS if digit is None else WAYS[digit])
    assert sum(math.prod(map(len, family)) for family in families) >= 20
    for family in families:
        least = 0
        for row in family:
            points = [table[table[:, hand.KIND] == 0, hand.POINT] for table in map(hand.parse, row)]
            assert all(table.min(initial=0) >= 0 and table.max(initial=1) <= 1 for table in points)
            least += min(map(len, points))
        assert least >= 2


def test_a_digit_has_thousands_of_ways():
    """The parts of a family combine; a list of whole ways had 167 of them."""
    ways = [math.prod(map(len, family)) for text in WAYS.values() for family in hand.parts(text)]
    assert sum(ways) > 10_000


def test_drawings_that_are_no_digit_have_any_label():
    """With a third of them, the other drawings and all labels stay as they are, and no two drawings are alike."""
    strokes, digits = hand.drawings(300, seed=4)
    mixed, labels = hand.drawings(300, seed=4, no_digit=0.33)
    assert (labels == digits).all()
    assert len(np.unique(rasterise(mixed), axis=0)) == 300
    assert [[len(stroke) for stroke in drawing] for drawing in mixed] != [[len(s) for s in d] for d in strokes]
