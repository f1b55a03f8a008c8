"""This module simulates a hand that draws digits on the pad, each time a little differently, many at once."""

import functools
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from digit_pad.raster import SIZE
from digit_pad.ways import SIGNS, WAYS

Points = NDArray[np.float64]  # (N, 2)
N = 40000  # drawings for the tutorial's training
NO_DIGIT = 0.06  # the share of them that show something else
CHUNK = 1000  # drawings at a time, which fit the processor's cache
FINE = 0.02  # distance of the points along which the pen moves, in squares of the size 1

Way = list[NDArray[np.float64]]  # tables of parse()
# The columns of such a table; a row is a point, or says that the pen turns a corner, or is lifted.
KIND, POINT, CENTRE, REACH, GROWTH, BEGINS = 0, slice(1, 3), slice(3, 5), slice(5, 7), 7, 8
TURN, LIFT = 1.0, 2.0  # of the column KIND
TOKEN = re.compile(r'[/+]|(?:\[(.*?)\]|([\d.,]+))(?:~([\d.,]+))?(?:\*([\d.]+))?')


def parts(text: str) -> list[list[list[str]]]:
    """Return a digit's families in ways.py: lists of rows, lists of alternatives."""
    families = (re.split(r'\n(?!\s*\|)', family.strip()) for family in re.split(r'\n\s*\n', text.strip()))
    return [[[part.strip() for part in row.split('|')] for row in family] for family in families]


@functools.cache
def parse(part: str) -> NDArray[np.float64]:
    """Return the table of a part, one alternative in ways.py: its points from 0 to 1, and how far they may move."""
    rows = []
    for token in TOKEN.finditer(part):
        points = np.array([xy.split(',') for xy in (token[1] or token[2] or '0,0').split()], float) / 100
        x, _, y = (token[3] or '0').partition(',')
        group = [*points.mean(axis=0), float(x) / 100, float(y or x) / 100, float(token[4] or 0)]
        kind = {'/': TURN, '+': LIFT}.get(token[0], 0)
        rows += [[kind, *point, *group, i == 0] for i, point in enumerate(points)]
    return np.array(rows).reshape(-1, 9)


def choose(families: list[list[list[str]]], rng: np.random.Generator) -> Way:
    """Return a way to write a digit: one part, at random, of each row of a family."""
    family = families[rng.integers(len(families))]
    return [*(parse(row[rng.integers(len(row))]) for row in family), parse('+')]


def write(ways: list[Way], rng: np.random.Generator) -> list[list[Points]]:
    """Return a drawing of each way, in a hand of its own: strokes, arrays (N, 2), in the pad's coordinates."""
    table = np.concatenate([part for way in ways for part in way])
    drawing = np.repeat(np.arange(len(ways)), [sum(map(len, way)) for way in ways])
    at, begins, corner = outline(table)
    table, drawing = table[at], drawing[at]
    points, stroke = smooth(vary(table, drawing, rng), begins, corner)
    drawing = drawing[begins]  # of each stroke
    kept = (np.diff(drawing, prepend=-1) > 0) | (rng.random(len(ways)) > 0.06)[drawing]  # else the pen stays down
    stroke, drawing = (np.cumsum(kept) - 1)[stroke], drawing[kept]
    points = bend(points, stroke, drawing, rng)
    points, stroke = trace(points, stroke, drawing, rng)
    points += rng.normal(0, 1, points.shape) * rng.gamma(1, 0.004, len(ways))[drawing[stroke], None]
    points = fit(slanted(points, drawing[stroke], rng), drawing[stroke], rng)
    strokes = np.split(points, np.flatnonzero(np.diff(stroke)) + 1)
    ends = np.flatnonzero(np.diff(drawing)) + 1
    return [strokes[a:b] for a, b in zip([0, *ends], [*ends, len(strokes)])]


