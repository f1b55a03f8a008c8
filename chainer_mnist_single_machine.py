"""Train an MLP on MNIST with Chainer, and host it: one script for both, run by SageMaker.

Training happens under the main guard; hosting imports this file and calls model_fn.
It runs unchanged on Chainer 5.0.0 with Python 3.6 and on Chainer 7.8.1 with Python 3.13.

What `--epochs 3 --batch-size 128` prints (accuracy on the 10,000 test images; seed 0; other CPUs differ by 0.001):

    epoch   validation/main/accuracy    with --augment True
    1       0.9675                      0.9753
    2       0.9768                      0.9786
    3       0.9848                      0.9885
"""

import argparse
import os
import random
import sys
import tempfile

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer import serializers
from chainer.backends import cuda


class MLP(chainer.Chain):
    """784 pixels -> n_units -> n_units -> n_out scores, with ReLU in between."""

    def __init__(self, n_units, n_out):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(784, n_units)
            self.l2 = L.Linear(n_units, n_units)
            self.l3 = L.Linear(n_units, n_out)

    def forward(self, x):
        """Return float32 scores, shape (N, n_out).

        x: float32, white ink (1) on black (0), of shape (N, 784), (N, 28, 28) or
        (N, 1, 28, 28); a flat (784,) counts as N = 1. Any other shape raises
        chainer.utils.type_check.InvalidType.
        """
        if x.ndim == 1:
            x = x[None]
        h = F.relu(self.l1(x))
        h = F.relu(self.l2(h))
        return self.l3(h)


def model_fn(model_dir):
    """Load what training saved, and try it. The server calls this once per worker, before any request.

    Raises ValueError where the model's scores are not finite: then the endpoint does not start.
    """
    model = L.Classifier(MLP(1000, 10))
    path = os.path.join(model_dir, 'model.npz')
    serializers.load_npz(path, model)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        scores = model.predictor(np.zeros((1, 784), np.float32))
    if not np.isfinite(scores.array).all():
        raise ValueError(f'The model in {path} gives NaN or infinity: train it again.')
    return model.predictor


