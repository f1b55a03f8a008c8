"""This module transfers data, the user's code and checkpoints between S3, or file://, and job directories."""

import contextlib
import json
import os
import shutil
import tarfile
import tempfile
import threading
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlparse

from botocore.exceptions import ClientError
from local_mode.errors import LocalModeError
from local_mode.versions import S3Downloader, parse_s3_url

SYNC = 5  # seconds between looks for new checkpoints


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


def local_copy(session: Any, code: str) -> str:
    """Unpack the user's code from S3, as SageMaker does; return it as a file:// directory.

    The SDK mounts a file:// directory at /opt/ml/code, so that containers need no S3. Its own local_code
    would mount the script's whole directory instead, and leave out `dependencies`.
    """
    if not code.startswith('s3://'):
        return code
    directory = tempfile.mkdtemp(dir=session.directory)
    os.chmod(directory, 0o755)  # for workers that are not root
    packed = fetch(session, code, 'S3Object')
    unpack(os.path.join(packed, os.path.basename(code)), directory)
    shutil.rmtree(packed)
    return 'file://' + directory


def unpack(archive: str | os.PathLike[str], directory: str | os.PathLike[str]) -> None:
    """Unpack a tar file; TarError if anything in it would lead out of the directory, also as a link."""
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, 'data_filter', None)  # Debian 12's Python, 3.11.2, has none
        for member in tar:
            tar.extract(checked(member, os.path.realpath(directory)), directory)


def checked(member: tarfile.TarInfo, root: str) -> tarfile.TarInfo:
    """Return a member of a tar file, as this user's own; TarError if it would lead out of the root, or is a device."""
    # Or a later link leads .. elsewhere, also by the data filter of Python 3.11.7.
    member.linkname = os.path.normpath(member.linkname)
    beside = os.path.dirname(member.name) if member.issym() else ''
    paths = [member.name] + [os.path.join(beside, member.linkname)] * (member.issym() or member.islnk())
    inside = all(os.path.commonpath([root, resolved(os.path.join(root, path))]) == root for path in paths)
    if not inside or member.isdev() or '..' in member.name.split('/'):
        raise tarfile.TarError(f'{member.name!r} in a tar file leads out of {root} or is a device: not unpacked.')
    member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), '', ''
    member.mode = 0o755 if member.isdir() else member.mode & 0o755  # files must still get into it
    return member


def resolved(path: str) -> str:
    """Return a path with its links resolved; TarError if it is too long for that."""
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:  # it is about to be made
        return os.path.realpath(path)
    except OSError as e:
        raise tarfile.TarError(f'{path!r}: {e.strerror}') from None


def stays(path: str, directory: str) -> bool:
    """Return whether a path leads, also through links, to a file or directory below a directory."""
    real = os.path.realpath(path)
    return real.startswith(os.path.realpath(directory) + os.sep) and (os.path.isfile(real) or os.path.isdir(real))


def rescue(directory: str) -> str:
    """Move a directory out of the session's directory, which will be removed; return its new name."""
    kept = os.path.join(tempfile.gettempdir(), f'kept-{uuid.uuid4().hex}')  # a full disk may refuse a new one
    os.rename(directory, kept)
    return kept


@contextlib.contextmanager
def checkpoints(session: Any, uri: str) -> Iterator[str]:
    """Yield a directory with the files at a URI (s3:// or file://); what a job writes into it is copied to the URI.

    To S3 that takes up to SYNC seconds. As on SageMaker nothing is deleted there. RuntimeError in the end if
    some of it could not be written: then the directory stays.
    """
    if uri.startswith('file://'):
        directory = local_path(uri)
        os.makedirs(directory, exist_ok=True)
        yield directory
        return
    with tempfile.TemporaryDirectory(dir=session.directory, ignore_cleanup_errors=True) as directory:
        S3Downloader.download(uri.rstrip('/') + '/', directory, sagemaker_session=session)
        bucket, prefix = parse_s3_url(uri)
        seen = set(written(directory))
        over = threading.Event()
        failures: list[Exception] = []

        def keep() -> None:
            ended = False
            while not ended:
                ended = over.wait(SYNC)  # and once more after the end
                failures.clear()  # all that has failed is tried again
                for path, state in set(written(directory)) - seen:
                    key = os.path.join(prefix, os.path.relpath(path, directory))
                    try:
                        session.s3_client.upload_file(path, bucket, key)
                        seen.add((path, state))
                    except FileNotFoundError:
                        pass  # replaced by a newer one
                    except Exception as e:  # of the network, of permissions: the next time may be better
                        failures.append(e)

        thread = threading.Thread(target=keep)
        thread.start()
        try:
            yield directory
        finally:
            over.set()
            thread.join()
            if failures:
                failure = f'Checkpoints could not be written to {uri}: {failures[0]}. They are in {rescue(directory)}.'
                print(failure)
        if failures:
            raise RuntimeError(failure)


def written(directory: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (path, (time, size)) of each file below a directory."""
    for root, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(root, name)
            with contextlib.suppress(OSError):  # it has gone, or is a link to itself
                if stays(path, directory):
                    status = os.stat(path)
                    yield path, (status.st_mtime_ns, status.st_size)
