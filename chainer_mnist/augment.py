"""This module distorts images of digits at random, so that a network learns more handwriting."""

import chainer
import numpy as np
from chainer.backends import cuda


def resample(images, x, y):
    """Return images, float32 (N, 784), whose pixels are interpolated bilinearly at (x, y) in the given ones.

    x, y: float32 (N, 784), columns and rows from 0 to 27; positions outside are moved to the edge.
    """
    xp = cuda.get_array_module(images)
    x, y = xp.clip(x, 0, 26.999), xp.clip(y, 0, 26.999)
    column, row = x.astype(np.int32), y.astype(np.int32)
    x, y = x - column.astype(np.float32), y - row.astype(np.float32)
    at = row * 28 + column + xp.arange(len(images), dtype=np.int32)[:, None] * 784
    at, pixels = at.astype(np.intp), images.ravel()  # with int32 NumPy would convert the indices four times
    top, bottom = pixels[at], pixels[at + 28]
    top += x * (pixels[at + 1] - top)
    bottom += x * (pixels[at + 29] - bottom)
    return top + y * (bottom - top)


def distort(images):
    """Return images, float32 (N, 784), bent, turned, slanted, scaled and shifted a little at random.

    The images may be on a GPU; the random numbers come from np.random in any case.
    """
    xp = cuda.get_array_module(images)
    rows, columns = xp.asarray(np.mgrid[:28, :28].reshape(2, 784), np.float32) - np.float32(13.5)
    random = xp.asarray(np.random.uniform(-1, 1, (10, len(images), 1)), np.float32)
    bend_x, bend_y, turn, slant, width, height, right, down, wave_x, wave_y = random
    pi = np.float32(np.pi)
    x = columns + 1.5 * bend_x * xp.sin(rows * pi / 14 + wave_x * pi)
    y = rows + 1.5 * bend_y * xp.sin(columns * pi / 14 + wave_y * pi)
    x = x + 0.2 * slant * y
    cos, sin = xp.cos(turn * pi / 15), xp.sin(turn * pi / 15)  # up to 12 degrees
    from_x = 13.5 + right + xp.exp(0.12 * width) * (cos * x - sin * y)
    from_y = 13.5 + down + xp.exp(0.12 * height) * (sin * x + cos * y)
    return resample(images, from_x, from_y)


def converter(fraction):
    """Return a converter like chainer.dataset.concat_examples that distorts a fraction of each batch.

    A batch is a list of (image, label). The other images stay as sharp as the test images.
    """

    def concat(batch, device=None):
        images, labels = chainer.dataset.concat_examples(batch, device)
        distorted = int(fraction * len(images))
        if distorted:
            images[:distorted] = distort(images[:distorted])
        return images, labels

    return concat