def outline(table: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Return which rows of a table are points, which of these begin a stroke, and which end in a corner or a lift."""
    at = np.flatnonzero(table[:, KIND] == 0)
    after = np.maximum.reduceat(table[:, KIND], at)
    return at, np.append(True, after[:-1] == LIFT), after > 0


def vary(table: NDArray, drawing: NDArray, rng: np.random.Generator) -> Points:
    """Return a table's points, with their groups moved and resized, and each moved a little by an unsteady hand."""
    group = np.cumsum(table[:, BEGINS] > 0) - 1
    moved, size = (rng.uniform(-1, 1, (group[-1] + 1, n))[group] for n in (2, 1))
    grown = (table[:, POINT] - table[:, CENTRE]) * np.exp(size * table[:, GROWTH, None])
    points = table[:, CENTRE] + grown + moved * table[:, REACH]
    return points + rng.normal(0, 1, points.shape) * rng.gamma(2, 0.008, drawing[-1] + 1)[drawing, None]


def smooth(points: Points, begins: NDArray, corner: NDArray, n: int = 8) -> tuple[Points, NDArray]:
    """Return Catmull-Rom curves through points, n to each of them, and the stroke of each point of a curve."""
    stroke = np.cumsum(begins) - 1
    i = np.flatnonzero(np.diff(stroke) == 0)  # where a span begins
    b, c = points[i], points[i + 1]
    a = np.where((begins | corner)[i, None], 2 * b - c, points[i - 1])
    d = np.where(corner[i + 1, None], 2 * c - b, points[np.minimum(i + 2, len(points) - 1)])
    t = np.linspace(0, 1, n, endpoint=False)[:, None, None]
    between = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    ends = np.flatnonzero(np.diff(stroke[i], append=-1)) + 1
    curve = np.insert(between.swapaxes(0, 1).reshape(-1, 2), ends * n, c[ends - 1], axis=0)
    return curve, np.insert(np.repeat(stroke[i], n), ends * n, stroke[i[ends - 1]])


def bend(points: Points, stroke: NDArray, drawing: NDArray, rng: np.random.Generator) -> Points:
    """Return the points with other proportions of a digit's halves, waves, and strokes that do not quite meet."""
    of, n = drawing[stroke], drawing[-1] + 1
    points = points + rng.normal(0, 0.025, (len(drawing), 2))[stroke]
    power = np.exp(rng.normal(0, [0.12, 0.18], (n, 2)))[of]
    points = np.clip(points, 0, 1) ** power + np.minimum(points, 0) + np.maximum(points - 1, 0)
    wave = rng.normal(0, 0.02, (n, 2, 8))[of]  # of each axis, by the axis, sine or cosine, and frequency
    angles = np.pi * points[:, :, None] * [1, 2]
    return points + np.einsum('nab,nb->na', wave, np.concatenate([np.sin(angles), np.cos(angles)], 2).reshape(-1, 8))


def trace(points: Points, stroke: NDArray, drawing: NDArray, rng: np.random.Generator) -> tuple[Points, NDArray]:
    """Return the points that a pad gets of a pen on its way along others, and the stroke of each."""
    n = drawing[-1] + 1
    spacing = np.exp(rng.uniform(np.log(0.02), np.log(0.16), n))[drawing]
    rounding = np.maximum(0, rng.normal(0, 0.05, n))[drawing]  # the distance at which a quick pen cuts a corner
    step = np.hypot(*np.diff(points, axis=0, prepend=points[:1]).T)
    step[np.diff(stroke, prepend=0) > 0] = 10  # a gap between strokes
    along = np.cumsum(step)
    first = np.flatnonzero(np.diff(stroke, prepend=-1))
    start, length = along[first], along[np.append(first[1:], len(along)) - 1] - along[first]
    begin = length * np.clip(rng.normal(0, 0.02, len(length)), 0, 0.9)  # a stroke's ends may lack a little
    end = length * np.clip(rng.normal(1, 0.02, len(length)), 0.1, 1)
    counts = np.maximum(2, np.rint((end - begin) / FINE).astype(int))
    fine = resample(points, along, spread(start + begin, start + end, counts))
    fine = rounded(fine, counts, np.rint(rounding / FINE).astype(int))
    few = np.maximum(2, np.rint(counts * FINE / spacing).astype(int) + 1)
    low = np.cumsum(counts) - counts
    at, stroke = spread(low, low + counts - 1.0, few), np.repeat(np.arange(len(few)), few)
    inner = (np.diff(stroke, prepend=-1) == 0) & (np.diff(stroke, append=-1) == 0)
    at += inner * rng.normal(0, 0.25, len(at)) * ((counts - 1) / (few - 1))[stroke]  # a hand's speed varies
    at = np.sort(np.clip(at, low[stroke], (low + counts - 1)[stroke]))
    return flick(resample(fine, np.arange(len(fine)), at), stroke, rng)


def resample(points: Points, along: NDArray, at: NDArray) -> Points:
    return np.stack([np.interp(at, along, points[:, axis]) for axis in (0, 1)], axis=1)


def spread(low: NDArray, high: NDArray, counts: NDArray) -> NDArray:
    """Return, one after the other, `counts` numbers from low to high, evenly spaced."""
    i = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(low, counts) + i * np.repeat((high - low) / (counts - 1), counts)


def rounded(points: Points, counts: NDArray, n: NDArray) -> Points:
    """Return the means over 2n + 1 points of the same stroke, which goes on mirrored beyond its ends; these stay."""
    first = np.repeat(np.cumsum(counts) - counts, counts)
    last, n = first + np.repeat(counts - 1, counts), np.repeat(np.minimum(n, (counts - 1) // 2), counts)
    i, sums = np.arange(len(points)), np.concatenate([np.zeros((1, 2)), np.cumsum(points, axis=0)])
    before, after = np.maximum(0, n - i + first), np.maximum(0, n - last + i)  # how many points are mirrored
    total = sums[np.minimum(i + n, last) + 1] - sums[np.maximum(i - n, first)]
    total += 2 * before[:, None] * points[first] - sums[first + before + 1] + sums[first + 1]
    total += 2 * after[:, None] * points[last] - sums[last] + sums[last - after]
    return total / (2 * n + 1)[:, None]


def flick(points: Points, stroke: NDArray, rng: np.random.Generator) -> tuple[Points, NDArray]:
    """Return strokes some of which begin or end a little off: the pen touches down, or lifts, while it moves."""
    first, last = (np.flatnonzero(np.diff(stroke, **end)) for end in ({'prepend': -1}, {'append': stroke[-1] + 1}))
    chance = rng.random(len(first))
    index = np.concatenate([last[chance > 0.94], first[chance < 0.06]])  # at one place an end goes before a beginning
    where = index + (np.arange(len(index)) < (chance > 0.94).sum())
    extra = points[index] + rng.normal(0, 0.04, (len(index), 2))
    return np.insert(points, where, extra, axis=0), np.insert(stroke, where, stroke[index])


def slanted(points: Points, of: NDArray, rng: np.random.Generator) -> Points:
    """Return the points of each drawing turned, slanted and widened."""
    n = of[-1] + 1
    turn, slant, width = np.radians(rng.normal(0, 5, n)), rng.normal(0.08, 0.19, n), np.exp(rng.normal(-0.15, 0.25, n))
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.array([[cos * width, -cos * slant - sin], [sin * width, cos - sin * slant]])
    return np.einsum('abn,nb->na', matrix[:, :, of], points)


def fit(points: Points, of: NDArray, rng: np.random.Generator) -> Points:
    """Return the points of each drawing, in a size and at a place of its own, in the pad's coordinates."""
    first = np.flatnonzero(np.diff(of, prepend=-1))
    low, high = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)
    room = SIZE - 28  # a margin for the width of the ink
    size = (rng.uniform(0.3, 1, len(first)) * room / (high - low).max(axis=1))[:, None]
    corner = 14 + rng.uniform(0, 1, (len(first), 2)) * (room - size * (high - low))
    return (points - low[of]) * size[of] + corner[of]


def pair(left: Way, right: Way) -> Way:
    """Return a way to write two digits beside each other."""
    moved = [part.copy() for part in left + right]
    for i, part in enumerate(moved):
        part[:, [1, 3, 5]] = part[:, [1, 3, 5]] * 0.45 + (i >= len(left)) * np.array([0.55, 0.55, 0])
    return moved


def drawings(
    n: int, seed: int, ways: Mapping[int, str] = WAYS, no_digit: float = 0
) -> tuple[list[list[Points]], NDArray[np.int32]]:
    """Return n drawings of digits, lists of strokes, and the digits, int32 (n,), as often each.

    no_digit: the share of drawings that show something else. Their labels are random, so a network learns to doubt.
    """
    rng = np.random.default_rng(seed)
    families, other = {digit: parts(text) for digit, text in ways.items()}, parts(SIGNS)
    digits = rng.permutation(np.resize(np.array(list(families), np.int32), n))
    chosen = [choose(families[digit], rng) for digit in digits]
    for i in np.flatnonzero(rng.random(n) < no_digit):
        two = chosen[rng.integers(n)], chosen[rng.integers(n)]
        chosen[i] = choose(other, rng) if rng.random() < 0.7 else pair(*two)
    return [drawing for i in range(0, n, CHUNK) for drawing in write(chosen[i : i + CHUNK], rng)], digits
