"""ModelTrainer of the SDK's version 3 in local containers, mended: what is replaced, and nothing else."""

import functools
import os
import shutil

import sagemaker.train.model_trainer
import yaml
from local_mode.docker import LABEL, check, check_succeeded, docker
from local_mode.sdk import stream_output
from sagemaker.train.local import local_container


class LocalContainer(local_container._LocalContainer):
    """A job's containers, labelled as the session's and in a network of their own.

    They go when the job ends, and so do its copies of the data. What it leaves belongs to whoever started it.
    """

    def train(self, wait):
        """Run the job; RuntimeError with the end of its log where it fails."""
        if not wait:
            raise ValueError('In local mode train(wait=True): what a job leaves is collected at its end.')
        check(self.image)
        try:
            artifacts = super().train(wait)
            check_succeeded(self.training_job_name)
            return artifacts
        except RuntimeError as e:
            raise RuntimeError(f'Training job {self.training_job_name} failed. {e}') from None
        finally:
            self.sagemaker_session.remove_stopped_containers()
            if os.getuid():  # the SDK starts the script as root
                docker('run', '--rm', f'--volume={self.container_root}:/left', self.image,
                       'chown', '--recursive', f'{os.getuid()}:{os.getgid()}', '/left')  # fmt: skip
            for name in ['input', 'shared', *self.hosts, *self._temporary_folders]:
                shutil.rmtree(os.path.join(self.container_root, name), ignore_errors=True)

    def _create_docker_host(self, host, environment, volumes):
        labels = {LABEL: self.sagemaker_session.name, f'{LABEL}.job': self.training_job_name}
        # Without $$ Compose reads names there.
        environment = {name: str(value).replace('$', '$$') for name, value in environment.items()}
        content = super()._create_docker_host(host, environment, volumes)
        return {**content, 'labels': labels, 'init': True}

    def _generate_compose_command(self, wait):
        command = super()._generate_compose_command(wait)
        at = command.index('-f')  # or Compose takes directories of one name for one project
        return [*command[:at], '--project-name', self.training_job_name, *command[at:], '--no-color']

    def _generate_compose_file(self, environment, volumes):
        content = super()._generate_compose_file(environment, volumes)
        content['networks'] = {'sagemaker-local': {'labels': {LABEL: self.sagemaker_session.name}}}
        with open(os.path.join(self.container_root, local_container.DOCKER_COMPOSE_FILENAME), 'w') as f:
            yaml.dump(content, f)
        return content


# Before that the SDK's driver lists variables.
local_container._stream_output = functools.partial(stream_output, begin='Executing command: ')
sagemaker.train.model_trainer._LocalContainer = LocalContainer
