"""This module chooses an engine, by LOCAL_MODE (docker, podman, process) or by what this machine has."""

import os
import shutil
import subprocess
from importlib.util import find_spec

from local_mode.engines.docker import Docker
from local_mode.engines.interface import Engine
from local_mode.engines.processes import Processes
from local_mode.errors import EngineError
from local_mode.names import image_uri


def choose() -> Engine:
    """Return the engine that LOCAL_MODE names.

    By default it is Docker, unless this machine has none and the set-up has installed what processes need.
    """
    wanted = os.environ.get('LOCAL_MODE') or ('docker' if shutil.which('docker') else '')
    if wanted == 'process' or not wanted and find_spec('sagemaker_training'):
        return Processes()
    if wanted not in ('', 'docker', 'podman'):
        raise EngineError(f'LOCAL_MODE must be docker, podman or process, not {wanted!r}.')
    return Docker()


def gpu_available() -> bool:
    """Return whether `local_gpu` can work: a GPU, Docker's access to it, and our image for it.

    If this machine has a GPU, prints what is missing.
    """
    if not shutil.which('nvidia-smi') or subprocess.run('nvidia-smi', capture_output=True).returncode:
        return False
    engine, image = choose(), image_uri('local_gpu')
    if not isinstance(engine, Docker):
        return False
    try:
        engine.check(image)
        engine('run', '--rm', '--gpus', 'all', '--entrypoint', 'nvidia-smi', image)
    except EngineError as e:
        print(f'Using the CPU, as the GPU cannot be used: {e} Is the NVIDIA Container Toolkit installed?')
        return False
    return True
