"""What is installed is what is locked, each file with its hash; and the SBOM names it all."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from local_mode.docker import image_uri

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOCKS = {
    'requirements.lock': ['requirements.txt'],
    'tests/requirements.lock': ['tests/requirements.txt'],
    'container/requirements.lock': ['container/requirements.txt'],
    'container/requirements-gpu.lock': ['container/requirements.txt', 'container/requirements-gpu.txt'],
}

OURS = {'chainer': '7.8.1+numpy2', 'chainer-fast': '1.0'}  # container/chainer and container/chainer_fast


def pins(path, environment=None):
    """{name: version} of a requirements file, of what its markers let in here, or in this environment."""
    text = (ROOT / path).read_text().replace('\\\n', ' ')
    lines = [re.sub(r'\s*(#.*|--hash=\S+\s*)', '', line).strip() for line in text.splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    return {
        canonicalize_name(r.name): str(r.specifier).lstrip('=')
        for r in requirements
        if not r.marker or r.marker.evaluate(environment)
    }


@pytest.mark.parametrize('lock', LOCKS)
def test_locks_hold_the_pins_and_hashes(lock):
    locked = pins(lock)
    for path in LOCKS[lock]:
        assert pins(path).items() <= locked.items(), 'make lock has not been run after a change of ' + path
    requirements = re.split(r'\n(?=[a-z0-9])', (ROOT / lock).read_text().strip(), flags=re.IGNORECASE)
    assert len(requirements) > 30 and all('--hash=sha256:' in requirement for requirement in requirements)


def test_the_base_is_pinned_by_its_digest_and_setup_takes_that():
    base = re.search('^ARG BASE=(.*)', (ROOT / 'container' / 'Dockerfile').read_text(), re.MULTILINE)[1]
    assert re.fullmatch(r'debian:trixie-slim@sha256:[0-9a-f]{64}', base)
    (line,) = [
        line for line in (ROOT / 'setup.sh').read_text().splitlines() if line.strip().startswith('base=$(')
    ]
    assert subprocess.check_output(['bash', '-c', line + '; printf %s "$base"'], cwd=ROOT, text=True) == base


def test_what_is_installed_here_is_what_is_locked():
    both = {**pins('requirements.lock'), **pins('tests/requirements.lock'), **OURS}
    listed = subprocess.check_output([sys.executable, '-m', 'pip', 'list', '--format', 'json'])
    installed = {canonicalize_name(package['name']): package['version'] for package in json.loads(listed)}
    assert {name: installed.get(name) for name in both} == both


@pytest.mark.docker
def test_the_image_holds_what_is_locked_and_the_sbom_lists_it():
    """So two builds of one commit have the same Python packages."""
    sbom = json.loads(
        subprocess.run(
            ['docker', 'run', '--rm', '--interactive', image_uri('local'), 'python', '-'],
            input=(ROOT / 'container' / 'sbom.py').read_bytes(),
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    )
    packages = {
        kind: {c['name']: c['version'] for c in sbom['components'] if c['purl'].startswith('pkg:' + kind)}
        for kind in ('pypi', 'deb')
    }
    python = {
        'python_version': '3.13',
        'python_full_version': '3.13.5',
        'sys_platform': 'linux',
        'platform_system': 'Linux',
    }
    assert {n: v for n, v in packages['pypi'].items() if n != 'pip'} == {
        n: v for n, v in {**pins('container/requirements.lock', python), **OURS}.items() if n != 'pip'
    }
    assert {'libc6', 'python3.13-minimal', 'openssh-server'} <= packages['deb'].keys()
