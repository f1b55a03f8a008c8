"""The SageMaker SDK's local mode, mended: what is replaced in it, and nothing else (see docs/patches.md)."""

import collections
import functools
import os
import subprocess
import sys
import threading

import sagemaker.local.entities
import sagemaker.local.image
import sagemaker.local.local_session
import yaml
from local_mode.docker import LABEL

# The SDK runs two docker commands for every request to find a host that does not change.
get_docker_host = functools.lru_cache(maxsize=None)(sagemaker.local.local_session.get_docker_host)
sagemaker.local.local_session.get_docker_host = get_docker_host


class HostingContainer(sagemaker.local.image._HostingContainer):
    """The thread behind a running endpoint, which prints the container's log and keeps its end."""

    def __init__(self, command):
        super().__init__(command)
        self.daemon = True  # or a script that ends with a live endpoint would never exit
        self.log = collections.deque(maxlen=100)
        self.started = threading.Event()

    def run(self):
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
        )
        self.started.set()
        for line in self.process.stdout:
            self.log.append(line)
            sys.stdout.write(line)
        self.process.wait()

    def down(self):
        self.started.wait()
        super().down()


sagemaker.local.image._HostingContainer = HostingContainer


class Container(sagemaker.local.image._SageMakerContainer):
    """A job's or an endpoint's containers, in a network of their own that bears the session's label.

    The SDK's is one for all of this machine's SDKs, and has no label by which to remove it.
    """

    def _generate_compose_file(self, *args, **kwargs):
        content = super()._generate_compose_file(*args, **kwargs)
        if 'networks' in content:
            content['networks']['sagemaker-local'] = {'labels': {LABEL: self.sagemaker_session.name}}
            path = os.path.join(self.container_root, sagemaker.local.image.DOCKER_COMPOSE_FILENAME)
            with open(path, 'w') as f:
                yaml.dump(content, f)
        return content


sagemaker.local.local_session._SageMakerContainer = sagemaker.local.entities._SageMakerContainer = Container


class ServingContainer(Container):
    """A serving container that only this machine reaches, and that can write to /tmp only.

    Where the user's requirements are to be installed it can write to its own file system, too.
    """

    requirements = False

    def _prepare_serving_volumes(self, model_location):
        volumes = super()._prepare_serving_volumes(model_location)
        for volume in volumes:
            if volume.host_dir.startswith(self.sagemaker_session.directory):
                os.chmod(volume.host_dir, 0o755)  # for workers that are not root; outside has no way here
        return volumes

    def _create_docker_host(self, *args, **kwargs):
        host = super()._create_docker_host(*args, **kwargs)
        if not self.requirements:
            host.update(read_only=True, tmpfs=['/tmp'])
        if 'ports' in host and get_docker_host() == 'localhost':
            host['ports'] = ['127.0.0.1:' + port for port in host['ports']]
        return host
