"""chainer_mnist/augment.py distorts images as it should."""

import chainer
import numpy as np
import pytest
from support import load

from chainer_mnist import augment

RNG = np.random.RandomState(0)
PICTURES = np.zeros((5, 28, 28), np.float32)
PICTURES[:, 4:24, 4:24] = RNG.rand(5, 20, 20)
ROWS, COLUMNS = np.mgrid[:28, :28].reshape(2, 1, 784).astype(np.float32)


@pytest.mark.parametrize(
    'x, y, expected',
    [
        (COLUMNS, ROWS, PICTURES),
        (COLUMNS + 3, ROWS, np.roll(PICTURES, -3, axis=2)),
        (COLUMNS, ROWS - 2, np.roll(PICTURES, 2, axis=1)),
        (COLUMNS + 0.5, ROWS, (PICTURES + np.roll(PICTURES, -1, axis=2)) / 2),
        (ROWS, COLUMNS, PICTURES.transpose(0, 2, 1)),
        (27 - COLUMNS, ROWS, PICTURES[:, :, ::-1]),
        (
            COLUMNS,
            ROWS + np.arange(5, dtype=np.float32)[:, None],  # another place for each image
            np.array([np.roll(picture, -i, axis=0) for i, picture in enumerate(PICTURES)]),
        ),
    ],
)
def test_resample(x, y, expected):
    resampled = augment.resample(PICTURES.reshape(5, 784), *np.broadcast_arrays(x, y, np.zeros((5, 1), np.float32))[:2])
    assert resampled.dtype == np.float32
    assert np.allclose(resampled.reshape(5, 28, 28), expected, atol=2e-3)


def test_distorted_digits_stay_digits(small_mnist):
    """Ink, place and range change little, and no two images are distorted alike."""
    images = load(small_mnist / 'train' / 'train.npz')['images']
    np.random.seed(0)
    distorted = augment.distort(images)
    assert distorted.dtype == np.float32 and distorted.shape == images.shape
    assert distorted.min() >= 0 and distorted.max() <= 1
    ink = distorted.sum(1) / images.sum(1)
    assert abs(ink.mean() - 1) < 0.03 and 0.6 < ink.min() and ink.max() < 1.6
    grid = np.mgrid[:28, :28].reshape(2, 784)
    moved = (grid @ distorted.T / distorted.sum(1)) - (grid @ images.T / images.sum(1))
    assert abs(moved).max() < 2.5 and 0.3 < moved.std() < 0.9
    same = augment.distort(np.repeat(images[:1], 50, axis=0))
    assert len(np.unique(same, axis=0)) == 50


@pytest.mark.parametrize('share', [0, 0.5, 1])
def test_the_converter_distorts_a_share_of_the_images(small_mnist, share):
    train = load(small_mnist / 'train' / 'train.npz')
    batch = list(zip(train['images'][:100], train['labels'][:100].astype(np.int32)))
    images, labels = augment.converter(share)(batch, -1)
    plain, expected = chainer.dataset.concat_examples(batch)
    assert (labels == expected).all() and labels.dtype == np.int32
    distorted = int(100 * share)
    assert images.shape == plain.shape and abs(images - plain).mean() < 0.1
    assert (images != plain).any(axis=1).tolist() == [True] * distorted + [False] * (100 - distorted)
