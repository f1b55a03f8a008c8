"""This module has the names of our images, the labels of our containers, and the path of the image's sources."""

import os
import pathlib
import tempfile

LABEL = 'chainer-mnist-local-mode'  # on every container and network of ours; its value is the session's name
VERSION = '7.8.1'  # of Chainer


def label(name: str) -> str:
    """Return the name of a label that tells the purpose of a container: LABEL.name."""
    return f'{LABEL}.{name}'


def of_this_user() -> dict[str, str]:
    """Return the labels of all containers that this user has started with this temporary directory."""
    return {label('user'): str(os.getuid()), label('tmp'): os.path.realpath(tempfile.gettempdir())}


def proxies() -> dict[str, str]:
    """Return the variables that name this machine's proxies, which containers need, too, but not for loopback."""
    names = 'http_proxy', 'https_proxy', 'all_proxy'
    found = {name: value for name, value in os.environ.items() if name.lower() in names}
    given = os.environ.get('no_proxy') or os.environ.get('NO_PROXY')
    direct = ','.join(filter(None, [given, 'localhost,127.0.0.1']))
    return {**found, 'no_proxy': direct, 'NO_PROXY': direct} if found else {}


def image_uri(instance_type: str) -> str:
    """Return the name of our image for 'local', 'local_gpu' or an ml.* instance type."""
    gpu = instance_type == 'local_gpu' or instance_type.startswith(('ml.g', 'ml.p'))
    return f'sagemaker-chainer:{VERSION}-{"gpu" if gpu else "cpu"}-py313'


def is_our_image(image: str) -> bool:
    """Return whether an image's name, with a registry or without, is that of one of ours."""
    return f'sagemaker-chainer:{VERSION}-' in image


def container_directory() -> pathlib.Path:
    """Return the directory that the image is built from: in a checkout at its top, in a wheel in the package."""
    package = pathlib.Path(__file__).resolve().parent
    return next(path for path in (package / 'container', package.parent / 'container') if path.exists())
