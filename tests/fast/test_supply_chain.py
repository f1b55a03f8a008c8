"""What is installed is what is locked, each file with its hash."""

import json
import re
import subprocess
import sys

import pytest
from packaging.utils import canonicalize_name
from support import ROOT

CHAINER, FAST = (f'container/{name}/pyproject.toml' for name in ('chainer', 'chainer_fast'))
IMAGE = ['container/requirements.txt', CHAINER, FAST]
LOCKS = {  # as `make lock` makes them
    'requirements.lock': ['pyproject.toml[notebook]', CHAINER],
    'requirements-process.lock': ['pyproject.toml[process]'],
    'tests/requirements.lock': ['pyproject.toml[tests]', FAST],
    'container/requirements.lock': IMAGE,
    'notebooks/requirements-sdk3.lock': ['notebooks/requirements-sdk3.txt', CHAINER],
    'container/requirements-gpu.lock': ['container/requirements-gpu.txt', *IMAGE],
}


@pytest.mark.parametrize('lock', LOCKS)
def test_locks_hold_the_pins_and_hashes(pins, lock):
    locked = pins(lock)
    for source in LOCKS[lock]:
        assert pins(source).items() <= locked.items(), f'{source} has been changed without `make lock`'
    requirements = re.split(r'\n(?=[a-z0-9])', (ROOT / lock).read_text().strip(), flags=re.IGNORECASE)
    assert len(requirements) > 30 and all('--hash=sha256:' in requirement for requirement in requirements)


def test_the_base_is_pinned_by_its_digest_and_setup_takes_that():
    base = re.search('^ARG BASE=(.*)', (ROOT / 'container' / 'Dockerfile').read_text(), re.MULTILINE)[1]
    assert re.fullmatch(r'debian:trixie-slim@sha256:[0-9a-f]{64}', base)
    setup = (ROOT / 'setup.sh').read_text().splitlines()
    (line,) = [line for line in setup if line.strip().startswith('base=$(')]
    assert subprocess.check_output(['bash', '-c', line + '; printf %s "$base"'], cwd=ROOT, text=True) == base


def test_what_is_installed_here_is_what_is_locked(pins, built):
    both = pins('requirements.lock') | pins('requirements-process.lock') | pins('tests/requirements.lock')
    both |= built
    listed = subprocess.check_output([sys.executable, '-m', 'pip', 'list', '--format', 'json'])
    installed = {canonicalize_name(package['name']): package['version'] for package in json.loads(listed)}
    assert {name: installed.get(name) for name in both} == both
