"""This module runs the user's training script through SageMaker's training toolkit, also under MPI.

The toolkit (sagemaker-training) calls main(), which SAGEMAKER_TRAINING_MODULE names. This module adds two things to it:
/opt/ml/output/failure begins with the script's error, and the Chainer estimator's names for MPI's options are known.
"""

import contextlib
import os
import re
import select
import signal
import threading
import time

import psutil
from sagemaker_training import entry_point, environment, errors, runner

from sagemaker_chainer_container.cpus import blas_settings
from sagemaker_chainer_container.mpi import mpi_options, prepare_mpi, processes_per_host

KILLED = 'Killed by SIGKILL, most likely because there was not enough memory.'
NO_ROOM = "Killed by SIGBUS, most likely because /dev/shm is too small: docker run's option --shm-size sets its size."
PINNED = 'Chainer and NumPy stay in the versions of this environment: leave them out of requirements.txt.'
SIGNALS = {'-9': KILLED, '137': KILLED, '-7': NO_ROOM, '135': NO_ROOM}  # mpirun returns 128 more
TAIL = 16384  # bytes: how much of the end of stderr the failure file keeps
# What the toolkit prints to stderr, too: its settings, the script's command, and lines of its own log.
LOGGED, BEGIN = r'^\S+ \S+ sagemaker-training-toolkit INFO ', 'Invoking user script\n'
COMMAND = r'Invoking script with the following command:\n\n.*?\n\n\n'
TOOLKIT = re.compile(rf'(?:{LOGGED} *{BEGIN}|\A(?!.*{BEGIN})).*?{COMMAND}|{LOGGED}.*?\n', re.M | re.S)
TAG = re.compile(r'^\[\d+,\d+\]<stderr>:', re.M)  # mpirun's, before each line of a process
# The error after a traceback of Python's, or pip's.
ERROR = re.compile(r'^Traceback .*\n(?:[ \t].*\n|Traceback .*\n|\n)*(\S.*)|^((?:ERROR|error): .*)', re.M)


@contextlib.contextmanager
def copied_stderr():
    """Copy to memory what this process and its children write to stderr; yield a function that returns its end."""
    tail, done = b'', threading.Event()
    stderr, (source, sink) = os.dup(2), os.pipe()

    def copy():
        nonlocal tail
        while True:
            if select.select([source], [], [], 0.1)[0]:
                data = os.read(source, 65536)
                tail = (tail + data)[-TAIL:]
                os.write(stderr, data)
            elif done.is_set():  # there is no end of file: sshd keeps the pipe open
                return

    def read():
        done.set()
        thread.join(1)  # a child of the script may still run and write
        return tail.decode('utf-8', 'replace')

    os.dup2(sink, 2)
    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield read
    finally:
        os.dup2(stderr, 2)
        read()


def reason_first(text, hint):
    """Return the script's stderr without the toolkit's lines, after the hint, or the last error and the last line.

    SageMaker's FailureReason is the first 1,024 characters of the failure file, which a traceback may exceed.
    """
    said = TOOLKIT.sub('', text)
    plain = TAG.sub('', said)
    errors = [found[1] or found[2] for found in ERROR.finditer(plain)]
    lines = [line for line in plain.splitlines() if re.search(r'\w', line)]
    reasons = '\n'.join(dict.fromkeys(line.strip() for line in ([hint] if hint else errors[-1:] + lines[-1:])))
    return said if said.strip() == reasons else f'{reasons}\n{said}'


def stop_script(program):
    """Pass SIGTERM on to the script, which may handle it, or to pip; also if it is about to start."""
    told = set()
    while True:
        with contextlib.suppress(psutil.Error):  # one has just ended
            for child in set(psutil.Process().children()) - told:
                if program in (line := ' '.join(child.cmdline())) or ' pip install ' in line:
                    told.add(child)
                    child.terminate()
        time.sleep(0.05)


def main():
    """Run the script. Raises the toolkit's errors with the end of its stderr, or pip's, if it fails.

    The toolkit's capture_error loses the traceback and the message of sys.exit, and splits lines of the live log.
    """
    env = environment.Environment()
    options = mpi_options(env)
    os.environ.update(blas_settings(processes_per_host(options)))
    os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')  # weights on huge pages train faster
    if options:
        prepare_mpi(env)
    stopped = []

    def stop(*_):
        stopped.append(True)
        threading.Thread(target=stop_script, args=(os.path.splitext(env.user_entry_point)[0],), daemon=True).start()
        if options and not env.is_master:  # mpirun on the first host stops the script, and reports why
            threading.Timer(2, os._exit, (128 + signal.SIGTERM,)).start()

    signal.signal(signal.SIGTERM, stop)
    script = env.module_dir, env.user_entry_point, env.to_cmd_args(), env.to_env_vars()
    way = runner.MPIRunnerType if options else runner.ProcessRunnerType
    with copied_stderr() as read:
        try:
            entry_point.run(*script, runner_type=way, extra_opts=options)
        except (errors.ExecuteUserScriptError, errors.InstallRequirementsError, errors.InstallModuleError) as e:
            said = read()
            pinned = PINNED if re.search('Cannot install (chainer|numpy)', said) else ''
            e.output = reason_first(said, 'Stopped by SIGTERM.' if stopped else SIGNALS.get(e.return_code, pinned))
            raise
