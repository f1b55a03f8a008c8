"""This PEP 517 backend builds a wheel for pip: it fetches the sdist that pyproject.toml names and applies patches/."""

import base64
import hashlib
import html
import io
import os
import pathlib
import re
import shutil
import tarfile
import tomllib
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import Request, urlopen

import patch_ng
import truststore
from setuptools import build_meta

HERE = pathlib.Path(__file__).absolute().parent  # chainercv/ has a link to this file
PROJECT = tomllib.loads((HERE / 'pyproject.toml').read_text())
NAME, SHA256 = PROJECT['project']['name'], PROJECT['tool']['sdist']['sha256']
SDIST = f'{NAME}-{PROJECT["project"]["version"].partition("+")[0]}.tar.gz'
LINK = rf"""(?i)href=["']?([^"'\s>]*\b{re.escape(SDIST)}(?:[#?][^"'\s>]*)?)["'\s>]"""


def fetch():
    """Return the sdist, bytes: the file beside this one, or else the index's; raise OSError if it has none."""
    if (HERE / SDIST).exists():
        return (HERE / SDIST).read_bytes()
    truststore.inject_into_ssl()
    index = urlsplit(os.environ.get('PIP_INDEX_URL') or 'https://pypi.org/simple')
    login, _, host = index.netloc.rpartition('@')
    page = f'{index.scheme}://{host}{index.path.rstrip("/")}/{NAME}/'

    def get(url):
        request = Request(url)
        if login and url.startswith(urljoin(page, '/')):  # send it to no other host, redirected or not
            basic = unquote(f'{index.username}:{index.password or ""}').encode()
            request.add_unredirected_header('Authorization', b'Basic ' + base64.b64encode(basic))
        return urlopen(request, timeout=60)

    response = get(page)
    if not (link := re.search(LINK, response.read().decode())):
        raise FileNotFoundError('the index does not list it')
    return get(urljoin(response.url, html.unescape(link[1]))).read()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Unpack and patch the source in build/, and let setuptools build the wheel; return its name.

    Raises SystemExit with a sentence if the sdist cannot be fetched or is another, or a patch does not apply.
    """
    shutil.rmtree(HERE / 'build', ignore_errors=True)
    try:
        sdist = fetch()
    except Exception as e:  # an exception other than OSError can quote a part of the password
        reason = e if isinstance(e, OSError) else type(e).__name__
        raise SystemExit(f'Cannot fetch {SDIST} ({reason}): put it into {HERE} and try again.') from None
    if hashlib.sha256(sdist).hexdigest() != SHA256:
        raise SystemExit(f'{SDIST} is not the one that the patches are for: its SHA-256 differs.')
    with tarfile.open(fileobj=io.BytesIO(sdist)) as tar:
        tar.extraction_filter = getattr(tarfile, 'data_filter', None)  # Python 3.11.2 lacks data_filter
        tar.extractall(HERE / 'build')
    for path in sorted((HERE / 'patches').glob('*.patch')):
        patch = patch_ng.fromfile(str(path))
        if not patch or not patch.apply(root=str(HERE / 'build' / SDIST.removesuffix('.tar.gz'))):
            raise SystemExit(f'{path.name} does not apply.')
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
