"""The data of a job: one .npz file for each channel."""

import os
import sys

import chainer
import numpy as np


def load(args, rank=0, size=1):
    """Return the training data and the test data, TupleDatasets of (image, label), float32 (784,) and int32.

    args: train, test, and drawings or None: the channels' directories; drawings are trained on, too.
    rank, size: of several processes, each gets every size-th example. All get as many: where N is no
    multiple of size, some of the first examples come twice.
    Exits with one sentence where a channel is wrong.
    """
    train, test = read('train', args.train), read('test', args.test)
    if args.drawings:
        train = [np.concatenate(arrays) for arrays in zip(train, read('drawings', args.drawings))]
    return [share(images, labels, rank, size) for images, labels in (train, test)]


def share(images, labels, rank, size):
    if size > 1:
        mine = np.arange(rank, rank + -(-len(images) // size) * size, size) % len(images)
        images, labels = images[mine], labels[mine]
    images.flags.writeable = labels.flags.writeable = False  # so that chainer_fast may keep them on a GPU
    return chainer.datasets.TupleDataset(images, labels)


def read(name, directory):
    """Return the images, float32 (N, 784), and labels, int32 (N,), of one channel: `<directory>/<name>.npz`.

    images there: (N, 784), floating point from 0 to 1 or uint8 from 0 to 255; labels: integers, (N,), 0 to 9.
    """
    if not directory:
        sys.exit(f"There is no '{name}' channel: name it in fit({{...}}), or pass --{name} DIRECTORY.")
    path = os.path.join(directory, name + '.npz')
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays['images'], arrays['labels']
    except Exception as e:  # a missing file, a missing key, a broken archive, pickled objects
        sys.exit(f"The '{name}' channel needs a file {path} with the arrays 'images' and 'labels': {e}")
    is_pixels = images.dtype == np.uint8 or images.dtype.kind == 'f'
    if images.ndim != 2 or images.shape[1] != 784 or not is_pixels:
        wrong(path, 'images', 'uint8 or floating point of shape (N, 784)', images)
    if labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu':
        wrong(path, 'labels', f'integers of shape ({len(images)},)', labels)
    if not len(images):
        sys.exit(f'{path} holds no images.')
    if not np.isfinite(images).all():
        sys.exit(f"'images' in {path} holds NaN or infinity.")
    if labels.min() < 0 or labels.max() > 9:
        sys.exit(f"'labels' in {path} must be 0 to 9, but range from {labels.min()} to {labels.max()}.")
    if images.dtype == np.uint8:
        images = images * np.float32(1 / 255)  # to the bit what chainer.datasets.get_mnist() returns
    return np.asarray(images, np.float32), np.asarray(labels, np.int32)


def wrong(path, name, expected, array):
    sys.exit(f"'{name}' in {path} must be {expected}, but is {array.dtype} of shape {array.shape}.")
