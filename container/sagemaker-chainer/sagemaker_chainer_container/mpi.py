"""This module prepares a job for MPI: the estimator's options, ssh, fixes for the toolkit (sagemaker-training)."""

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
    """Return the toolkit's options for MPI, or None if the script runs as one process.

    The Chainer estimator passes use_mpi, num_processes, process_slots_per_host and additional_mpi_options
    as hyperparameters. If use_mpi is not set, several hosts use MPI, as in AWS's image.
    Raises ClientError if num_processes is more than all slots.
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
    """Return the number of processes on this host; options: the result of mpi_options."""
    return min(options[params.MPI_PROCESSES_PER_HOST], options[params.MPI_NUM_PROCESSES]) if options else 1


def prepare_mpi(env):
    """Prepare this host for mpirun, whether it starts mpirun or not."""
    # Unbuffered output would put mpirun's rank tag inside lines; its terminal flushes each line anyway.
    os.environ.pop('PYTHONUNBUFFERED', None)
    os.environ.setdefault('LD_LIBRARY_PATH', '')  # mpirun warns if it is unset
    os.environ.setdefault('OMPI_MCA_mpi_yield_when_idle', '1')  # a waiting process leaves its core to others
    prepare_ssh()
    mend_toolkit(env)


def prepare_ssh():
    """Let the hosts of this job log in to each other over ssh, as mpirun needs.

    Clients and servers use one key. It is derived from SAGEMAKER_MPI_SECRET, which local mode sets for
    each job, or from the job's ARN. An ARN is known within the account, so it is safe only while nobody
    else reaches the job's network. Raises ClientError if both are missing.
    """
    secret = os.environ.pop('SAGEMAKER_MPI_SECRET', None) or os.environ.get('TRAINING_JOB_ARN')
    if not secret:
        raise errors.ClientError('MPI needs a secret that the hosts share: set SAGEMAKER_MPI_SECRET.')
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(secret.encode()).digest())
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    private = key.private_bytes(*formats).decode()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    # Processes that mpirun starts here over ssh get this container's environment.
    environment = ''.join(f'{name}={value}\n' for name, value in os.environ.items() if '\n' not in value)
    ssh = pathlib.Path.home() / '.ssh'
    ssh.mkdir(mode=0o700, exist_ok=True)
    files = {'id_ed25519': private, 'authorized_keys': f'{public}\n', 'known_hosts': f'* {public}\n'}
    for name, text in {**files, 'environment': environment}.items():
        (ssh / name).write_text(text)
        (ssh / name).chmod(0o600)


def mend_toolkit(env):
    """Patch the toolkit's MPI code, which sleeps too long and fails for users other than root."""
    finished = pathlib.Path(f'{mpi.MPI_FINISHED_STATUS_FILE}.{env.master_hostname}')
    finished.unlink(missing_ok=True)  # a restarted container still has it

    def orted():
        """Return the processes of mpirun's daemon on this host, once it runs; [] if the job has finished."""
        while not finished.exists():
            found = [p for p in psutil.process_iter(['name']) if p.info['name'] == 'orted']
            if found:
                return found
            time.sleep(0.05)
        return []

    mpi._orted_process = orted
    # The toolkit writes /etc/environment, which only root may; ~/.ssh/environment replaces it.
    mpi._write_env_vars_to_file = lambda: None
    # At the end the toolkit sleeps for 30 s. The other hosts sleep longer, to outlive the first one.
    longest = 0.1 if env.is_master else 1
    mpi.time = types.SimpleNamespace(time=time.time, sleep=lambda s: time.sleep(min(s, longest)))
