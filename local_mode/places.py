"""Where our files are: in a checkout at its top, in an installed wheel in the package."""

import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parent


def container_directory() -> pathlib.Path:
    """Return the directory that the image is built from, container/."""
    installed = PACKAGE / 'container'
    return installed if installed.exists() else PACKAGE.parent / 'container'
