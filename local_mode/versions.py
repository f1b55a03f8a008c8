"""The SageMaker SDK's local mode of version 2 or 3, which is the same code under other names."""

try:
    from sagemaker.local import data, entities, image, local_session
    from sagemaker.s3 import S3Downloader, parse_s3_url
    from sagemaker.session_settings import SessionSettings

    PACKAGE = 'sagemaker'
except ModuleNotFoundError:
    from sagemaker.core.local import data, entities, image, local_session  # type: ignore[no-redef]
    from sagemaker.core.s3 import S3Downloader, parse_s3_url  # type: ignore[no-redef]
    from sagemaker.core.session_settings import SessionSettings  # type: ignore[no-redef]

    PACKAGE = 'sagemaker.core'

__all__ = ['PACKAGE', 'S3Downloader', 'SessionSettings', 'data', 'entities', 'image', 'local_session', 'parse_s3_url']
SUBMIT_DIRECTORY = 'sagemaker_submit_directory'
