"""The stand-in for AWS works whatever a laptop has set for the real one: proxies, profiles, broken files."""

import os
import re
import socket
import threading

import pytest
from support import ROOT, python

CODE = """
import boto3
from local_mode import open_session
session = open_session(embedded=True)
uri = session.upload_data('README.md', key_prefix='a')
assert session.read_s3_file(uri.split('/')[2], 'a/README.md').startswith('# MNIST')
print(session.environment({}))
from sagemaker.chainer.estimator import Chainer
from local_mode.validation import check
check('CreateTrainingJob', {})
Chainer('any.py', role='any', instance_count=1, instance_type='local', image_uri='any', sagemaker_session=session)
session.close()
print('default', boto3.DEFAULT_SESSION)
"""


@pytest.fixture
def proxy():
    """Return (URL of something that listens, list of its connections)."""
    seen = []
    with socket.create_server(('127.0.0.1', 0)) as server:

        def listen():
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                seen.append(client)
                client.close()

        threading.Thread(target=listen, daemon=True).start()
        yield f'http://127.0.0.1:{server.getsockname()[1]}', seen


def opened(code=CODE, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith('_proxy')}
    return python('-c', code, env={**kept, **environment}, cwd=ROOT)


@pytest.mark.slow
def test_no_request_to_the_stand_in_leaves_by_a_proxy(proxy):
    url, seen = proxy
    names = 'http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'
    done = opened(**dict.fromkeys(names, url))
    assert done.returncode == 0, done.stderr
    assert not seen
    assert f"'http_proxy': '{url}'" in done.stdout  # containers get it, for pip
    assert "'no_proxy': 'localhost,127.0.0.1'" in done.stdout


BROKEN = {
    'a missing profile': {'AWS_PROFILE': 'missing'},
    'a broken file': {'AWS_CONFIG_FILE': '{broken}', 'AWS_SHARED_CREDENTIALS_FILE': '{broken}'},
    'an expired login': {'AWS_PROFILE': 'sso', 'AWS_CONFIG_FILE': '{sso}'},
}


@pytest.mark.slow
@pytest.mark.parametrize('what', BROKEN)
def test_what_is_broken_in_the_users_configuration_is_not_read(tmp_path, what):
    (tmp_path / 'broken').write_text('[default\nregion=')
    sso = 'sso_start_url = https://example.com\nsso_region = eu-west-1\nsso_account_id = 1\nsso_role_name = a\n'
    (tmp_path / 'sso').write_text(f'[profile sso]\n{sso}')
    files = {name: str(tmp_path / name) for name in ('broken', 'sso')}
    broken = {name: value.format(**files) for name, value in BROKEN[what].items()}
    done = opened(**broken)
    assert done.returncode == 0 and 'default RedirectedSession' not in done.stdout, done.stdout + done.stderr
    done = opened('import local_mode; local_mode.open_session()', **broken)
    said = 'LocalModeError: Your AWS configuration cannot be used: .*or use the stand-in: .* = open_session'
    assert re.search(said, ' '.join((done.stdout + done.stderr).split())), done.stdout
