"""This module runs jobs of version 3's ModelTrainer in local containers, on an engine of ours."""

import json
import os
from collections.abc import Iterable
from typing import Any

from local_mode.engines.docker import Docker, mount_option, options
from local_mode.errors import EngineError, JobError, stopped
from local_mode.instances import Instances, pack_results
from local_mode.output import Output
from local_mode.s3 import local_path, unpack
from local_mode.versions import SUBMIT_DIRECTORY
from sagemaker.train.local import local_container

OWN = """
give() { [ ! -e "$1" ] || chown -hR "$(stat -c %u:%g "$2")" "$1"; }
give /job /job; give /kept /kept; give /left/artifacts /left; give /left/compressed_artifacts /left
"""


class TrainerInstances(Instances):
    """Runs the instances of a job whose results stay on this machine, where ModelTrainer leaves them."""

    def collect(self, containers: Iterable[Any], config: Any, job_name: str) -> None:
        """Write artifacts/ and compressed_artifacts/, without links that lead out of the containers' files."""
        root = local_path(config['S3OutputPath'])
        packed = os.path.join(root, 'compressed_artifacts')
        os.makedirs(packed, exist_ok=True)
        pack_results(containers, packed)
        for kind in 'model', 'output':
            unpack(f'{packed}/{kind}.tar.gz', f'{root}/artifacts/{kind}')
        self.artifacts = f'file://{packed}/model.tar.gz'


class LocalContainer(local_container._LocalContainer):
    """Runs a job of ModelTrainer in its session's containers; its files belong to whoever started it."""

    def train(self, wait: bool) -> str:
        """Run the job; return where its model.tar.gz is. JobError with the end of its log if it fails."""
        if not wait:
            raise ValueError('In local mode call train(wait=True): the files of a job are collected at its end.')
        self.sagemaker_session.engine.check(self.image)
        os.makedirs(self.container_root, exist_ok=True)
        program = {'ContainerEntrypoint': self.container_entrypoint, 'ContainerArguments': self.container_arguments}
        resources = {'InstanceType': self.instance_type, 'InstanceCount': self.instance_count}
        session, job = self.sagemaker_session, self.training_job_name
        instances = TrainerInstances(resources, self.image, session, program, job=job)
        # Before the first line the SDK's driver lists variables; with the last it tells that it is at its end.
        instances.output = Output('Executing command: ', self.instance_count)
        instances.output.hide = 'Training Container Execution Completed'
        inputs, output = [*map(as_requested, self.input_data_config)], {'S3OutputPath': f'file://{self.container_root}'}
        uri = self.hyper_parameters.get(SUBMIT_DIRECTORY)
        code = {SUBMIT_DIRECTORY: json.dumps(uri)} if uri else {}
        try:
            return instances.train(inputs, output, self.hyper_parameters | code, self.environment, job)
        except KeyboardInterrupt as e:
            e.args = (stopped('Training') + instances.kept,)
            raise
        except RuntimeError as e:
            raise JobError(f'Training job {job} failed. {e}{instances.kept}') from None
        finally:
            if os.getuid():  # the SDK starts the script as root
                self.own(instances)
            instances.discard()

    def own(self, instances: Instances) -> None:
        """Give a job's files to the owner of the directory they are in, also if that owner is root in containers."""
        if not isinstance(instances.engine, Docker):
            return
        directories = {self.container_root: '/left', instances.sagemaker_session.directory: '/job'}
        if instances.kept:
            directories[instances.container_root] = '/kept'
        mounts = [*options('label', instances.labels), *(mount_option(*pair) for pair in directories.items())]
        try:
            instances.engine('run', '--rm', '--user=0', '--entrypoint=sh', *mounts, self.image, '-c', OWN)
        except EngineError as e:  # which must not hide why a job failed
            print(f'Files in {", ".join(directories)} belong to root: {e}')


def as_requested(channel: Any) -> dict[str, Any]:
    """Return one of ModelTrainer's channels as it is in a request for a training job."""
    source = channel.data_source.s3_data_source
    if isinstance(uri := getattr(source, 's3_uri', None), str):
        given = {'DataUri': uri, 'DataSource': {'S3DataSource': {'S3DataType': source.s3_data_type}}}
    else:
        path = os.path.abspath(channel.data_source.file_system_data_source.directory_path)
        given = {'DataUri': f'file://{path}', 'DataSource': {}}
    kind = {'ContentType': channel.content_type} if isinstance(channel.content_type, str) else {}
    return {'ChannelName': channel.channel_name, **given, **kind}
