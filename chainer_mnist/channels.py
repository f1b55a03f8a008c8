"""This module loads and checks a job's data, one .npz file for each channel."""

import os
import sys

import chainer
import numpy as np


def load(args, rank=0, size=1):
    """Return the training data and the test data, TupleDatasets of (image, label), float32 (784,) and int32.

    args: has the channels' directories, train, test and drawings (or None). The drawings are training data, too.
    rank, size: process `rank` of `size` gets its part of the examples, drawn at random. All processes get the same
    number: if N is no multiple of size, some of the first examples come twice. Exits with one sentence if a channel
    is invalid.
    """
    train, test = read('train', args.train), read('test', args.test)
    if args.drawings:
        train = [np.concatenate(arrays) for arrays in zip(train, read('drawings', args.drawings))]
    return [shard(images, labels, rank, size) for images, labels in (train, test)]


def shard(images, labels, rank, size):
    """Return the examples of process `rank` of `size`, a TupleDataset of read-only arrays."""
    if size > 1:
        # Every other image of MNIST is harder: rank 0, which prints, would show another loss than the rest.
        order = np.random.RandomState(0).permutation(len(images))
        mine = np.append(order, np.arange(-len(images) % size) % len(images))[rank::size]
        images, labels = images[mine], labels[mine]
    images.flags.writeable = labels.flags.writeable = False  # lets benchmarks/batches.py keep them on a GPU
    return chainer.datasets.TupleDataset(images, labels)


def read(name, directory):
    """Return the images, float32 (N, 784), and labels, int32 (N,), of one channel.

    The file `<directory>/<name>.npz` holds 'images', (N, 784), floating point from 0 to 1 or uint8 from 0
    to 255, and 'labels', integers (N,) from 0 to 9. Exits with one sentence if it does not.
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
    if images.dtype.kind == 'f' and (images.min() < 0 or images.max() > 1.001):  # rounding may exceed 1
        sys.exit(f"'images' in {path} must be 0 to 1, but range from {images.min()} to {images.max()}.")
    if labels.min() < 0 or labels.max() > 9:
        sys.exit(f"'labels' in {path} must be 0 to 9, but range from {labels.min()} to {labels.max()}.")
    if images.dtype == np.uint8:
        images = images * np.float32(1 / 255)  # equals chainer.datasets.get_mnist() to the bit
    return np.asarray(images, np.float32), np.asarray(labels, np.int32)


def wrong(path, name, expected, array):
    sys.exit(f"'{name}' in {path} must be {expected}, but is {array.dtype} of shape {array.shape}.")
