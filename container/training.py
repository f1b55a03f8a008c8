"""What trains: runs the user's script through SageMaker's training toolkit, under MPI where asked.

sagemaker-training calls main() because SAGEMAKER_TRAINING_MODULE names it. On an error the toolkit
writes /opt/ml/output/failure; without us that would not say what the script wrote to stderr. And it
knows of MPI, but not of the Chainer estimator's names for it.
"""

import contextlib
import hashlib
import os
import pathlib
import select
import signal
import threading
import time
import types

import psutil
from cpus import blas_settings
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sagemaker_training import entry_point, environment, errors, mpi, params, runner

TAIL = 16384  # bytes of stderr that the failure file keeps


def mpi_options(env):
    """Return the toolkit's options for MPI, or None where the script is to run as one process.

    The Chainer estimator's use_mpi, num_processes, process_slots_per_host and additional_mpi_options
    come as hyperparameters; without use_mpi several hosts mean MPI, as in AWS's image.
    """
    given = env.additional_framework_parameters
    if not given.get('sagemaker_use_mpi', len(env.hosts) > 1):
        return None
    slots = given.get('sagemaker_process_slots_per_host') or max(1, env.num_gpus)
    options = {
        params.MPI_PROCESSES_PER_HOST: slots,
        params.MPI_NUM_PROCESSES: given.get('sagemaker_num_processes') or slots * len(env.hosts),
        params.MPI_CUSTOM_OPTIONS: given.get('sagemaker_additional_mpi_options') or '',
    }
    if options[params.MPI_NUM_PROCESSES] > slots * len(env.hosts):
        raise errors.ClientError(
            f'num_processes={options[params.MPI_NUM_PROCESSES]} do not fit on {len(env.hosts)} host(s) with {slots} slot(s) each: set process_slots_per_host.'
        )
    return options


def prepare_ssh():
    """Let the hosts of this job log in to each other, as mpirun does.

    One key for clients and servers, made of what the hosts of a job have in common and no image holds: the
    secret that local mode gives each job, or on SageMaker the job's ARN. That is no secret within an account:
    it does where nobody else reaches the job's network.
    """
    secret = os.environ.pop('SAGEMAKER_MPI_SECRET', None) or os.environ.get('TRAINING_JOB_ARN')
    if not secret:
        raise errors.ClientError('MPI needs a secret that the hosts share: set SAGEMAKER_MPI_SECRET.')
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(secret.encode()).digest())
    public = (
        key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )
    ssh = pathlib.Path.home() / '.ssh'
    ssh.mkdir(mode=0o700, exist_ok=True)
    for name, text in {
        'id_ed25519': key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ).decode(),
        'authorized_keys': public + '\n',
        'known_hosts': f'* {public}\n',
        # What mpirun starts here over ssh gets this container's environment.
        'environment': ''.join('{}={}\n'.format(*pair) for pair in os.environ.items() if '\n' not in pair[1]),
    }.items():
        (ssh / name).write_text(text)
        (ssh / name).chmod(0o600)


def mend_mpi(env):
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
    mpi._write_env_vars_to_file = lambda: (
        None
    )  # to /etc/environment, which is root's; ~/.ssh/environment has it
    # At the end the toolkit sleeps for 30 s. The others have to stay until the first host is done.
    longest = 0.1 if env.is_master else 1
    mpi.time = types.SimpleNamespace(time=time.time, sleep=lambda s: time.sleep(min(s, longest)))


@contextlib.contextmanager
def copied_stderr():
    """Let this process and its children write to a pipe; yield a function that returns the last TAIL bytes of it.

    All appears on the real stderr, too, as it comes.
    """
    tail, done = b'', threading.Event()
    stderr, (source, sink) = os.dup(2), os.pipe()

    def copy():
        nonlocal tail
        while True:
            if select.select([source], [], [], 0.1)[0]:
                data = os.read(source, 65536)
                tail = (tail + data)[-TAIL:]
                os.write(stderr, data)
            elif done.is_set():  # the pipe does not end: sshd stays and keeps it open
                return

    def read():
        done.set()
        thread.join(1)  # a child of the script may live on and write
        return tail.decode('utf-8', 'replace')

    os.dup2(sink, 2)
    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield read
    finally:
        os.dup2(stderr, 2)
        read()


def main():
    """Run the entry point; an error carries the end of its stderr.

    The toolkit's own capture_error keeps only some lines (the name of an exception and what
    follows, but no traceback and no message of sys.exit), and cuts up the live log.
    """
    env = environment.Environment()
    options = mpi_options(env)
    processes = (
        min(options[params.MPI_PROCESSES_PER_HOST], options[params.MPI_NUM_PROCESSES]) if options else 1
    )
    os.environ.update(blas_settings(processes))
    os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')  # weights on huge pages
    if options:
        os.environ.pop(
            'PYTHONUNBUFFERED', None
        )  # mpirun would name the rank in the middle of lines; it gives stdout a terminal
        os.environ.setdefault('LD_LIBRARY_PATH', '')  # or mpirun warns that it cannot pass it on
        prepare_ssh()
        mend_mpi(env)
    stopped = []

    def stop(*_):
        """Let the script decide what SIGTERM means, as it would without us."""
        stopped.append(True)
        program = os.path.splitext(env.user_entry_point)[0]
        scripts = [p for p in psutil.Process().children() if program in ' '.join(p.cmdline())]
        for script in scripts:
            script.terminate()
        if options and not env.is_master:  # mpirun passes it on from the first host, which also says why
            threading.Timer(2, os._exit, (128 + signal.SIGTERM,)).start()
        elif not scripts:
            raise errors.ClientError('Stopped by SIGTERM.')

    signal.signal(signal.SIGTERM, stop)
    with copied_stderr() as read:
        try:
            entry_point.run(
                env.module_dir,
                env.user_entry_point,
                env.to_cmd_args(),
                env.to_env_vars(),
                runner_type=runner.MPIRunnerType if options else runner.ProcessRunnerType,
                extra_opts=options,
            )
        except errors.ExecuteUserScriptError as e:
            e.output = read()
            if stopped:
                e.output += 'Stopped by SIGTERM.'
            elif e.return_code in ('-9', '137'):  # mpirun's is the latter
                e.output += 'Killed by SIGKILL, most likely because there was not enough memory.'
            raise
