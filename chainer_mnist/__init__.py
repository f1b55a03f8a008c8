"""This package prepares training for both scripts; the estimator's `dependencies=['chainer_mnist']` sends it.

Like the scripts it runs on Chainer 5.0.0 with Python 3.6 and on Chainer 7.8.1 with Python 3.13.
"""
