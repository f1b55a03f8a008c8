"""What the scripts need besides a model; the estimator sends it along: `dependencies=['chainer_mnist']`.

It runs on Chainer 5.0.0 with Python 3.6 and on Chainer 7.8.1 with Python 3.13, as they do.
"""
