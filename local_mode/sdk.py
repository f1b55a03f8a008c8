"""The SageMaker SDK's local mode, mended: what is replaced in it, and nothing else (see docs/patches.md)."""

import collections
import contextlib
import functools
import logging
import os
import re
import subprocess
import sys
import threading
import time

import urllib3
import yaml
from local_mode.docker import LABEL, is_our_image
from local_mode.s3 import local_copy
from local_mode.versions import SUBMIT_DIRECTORY, entities, image, local_session

START = 120  # seconds in which a container must answer
LINE = re.compile(r'(\S+) +\| ?(.*)', re.DOTALL)  # of a container; all others are Compose's own
ESCAPE = re.compile(r'\x1b\[[\d;]*[A-Za-z]')

log = logging.getLogger('local_mode')  # at INFO all is printed as it comes
log.setLevel(logging.WARNING)  # the SDK sets the root's to INFO

# The SDK runs two docker commands for every request to find a host that does not change.
get_docker_host = functools.lru_cache(maxsize=None)(local_session.get_docker_host)
local_session.get_docker_host = get_docker_host


class Output:
    """What containers print, for a reader: of one without its name, and without Compose's own lines.

    A line that begins with a carriage return, as a progress bar's, is written over by the next.
    begin: part of the line after which to print. end: the last lines, all of them.
    """

    def __init__(self, begin=''):
        self.begin, self.end, self.names, self.over = begin, collections.deque(maxlen=100), set(), 0

    def write(self, line):
        """Take a line, and print it or not."""
        self.end.append(line)
        if log.isEnabledFor(logging.INFO):
            sys.stdout.write(line)
        elif match := LINE.match(ESCAPE.sub('', line)):
            name, text = match[1], match[2].rstrip()
            self.names.add(name)
            if not self.begin:
                self.show(f'{name} | {text}' if len(self.names) > 1 else text)
            elif self.begin in text:
                self.begin = ''
                self.end.clear()

    def show(self, text):
        if self.over:
            sys.stdout.write('\r' + ' ' * self.over + '\r')
        self.over = len(text) if text.startswith('\r') else 0
        sys.stdout.write(text if self.over else text + '\n')


def stream_output(process, begin=''):
    """Print what a job's containers print; RuntimeError with the end of it where the job fails."""
    output = Output(begin)
    for line in process.stdout:
        output.write(line.decode('utf-8', 'replace'))
    if code := process.wait():
        raise RuntimeError(f'It exited with code {code}. Its log ends:\n{"".join(output.end)}')


image._stream_output = stream_output


class HostingContainer(image._HostingContainer):
    """The thread behind a running endpoint, which prints the container's log and keeps its end."""

    def __init__(self, command):
        super().__init__(command)
        self.daemon = True  # or a script that ends with a live endpoint would never exit
        self.output = Output()
        self.started = threading.Event()

    def run(self):
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
        )
        self.started.set()
        for line in self.process.stdout:
            self.output.write(line)
        self.process.wait()

    def down(self):
        self.started.wait()
        super().down()


image._HostingContainer = HostingContainer


def is_ours(session):
    """Return whether a session is one of local_mode's, and not the SDK's own."""
    return hasattr(session, 'remove_stopped_containers')


def labels(session, **names):
    """Return the labels of a container of this session: LABEL, and LABEL.name = value."""
    return {LABEL: session.name, **{f'{LABEL}.{name}': value for name, value in names.items()}}


def give_network(container, content):
    """Return a Compose file, written anew with a network of its own that has the session's label."""
    if 'networks' in content:
        content['networks']['sagemaker-local'] = {'labels': labels(container.sagemaker_session)}
        path = os.path.join(container.container_root, image.DOCKER_COMPOSE_FILENAME)
        with open(path, 'w') as f:
            yaml.dump(content, f)
    return content


class Container(image._SageMakerContainer):
    """A job's or an endpoint's containers, in a network of their own that bears the session's label.

    The SDK's is one for all of this machine's SDKs, and has no label by which to remove it.
    options: what Compose is told of each of them besides. mounts: {path in the container: directory here}.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.options, self.mounts = {}, {}

    def label(self, **names):
        """Add labels: LABEL.name = value."""
        self.options['labels'] = labels(self.sagemaker_session, **names)

    def _compose(self, detached=False):
        return [*super()._compose(detached), '--no-color']

    def _create_docker_host(self, host, environment, optml_subdirs, command, volumes):
        environment = [text.replace('$', '$$') for text in environment]  # or Compose reads names there
        mounts = [image._Volume(here, there) for there, here in self.mounts.items()]
        content = super()._create_docker_host(host, environment, optml_subdirs, command, volumes + mounts)
        return {**content, **self.options}

    def _generate_compose_file(self, *args, **kwargs):
        return give_network(self, super()._generate_compose_file(*args, **kwargs))


class ServingContainer(Container):
    """A serving container that only this machine reaches.

    One of our image can write to /tmp and the model only, unless it is to install the user's requirements.
    """

    def serve(self, model_dir, environment):
        """Start it, and return once /ping answers 200; RuntimeError with its log if it stops."""
        key = SUBMIT_DIRECTORY.upper()
        code = local_copy(self.sagemaker_session, environment.get(key, ''))
        requirements = os.path.join(code.replace('file://', ''), 'requirements.txt')
        if code.startswith('file://') and is_our_image(self.image) and not os.path.exists(requirements):
            self.options.update(read_only=True, tmpfs=['/tmp'])
        super().serve(model_dir, {**environment, key: code} if code else environment)
        url = f'http://{get_docker_host()}:{self.sagemaker_session.serving_port}/ping'
        http = urllib3.PoolManager(retries=False, timeout=2)
        hosting, deadline = self.container, time.monotonic() + START
        while hosting.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if http.request('GET', url).status == 200:
                    return
            time.sleep(0.1)
        what = f'did not answer within {START} s' if hosting.is_alive() else 'stopped'
        raise RuntimeError(f'The endpoint {what}. Its log ends:\n{"".join(hosting.output.end)}')

    def _prepare_serving_volumes(self, model_location):
        volumes = super()._prepare_serving_volumes(model_location)
        for volume in volumes:
            if volume.host_dir.startswith(self.sagemaker_session.directory):
                os.chmod(volume.host_dir, 0o777)  # for workers that are not root; outside has no way here
        return volumes

    def _create_docker_host(self, *args, **kwargs):
        host = super()._create_docker_host(*args, **kwargs)
        if 'ports' in host and get_docker_host() == 'localhost':
            host['ports'] = ['127.0.0.1:' + port for port in host['ports']]
        return host


def instead(ours, theirs):
    """Return what makes containers of our class for our sessions, and of the SDK's for others."""

    def make(instance_type, instance_count, image, sagemaker_session=None, **kwargs):
        kind = ours if is_ours(sagemaker_session) else theirs
        return kind(instance_type, instance_count, image, sagemaker_session, **kwargs)

    return make


# For processing jobs; for batch transform.
for module, ours in (local_session, Container), (entities, ServingContainer):
    module._SageMakerContainer = instead(ours, module._SageMakerContainer)
