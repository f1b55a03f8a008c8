"""ModelTrainer of the SDK's version 3 in local containers, on an engine of ours."""

import os
import secrets
import shutil
from collections.abc import Iterable
from typing import Any

from local_mode.endpoints import label
from local_mode.engines.docker import Docker
from local_mode.engines.interface import Container
from local_mode.errors import EngineError, JobError
from local_mode.instances import run_to_end
from local_mode.versions import SUBMIT_DIRECTORY
from sagemaker.train.local import local_container


class LocalContainer(local_container._LocalContainer):
    """A job's containers, labelled as the session's and in a network of their own.

    They go when the job ends, and so do its copies of the data. Its files belong to whoever started it.
    """

    def train(self, wait: bool) -> str:
        """Run the job; return where its model.tar.gz is. JobError with the end of its log where it fails."""
        if not wait:
            raise ValueError('In local mode train(wait=True): the files of a job are collected at its end.')
        self.sagemaker_session.engine.check(self.image)
        os.makedirs(self.container_root, exist_ok=True)
        before = set(os.listdir(self.container_root))
        try:
            return self.run()
        except RuntimeError as e:
            raise JobError(f'Training job {self.training_job_name} failed. {e}') from None
        finally:
            self.sagemaker_session.remove_containers(self.labels())
            new = set(os.listdir(self.container_root)) - (before - {'model', 'output', 'artifacts'})
            if os.getuid():  # the SDK starts the script as root
                self.own(new)
            data = {'input', 'shared', *self.hosts, *map(os.path.basename, self._temporary_folders)}
            for name in data & new:
                shutil.rmtree(os.path.join(self.container_root, name), ignore_errors=True)

    def labels(self) -> dict[str, str]:
        return {label('job'): self.training_job_name}

    def run(self) -> str:
        for directory in 'output/data', 'shared', 'input/data':
            os.makedirs(os.path.join(self.container_root, directory), exist_ok=True)
        data = os.path.join(self.container_root, 'input', 'data')
        volumes = self._prepare_training_volumes(data, self.input_data_config, self.hyper_parameters)
        if self.hyper_parameters.get(SUBMIT_DIRECTORY, '').startswith('file:'):
            self.hyper_parameters[SUBMIT_DIRECTORY] = '/opt/ml/code'
        for host in self.hosts:
            self._create_config_file_directories(host)
            self._write_config_files(host, self.input_data_config, self.hyper_parameters)
        containers = [self.container(host, volumes) for host in self.hosts]
        try:
            # Before that line the SDK's driver lists variables.
            run_to_end(self.sagemaker_session.engine, containers, begin='Executing command: ')
        finally:
            artifacts = self.retrieve_artifacts(compose_data(containers))
        return artifacts

    def container(self, host: str, volumes: list[str]) -> Container:
        session = self.sagemaker_session
        session.engine.fetch(self.image, session.boto_session)
        variables = {
            local_container.TRAINING_JOB_NAME_ENV_NAME: self.training_job_name,
            local_container.REGION_ENV_NAME: session.boto_region_name,
            local_container.S3_ENDPOINT_URL_ENV_NAME: session.s3_resource.meta.client._endpoint.host,
        }
        own = {f'/opt/ml/{d}': os.path.join(self.container_root, host, d) for d in ('output', 'output/data', 'input')}
        shared = {there: here for here, there in (volume.removesuffix(':z').rsplit(':', 1) for volume in volumes)}
        given = {name: str(value) for name, value in self.environment.items()}
        return Container(
            name=f'{session.name}-{host}-{secrets.token_hex(4)}',
            image=self.image,
            entrypoint=[*(self.container_entrypoint or []), *(self.container_arguments or [])],
            environment=session.credentials() | variables | given,
            mounts=own | shared,
            labels=session.labels() | self.labels(),
            host=host,
            gpus=self.instance_type == 'local_gpu',
        )

    def own(self, names: Any) -> None:
        """Give what is below container_root under these names to whoever runs this."""
        engine = self.sagemaker_session.engine
        if not isinstance(engine, Docker):
            return
        try:
            engine(
                'run', '--rm', '--user=0', '--entrypoint=chown', f'--volume={self.container_root}:/left',
                self.image, '-R', f'{os.getuid()}:{os.getgid()}', *(f'/left/{name}' for name in names),
            )  # fmt: skip
        except EngineError as e:  # which must not hide why a job failed
            print(f'Files in {self.container_root} belong to root: {e}')


def compose_data(containers: Iterable[Container]) -> dict[str, Any]:
    """Return what the SDK's retrieve_artifacts() reads of its Compose file."""
    kept = '/opt/ml/model', '/opt/ml/output'
    return {
        'services': {
            container.host: {'volumes': [f'{container.mounts[inside]}:{inside}' for inside in kept]}
            for container in containers
        }
    }
