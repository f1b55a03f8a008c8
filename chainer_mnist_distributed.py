"""This script trains the same network on several hosts or processes, over MPI; mpirun runs it in each.

Each process (rank) trains on its part of every batch, and a multi-node optimizer averages the gradients. So
batch_size means the same on any number of processes. Only rank 0 reports and saves.
"""

import os
import sys

import chainer
import numpy as np

from chainer_mnist import channels, progress, saving
from chainer_mnist_single_machine import ROWS_ARE_INDEPENDENT, make_model, make_trainer, model_fn, parse_args, report

__all__ = ['ROWS_ARE_INDEPENDENT', 'model_fn']  # for hosting, which needs no MPI


def train(args):
    """Train as one of several processes, like chainer_mnist_single_machine.train; they must divide the batch size."""
    import chainermn  # starts MPI, which hosting does not need

    comm = chainermn.create_communicator('pure_nccl' if args.num_gpus > 0 else 'naive')
    if args.batch_size % comm.size:
        sys.exit(
            f'--batch-size {args.batch_size} cannot be divided among {comm.size} processes: '
            f'make it a multiple of {comm.size}.'
        )
    saving.check_writable(args.model_dir, args.output_data_dir, args.checkpoint_dir)
    train_data, test_data = channels.load(args, comm.rank, comm.size)
    device = comm.intra_rank if args.num_gpus > 0 else -1
    model = make_model(args.seed, device)
    np.random.seed(args.seed + comm.rank)  # each process shuffles and distorts differently
    optimizer = chainermn.create_multi_node_optimizer(chainer.optimizers.Adam(alpha=args.learning_rate), comm)
    optimizer.setup(model)
    comm.bcast_data(model)
    optimizer.is_changed(model)  # otherwise the first update only broadcasts, also after a resume
    trainer, evaluator = make_trainer(args, optimizer, train_data, test_data, args.batch_size // comm.size, device)
    trainer.extend(chainermn.create_multi_node_evaluator(evaluator, comm))
    if comm.rank == 0:
        report(trainer, args.epochs)
        images = f'{len(train_data) * comm.size} images, testing on {len(test_data) * comm.size}'
        print(f'Training on {images}, {progress.count(args.epochs)}, {comm.size} processes')
    saving.keep_checkpoints(trainer, args.checkpoint_dir, comm)
    trainer.run()
    if comm.rank == 0:
        saving.save(os.path.join(args.model_dir, 'model.npz'), model)


if __name__ == '__main__':
    train(parse_args())
