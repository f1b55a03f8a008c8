"""This engine runs plain processes, for machines without Docker.

A container is then a process of this user, in a directory of its own, which runs our image's `train` or
`serve`. Nothing isolates it: it sees this machine's files and network, and a script's requirements are
installed for the notebook, too. Its environment names the container, so that other processes can find it and
end it, also after a kernel was killed.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

import psutil
from local_mode.engines.interface import Container, Engine, Labels
from local_mode.errors import EngineError, PortTaken, paste_ours
from local_mode.names import container_directory, is_our_image, label

KEPT = re.compile(
    'PATH|HOME|LANG|LC_.*|TMPDIR|LD_LIBRARY_PATH|SSL_CERT_.*|REQUESTS_CA_BUNDLE|PIP_.*|UV_.*|.*_proxy', re.IGNORECASE
)
MARK, NAME = 'CHAINER_MNIST_LOCAL_MODE', label('name')  # a container's labels and name: its processes inherit both
NOTICE = 'Without Docker: training and hosting run as processes, which nothing isolates from this machine.'


class Processes(Engine):
    """Runs `train` and `serve` of our image as processes of this user, one a job."""

    noticed = False

    def __init__(self) -> None:
        self.started: dict[str, tuple[subprocess.Popen, Container]] = {}
        if not Processes.noticed:
            Processes.noticed = True
            print(NOTICE)

    def check(self, image: str) -> None:
        if not is_our_image(image):
            raise refusal(image)
        if not find_spec('sagemaker_training'):
            install = paste_ours('image', 'LOCAL_MODE=process ')
            raise EngineError(f'Jobs as processes need packages that are not installed: install them{install}')

    def has_image(self, image: str) -> bool:
        return is_our_image(image)

    def run(self, containers: Sequence[Container]) -> None:
        container = containers[0]
        told = container.entrypoint or list(container.command) not in (['train'], ['serve'])
        if len(containers) > 1 or told or not is_our_image(container.image):
            raise refusal(container.image)
        if container.isolated:
            raise EngineError('Without Docker nothing isolates a job: leave out enable_network_isolation.')
        base = base_directory(container)
        with listen(container.port or 0) as listener:
            base.mkdir()
            mount(container.mounts, base)
            program, environment = prepare(container, base, listener.fileno())
            with base.with_suffix('.log').open('wb') as out:
                process = subprocess.Popen(
                    program, cwd=base, env=environment, start_new_session=True,
                    pass_fds=[listener.fileno()] * bool(container.port),
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                )  # fmt: skip
        self.started[container.name] = process, container

    def logs(self, name: str) -> Iterator[str]:
        process, container = self.find_started(name)
        with base_directory(container).with_suffix('.log').open('rb') as log:
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
        end({NAME: name})  # nothing outlives it, as in a container
        return code & 255 if code >= 0 else 128 - code

    def find_started(self, name: str) -> tuple[subprocess.Popen, Container]:
        if not (started := self.started.get(name)):
            raise EngineError(f'{name} has been removed.')
        return started

    def stop(self, names: Sequence[str], seconds: int) -> None:
        for name in names:
            end({NAME: name}, seconds)

    def find(self, labels: Labels, want: Sequence[str] = ()) -> dict[str, dict[str, str]]:
        found = [member.labels for member in members(labels)]
        return {own[NAME]: {name: own.get(name, '') for name in want} for own in found}

    def remove(self, labels: Labels) -> None:
        end(labels)
        for name, (process, container) in list(self.started.items()):
            if has(container.labels, labels):
                process.kill()
                process.wait()
                self.started.pop(name, None)

    def cpus(self) -> int:
        return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1

    def removal(self, name: str) -> str:
        return ' '.join(['kill', *(str(member.process.pid) for member in members({NAME: name}) if member.first)])


def refusal(image: str) -> EngineError:
    return EngineError(f'Without Docker only `train` and `serve` of our image run, on one host: not {image}.')


def base_directory(container: Container) -> pathlib.Path:
    """Return the directory that stands for /opt/ml, in the job's own."""
    return pathlib.Path(container.labels[label('directory')], f'process-{container.name}')