def load_channel(name, directory, rank=0, size=1):
    """Read one channel, `<directory>/<name>.npz`, into a TupleDataset of (image, label).

    images: (N, 784), floating point from 0 to 1 or uint8 from 0 to 255; labels: integers, (N,), 0 to 9.
    rank, size: of several processes, each gets every size-th example. All get as many: where N is no
    multiple of size, some of the first examples come twice.
    Exits with one sentence that says what is wrong.
    """
    if not directory:
        sys.exit(
            f"There is no '{name}' channel: call fit({{'train': ..., 'test': ...}}), "
            f'or pass --{name} DIRECTORY.'
        )
    path = os.path.join(directory, name + '.npz')
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays['images'], arrays['labels']
    except Exception as e:  # a missing file, a missing key, a broken archive, pickled objects
        sys.exit(f"The '{name}' channel needs a file {path} with the arrays 'images' and 'labels': {e}")
    if (
        images.ndim != 2
        or images.shape[1] != 784
        or not (images.dtype == np.uint8 or images.dtype.kind == 'f')
    ):
        sys.exit(
            f"'images' in {path} must be uint8 or floating point of shape (N, 784), but is {images.dtype} of shape {images.shape}."
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu':
        sys.exit(
            f"'labels' in {path} must be integers of shape ({len(images)},), but is {labels.dtype} of shape {labels.shape}."
        )
    if not len(images):
        sys.exit(f'{path} holds no images.')
    if not np.isfinite(images).all():
        sys.exit(f"'images' in {path} holds NaN or infinity.")
    if labels.min() < 0 or labels.max() > 9:
        sys.exit(f"'labels' in {path} must be 0 to 9, but range from {labels.min()} to {labels.max()}.")
    if size > 1:
        mine = np.arange(rank, rank + -(-len(images) // size) * size, size) % len(images)
        images, labels = images[mine], labels[mine]
    if images.dtype == np.uint8:
        images = images * np.float32(1 / 255)  # to the bit what chainer.datasets.get_mnist() returns
    return chainer.datasets.TupleDataset(np.asarray(images, np.float32), np.asarray(labels, np.int32))


def resample(images, x, y):
    """Return images, float32 (N, 784), with the pixels that are at (x, y), bilinearly.

    x, y: float32, (N, 784), columns and rows from 0 to 27; beyond the edge it is the edge's.
    """
    xp = cuda.get_array_module(images)
    x, y = xp.clip(x, 0, 26.999), xp.clip(y, 0, 26.999)
    column, row = x.astype(np.int32), y.astype(np.int32)
    x, y = x - column.astype(np.float32), y - row.astype(np.float32)
    at = row * 28 + column + xp.arange(len(images), dtype=np.int32)[:, None] * 784
    pixels = images.ravel()
    top, bottom = pixels[at], pixels[at + 28]
    top += x * (pixels[at + 1] - top)
    bottom += x * (pixels[at + 29] - bottom)
    return top + y * (bottom - top)


def distort(images):
    """Return images, float32 (N, 784), each bent, turned, slanted, scaled and shifted a little.

    They may be on a GPU; the random numbers are NumPy's in any case.
    """
    xp = cuda.get_array_module(images)
    rows, columns = xp.asarray(np.mgrid[:28, :28].reshape(2, 784), np.float32) - np.float32(13.5)
    bend_x, bend_y, turn, slant, width, height, right, down, wave_x, wave_y = xp.asarray(
        np.random.uniform(-1, 1, (10, len(images), 1)), np.float32
    )
    pi = np.float32(np.pi)
    x = columns + 1.5 * bend_x * xp.sin(rows * pi / 14 + wave_x * pi)
    y = rows + 1.5 * bend_y * xp.sin(columns * pi / 14 + wave_y * pi)
    x = x + 0.2 * slant * y
    cos, sin = xp.cos(turn * pi / 15), xp.sin(turn * pi / 15)  # up to 12 degrees
    return resample(
        images,
        13.5 + right + xp.exp(0.12 * width) * (cos * x - sin * y),
        13.5 + down + xp.exp(0.12 * height) * (sin * x + cos * y),
    )


def concat_distorted(batch, device=None):
    """chainer.dataset.concat_examples for a batch of (image, label), with the images distorted."""
    images, labels = chainer.dataset.concat_examples(batch, device)
    return distort(images), labels


def save(path, target, **options):
    """serializers.save_npz, but a file of that name is always whole, whenever the process is killed."""
    temporary = path + '.tmp'
    try:
        serializers.save_npz(temporary, target, **options)
        os.rename(temporary, path)
    except BaseException:  # a full disk, say
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


class Checkpoints(chainer.training.Extension):
    """Saves the whole trainer after each epoch, and resumes from there when the job is started again.

    SageMaker keeps /opt/ml/checkpoints on S3, so that a job survives its machine (managed spot training).
    Of several processes each has its own file. The last two epochs stay, because processes that are
    killed may be an epoch apart.
    """

    trigger = 1, 'epoch'
    priority = -100  # after all that reports

    def __init__(self, directory, comm=None):
        self.directory, self.comm = directory, comm
        self.process = '_process_{}_of_{}.npz'.format(*(comm.rank, comm.size) if comm else (0, 1))

    def path(self, epoch):
        return os.path.join(self.directory, f'epoch_{epoch}' + self.process)

    def __call__(self, trainer):
        epoch = trainer.updater.epoch
        save(self.path(epoch), trainer, compression=False)
        if os.path.exists(self.path(epoch - 2)):
            os.remove(self.path(epoch - 2))

    def resume(self, trainer):
        """Load the newest epoch that every process has saved, if there is one."""
        epochs = {
            int(name[len('epoch_') : -len(self.process)])
            for name in os.listdir(self.directory)
            if name.startswith('epoch_') and name.endswith(self.process)
        }
        if self.comm:
            epochs = set.intersection(*self.comm.mpi_comm.allgather(epochs))
        if epochs:
            serializers.load_npz(self.path(max(epochs)), trainer)
            if not self.comm or self.comm.rank == 0:
                print(f'Resuming after epoch {max(epochs)} from {self.directory}', flush=True)

    def serialize(self, serializer):
        """Add to the trainer's state NumPy's, which shuffles and distorts."""
        kind, keys, position, _, _ = np.random.get_state()
        np.random.set_state((kind, serializer('keys', keys), serializer('position', position)))


def train(args):
    """Train on args.train, evaluate on args.test, write plots, log and model.npz.

    Under mpirun each process trains on its share of every batch; the first one reports and saves.
    """
    import matplotlib

    matplotlib.use('Agg')  # PlotReport draws to files; there is no display in a container
    from chainer import training
    from chainer.training import extensions

    for directory in filter(None, (args.model_dir, args.output_data_dir, args.checkpoint_dir)):
        try:  # now, not after an hour of training
            os.makedirs(directory, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as e:
            sys.exit(f'Cannot write to {directory}: {e.strerror}.')

    comm, rank, size = None, 0, 1
    if int(os.environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:  # Open MPI's mpirun has started several
        import chainermn

        comm = chainermn.create_communicator('pure_nccl' if args.num_gpus > 0 else 'naive')
        rank, size = comm.rank, comm.size
    if args.batch_size % size:
        sys.exit(
            f'--batch-size {args.batch_size} cannot be shared by {size} processes: make it a multiple of {size}.'
        )
    batch_size = args.batch_size // size

    device = -1 if args.num_gpus < 1 else comm.intra_rank if comm else 0
    if device >= 0:
        cuda.get_device_from_id(device).use()
        cuda.cupy.random.seed(args.seed)
    train_data = load_channel('train', args.train, rank, size)
    test_data = load_channel('test', args.test, rank, size)

    random.seed(args.seed)
    np.random.seed(args.seed)
    model = L.Classifier(MLP(1000, 10))
    if device >= 0:
        model.to_gpu()
    optimizer = chainer.optimizers.Adam(alpha=args.learning_rate)
    if comm:
        optimizer = chainermn.create_multi_node_optimizer(optimizer, comm)
        np.random.seed(args.seed + rank)  # each shuffles and distorts in its own way
    optimizer.setup(model)
    if comm:
        comm.bcast_data(model)
        optimizer.is_changed(model)  # or its first update would do nothing but broadcast, after a resume too

    train_iter = chainer.iterators.SerialIterator(train_data, batch_size)
    # Batches of nearly one size, at most 1,000: the Evaluator weighs a short last batch like a full one.
    test_batches = -(-len(test_data) // 1000)
    test_iter = chainer.iterators.SerialIterator(
        test_data, -(-len(test_data) // test_batches), repeat=False, shuffle=False
    )
    updater = training.updaters.StandardUpdater(
        train_iter,
        optimizer,
        device=device,
        converter=concat_distorted if args.augment else chainer.dataset.concat_examples,
    )
    trainer = training.Trainer(updater, (args.epochs, 'epoch'), out=args.output_data_dir)
    evaluator = extensions.Evaluator(test_iter, model, device=device)
    trainer.extend(chainermn.create_multi_node_evaluator(evaluator, comm) if comm else evaluator)
    # Adam's steps shrink to nothing over the last third, else its noise costs half a per cent.
    steps = -(-len(train_data) * args.epochs // batch_size)
    trainer.extend(extensions.LinearShift('alpha', (args.learning_rate, 0), (2 * steps // 3, steps)))
    if rank == 0:
        trainer.extend(extensions.dump_graph('main/loss'))
        trainer.extend(
            extensions.snapshot(filename='snapshot_epoch_{.updater.epoch}'), trigger=(args.epochs, 'epoch')
        )
        trainer.extend(extensions.LogReport())
        trainer.extend(
            extensions.PlotReport(['main/loss', 'validation/main/loss'], 'epoch', file_name='loss.png')
        )
        trainer.extend(
            extensions.PlotReport(
                ['main/accuracy', 'validation/main/accuracy'], 'epoch', file_name='accuracy.png'
            )
        )
        trainer.extend(
            extensions.PrintReport(
                [
                    'epoch',
                    'main/loss',
                    'validation/main/loss',
                    'main/accuracy',
                    'validation/main/accuracy',
                    'elapsed_time',
                ]
            )
        )
        print(
            'Training on {} images, testing on {}, {} epochs{}'.format(
                len(train_data) * size,
                len(test_data) * size,
                args.epochs,
                f', {size} processes' if comm else '',
            ),
            flush=True,
        )
    if comm and len(set(comm.mpi_comm.allgather(bool(args.checkpoint_dir)))) > 1:
        sys.exit('Mount /opt/ml/checkpoints on every host, or on none.')
    if args.checkpoint_dir:
        checkpoints = Checkpoints(args.checkpoint_dir, comm)
        trainer.extend(checkpoints)
        checkpoints.resume(trainer)
    trainer.run()

    if rank == 0:
        if device >= 0:
            model.to_cpu()
        save(os.path.join(args.model_dir, 'model.npz'), model)


def positive(kind):
    """An argparse type: `kind`, and greater than zero."""

    def parse(text):
        value = kind(text)
        if not 0 < value < float('inf'):
            raise ValueError
        return value

    parse.__name__ = 'positive ' + kind.__name__
    return parse


def boolean(text):
    """An argparse type: how SageMaker passes on a Python bool, or 1 and 0."""
    if text.lower() not in ('true', 'false', '1', '0'):
        raise ValueError
    return text.lower() in ('true', '1')


def parse_args(argv=None):
    """Hyperparameters come as arguments; directories and GPUs from SageMaker's SM_* variables."""
    # Without abbreviations, so that a misspelt hyperparameter cannot pass for another one.
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--epochs', type=positive(int), default=50)
    parser.add_argument('--batch-size', '--batch_size', type=positive(int), default=64)
    parser.add_argument('--learning-rate', '--learning_rate', type=positive(float), default=0.001)
    parser.add_argument(
        '--augment',
        type=boolean,
        default=False,
        help='train on images that are distorted at random, to read more hands',
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--output-data-dir', default=os.environ.get('SM_OUTPUT_DATA_DIR', '.'))
    parser.add_argument('--model-dir', default=os.environ.get('SM_MODEL_DIR', '.'))
    parser.add_argument('--train', default=os.environ.get('SM_CHANNEL_TRAIN'))
    parser.add_argument('--test', default=os.environ.get('SM_CHANNEL_TEST'))
    parser.add_argument(
        '--checkpoint-dir',
        default='/opt/ml/checkpoints' if os.path.isdir('/opt/ml/checkpoints') else None,
        help="where to save after each epoch and to resume from; SageMaker's if it is there",
    )
    parser.add_argument('--num-gpus', type=int, default=int(os.environ.get('SM_NUM_GPUS', 0)))
    args, rest = parser.parse_known_args(argv)
    # What SageMaker adds for itself is not meant for the script; a lone word is its value.
    unknown = [
        word
        for word in rest
        if word.startswith('-') and word.lstrip('-')[:1].isalpha() and not word.startswith('--sagemaker_')
    ]
    if unknown:
        parser.error('unknown hyperparameter {}'.format(' '.join(unknown)))
    return args


if __name__ == '__main__':
    train(parse_args())
