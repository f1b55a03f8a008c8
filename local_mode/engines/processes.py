"""Plain processes as the engine, for machines without Docker.

A container is then a process of this user, in a directory of its own, which runs our image's `train` or
`serve`. Nothing isolates it: it sees this machine's files and network, and a script's requirements are
installed for the notebook, too. Its record lies in its job's directory, where other processes find it
and can end it, also after a kernel was killed.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

import psutil
from local_mode.engines.interface import Container, Engine, Labels
from local_mode.errors import EngineError, PortTaken
from local_mode.names import LABEL, is_our_image, label
from local_mode.places import container_directory

KEPT = re.compile(
    'PATH|HOME|LANG|LC_.*|TMPDIR|LD_LIBRARY_PATH|SSL_CERT_.*|REQUESTS_CA_BUNDLE|PIP_.*|UV_.*|.*_proxy', re.IGNORECASE
)
NOTICE = 'Without Docker: training and hosting run as processes, which nothing isolates from this machine.'


@dataclasses.dataclass
class Record:
    """A process and how to find it: the file `path` holds the rest of this."""

    path: pathlib.Path
    name: str
    labels: dict[str, str]
    pid: int
    created: float

    def process(self) -> psutil.Process | None:
        """Return the running process, or None."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        return None

    def has(self, labels: Labels) -> bool:
        return all(name in self.labels and value in ('', self.labels[name]) for name, value in labels.items())

    def end(self, seconds: float) -> None:
        """Send SIGTERM, and after so many seconds SIGKILL to it and all that it has started."""
        if process := self.process():
            children = process.children(recursive=True)
            if seconds:
                process.terminate()
            self.wait(seconds)
            for left in [process, *children]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            self.wait(5)
            psutil.wait_procs(children, 5)

    def wait(self, seconds: float) -> None:
        """Wait for its end; psutil's wait() would take the exit code of a child from its Popen."""
        deadline = time.monotonic() + seconds
        while self.process() and time.monotonic() < deadline:
            time.sleep(0.05)


