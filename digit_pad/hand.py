"""This module simulates a hand that draws digits on the pad, each time a little differently."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from digit_pad.raster import SIZE
from digit_pad.ways import WAYS

Points = NDArray[np.float64]  # (N, 2)
Way = list[list[Points]]
N = 24000  # drawings for the tutorial's training


def parse(text: str) -> list[Way]:
    """Return the ways in a text of ways.py: lists of strokes, lists of smooth pieces, points (N, 2) from 0 to 1."""
    return [[parse_stroke(stroke) for stroke in line.split(' + ')] for line in text.strip().splitlines()]


def parse_stroke(text: str) -> list[Points]:
    pieces = [[[float(n) / 100 for n in point.split(',')] for point in piece.split()]
              for piece in text.split(' / ')]  # fmt: skip
    for before, piece in zip(pieces, pieces[1:]):
        piece.insert(0, before[-1])
    return [np.array(piece) for piece in pieces]


def smooth(points: Points, n: int = 8) -> Points:
    """Return a Catmull-Rom curve through points, n to each of them."""
    p = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    between = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.concatenate([between.reshape(-1, 2), points[-1:]])


def write(way: Way, rng: np.random.Generator) -> list[Points]:
    """Return a way (see parse) in one of many hands: strokes, arrays (N, 2), in the pad's coordinates."""
    unsteady = rng.gamma(2, 0.01)
    strokes = []
    for pieces in way:
        moved = [piece + rng.normal(0, unsteady, piece.shape) for piece in pieces]
        for before, piece in zip(moved, moved[1:]):
            piece[0] = before[-1]
        strokes.append(np.concatenate([smooth(piece) for piece in moved]))
    if len(strokes) > 1 and rng.random() < 0.06:  # the pen stays down
        strokes = [np.concatenate(strokes)]
    # Powers of x and y vary the proportions of a digit's halves.
    power = np.exp(rng.normal(0, [0.15, 0.22]))
    wave = rng.normal(0, 0.02, (2, 2, 2, 2))  # (axis, axis on which it depends, sine or cosine, frequency)
    turn, slant = np.radians(rng.normal(0, 6)), rng.normal(0.08, 0.22)
    width = np.exp(rng.normal(-0.15, 0.3))
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ [[width, -slant], [0, 1]]
    spacing, tremor = np.exp(rng.uniform(np.log(0.02), np.log(0.16))), rng.gamma(1, 0.004)
    rounding = max(0, rng.normal(0, 0.05))  # the distance at which a quick pen cuts a corner
    written = []
    for points in strokes:
        points = points + rng.normal(0, 0.025, 2)  # people's strokes do not meet exactly
        points = np.clip(points, 0, 1) ** power + np.minimum(points, 0) + np.maximum(points - 1, 0)
        angles = np.pi * points[:, :, None] * [1, 2]
        points = points + np.einsum('abcd,nbcd->na', wave, np.stack([np.sin(angles), np.cos(angles)], axis=2))
        points = trace(points, spacing, rounding, rng)
        written.append((points + rng.normal(0, tremor, points.shape)) @ matrix.T)
    every = np.concatenate(written)
    low, high = every.min(axis=0), every.max(axis=0)
    room = SIZE - 28  # a margin for the width of the ink
    size = rng.uniform(0.3, 1) * room / (high - low).max()
    corner = 14 + rng.uniform(0, 1, 2) * (room - size * (high - low))
    return [(points - low) * size + corner for points in written]


def trace(points: Points, spacing: float, rounding: float, rng: np.random.Generator) -> Points:
    """Return the points, some `spacing` apart, that a pad gets of a pen on its way along others."""
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    start, end = along[-1] * np.clip(rng.normal([0, 1], 0.02), [0, 0.9], [0.1, 1])
    fine = resample(points, along, np.linspace(start, end, max(2, round((end - start) / 0.01))))
    if rounding > 0.01 and len(fine) > 4:
        fine = rounded(fine, round(rounding / 0.01))
    at = np.linspace(0, len(fine) - 1, max(2, round(len(fine) * 0.01 / spacing) + 1))
    if len(at) > 2:
        at[1:-1] += rng.normal(0, 0.25 * at[1], len(at) - 2)  # a hand's speed varies
    points = resample(fine, np.arange(len(fine)), np.sort(at))
    if rng.random() < 0.12:  # the pen touches down, or lifts, while it moves
        flick = rng.normal(0, 0.04, 2)
        points = np.concatenate([[points[0] + flick], points] if rng.random() < 0.5 else [points, [points[-1] + flick]])
    return points


def resample(points: Points, along: NDArray, at: NDArray) -> Points:
    return np.stack([np.interp(at, along, points[:, axis]) for axis in (0, 1)], axis=1)


def rounded(points: Points, n: int) -> Points:
    """Return the means over 2n + 1 points; the ends stay."""
    n = min(n, (len(points) - 1) // 2)
    padded = np.pad(points, ((n, n), (0, 0)), mode='reflect', reflect_type='odd')
    sums = np.cumsum(np.concatenate([np.zeros((1, 2)), padded]), axis=0)
    return (sums[2 * n + 1 :] - sums[: -2 * n - 1]) / (2 * n + 1)


def drawings(n: int, seed: int, ways: Mapping[int, str] = WAYS) -> tuple[list[list[Points]], NDArray[np.int32]]:
    """Return n drawings of digits, lists of strokes, and the digits, int32 (n,), as often each."""
    rng = np.random.default_rng(seed)
    parsed = {digit: parse(text) for digit, text in ways.items()}
    digits = rng.permutation(np.resize(np.array(list(parsed), np.int32), n))
    return [write(parsed[digit][rng.integers(len(parsed[digit]))], rng) for digit in digits], digits