@dataclasses.dataclass
class Member:
    """A process of a container, which ends with its first one."""

    labels: dict[str, str]
    process: psutil.Process
    first: bool


def members(labels: Labels) -> list[Member]:
    """Return this user's processes of the containers that have all these labels ('' is any value)."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError, ValueError):  # it ends at this moment
            # Nobody else may name a process to be killed.
            if process.uids().real == os.getuid() and (mark := process.environ().get(MARK)):
                found.append(Member(json.loads(mark), process, os.getsid(process.pid) == process.pid))
    return [member for member in found if has(member.labels, labels)]


def has(own: Labels, labels: Labels) -> bool:
    return all(name in own and value in ('', own[name]) for name, value in labels.items())


def end(labels: Labels, seconds: float = 0) -> None:
    """Send SIGTERM, and after so many seconds SIGKILL, to containers and all that they have started.

    It does not wait for any of them, which would take the exit code from the Popen.
    """
    for member in members(labels):
        if member.first and seconds:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.process.terminate()
    deadline = time.monotonic() + seconds
    while (found := members(labels)) and time.monotonic() < deadline + 10:
        if time.monotonic() > deadline or not any(member.first for member in found):
            for member in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.process.kill()
        time.sleep(0.05)


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


def listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback, so that nobody else can; PortTaken if somebody does."""
    try:
        return socket.create_server(('127.0.0.1', port))
    except OSError as e:
        raise PortTaken(f'Port {port}: {e.strerror}') from None


def prepare(container: Container, base: pathlib.Path, listener: int) -> tuple[list[str], dict[str, str]]:
    """Return the program of a container, and its environment, with base for /opt/ml, and a listening socket."""
    given = dict(container.environment)
    for name in given:
        if name.startswith(('SAGEMAKER_', 'SM_')):
            given[name] = given[name].replace('/opt/ml', str(base))
    environment = {k: v for k, v in os.environ.items() if KEPT.fullmatch(k)} | image_variables() | given
    environment |= {'SAGEMAKER_BASE_DIR': str(base), MARK: json.dumps({**container.labels, NAME: container.name})}
    if list(container.command) == ['train']:
        config = base / 'input' / 'config'
        # The toolkit waits until a host's name is known.
        hosts = ('hyperparameters', '/opt/ml', str(base)), ('resourceconfig', container.host, 'localhost')
        for name, old, new in hosts:
            file = config / f'{name}.json'
            file.write_text(file.read_text().replace(old, new))
        # Not bin/train, whose first line cannot hold a path with a space.
        return [sys.executable, '-m', 'sagemaker_training.cli.train'], environment
    environment |= {'SAGEMAKER_BIND_TO_FD': str(listener), 'SM_MODEL_DIR': str(base / 'model')}
    settings = container_directory() / 'sagemaker-chainer' / 'gunicorn.conf.py'
    return [sys.executable, '-m', 'gunicorn', '-c', str(settings)], environment


def image_variables() -> dict[str, str]:
    """Return the variables that container/Dockerfile sets, for processes."""
    stubs, sources = pathlib.Path(__file__).parent / 'stubs', container_directory() / 'sagemaker-chainer'
    return {
        'PYTHONPATH': os.pathsep.join([str(sources), str(stubs)]),
        'PYTHONUNBUFFERED': '1',
        'PYTHONDONTWRITEBYTECODE': '1',
        'PYTHONUTF8': '1',  # LC_ALL=C and a path with an é
        'MPLBACKEND': 'Agg',
        'SPT_NOENV': '1',  # or setproctitle, where gunicorn finds it, would write over the environment
        # A script's requirements go into the notebook's environment, and may not replace its Chainer.
        'PIP_CONSTRAINT': f'{(sources / "constraints.txt").as_uri()} {os.environ.get("PIP_CONSTRAINT", "")}',
        'SAGEMAKER_TRAINING_MODULE': 'sagemaker_chainer_container.training:main',
    }
