"""What this machine's Docker can do, and what of ours runs there."""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

LABEL = 'chainer-mnist-local-mode'  # on every container of ours; its value names the session
VERSION = '7.8.1'


@functools.cache
def choose_engine():
    """Put processes.py, as `docker`, on the PATH where LOCAL_MODE=process asks for it.

    Or where there is no Docker, and the set-up has installed what the processes need.
    """
    wanted = os.environ.get('LOCAL_MODE')
    if wanted == 'process' or not (wanted or shutil.which('docker')) and find_spec('sagemaker_training'):
        os.environ['LOCAL_MODE_PYTHON'] = sys.executable
        os.environ['PATH'] = (
            os.path.join(os.path.dirname(__file__), 'process') + os.pathsep + os.environ['PATH']
        )
        print(
            'Without Docker: training and hosting run as processes, which nothing isolates from this machine.'
        )


def docker(*args):
    """Run a docker command; return its stdout. RuntimeError with its stderr where it fails."""
    choose_engine()
    try:
        done = subprocess.run(('docker',) + args, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError(
            'Docker is not installed: run ./setup.sh, or see https://docs.docker.com/get-docker/.'
        ) from None
    if done.returncode:
        raise RuntimeError(f'docker {args[0]}: {done.stderr.strip()}')
    return done.stdout


def image_uri(instance_type):
    """Return the name of our image for 'local', 'local_gpu' or an ml.* instance type."""
    gpu = instance_type == 'local_gpu' or instance_type.startswith(('ml.g', 'ml.p'))
    return 'sagemaker-chainer:{}-{}-py313'.format(VERSION, 'gpu' if gpu else 'cpu')


def is_our_image(image):
    """Return whether an image's name, with a registry or without, is that of one of ours."""
    return f'sagemaker-chainer:{VERSION}-' in image


def has_image(name):
    """Return whether Docker has this image already."""
    return bool(docker('images', '--quiet', name).strip())


def check(image):
    """Raise RuntimeError with what to do, unless Docker, Compose and a local image are there."""
    try:
        docker('info')
    except RuntimeError as e:
        raise RuntimeError(
            'Docker does not answer: start it (Docker Desktop, or ./setup.sh), or '
            f'join the group "docker" and log in again. ({e})'
        ) from None
    # A name without a registry would otherwise be looked up on Docker Hub, among strangers.
    if '/' not in image and not has_image(image):
        raise RuntimeError(f'There is no image {image}: build it with `make image`.')
    # The SDK takes `docker compose` only if its version starts with v2, else docker-compose from
    # PATH. For newer ones bin/docker-compose hands over to `docker compose`; a real one goes first.
    bin_directory = os.path.join(os.path.dirname(__file__), 'bin')
    if bin_directory not in os.environ['PATH'].split(os.pathsep):
        if not shutil.which('docker-compose'):
            try:
                docker('compose', 'version')
            except RuntimeError:
                raise RuntimeError(
                    'Docker Compose is not installed: run ./setup.sh, or see '
                    'https://docs.docker.com/compose/install/.'
                ) from None
        os.environ['PATH'] += os.pathsep + bin_directory


def check_succeeded(job):
    """Raise RuntimeError unless a container of the job exited with 0; to Compose a lost one has."""
    states = docker('ps', '--all', f'--filter=label={LABEL}.job={job}', '--format={{.Status}}').splitlines()
    if not any(state.startswith('Exited (0)') for state in states):
        raise RuntimeError(f'None of its containers exited with code 0: {states}.')


def gpu_available():
    """Return whether `local_gpu` can work: a GPU, Docker's access to it, and our image for it.

    Prints what is missing where this machine has a GPU.
    """
    if not shutil.which('nvidia-smi') or subprocess.run('nvidia-smi', capture_output=True).returncode:
        return False
    image = image_uri('local_gpu')
    if not has_image(image):
        print(f'This machine has a GPU, but there is no image {image}: using the CPU.')
        return False
    try:
        docker('run', '--rm', '--gpus', 'all', '--entrypoint', 'nvidia-smi', image)
    except RuntimeError as e:
        print(
            'This machine has a GPU, but Docker cannot use it (is the NVIDIA Container Toolkit '
            f'installed?): using the CPU. ({e})'
        )
        return False
    return True


def remove_containers(session, *filters):
    """Remove this session's containers that match Docker's ps filters, and the networks they were in."""
    label = f'label={LABEL}={session}'
    filters = [f'--filter={f}' for f in (label, *filters)]
    if containers := docker('ps', '--all', '--quiet', *filters).split():
        docker('rm', '--force', *containers)
    # One by one, as `docker network prune` fails while another prunes.
    for network in docker('network', 'ls', '--quiet', f'--filter={label}').split():
        with contextlib.suppress(RuntimeError):  # in use, by an endpoint
            docker('network', 'rm', network)
