"""This module keeps names that other projects import from here: image_uri, gpu_available, docker, has_image, LABEL."""

from local_mode.engines.choose import choose, gpu_available
from local_mode.engines.docker import Docker
from local_mode.names import LABEL, image_uri, is_our_image

__all__ = ['LABEL', 'docker', 'gpu_available', 'has_image', 'image_uri', 'is_our_image']
docker = Docker()  # docker('ps') runs a command; returns its stdout, or raises EngineError


def has_image(name: str) -> bool:
    """Return whether the engine has this image already."""
    return choose().has_image(name)
