"""Docker as the engine, by its command line; podman's, which is the same, where LOCAL_MODE=podman."""

import functools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from local_mode.engines.interface import Container, Engine, Found, Labels
from local_mode.errors import EngineError
from local_mode.names import is_our_image


class Docker(Engine):
    """Containers of Docker, or of podman."""

    def __init__(self, program: str = 'docker') -> None:
        self.program = program

    def __call__(self, *args: str, input: str = '') -> str:
        """Run a command of Docker; return its stdout. EngineError with its stderr where it fails."""
        command = [self.program, *args]
        try:
            # In a group of its own: Jupyter's Stop interrupts the kernel's whole group.
            done = subprocess.run(command, input=input, capture_output=True, text=True, start_new_session=True)
        except FileNotFoundError:
            raise EngineError(
                f'{self.program.capitalize()} is not installed: run ./setup.sh, or see '
                'https://docs.docker.com/get-docker/.'
            ) from None
        if done.returncode:
            raise EngineError(f'{self.program} {args[0]}: {done.stderr.strip()}')
        return done.stdout

    def check(self, image: str) -> None:
        try:
            self('info')
        except EngineError as e:
            if 'is not installed' in str(e):
                raise
            raise EngineError(
                'Docker does not answer: start it (Docker Desktop, or ./setup.sh), or '
                f'join the group "docker" and log in again. ({e})'
            ) from None
        # A name without a registry would otherwise be looked up on Docker Hub, among strangers.
        if '/' not in image and not self.has_image(image):
            ours = 'build it with `python -m local_mode image`'
            others = f'build it, or name its registry, as in docker.io/library/{image}'
            raise EngineError(f'There is no image {image}: {ours if is_our_image(image) else others}.')

    def has_image(self, image: str) -> bool:
        return bool(self('images', '--quiet', image).strip())

    def fetch(self, image: str, boto_session: object) -> None:
        from local_mode.versions import image as sdk  # takes seconds, and is known by then

        if sdk._ecr_login_if_needed(boto_session, image):
            sdk._pull_image(image)

    def run(self, containers: Sequence[Container]) -> None:
        network = containers[0].name
        self('network', 'create', *label_options(containers[0].labels), network)
        for container in containers:
            for directory in container.mounts.values():
                os.makedirs(directory, exist_ok=True)
            options, variables = environment_options(container.environment)
            self(
                'run', '--detach', f'--network={network}', '--env-file=/dev/stdin', *options,
                *self.options(container), container.image, *container.entrypoint[1:], *container.command,
                input=variables,
            )  # fmt: skip

    def options(self, container: Container) -> list[str]:
        # json-file: whatever the daemon's default is, its logs can be read.
        options = [f'--name={container.name}', '--init', '--log-driver=json-file']
        options += [f'--hostname={container.host}', f'--network-alias={container.host}'] * bool(container.host)
        options += label_options(container.labels)
        options += [mount_option(here, there) for there, here in container.mounts.items()]
        options += [f'--entrypoint={word}' for word in container.entrypoint[:1]]
        if container.port:
            address = '127.0.0.1:' if self.host == '127.0.0.1' else ''
            options.append(f'--publish={address}{container.port}:8080')
        options += [f'--cpus={container.cpus}'] * bool(container.cpus) + ['--gpus=all'] * container.gpus
        return options + ['--read-only', '--tmpfs=/tmp'] * container.read_only

    @functools.cached_property
    def host(self) -> str:  # type: ignore[override]
        url = os.environ.get('DOCKER_HOST') or ''
        if not url and self.program == 'docker':
            url = self('context', 'inspect', '--format={{.Endpoints.docker.Host}}').strip()
        return urlsplit(url).hostname or '127.0.0.1' if url.startswith('tcp:') else '127.0.0.1'

    def logs(self, name: str) -> Iterator[str]:
        streams: dict[str, Any] = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        command = [self.program, 'logs', '--follow', name]
        with subprocess.Popen(command, start_new_session=True, **streams) as process:
            assert process.stdout
            try:
                for line in process.stdout:  # of bytes: text would take a carriage return for a line's end
                    yield line.decode('utf-8', 'replace')
            finally:
                process.kill()

    def wait(self, name: str) -> int:
        return int(self('wait', name))

    def stop(self, names: Sequence[str], seconds: int) -> None:
        self('stop', '-t', str(seconds), *names)

    def find(self, labels: Labels, want: Sequence[str] = (), stopped: bool = False) -> list[Found]:
        columns = ['{{.Names}}', '{{.Status}}', *(f'{{{{.Label "{name}"}}}}' for name in want)]
        every = ['--all'] if stopped else []
        listed = self('ps', *every, *filters(labels), '--format', '\t'.join(columns))
        rows = (line.split('\t') for line in listed.splitlines())
        return [Found(name, state[:2] == 'Up', dict(zip(want, values))) for name, state, *values in rows]

    def remove(self, labels: Labels) -> None:
        if containers := self('ps', '--all', '--quiet', *filters(labels)).split():
            self('rm', '--force', '--volumes', *containers)
        # One by one, as `docker network prune` fails while another prunes.
        for network in self('network', 'ls', '--quiet', *filters(labels)).split():
            self('network', 'rm', network)

    def cpus(self) -> int:
        column = '{{.NCPU}}' if self.program == 'docker' else '{{.Host.CPUs}}'
        return int(self('info', '--format', column))

    def removal(self, name: str) -> str:
        return f'{self.program} rm -f {name}'


def docker(*args: str) -> str:
    """Run a command of Docker, or of podman where LOCAL_MODE says so; return its stdout. EngineError if it fails."""
    return Docker(program())(*args)


def program() -> str:
    """Return the command line's name."""
    return 'podman' if os.environ.get('LOCAL_MODE') == 'podman' else 'docker'


def filters(labels: Labels) -> list[str]:
    return [f'--filter=label={name}={value}'.removesuffix('=') for name, value in labels.items()]


def label_options(labels: Labels) -> list[str]:
    return [f'--label={name}={value}' for name, value in labels.items()]


def mount_option(here: str, there: str) -> str:
    """Return the option that mounts a directory. Its value is CSV, so paths may have colons and commas."""
    from local_mode.versions import image as sdk

    if sdk.SELINUX_ENABLED:  # of this syntax only --volume can relabel
        return f'--volume={here}:{there}:z'
    quoted = (field.replace('"', '""') for field in (f'source={here}', f'target={there}'))
    return '--mount=type=bind,' + ','.join(f'"{field}"' for field in quoted)


def environment_options(environment: Mapping[str, str]) -> tuple[list[str], str]:
    """Return options, and lines for --env-file: other users of this machine see a command, not its input.

    A line holds no value with a line break, so such values are options.
    """
    pairs = [f'{name}={value}' for name, value in environment.items()]
    broken = [pair for pair in pairs if '\n' in pair or '\r' in pair]
    return [f'--env={pair}' for pair in broken], ''.join(f'{p}\n' for p in pairs if p not in broken)
