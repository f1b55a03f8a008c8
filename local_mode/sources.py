"""This module fetches the input data of jobs into directories of this machine, under SageMaker's names."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlparse

from botocore.exceptions import ClientError
from local_mode.errors import LocalModeError
from local_mode.versions import parse_s3_url


def local_path(uri: str) -> str:
    """Return the path of a file:// URI, with %20 for a space, as Path.as_uri() writes it, or with the space."""
    path = os.path.abspath(uri.removeprefix('file://'))
    return path if os.path.exists(path) else os.path.abspath(unquote(path))


def fetch(session: Any, uri: str, kind: str = 'S3Prefix') -> str:
    """Return a directory with the files that a data source names; LocalModeError if there are none.

    uri: s3:// or file://. kind: S3Prefix; ManifestFile, whose object names the files; or S3Object, which is a prefix
    only if there is no such object.
    """
    if kind not in ('S3Prefix', 'ManifestFile', 'S3Object') or kind == 'ManifestFile' and uri.startswith('file://'):
        raise LocalModeError(f'Local mode has no {kind} at {uri}: use S3Prefix, or ManifestFile on S3.')
    if uri.startswith('file://'):
        return fetch_local(session, local_path(uri))
    directory = tempfile.mkdtemp(dir=session.directory)
    try:
        found = list(manifest(session, uri) if kind == 'ManifestFile' else below(session, uri))
    except ClientError as e:
        raise LocalModeError(f'{uri} cannot be read: {e}') from None
    for bucket, key, name in [one for one in found if kind == 'S3Object' and uri == f's3://{one[0]}/{one[1]}'] or found:
        download(session, bucket, key, directory, name)
    if not found:
        raise LocalModeError(f'No S3 objects found under S3 URL "{uri}".')
    return directory


def download(session: Any, bucket: str, key: str, directory: str, name: str) -> None:
    path, uri = os.path.normpath(os.path.join(directory, name)), f's3://{bucket}/{key}'
    if not path.startswith(directory + os.sep):
        raise LocalModeError(f'The object {uri} would be written outside of its channel.')
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path):
            raise FileExistsError
        session.s3_client.download_file(bucket, key, path)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise LocalModeError(f'The object {uri} has the name of another one, or of its directory: {name}.') from None
    except ClientError as e:
        raise LocalModeError(f'{uri} cannot be read: {e}') from None


def fetch_local(session: Any, path: str) -> str:
    if os.path.isdir(path):
        return path
    if not os.path.exists(path):
        raise LocalModeError(f'There is no file or directory {path}.')
    directory = tempfile.mkdtemp(dir=session.directory)
    shutil.copy(path, directory)
    return directory


def below(session: Any, uri: str) -> Iterator[tuple[str, str, str]]:
    """Yield (bucket, key, name) of all objects whose keys begin with the prefix in a URI.

    As on SageMaker a prefix is no directory: .../data/a stands for data/a/1, which is called 1, and for data/a2.
    """
    bucket, prefix = parse_s3_url(uri)
    for page in session.s3_client.get_paginator('list_objects_v2').paginate(Bucket=bucket, Prefix=prefix):
        for key in (found['Key'] for found in page.get('Contents', [])):
            name = key[len(prefix) :] if key[len(prefix) :].startswith('/') else key[prefix.rfind('/') + 1 :]
            if not key.endswith('/'):  # consoles make such for folders
                yield bucket, key, name.lstrip('/')


def manifest(session: Any, uri: str) -> Iterator[tuple[str, str, str]]:
    """Yield (bucket, key, name) of each object that a manifest names: [{"prefix": "s3://..."}, "name", ...]."""
    bucket, key = parse_s3_url(uri)
    text = session.s3_client.get_object(Bucket=bucket, Key=key)['Body'].read()
    try:
        first, *names = json.loads(text)
        prefix = urlparse(first['prefix'])
        for name in names:
            yield prefix.netloc, prefix.path.lstrip('/') + name, name
    except (KeyError, TypeError, ValueError, AttributeError):
        raise LocalModeError(f'{uri} is no manifest: [{{"prefix": "s3://bucket/prefix/"}}, "name", ...].') from None
