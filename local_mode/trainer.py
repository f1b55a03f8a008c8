"""This module runs jobs of version 3's ModelTrainer in local containers, on an engine of ours."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from local_mode.engines.docker import Docker, mount_option, options
from local_mode.errors import EngineError, JobError, stopped
from local_mode.instances import Instances, pack, pack_results
from local_mode.output import Output
from local_mode.s3 import local_path, unpack
from local_mode.versions import SUBMIT_DIRECTORY
from sagemaker.train.local import local_container

OWN = 'chown -hR "$(stat -c %u:%g /job)" /job && chmod -R u+rwX /job'


class TrainerInstances(Instances):
    """Runs the instances of a job whose results stay on this machine, where ModelTrainer leaves them."""

    def collect(self, containers: Iterable[Any], config: Any, job_name: str) -> None:
        """Add to artifacts/, without links that lead out of the containers' files; pack it as compressed_artifacts/."""
        if os.getuid():  # the SDK starts the script as root
            self.own()
        root, mine = local_path(config['S3OutputPath']), self._create_tmp_folder()
        pack_results(containers, mine, '.tar')
        os.makedirs(f'{root}/compressed_artifacts', exist_ok=True)
        with locked(root):  # another job may be at its end
            for kind in 'model', 'output':
                os.makedirs(f'{root}/artifacts/{kind}', exist_ok=True)
                unpack(f'{mine}/{kind}.tar', f'{root}/artifacts/{kind}')
                new = f'{root}/compressed_artifacts/.{kind}.tar.gz'  # a full disk leaves the former one whole
                pack(new, [f'{root}/artifacts/{kind}'], f'/opt/ml/{kind}')
                os.replace(new, f'{root}/compressed_artifacts/{kind}.tar.gz')
        self.artifacts = f'file://{root}/compressed_artifacts/model.tar.gz'

    def own(self) -> None:
        """Give what the script wrote as root to this user, also if this user is root in containers."""
        if not isinstance(self.engine, Docker):
            return
        mounts = [*options('label', self.labels), mount_option(self.sagemaker_session.directory, '/job')]
        try:
            self.engine('run', '--rm', '--user=0', '--entrypoint=sh', *mounts, self.image, '-c', OWN)
        except EngineError as e:  # which must not hide why a job failed
            print(f'Files of the job belong to root: {e}')


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Let one thread at a time, of all processes, into this context."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class LocalContainer(local_container._LocalContainer):
    """Runs a job of ModelTrainer in its session's containers; its files belong to whoever started it."""

    def train(self, wait: bool) -> str:
        """Run the job; return where its model.tar.gz is. JobError with the end of its log if it fails."""
        if not wait:
            raise ValueError('In local mode call train(wait=True): the files of a job are collected at its end.')
        for name, value in self.hyper_parameters.items():
            if "'" in str(value):  # it would end the driver's quotes
                raise ValueError(f"Version 3's driver cannot pass on an apostrophe: change the hyperparameter {name}.")
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
            instances.discard()


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
