"""This module transfers the user's code and checkpoints between S3, or file://, and job directories."""

import contextlib
import os
import shutil
import tarfile
import tempfile
import threading
import uuid
from collections.abc import Iterator
from typing import Any

from local_mode.sources import fetch, local_path
from local_mode.versions import S3Downloader, parse_s3_url

SYNC = 5  # seconds between looks for new checkpoints


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
