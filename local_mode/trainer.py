"""ModelTrainer of the SDK's version 3 in local containers, mended: what is replaced, and nothing else."""

import functools
import os
import shutil

import sagemaker.train.model_trainer
from local_mode.docker import check, check_succeeded, docker
from local_mode.sdk import give_network, is_ours, labels, stream_output
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
        os.makedirs(self.container_root, exist_ok=True)
        before = set(os.listdir(self.container_root))
        try:
            artifacts = super().train(wait)
            check_succeeded(self.training_job_name)
            return artifacts
        except RuntimeError as e:
            raise RuntimeError(f'Training job {self.training_job_name} failed. {e}') from None
        finally:
            self.sagemaker_session.remove_stopped_containers()
            new = set(os.listdir(self.container_root)) - (before - {'model', 'output', 'artifacts'})
            if os.getuid():  # the SDK starts the script as root
                self.own(new)
            data = {'input', 'shared', *self.hosts, *map(os.path.basename, self._temporary_folders)}
            for name in data & new:
                shutil.rmtree(os.path.join(self.container_root, name), ignore_errors=True)

    def own(self, names):
        """Give what is below container_root under these names to whoever runs this."""
        try:
            docker(
                'run', '--rm', '--user=0', '--entrypoint=chown', f'--volume={self.container_root}:/left',
                self.image, '-R', f'{os.getuid()}:{os.getgid()}', *(f'/left/{name}' for name in names),
            )  # fmt: skip
        except RuntimeError as e:  # which must not hide why a job failed
            print(f'Files in {self.container_root} belong to root: {e}')

    def _create_docker_host(self, host, environment, volumes):
        # Without $$ Compose reads names there.
        environment = {name: str(value).replace('$', '$$') for name, value in environment.items()}
        content = super()._create_docker_host(host, environment, volumes)
        ours = labels(self.sagemaker_session, job=self.training_job_name)
        return {**content, 'labels': ours, 'init': True}

    def _generate_compose_command(self, wait):
        command = super()._generate_compose_command(wait)
        at = command.index('-f')  # or Compose takes directories of one name for one project
        return [*command[:at], '--project-name', self.training_job_name.lower(), *command[at:], '--no-color']

    def _generate_compose_file(self, environment, volumes):
        return give_network(self, super()._generate_compose_file(environment, volumes))


# Before that the SDK's driver lists variables.
local_container._stream_output = functools.partial(stream_output, begin='Executing command: ')


def make(**fields):
    ours = is_ours(fields.get('sagemaker_session'))
    return (LocalContainer if ours else local_container._LocalContainer)(**fields)


sagemaker.train.model_trainer._LocalContainer = make
