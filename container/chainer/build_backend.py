"""What pip calls to build Chainer's wheel (PEP 517): fetches its sdist, applies patches/, leaves the rest to setuptools."""

import hashlib
import io
import os
import pathlib
import re
import shutil
import tarfile
import urllib.parse
import urllib.request

import patch_ng
import truststore
from setuptools import build_meta

HERE = pathlib.Path(__file__).resolve().parent
SDIST = 'chainer-7.8.1.tar.gz'
SHA256 = '179f06176f8d7a42385bc7811956db04e68213cfe30f5081491b9e2b6ff70de8'


def fetch():
    """Return the bytes of Chainer's sdist: the file beside this one, or what the package index has."""
    if (HERE / SDIST).exists():
        return (HERE / SDIST).read_bytes()
    truststore.inject_into_ssl()
    page = os.environ.get('PIP_INDEX_URL', 'https://pypi.org/simple').rstrip('/') + '/chainer/'
    with urllib.request.urlopen(page, timeout=60) as response:
        link = re.search(rf'href="([^"]*/{re.escape(SDIST)}[^"]*)"', response.read().decode())[1]
    with urllib.request.urlopen(urllib.parse.urljoin(page, link), timeout=60) as response:
        return response.read()


def unpack():
    """Lay out the patched source in build/, anew."""
    shutil.rmtree(HERE / 'build', ignore_errors=True)
    try:
        sdist = fetch()
    except Exception as e:
        raise SystemExit(f'Cannot fetch {SDIST} ({e!r}): put it into {HERE} and try again.') from e
    if hashlib.sha256(sdist).hexdigest() != SHA256:
        raise SystemExit(f'{SDIST} is not the one that the patches are for: its SHA-256 differs.')
    tarfile.open(fileobj=io.BytesIO(sdist)).extractall(HERE / 'build', filter='data')
    for path in sorted((HERE / 'patches').glob('*.patch')):
        patch = patch_ng.fromfile(str(path))
        if not patch or not patch.apply(strip=1, root=str(HERE / 'build' / SDIST.removesuffix('.tar.gz'))):
            raise SystemExit(f'{path.name} does not apply.')


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    unpack()
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    unpack()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
