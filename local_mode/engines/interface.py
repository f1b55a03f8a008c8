"""This module is the interface of engines: docker.py implements it with Docker or podman, processes.py without.

engine.run([Container('c', 'debian:trixie', ['echo', 'hello'], labels={'mine': '1'})])
print(*engine.logs('c'), engine.wait('c'))   # hello, 0
engine.remove({'mine': '1'})
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Labels = Mapping[str, str]


@dataclasses.dataclass
class Container:
    """A container to be run.

    mounts: {absolute path in the container: absolute path of this machine}; missing ones are made. host: the
    name by which the other containers of its group find it. port: of this machine, published for its 8080.
    """

    name: str
    image: str
    command: Sequence[str] = ()
    entrypoint: Sequence[str] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mounts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: Labels = dataclasses.field(default_factory=dict)
    host: str = ''
    port: int | None = None
    cpus: float | None = None
    gpus: bool = False
    options: Sequence[str] = ()  # of `docker run`; processes have none
    isolated: bool = False  # reaches its group only
    read_only: bool = False  # except its mounts and /tmp


class Engine(abc.ABC):
    """An engine runs containers for local mode. All methods raise EngineError if they fail."""

    host = '127.0.0.1'  # where published ports answer

    def reach(self) -> None:  # noqa: B027
        """Raise EngineError, with the remedy, unless the engine answers."""

    @abc.abstractmethod
    def check(self, image: str) -> None:
        """Raise EngineError, with the remedy, unless the engine answers and the image can be run."""

    def fetch(self, image: str, boto_session: Any) -> None:  # noqa: B027
        """Get an image from the account's registry, if its name says so and it is not here."""

    @abc.abstractmethod
    def has_image(self, image: str) -> bool:
        """Return whether the image is on this machine."""

    @abc.abstractmethod
    def run(self, containers: Sequence[Container]) -> None:
        """Start containers, which reach each other by hosts' names and no other; PortTaken if a port is taken."""

    @abc.abstractmethod
    def logs(self, name: str) -> Iterator[str]:
        """Yield the lines that a container prints, with their ends, until it stops."""

    @abc.abstractmethod
    def wait(self, name: str) -> int:
        """Return a container's exit code, once it has stopped."""

    @abc.abstractmethod
    def stop(self, names: Sequence[str], seconds: int) -> None:
        """Send SIGTERM to these containers and, after so many seconds, SIGKILL."""

    @abc.abstractmethod
    def find(self, labels: Labels, want: Sequence[str] = ()) -> dict[str, dict[str, str]]:
        """Return the running containers that have all these labels ('' is any value): {name: {label: value}}.

        want: the labels of which the values are returned.
        """

    @abc.abstractmethod
    def remove(self, labels: Labels) -> None:
        """End and remove the containers that have all these labels, and their networks, as many as possible."""

    @abc.abstractmethod
    def cpus(self) -> int:
        """Return how many CPUs containers may use."""

    @abc.abstractmethod
    def removal(self, name: str) -> str:
        """Return the command that removes this container, for a reader."""
