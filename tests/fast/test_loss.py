"""The loss is the divergence of the probabilities from smoothed labels."""

import chainer
import numpy as np
import pytest

from chainer_mnist.loss import smoothed

LABELS = np.array([3, 0, 3], np.int32)
EXPECTED = np.full((3, 5), 0.01)
EXPECTED[range(3), LABELS] = 0.96


def test_it_is_0_if_the_network_is_as_sure_as_it_may_be():
    scores = np.float32(np.log(EXPECTED) + 7)
    assert smoothed(scores, LABELS).array == pytest.approx(0, abs=1e-6)
    for other in -1, 1:
        scores[0, 3] = np.log(0.96) + 7 + other
        assert smoothed(scores, LABELS).array > 0.002


def test_its_gradient_is_the_difference_from_the_smoothed_labels():
    scores = chainer.Variable(np.random.RandomState(0).normal(0, 5, (3, 5)).astype(np.float32))
    loss = smoothed(scores, LABELS)
    probabilities = np.exp(np.float64(scores.array))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss.array, (EXPECTED * np.log(EXPECTED / probabilities)).sum() / 3, rtol=1e-5)
    loss.backward()
    np.testing.assert_allclose(scores.grad, (probabilities - EXPECTED) / 3, atol=1e-6)


def test_extreme_scores_give_finite_losses_and_gradients():
    scores = chainer.Variable(np.array([[1e4, -1e4]], np.float32))
    loss = smoothed(scores, np.array([1], np.int32))
    loss.backward()
    assert np.isfinite(loss.array) and np.isfinite(scores.grad).all()
