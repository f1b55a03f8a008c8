"""The SageMaker SDK's local mode of version 2 or 3, which is the same code under other names."""

import os

import boto3
from botocore.exceptions import BotoCoreError

# At its import the SDK makes a session, which fails where the user's configuration is broken.
NAMES = 'AWS_PROFILE', 'AWS_DEFAULT_PROFILE', 'AWS_CONFIG_FILE', 'AWS_SHARED_CREDENTIALS_FILE'
before = {name: os.environ[name] for name in NAMES if name in os.environ}
BROKEN = False
try:
    boto3.Session()
except BotoCoreError:
    BROKEN = True
    for name in before:
        del os.environ[name]
    os.environ.update(AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull)
try:
    from sagemaker.exceptions import UnexpectedStatusException
    from sagemaker.local import data, entities, image, local_session
    from sagemaker.s3 import S3Downloader, parse_s3_url
    from sagemaker.session_settings import SessionSettings

    PACKAGE = 'sagemaker'
except ModuleNotFoundError:
    from sagemaker.core.exceptions import UnexpectedStatusException  # type: ignore[no-redef]
    from sagemaker.core.local import data, entities, image, local_session  # type: ignore[no-redef]
    from sagemaker.core.s3 import S3Downloader, parse_s3_url  # type: ignore[no-redef]
    from sagemaker.core.session_settings import SessionSettings  # type: ignore[no-redef]

    PACKAGE = 'sagemaker.core'
finally:
    for name in NAMES:
        os.environ.pop(name, None)
    os.environ.update(before)

__all__ = [
    'BROKEN',
    'PACKAGE',
    'S3Downloader',
    'SessionSettings',
    'UnexpectedStatusException',
    'data',
    'entities',
    'image',
]
__all__ += ['local_session', 'parse_s3_url']
SUBMIT_DIRECTORY = 'sagemaker_submit_directory'
