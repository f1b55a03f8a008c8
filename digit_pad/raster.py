"""This module is browser/raster.js in NumPy, equal within 0.0001: it rasterises many drawings at once, for training."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Stroke = NDArray[np.float64] | Sequence[Sequence[float]]  # points (x, y)

SIZE = 280  # the pad's coordinates
GRID, BOX, INK, SOFT = 28, 20, 2.79, 1.5  # as in browser/raster.js
REACH = (INK + SOFT) / 2
CHUNK = 512  # drawings at a time, which fit the processor's cache


def rasterise(drawings: Sequence[Sequence[Stroke]]) -> NDArray[np.float32]:
    """Return the images, float32 (N, 784), of drawings: lists of strokes, lists of points (x, y) in SIZE x SIZE."""
    images = np.zeros((len(drawings), GRID, GRID), np.float32)
    # Drawings of similar length go together, as each step of draw() draws one segment of each.
    order = sorted((i for i, strokes in enumerate(drawings) if any(map(len, strokes))),
                   key=lambda i: -sum(map(len, drawings[i])))  # fmt: skip
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        images[chunk] = draw([segments(drawings[i]) for i in chunk])
    return images.reshape(-1, GRID * GRID)


def segments(strokes: Sequence[Stroke]) -> NDArray[np.float64]:
    """Return the segments of strokes as rows ax, ay, bx, by; each stroke's first point is one, too."""
    arrays = [np.asarray(stroke, float) for stroke in strokes if len(stroke)]
    return np.concatenate([np.hstack([array[[0, *range(len(array) - 1)]], array]) for array in arrays])


def draw(drawings: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return images (N, 28, 28) of drawings, arrays of segments (M, 4), the longest first."""
    low = np.array([lines[:, 2:].min(axis=0) for lines in drawings])
    high = np.array([lines[:, 2:].max(axis=0) for lines in drawings])
    # A dot stays small: a drawing under a tenth of the pad is not enlarged to a digit's size.
    scale = (BOX - INK) / np.maximum(SIZE / 10, (high - low).max(axis=1))[:, None]
    sides = np.minimum(BOX, half_up((high - low) * scale + INK) + 2)  # includes the soft edges, up to BOX
    shift = (sides - scale * (low + high)) / 2
    padded = np.zeros((len(drawings[0]), len(drawings), 4))
    for i, lines in enumerate(drawings):
        padded[: len(lines), i] = lines * scale[i] + np.tile(shift[i], 2)
    nearest, counts = np.full((len(drawings), BOX, BOX), np.inf), np.array([len(lines) for lines in drawings])
    centres = np.arange(BOX) + 0.5
    for step, lines in enumerate(padded):
        n = np.searchsorted(-counts, -step)  # the number of drawings that have a segment `step`
        ax, ay, bx, by = lines[:n].T[:, :, None]
        ux, uy = bx - ax, by - ay
        length2 = np.maximum(ux * ux + uy * uy, 1e-300)
        x, y = centres - ax, centres - ay
        t = np.clip(((x * ux)[:, None, :] + (y * uy)[:, :, None]) / length2[:, None], 0, 1)
        distance2 = (x[:, None, :] - t * ux[:, None]) ** 2 + (y[:, :, None] - t * uy[:, None]) ** 2
        np.minimum(nearest[:n], distance2, out=nearest[:n])
    # Clip each drawing to its sides; then move it by whole pixels, its centre of mass to pixel index 14.
    boxes = np.clip((REACH - np.sqrt(nearest)) / SOFT, 0, 1)
    inside = np.arange(BOX) < sides[:, :, None]
    boxes *= inside[:, 0, None, :] & inside[:, 1, :, None]
    mass = boxes.sum(axis=(1, 2))
    images = np.zeros((len(drawings), GRID + BOX, GRID + BOX))
    pixels = np.arange(BOX)
    middle = np.stack([(boxes.sum(axis=axis) * pixels).sum(axis=1) for axis in (1, 2)], axis=1) / mass[:, None]
    places = np.clip(half_up(GRID / 2 + 1e-9 - middle), 0, GRID - sides).astype(int)
    for image, box, (x, y) in zip(images, boxes, places):
        image[y : y + BOX, x : x + BOX] = box
    return images[:, :GRID, :GRID]


def half_up(x: NDArray) -> NDArray:
    """Round as JavaScript does."""
    return np.floor(x + 0.5)