class Processes(Engine):
    """`train` and `serve` of our image as processes of this user, one a job."""

    noticed = False

    def __init__(self) -> None:
        self.started: dict[str, tuple[subprocess.Popen, pathlib.Path]] = {}  # with their logs
        if not Processes.noticed:
            Processes.noticed = True
            print(NOTICE)

    def check(self, image: str) -> None:
        if not is_our_image(image):
            raise refusal(image)
        if not find_spec('sagemaker_training'):
            raise EngineError(
                'What processes need in place of Docker is not installed here: `python -m local_mode image`.'
            )

    def fetch(self, image: str, boto_session: object) -> None:
        pass

    def has_image(self, image: str) -> bool:
        return is_our_image(image)

    def run(self, containers: Sequence[Container]) -> None:
        container = containers[0]
        told = container.entrypoint or list(container.command) not in (['train'], ['serve'])
        if len(containers) > 1 or told or not is_our_image(container.image):
            raise refusal(container.image)
        base = base_directory(container)
        with listening(container.port) as sockets:
            base.mkdir()
            mount(container.mounts, base)
            program, environment = prepare(container, base, sockets)
            with base.with_suffix('.log').open('wb') as log:
                process = subprocess.Popen(
                    program, cwd=base, env=environment, start_new_session=True, pass_fds=sockets,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
        self.started[container.name] = process, base.with_suffix('.log')
        created = psutil.Process(process.pid).create_time()
        record = dict(name=container.name, labels=container.labels, pid=process.pid, created=created)
        file = base.with_suffix('.json')
        file.with_suffix('.new').write_text(json.dumps(record))
        file.with_suffix('.new').rename(file)

    def logs(self, name: str) -> Iterator[str]:
        process, path = self.find_started(name)
        with path.open('rb') as log:
            ended, line = False, b''
            while not ended:
                ended = process.poll() is not None  # and once more after the end
                for part in log:
                    line += part
                    if line.endswith(b'\n'):
                        yield line.decode('utf-8', 'replace')
                        line = b''
                time.sleep(0.05)
        if line:
            yield line.decode('utf-8', 'replace')

    def wait(self, name: str) -> int:
        process, _ = self.find_started(name)
        code = process.wait()
        with contextlib.suppress(ProcessLookupError):  # nothing outlives it, as in a container
            os.killpg(process.pid, signal.SIGKILL)
        return code & 255 if code >= 0 else 128 - code

    def find_started(self, name: str) -> tuple[subprocess.Popen, pathlib.Path]:
        if not (started := self.started.get(name)):
            raise EngineError(f'{name} has been removed.')
        return started

    def stop(self, names: Sequence[str], seconds: int) -> None:
        for record in records():
            if record.name in names:
                record.end(seconds)

    def find(self, labels: Labels, want: Sequence[str] = ()) -> dict[str, dict[str, str]]:
        found = [record for record in records() if record.has(labels) and record.process()]
        return {record.name: {name: record.labels.get(name, '') for name in want} for record in found}

    def remove(self, labels: Labels) -> None:
        for record in records():
            if record.has(labels):
                record.end(0)
                record.path.unlink(missing_ok=True)
                record.path.with_suffix('.log').unlink(missing_ok=True)
                shutil.rmtree(record.path.with_suffix(''), ignore_errors=True)  # links, not what they lead to
                if started := self.started.pop(record.name, None):
                    started[0].wait()

    def cpus(self) -> int:
        return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1

    def removal(self, name: str) -> str:
        return ' '.join(['kill', *(str(record.pid) for record in records() if record.name == name)])


def refusal(image: str) -> EngineError:
    return EngineError(f'Without Docker only `train` and `serve` of our image run, on one host: not {image}.')


def base_directory(container: Container) -> pathlib.Path:
    """Return the directory that stands for /opt/ml, in the job's own."""
    return pathlib.Path(container.labels[label('directory')], f'process-{container.name}')


def records() -> list[Record]:
    """Return the records of this user's processes, running or not."""
    found = []
    for path in sorted(pathlib.Path(tempfile.gettempdir()).glob(f'{LABEL}-*/*/process-*.json')):
        with contextlib.suppress(OSError, ValueError):  # it goes at this moment
            # Nobody else may name a process to be killed: below what is ours and no link, others cannot write.
            if path.parents[1].lstat().st_uid == os.getuid():
                found.append(Record(path, **json.loads(path.read_text())))
    return found


def mount(mounts: Mapping[str, str], base: pathlib.Path) -> None:
    """Make links below base to directories, {'/opt/ml/there': here}."""
    for inside, here in sorted(mounts.items()):
        os.makedirs(here, exist_ok=True)  # as Docker does
        there = base / os.path.relpath(inside, '/opt/ml')
        there.parent.mkdir(parents=True, exist_ok=True)
        if there.exists() and not there.samefile(here):
            there.rmdir()  # where a mount would hide it
        if not there.exists():
            there.symlink_to(os.path.abspath(here))


@contextlib.contextmanager
def listening(port: int | None) -> Iterator[list[int]]:
    """Yield the descriptors of a socket that listens on a port of loopback, or none: from now on nobody else can."""
    if not port:
        yield []
        return
    try:
        listener = socket.create_server(('127.0.0.1', port))
    except OSError as e:
        kind = PortTaken if e.errno == errno.EADDRINUSE else EngineError
        raise kind(f'Port {port}: {e.strerror}') from None
    with listener:
        yield [listener.fileno()]


def prepare(container: Container, base: pathlib.Path, sockets: list[int]) -> tuple[list[str], dict[str, str]]:
    """Return the program of a container, and its environment, with base for /opt/ml, and a listening socket."""
    given = dict(container.environment)
    for name in given:
        if name.startswith(('SAGEMAKER_', 'SM_')):
            given[name] = given[name].replace('/opt/ml', str(base))
    environment = {k: v for k, v in os.environ.items() if KEPT.fullmatch(k)} | image_variables() | given
    environment['SAGEMAKER_BASE_DIR'] = str(base)
    if list(container.command) == ['train']:
        config = base / 'input' / 'config'
        # The toolkit waits until a host's name is known.
        hosts = ('hyperparameters', '/opt/ml', str(base)), ('resourceconfig', container.host, 'localhost')
        for name, old, new in hosts:
            file = config / f'{name}.json'
            file.write_text(file.read_text().replace(old, new))
        # Not bin/train, whose first line cannot hold a path with a space.
        return [sys.executable, '-m', 'sagemaker_training.cli.train'], environment
    environment |= {'SAGEMAKER_BIND_TO_FD': str(sockets[0]), 'SM_MODEL_DIR': str(base / 'model')}
    settings = container_directory() / 'sagemaker-chainer' / 'gunicorn.conf.py'
    return [sys.executable, '-m', 'gunicorn', '-c', str(settings)], environment


def image_variables() -> dict[str, str]:
    """Return the variables that container/Dockerfile sets, for processes."""
    stubs = pathlib.Path(__file__).parent / 'stubs'
    return {
        'PYTHONPATH': os.pathsep.join([str(container_directory() / 'sagemaker-chainer'), str(stubs)]),
        'PYTHONUNBUFFERED': '1',
        'PYTHONDONTWRITEBYTECODE': '1',
        'PYTHONUTF8': '1',  # LC_ALL=C and a path with an é
        'MPLBACKEND': 'Agg',
        'SAGEMAKER_TRAINING_MODULE': 'sagemaker_chainer_container.training:main',
    }
