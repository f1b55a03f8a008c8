"""What trains: runs the user's script through SageMaker's training toolkit, under MPI where asked.

sagemaker-training calls main() because SAGEMAKER_TRAINING_MODULE names it. On an error the toolkit
writes /opt/ml/output/failure; without us that would not say what the script wrote to stderr. And it
knows of MPI, but not of the Chainer estimator's names for it.
"""

import contextlib
import os
import select
import signal
import threading

import psutil
from sagemaker_training import entry_point, environment, errors, runner

from sagemaker_chainer_container.cpus import blas_settings
from sagemaker_chainer_container.mpi import mpi_options, prepare_mpi, processes_per_host

TAIL = 16384  # bytes of stderr that the failure file keeps


@contextlib.contextmanager
def copied_stderr():
    """Let this process and its children write to a pipe; yield a function that returns its last TAIL bytes.

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
    os.environ.update(blas_settings(processes_per_host(options)))
    os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')  # weights on huge pages
    if options:
        prepare_mpi(env)
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
