"""This module runs jobs of version 3's ModelTrainer in local containers, on an engine of ours."""

import os
import shutil
from collections.abc import Iterable
from typing import Any

from local_mode.engines.docker import Docker, mount_option, options
from local_mode.errors import EngineError, JobError, stopped
from local_mode.instances import Instances, pack_results, run_to_end
from local_mode.output import Output
from local_mode.s3 import unpack
from local_mode.versions import SUBMIT_DIRECTORY, image
from sagemaker.train.local import local_container


class LocalContainer(local_container._LocalContainer):
    """Runs a job's containers, labelled as the session's and in a network of their own.

    They are removed when the job ends, and so are its copies of the data. Its files belong to whoever started it.
    """

    def train(self, wait: bool) -> str:
        """Run the job; return where its model.tar.gz is. JobError with the end of its log if it fails."""
        if not wait:
            raise ValueError('In local mode call train(wait=True): the files of a job are collected at its end.')
        self.sagemaker_session.engine.check(self.image)
        program = {'ContainerEntrypoint': self.container_entrypoint, 'ContainerArguments': self.container_arguments}
        resources = {'InstanceType': self.instance_type, 'InstanceCount': self.instance_count}
        session, job = self.sagemaker_session, self.training_job_name
        instances = Instances(resources, self.image, session, program, job=job)
        instances.container_root, instances.hosts = self.container_root, self.hosts or []
        os.makedirs(self.container_root, exist_ok=True)
        before = set(os.listdir(self.container_root))
        try:
            return self.run(instances)
        except KeyboardInterrupt as e:
            e.args = (stopped('Training'),)
            raise
        except RuntimeError as e:
            raise JobError(f'Training job {self.training_job_name} failed. {e}') from None
        finally:
            new = set(os.listdir(self.container_root)) - (before - {'model', 'output', 'artifacts'})
            if os.getuid():  # the SDK starts the script as root
                self.own(new, instances.labels)
            instances.discard()
            data = {'input', 'shared', *self.hosts, *map(os.path.basename, self._temporary_folders)}
            for name in data & new:
                shutil.rmtree(os.path.join(self.container_root, name), ignore_errors=True)

    def run(self, instances: Instances) -> str:
        data = os.path.join(self.container_root, 'input', 'data')
        os.makedirs(data, exist_ok=True)
        volumes = self._prepare_training_volumes(data, self.input_data_config, self.hyper_parameters)
        if self.hyper_parameters.get(SUBMIT_DIRECTORY, '').startswith('file:'):
            self.hyper_parameters[SUBMIT_DIRECTORY] = '/opt/ml/code'
        for host in self.hosts:
            self._create_config_file_directories(host)
            self._write_config_files(host, self.input_data_config, self.hyper_parameters)
        variables = self.sagemaker_session.variables(self.training_job_name) | self.environment
        mounts = [image._Volume(*volume.removesuffix(':z').rsplit(':', 1)) for volume in volumes]
        containers = instances.containers('process', mounts, variables, ('output', 'output/data', 'input'))
        try:
            # Before the first line the SDK's driver lists variables; with the last it tells that it is at its end.
            output = Output('Executing command: ', len(containers))
            output.hide = 'Training Container Execution Completed'
            run_to_end(instances.engine, containers, output)
        finally:
            self.collect(containers)
        return f'file://{self.container_root}/compressed_artifacts/model.tar.gz'

    def collect(self, containers: Iterable[Any]) -> None:
        """Write artifacts/ and compressed_artifacts/, without links that lead out of the containers' files."""
        packed = os.path.join(self.container_root, 'compressed_artifacts')
        os.makedirs(packed, exist_ok=True)
        pack_results(containers, packed)
        for kind in 'model', 'output':
            unpack(f'{packed}/{kind}.tar.gz', f'{self.container_root}/artifacts/{kind}')

    def own(self, names: Iterable[str], labels: dict[str, str]) -> None:
        """Give these entries of container_root to the directory's owner, also if that owner is root in containers."""
        engine = self.sagemaker_session.engine
        if not isinstance(engine, Docker):
            return
        chown = 'cd /left && chown -hR "$(stat -c %u:%g .)" "$@"'
        left = [*options('label', labels), mount_option(self.container_root, '/left')]
        try:
            engine('run', '--rm', '--user=0', '--entrypoint=sh', *left, self.image, '-c', chown, '-', *names)
        except EngineError as e:  # which must not hide why a job failed
            print(f'Files in {self.container_root} belong to root: {e}')
