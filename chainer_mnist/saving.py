"""This module writes files atomically, so that a killed process leaves no partial one, and checkpoints."""

import os
import re
import sys
import tempfile

import chainer
import numpy as np
from chainer import serializers

# The directory is beside SageMaker's other directories.
CHECKPOINTS = os.path.join(os.path.dirname(os.environ.get('SM_INPUT_DIR', '/opt/ml/input')), 'checkpoints')


def check_writable(*directories):
    """Create these directories, except those that are None. Exits with a sentence if one is not writable."""
    for directory in filter(None, directories):
        try:  # fail now, not after an hour of training
            os.makedirs(directory, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as e:
            sys.exit(f'Cannot write to {directory}: {e.strerror}.')


def save(path, target, **options):
    """Save the target like serializers.save_npz, but atomically: a killed process leaves no partial file."""
    temporary = path + '.tmp'
    try:
        serializers.save_npz(temporary, target, **options)
        os.rename(temporary, path)
    except BaseException:  # for example a full disk
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def keep_checkpoints(trainer, directory, comm=None):
    """Let the trainer save checkpoints to a directory and resume from the newest; if it is None, do nothing.

    comm: the communicator of several processes, each of which calls this. Exits if only some of them have a directory.
    """
    if comm and len(set(comm.mpi_comm.allgather(bool(directory)))) > 1:
        sys.exit('Mount /opt/ml/checkpoints on every host, or on none.')
    if directory:
        checkpoints = Checkpoints(directory, comm)
        trainer.extend(checkpoints)
        checkpoints.resume(trainer)


class Checkpoints(chainer.training.Extension):
    """Saves the trainer's state after each epoch, and restores it when the job is restarted.

    SageMaker keeps /opt/ml/checkpoints on S3, so that a job survives its machine (managed spot training). Each process
    saves its own file. The last two epochs are kept, because killed processes may be an epoch apart.
    """

    trigger = 1, 'epoch'
    priority = -100  # run after the extensions that report

    def __init__(self, directory, comm=None):
        self.directory, self.comm = directory, comm
        rank, size = (comm.rank, comm.size) if comm else (0, 1)
        self.process = f'_process_{rank}_of_{size}.npz'

    def path(self, epoch):
        return os.path.join(self.directory, f'epoch_{epoch}' + self.process)

    def __call__(self, trainer):
        epoch = trainer.updater.epoch
        save(self.path(epoch), trainer, compression=False)
        if os.path.exists(self.path(epoch - 2)):
            os.remove(self.path(epoch - 2))

    def resume(self, trainer):
        """Load the newest epoch that every process has saved, if there is one."""
        pattern = 'epoch_([0-9]+)' + re.escape(self.process)
        saved = (re.fullmatch(pattern, name) for name in os.listdir(self.directory))
        epochs = {int(found.group(1)) for found in saved if found}
        if self.comm:
            epochs = set.intersection(*self.comm.mpi_comm.allgather(epochs))
        if epochs:
            path = self.path(max(epochs))
            try:
                serializers.load_npz(path, trainer)
            except Exception as e:
                raise ValueError(f'{path} is damaged, or of other data or settings: remove it. ({e})') from None
            if not self.comm or self.comm.rank == 0:
                print(f'Resuming after epoch {max(epochs)} from {self.directory}', flush=True)

    def serialize(self, serializer):
        """Save or load the state of NumPy's random numbers, which shuffle and distort, too."""
        kind, keys, position, _, _ = np.random.get_state()
        np.random.set_state((kind, serializer('keys', keys), serializer('position', position)))
