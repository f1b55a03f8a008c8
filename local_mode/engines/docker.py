"""This engine runs containers by Docker's command line, or by podman's, which is the same."""

import base64
import contextlib
import functools
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from local_mode.engines.interface import Container, Engine, Labels
from local_mode.errors import EngineError, PortTaken, paste_ours
from local_mode.names import is_our_image

ECR = re.compile(r'(\d+)\.dkr\.ecr\.([^.]+)\.amazonaws\.com[^/]*/.*')
TAKEN = re.compile('port is already allocated|address already in use')  # Docker's and podman's words


class Docker(Engine):
    """Runs containers with Docker, or with podman if LOCAL_MODE=podman."""

    limit = 60.0  # seconds for a command, or an engine that hangs would keep a notebook from ending
    unlimited = 'run', 'wait', 'stop', 'pull', 'rmi'

    def __init__(self, program: str = '') -> None:
        self.program = program or ('podman' if os.environ.get('LOCAL_MODE') == 'podman' else 'docker')

    def __call__(self, *args: str, input: str = '', environment: Mapping[str, str] | None = None) -> str:
        """Run a command of Docker; return its stdout. EngineError with its stderr if it fails."""
        limit = None if args[0] in self.unlimited else self.limit
        try:
            # In a group of its own: Jupyter's Stop interrupts the kernel's whole group.
            apart: dict[str, Any] = dict(start_new_session=True, env={**os.environ, **(environment or {})})
            command = [self.program, *args]
            done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=limit, **apart)
        except FileNotFoundError:
            remedy = 'install it (https://docs.docker.com/get-docker/; in a clone ./setup.sh does), or do without it'
            message = f'{self.program.capitalize()} is not installed: {remedy}: set LOCAL_MODE=process.'
            raise EngineError(message) from None
        except subprocess.TimeoutExpired:
            raise EngineError(f'{self.program} {args[0]} did not answer within {limit:g} s.') from None
        if done.returncode:
            kind = PortTaken if TAKEN.search(done.stderr) else EngineError
            raise kind(f'{self.program} {args[0]}: {done.stderr.strip()}')
        return done.stdout

    def reach(self) -> None:
        try:
            self('info')
        except EngineError as e:
            if 'is not installed' in str(e):
                raise
            remedy = 'start it, or join the group "docker" and log in again'
            raise EngineError(f'{self.program.capitalize()} does not answer: {remedy}. ({e})') from None

    def check(self, image: str) -> None:
        self.reach()
        # A name without a registry would otherwise be looked up on Docker Hub, among strangers.
        if '/' not in image and not self.has_image(image):
            ours = paste_ours(f'image{" gpu" * ("-gpu-" in image)}')
            others = f', or name its registry, as in docker.io/library/{image}.'
            raise EngineError(f'There is no image {image}: build it{ours if is_our_image(image) else others}')

    def has_image(self, image: str) -> bool:
        return bool(self('images', '--quiet', image).strip())

    def fetch(self, image: str, boto_session: Any) -> None:
        found = ECR.fullmatch(image)
        if not found or self.has_image(image):
            return
        client = boto_session.client('ecr', region_name=found[2])
        (given,) = client.get_authorization_token(registryIds=[found[1]])['authorizationData']
        user, _, password = base64.b64decode(given['authorizationToken']).decode().partition(':')
        self('login', '--username', user, '--password-stdin', given['proxyEndpoint'], input=password)
        print(f'Pulling {image}.')
        self('pull', image)

    def run(self, containers: Sequence[Container]) -> None:
        network = containers[0].name
        internal = ['--internal'] * containers[0].isolated
        self('network', 'create', *internal, *options('label', containers[0].labels), network)
        for container in containers:
            for directory in container.mounts.values():
                os.makedirs(directory, exist_ok=True)
            # Other users of this machine see a command, but not its input and environment. A line of --env-file
            # holds no line break, and at most 64 KB.
            variables = container.environment.items()
            apart = {name: value for name, value in variables if re.search('[\r\n]', value) or len(value) > 60_000}
            lines = [f'{name}={value}\n' for name, value in variables if name not in apart]
            given = [*self.options(container), '--env-file=/dev/stdin', *(f'--env={name}' for name in apart)]
            command = [*given, container.image, *container.entrypoint[1:], *container.command]
            self('run', '--detach', f'--network={network}', *command, input=''.join(lines), environment=apart)

    def options(self, container: Container) -> list[str]:
        # json-file: whatever the daemon's default is, its logs can be read.
        given = [f'--name={container.name}', '--init', '--log-driver=json-file', *options('label', container.labels)]
        if container.host:  # version 3's SM_MASTER_ADDR is algo-1, without our suffix
            aliases = container.host, container.host.rpartition('-')[0] or container.host
            given += [f'--hostname={container.host}', *(f'--network-alias={alias}' for alias in aliases)]
        given += [mount_option(here, there) for there, here in container.mounts.items()]
        given += [f'--entrypoint={word}' for word in container.entrypoint[:1]]
        address = '127.0.0.1:' if self.host == '127.0.0.1' else ''
        given += [f'--publish={address}{container.port}:8080'] * bool(container.port)
        given += [f'--cpus={container.cpus or 0:.2f}'] * bool(container.cpus) + ['--gpus=all'] * container.gpus
        return [*given, *container.options] + ['--read-only', '--tmpfs=/tmp'] * container.read_only

    @functools.cached_property
    def host(self) -> str:  # type: ignore[override]
        url = os.environ.get('DOCKER_HOST') or ''
        if not url and self.program == 'docker':
            url = self('context', 'inspect', '--format={{.Endpoints.docker.Host}}').strip()
        host = urlsplit(url).hostname if url.startswith('tcp:') else None
        return '127.0.0.1' if not host or re.fullmatch(r'localhost|127\..*|::1', host) else host

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

    def find(self, labels: Labels, want: Sequence[str] = ()) -> dict[str, dict[str, str]]:
        columns = ['{{.Names}}', *(f'{{{{.Label "{name}"}}}}' for name in want)]
        rows = self('ps', *filters(labels), '--format', '\t'.join(columns)).splitlines()
        return {name: dict(zip(want, values)) for name, *values in (row.split('\t') for row in rows)}

    def remove(self, labels: Labels) -> None:
        containers = self('ps', '--all', '--quiet', *filters(labels)).split()
        with contextlib.ExitStack() as stack:  # from the last to the first, whichever of them fails
            # One by one, as `docker network prune` fails while another prunes.
            for network in self('network', 'ls', '--quiet', *filters(labels)).split():
                stack.callback(self, 'network', 'rm', network)
            if containers:
                stack.callback(self, 'rm', '--force', '--volumes', *containers)

    def cpus(self) -> int:
        column = '{{.NCPU}}' if self.program == 'docker' else '{{.Host.CPUs}}'
        return int(self('info', '--format', column))

    def removal(self, name: str) -> str:
        return f'{self.program} rm -f {name}'


def options(option: str, labels: Labels) -> list[str]:
    return [f'--{option}={name}={value}' for name, value in labels.items()]


def filters(labels: Labels) -> list[str]:
    return [option.removesuffix('=') for option in options('filter=label', labels)]


def mount_option(here: str, there: str) -> str:
    """Return the option that mounts a directory. Its value is CSV, so paths may have colons and commas."""
    from local_mode.versions import image as sdk

    if sdk.SELINUX_ENABLED:  # of this syntax only --volume can relabel
        return f'--volume={here}:{there}:z'
    quoted = (field.replace('"', '""') for field in (f'source={here}', f'target={there}'))
    return '--mount=type=bind,' + ','.join(f'"{field}"' for field in quoted)
