"""SageMaker runs this one script to train an MLP on MNIST with Chainer, and to host it.

Training happens under the main guard; hosting imports this file and calls model_fn. The script runs unchanged
on Chainer 5.0.0 with Python 3.6 and on Chainer 7.8.1 with Python 3.13. With `--epochs 3 --batch-size 128
--learning-rate 0.002` it prints (accuracy on MNIST's test images; other CPUs differ by 0.001):

    epoch   validation/main/accuracy    with --augment 0.5      with --augment 0.5 and the tutorial's --drawings
    1       0.9739                      0.9759                  0.9735
    2       0.9840                      0.9856                  0.9855
    3       0.9880                      0.9888                  0.9890
"""

import argparse
import os
import random
import sys

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer import serializers, training
from chainer.backends import cuda
from chainer.training import extensions

from chainer_mnist import augment, channels, loss, progress, saving
from chainer_mnist.arguments import fraction, parse, positive

ROWS_ARE_INDEPENDENT = True  # each row's scores depend on that row only: the server may predict requests together


class MLP(chainer.Chain):
    """A multilayer perceptron: 784 pixels -> n_units -> n_units -> n_out scores, with ReLU in between."""

    def __init__(self, n_units=1000, n_out=10):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(784, n_units)
            self.l2 = L.Linear(n_units, n_units)
            self.l3 = L.Linear(n_units, n_out)

    def forward(self, x):
        """Return float32 scores, shape (N, n_out).

        x: float32, ink 1 on paper 0, of shape (N, 784), (N, 28, 28) or (N, 1, 28, 28); a flat (784,) counts as N = 1.
        Any other shape raises chainer.utils.type_check.InvalidType.
        """
        x = x[None] if x.ndim == 1 else x
        h = F.relu(self.l1(x))
        h = F.relu(self.l2(h))
        return self.l3(h)


def model_fn(model_dir):
    """Return the trained MLP from model.npz. The server calls this once per worker, before any request.

    Raises ValueError if a test prediction is not finite: then the endpoint does not start.
    """
    model = L.Classifier(MLP())
    path = os.path.join(model_dir, 'model.npz')
    serializers.load_npz(path, model)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        scores = model.predictor(np.zeros((1, 784), np.float32))
    if not np.isfinite(scores.array).all():
        raise ValueError(f'The model in {path} gives NaN or infinity: train it again.')
    return model.predictor


def train(args):
    """Train on the channels train and drawings, evaluate on test; write plots, log, snapshot and finally model.npz."""
    if int(os.environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:  # mpirun has started several processes
        sys.exit('For several hosts or processes use chainer_mnist_distributed.py as the entry point.')
    saving.check_writable(args.model_dir, args.output_data_dir, args.checkpoint_dir)
    train_data, test_data = channels.load(args)
    device = 0 if args.num_gpus > 0 else -1
    model = make_model(args.seed, device)
    optimizer = chainer.optimizers.Adam(alpha=args.learning_rate).setup(model)
    trainer, evaluator = make_trainer(args, optimizer, train_data, test_data, args.batch_size, device)
    trainer.extend(evaluator)
    report(trainer, args.epochs)
    print(f'Training on {len(train_data)} images, testing on {len(test_data)}, {progress.count(args.epochs)}')
    saving.keep_checkpoints(trainer, args.checkpoint_dir)
    trainer.run()
    saving.save(os.path.join(args.model_dir, 'model.npz'), model)


def make_model(seed, device):
    """Return an untrained classifier on GPU `device`, or on the CPU (-1); seed all random numbers."""
    random.seed(seed)
    np.random.seed(seed)
    model = L.Classifier(MLP(), loss.smoothed)
    if device >= 0:
        cuda.get_device_from_id(device).use()
        cuda.cupy.random.seed(seed)
        model.to_gpu()
    return model


def make_trainer(args, optimizer, train_data, test_data, batch_size, device):
    """Return the trainer, and the evaluator, which the caller must add to it."""
    train_iter = chainer.iterators.SerialIterator(train_data, batch_size)
    converter = augment.converter(args.augment)
    updater = training.updaters.StandardUpdater(train_iter, optimizer, converter, device=device)
    trainer = training.Trainer(updater, (args.epochs, 'epoch'), out=args.output_data_dir)
    # The learning rate falls to 0 over the last two thirds: a constant one costs 0.005 of accuracy.
    steps = -(-len(train_data) * args.epochs // batch_size)
    trainer.extend(extensions.LinearShift('alpha', (args.learning_rate, 0), (steps // 3, steps)))
    # Batches of nearly equal size, at most 1,000: the Evaluator weighs a short last batch like a full one.
    test_size = -(-len(test_data) // -(-len(test_data) // 1000))
    test_iter = chainer.iterators.SerialIterator(test_data, test_size, repeat=False, shuffle=False)
    return trainer, extensions.Evaluator(test_iter, optimizer.target, device=device)


def report(trainer, epochs):
    """Let the trainer print and plot its progress, and write a log, the graph and a final snapshot."""
    import matplotlib

    matplotlib.use('Agg')  # PlotReport draws to files; there is no display in a container
    losses, accuracies = ([name, 'validation/' + name] for name in ('main/loss', 'main/accuracy'))
    trainer.extend(extensions.dump_graph('main/loss'))
    trainer.extend(extensions.snapshot(filename='snapshot_epoch_{.updater.epoch}'), trigger=(epochs, 'epoch'))
    trainer.extend(extensions.LogReport())
    trainer.extend(progress.plot(losses, 'loss.png'))
    trainer.extend(progress.plot(accuracies, 'accuracy.png'))
    trainer.extend(progress.Progress())
    trainer.extend(extensions.PrintReport(['epoch', *losses, *accuracies, 'elapsed_time']))


def parse_args(argv=None):
    """Parse the hyperparameters; directories and GPUs default to SageMaker's SM_* variables."""
    env, checkpoints = os.environ.get, saving.CHECKPOINTS  # a directory if checkpoint_s3_uri is set
    # Without abbreviations, so that a misspelt hyperparameter is an error.
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--epochs', type=positive(int), default=50)
    parser.add_argument('--batch-size', '--batch_size', type=positive(int), default=64)
    parser.add_argument('--learning-rate', '--learning_rate', type=positive(float), default=0.001)
    parser.add_argument('--augment', type=fraction, default=0, help='fraction of the images to distort')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--output-data-dir', default=env('SM_OUTPUT_DATA_DIR', '.'))
    parser.add_argument('--model-dir', default=env('SM_MODEL_DIR', '.'))
    parser.add_argument('--train', default=env('SM_CHANNEL_TRAIN'))
    parser.add_argument('--test', default=env('SM_CHANNEL_TEST'))
    parser.add_argument('--drawings', default=env('SM_CHANNEL_DRAWINGS'))  # an optional channel
    parser.add_argument('--checkpoint-dir', default=checkpoints if os.path.isdir(checkpoints) else None)
    parser.add_argument('--num-gpus', type=int, default=int(env('SM_NUM_GPUS', 0)))
    return parse(parser, argv)


if __name__ == '__main__':
    train(parse_args())
