"""This module imports local mode from version 2 or 3 of the SDK, which have the same code under other names."""

import os
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError
from local_mode.errors import JobError

NAMES = 'AWS_PROFILE', 'AWS_DEFAULT_PROFILE', 'AWS_CONFIG_FILE', 'AWS_SHARED_CREDENTIALS_FILE'
NOTHING = (None, None, os.devnull, None)
# For botocore.session.Session(session_vars=...): the user's configuration, whatever is wrong with it, is not read.
UNCONFIGURED: Any = {'profile': (None,) * 4, 'config_file': NOTHING, 'credentials_file': NOTHING}


def is_broken() -> bool:
    """Return whether boto3 cannot read the user's configuration, so that no session of theirs can be made."""
    try:
        boto3.Session()
    except BotoCoreError:
        return True
    return False


before = {name: os.environ[name] for name in NAMES if name in os.environ}
if is_broken():  # the SDK makes a session when it is imported
    for name in before:
        del os.environ[name]
    os.environ.update(AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull)
try:
    from sagemaker.exceptions import UnexpectedStatusException
    from sagemaker.local import entities, image, local_session
    from sagemaker.s3 import S3Downloader, parse_s3_url
    from sagemaker.session_settings import SessionSettings

    PACKAGE = 'sagemaker'
except ModuleNotFoundError:
    from sagemaker.core.exceptions import UnexpectedStatusException  # type: ignore[no-redef]
    from sagemaker.core.local import entities, image, local_session  # type: ignore[no-redef]
    from sagemaker.core.s3 import S3Downloader, parse_s3_url  # type: ignore[no-redef]
    from sagemaker.core.session_settings import SessionSettings  # type: ignore[no-redef]

    PACKAGE = 'sagemaker.core'
finally:
    for name in NAMES:
        os.environ.pop(name, None)
    os.environ.update(before)

__all__ = ['PACKAGE', 'S3Downloader', 'SessionSettings', 'entities', 'image', 'local_session', 'parse_s3_url']
SUBMIT_DIRECTORY = 'sagemaker_submit_directory'


class FailedJob(UnexpectedStatusException, JobError):
    """A JobError that code written for SageMaker catches, too."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ['Completed', 'Stopped'], 'Failed')
