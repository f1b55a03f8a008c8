"""Files that are whole or absent, whenever the process ends; checkpoints among them."""

import os
import sys
import tempfile

import chainer
import numpy as np
from chainer import serializers

# Beside SageMaker's other directories.
CHECKPOINTS = os.path.join(os.path.dirname(os.environ.get('SM_INPUT_DIR', '/opt/ml/input')), 'checkpoints')


def check_writable(*directories):
    """Make these directories, but those that are None; exit if one cannot be written to."""
    for directory in filter(None, directories):
        try:  # now, not after an hour of training
            os.makedirs(directory, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as e:
            sys.exit(f'Cannot write to {directory}: {e.strerror}.')


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


def keep_checkpoints(trainer, directory, comm=None):
    """Let the trainer save itself to this directory and go on from what is there; without one do nothing.

    comm: the communicator of several processes, each of which calls this.
    """
    if comm and len(set(comm.mpi_comm.allgather(bool(directory)))) > 1:
        sys.exit('Mount /opt/ml/checkpoints on every host, or on none.')
    if directory:
        checkpoints = Checkpoints(directory, comm)
        trainer.extend(checkpoints)
        checkpoints.resume(trainer)


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
