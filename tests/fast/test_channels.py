"""chainer_mnist/channels.py loads good channels and refuses bad ones."""

from types import SimpleNamespace

import chainer
import numpy as np
import pytest

from chainer_mnist import channels

IMAGES = np.zeros((10, 784), np.float32)
LABELS = np.arange(10)
BAD = {
    'no file': (None, 'No such file'),
    'missing key': ({'images': IMAGES}, 'labels'),
    'wrong shape': ({'images': IMAGES[:, :100], 'labels': LABELS}, 'shape (N, 784)'),
    'integers': ({'images': IMAGES.astype(np.int32), 'labels': LABELS}, 'uint8 or floating point'),
    'too few labels': ({'images': IMAGES, 'labels': LABELS[:9]}, 'shape (10,)'),
    'float labels': ({'images': IMAGES, 'labels': LABELS * 1.0}, 'must be integers'),
    'label 10': ({'images': IMAGES, 'labels': LABELS + 1}, 'must be 0 to 9, but range from 1 to 10'),
    'label -1': ({'images': IMAGES, 'labels': LABELS - 1}, 'must be 0 to 9'),
    'NaN': ({'images': IMAGES + np.nan, 'labels': LABELS}, 'NaN'),
    'not scaled': ({'images': IMAGES + 255, 'labels': LABELS}, 'must be 0 to 1, but range from 255.0 to 255.0'),
    'too large': ({'images': IMAGES + np.float64(1e300), 'labels': LABELS}, 'must be 0 to 1'),
    'negative': ({'images': IMAGES - 1, 'labels': LABELS}, 'must be 0 to 1'),
    'empty': ({'images': IMAGES[:0], 'labels': LABELS[:0]}, 'no images'),
    'pickle': ({'images': np.array([object()] * 10), 'labels': LABELS}, 'allow_pickle=False'),
}


@pytest.mark.parametrize('case', sorted(BAD))
def test_bad_data_ends_with_one_sentence(tmp_path, case):
    arrays, sentence = BAD[case]
    if arrays is not None:
        np.savez(tmp_path / 'train.npz', **arrays)
    with pytest.raises(SystemExit) as exit:
        channels.read('train', str(tmp_path))
    assert sentence in exit.value.code and '\n' not in exit.value.code


def test_bytes_are_the_same_pixels_as_get_mnist(tmp_path):
    images, labels = chainer.dataset.concat_examples(chainer.datasets.get_mnist()[1])
    np.savez_compressed(tmp_path / 'test.npz', images=(images * 255).round().astype(np.uint8), labels=labels)
    assert (channels.read('test', str(tmp_path))[0] == images).all()


@pytest.mark.parametrize('drawings, size, expected', [(0, 1, [10]), (5, 1, [15]), (5, 2, [8, 8]), (6, 2, [8, 8])])
def test_drawings_are_trained_on_where_the_channel_is_there(tmp_path, drawings, size, expected):
    """Drawings come after the other images; several processes divide all of them."""
    for name, n in ('train', 10), ('test', 4), ('drawings', drawings):
        np.savez(tmp_path / f'{name}.npz', images=IMAGES[:n] + np.float32(name == 'drawings'), labels=LABELS[:n])
    there = {'train': str(tmp_path), 'test': str(tmp_path), 'drawings': str(tmp_path) if drawings else None}
    loaded = [channels.load(SimpleNamespace(**there), rank, size) for rank in range(size)]
    assert [len(train) for train, _ in loaded] == expected
    assert sum(len(test) for _, test in loaded) == 4
    drawn = sum(image.all() for train, _ in loaded for image, _ in train)
    assert drawn == drawings  # what comes twice is from the beginning
    assert {type(label) for train, _ in loaded for _, label in train} == {np.int32}


def test_each_process_gets_easy_and_hard_images():
    """Of MNIST's training images every other one is by another group of writers, whose digits are harder."""
    images, labels = np.zeros((2001, 784), np.float32), np.arange(2001)
    shards = [{int(label) for _, label in channels.shard(images, labels, rank, 2)} for rank in range(2)]
    assert shards[0] | shards[1] == set(range(2001)) and len(shards[0] & shards[1]) <= 1
    for shard in shards:
        assert 400 < sum(label % 2 for label in shard) < 600
    assert [len(channels.shard(images[:2], labels[:2], rank, 5)) for rank in range(5)] == [1] * 5
