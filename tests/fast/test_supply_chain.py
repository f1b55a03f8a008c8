"""The installed packages are the locked ones, each with the hashes of its files."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from packaging.utils import canonicalize_name
from support import IMAGE as NAME
from support import ROOT, run

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


def workflow(name):
    """Return a workflow, the steps of its jobs, and their commands as one text."""
    read = yaml.safe_load((ROOT / '.github' / 'workflows' / name).read_text())
    steps = [step for job in read['jobs'].values() for step in job['steps']]
    return read, steps, '\n'.join(step.get('run', '') for step in steps)


@pytest.mark.parametrize('name', ['ci.yml', 'release.yml'])
def test_a_workflow_takes_actions_by_their_commit_and_runs_what_is_there(name):
    _, steps, script = workflow(name)
    for action in [step['uses'] for step in steps if 'uses' in step]:
        assert re.fullmatch('[^@]+@[0-9a-f]{40}', action), action
    called = re.findall(r'\./setup\.sh|\.ci/\w+|container/\w+\.\w+', script)
    assert called and all((ROOT / path).exists() for path in called), called


def test_a_release_builds_as_the_set_up_does():
    release, _, script = workflow('release.yml')
    tag = NAME.partition(':')[2].replace('-cpu-', '-$1-')
    assert f'tag=$image:{tag} ' in script
    # Each image that is built is one of those that are published.
    build, publish = release['jobs']['build'], release['jobs']['publish']
    built = {'{processor}-{architecture}'.format(**each) for each in build['strategy']['matrix']['include']}
    assert built == build['outputs'].keys()
    assert built == set(re.findall(r'needs\.build\.outputs\.([\w-]+)', str(publish)))
    # The label by which the set-up knows its image.
    label = run(
        './setup.sh', 'source', env={'PATH': '/usr/bin:/bin', 'LC_ALL': 'en_US.UTF-8'}, check=True
    ).stdout
    assert re.fullmatch(r'\d+\n', label)
    assert '--label source="$(./setup.sh source)"' in script


def test_published_images_are_named_by_digest():
    for line in (ROOT / 'images.lock').read_text().splitlines():
        assert re.fullmatch(
            r'#.*|(cpu|gpu) ghcr\.io/[a-z0-9-]+/sagemaker-chainer@sha256:[0-9a-f]{64} \d+', line
        )
