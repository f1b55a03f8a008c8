"""This module has the loss of the training, which keeps the network from being too sure."""

import chainer.functions as F
from chainer.backends import cuda

SMOOTHING = 0.05  # the share of each label that is divided equally among all classes


def smoothed(scores, labels):
    """Return the mean Kullback-Leibler divergence of the probabilities from smoothed labels: 0 if they are equal.

    scores: float32 (N, classes). labels: int32 (N,), from 0 to classes - 1.
    Source: Szegedy et al., 2016, https://arxiv.org/abs/1512.00567.
    """
    xp, classes = cuda.get_array_module(labels), scores.shape[1]
    label = SMOOTHING / classes + (1 - SMOOTHING) * xp.eye(classes, dtype=scores.dtype)
    expected = label[labels]
    return F.sum(expected * (xp.log(expected) - F.log_softmax(scores))) / len(labels)
