"""MPI for training: the Chainer estimator's options, ssh between the hosts, what the toolkit does badly."""

import hashlib
import os
import pathlib
import time
import types

import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sagemaker_training import errors, mpi, params


def mpi_options(env):
    """Return the toolkit's options for MPI, or None where the script is to run as one process.

    The Chainer estimator's use_mpi, num_processes, process_slots_per_host and additional_mpi_options
    come as hyperparameters; without use_mpi several hosts mean MPI, as in AWS's image.
    """
    given = env.additional_framework_parameters
    if not given.get('sagemaker_use_mpi', len(env.hosts) > 1):
        return None
    slots = given.get('sagemaker_process_slots_per_host') or max(1, env.num_gpus)
    processes = given.get('sagemaker_num_processes') or slots * len(env.hosts)
    if processes > slots * len(env.hosts):
        raise errors.ClientError(
            f'num_processes={processes} do not fit on {len(env.hosts)} host(s) with {slots} slot(s) each: '
            'set process_slots_per_host.'
        )
    return {
        params.MPI_PROCESSES_PER_HOST: slots,
        params.MPI_NUM_PROCESSES: processes,
        params.MPI_CUSTOM_OPTIONS: given.get('sagemaker_additional_mpi_options') or '',
    }


def processes_per_host(options):
    """Return how many processes share this host's CPUs; options: mpi_options's, or None."""
    return min(options[params.MPI_PROCESSES_PER_HOST], options[params.MPI_NUM_PROCESSES]) if options else 1


def prepare_mpi(env):
    """Make this host ready for mpirun, as the one that starts it or as another."""
    # mpirun would name the rank in the middle of lines; it gives stdout a terminal.
    os.environ.pop('PYTHONUNBUFFERED', None)
    os.environ.setdefault('LD_LIBRARY_PATH', '')  # or mpirun warns that it cannot pass it on
    prepare_ssh()
    mend_toolkit(env)


def prepare_ssh():
    """Let the hosts of this job log in to each other, as mpirun does.

    One key for clients and servers, made of what the hosts of a job have in common and no image
    holds: the secret that local mode gives each job, or on SageMaker the job's ARN. That is no secret
    within an account: it does where nobody else reaches the job's network.
    """
    secret = os.environ.pop('SAGEMAKER_MPI_SECRET', None) or os.environ.get('TRAINING_JOB_ARN')
    if not secret:
        raise errors.ClientError('MPI needs a secret that the hosts share: set SAGEMAKER_MPI_SECRET.')
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(secret.encode()).digest())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()
    public = (
        key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )
    # What mpirun starts here over ssh gets this container's environment.
    environment = ''.join(f'{name}={value}\n' for name, value in os.environ.items() if '\n' not in value)
    ssh = pathlib.Path.home() / '.ssh'
    ssh.mkdir(mode=0o700, exist_ok=True)
    for name, text in {
        'id_ed25519': private,
        'authorized_keys': public + '\n',
        'known_hosts': f'* {public}\n',
        'environment': environment,
    }.items():
        (ssh / name).write_text(text)
        (ssh / name).chmod(0o600)


def mend_toolkit(env):
    """Take away what makes the toolkit's MPI slow, or fail for others than root."""
    finished = pathlib.Path(f'{mpi.MPI_FINISHED_STATUS_FILE}.{env.master_hostname}')
    finished.unlink(missing_ok=True)  # of a container that has been started again

    def orted():
        """Wait for mpirun's daemon on this host; a short job may have ended before it is seen."""
        while not finished.exists():
            found = [p for p in psutil.process_iter(['name']) if p.info['name'] == 'orted']
            if found:
                return found
            time.sleep(0.05)
        return []

    mpi._orted_process = orted
    # Not to /etc/environment, which is root's; ~/.ssh/environment has them.
    mpi._write_env_vars_to_file = lambda: None
    # At the end the toolkit sleeps for 30 s. The others have to stay until the first host is done.
    longest = 0.1 if env.is_master else 1
    mpi.time = types.SimpleNamespace(time=time.time, sleep=lambda s: time.sleep(min(s, longest)))
