"""The installed packages are the locked ones, each with the hashes of its files."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from local_mode import images
from packaging.utils import canonicalize_name
from support import IMAGE as NAME
from support import ROOT, run

CHAINER, FAST = (f'container/{name}/pyproject.toml' for name in ('chainer', 'chainer_fast'))
IMAGE = [f'container/requirements{kind}.txt' for kind in ('', '-gpu', '-build')]
PROJECT = ['requirements.txt', *(f'pyproject.toml[{extra}]' for extra in ('notebook', 'process', 'tests'))]
LOCKS = {  # as `make lock` makes them
    'container/requirements.lock': [*IMAGE, CHAINER, FAST],
    'locks/project.lock': [*PROJECT, CHAINER, FAST],
    'locks/sdk3.lock': ['notebooks/requirements-sdk3.txt', CHAINER],
}


@pytest.mark.parametrize('lock', LOCKS)
def test_locks_hold_what_is_asked_for_with_hashes(asked, pins, lock):
    locked = pins(lock)
    for source in LOCKS[lock]:
        for requirement in asked(source):
            name = canonicalize_name(requirement.name)
            assert locked[name] in requirement.specifier, f'{source} has been changed without `make lock`'
    requirements = re.split(r'\n(?=[a-z0-9])', (ROOT / lock).read_text().strip(), flags=re.IGNORECASE)
    assert len(requirements) > 30 and all('--hash=sha256:' in requirement for requirement in requirements)


def test_processes_get_the_versions_that_the_image_has(asked, pins, monkeypatch):
    ours, image = pins('locks/project.lock'), pins('container/requirements.txt')
    names = {canonicalize_name(requirement.name) for requirement in asked('pyproject.toml[process]')}
    assert names & image.keys() >= {'sagemaker-training', 'gunicorn', 'uvicorn', 'werkzeug'}
    assert {name: ours[name] for name in names & image.keys()} == {name: image[name] for name in names & image.keys()}
    installed = []
    monkeypatch.setattr(images, 'install', lambda *what, **environment: installed.extend(what))
    images.install_processes()
    pinned = dict(word.split('==') for word in installed if '==' in word)
    assert pinned.keys() <= names and pinned.items() <= image.items()


def test_the_file_for_pip_asks_for_what_the_package_does(asked):
    """And names no version: whoever installs by hand gets what is current."""
    package = {r.name: r for r in asked('pyproject.toml[notebook]')}
    by_hand = {r.name: r for r in asked('requirements.txt')}
    assert by_hand.keys() >= {'sagemaker', 'numpy', 'matplotlib', 'boto3', 'jupyterlab', 'pytest'}
    assert not [str(r) for r in by_hand.values() if '==' in str(r.specifier) or not r.specifier]
    for name in by_hand.keys() & package.keys() - {'numpy'}:  # for which Chainer asks more
        assert str(by_hand[name]) == str(package[name])


def test_the_base_is_pinned_by_its_digest_and_is_what_a_build_takes(monkeypatch):
    base = re.search('^ARG BASE=(.*)', (ROOT / 'container' / 'Dockerfile').read_text(), re.MULTILINE)[1]
    assert re.fullmatch(r'debian:trixie-slim@sha256:[0-9a-f]{64}', base)
    monkeypatch.setattr(images, 'inspect', lambda image, form: 'amd64' if image == base else '')
    assert images.get_base('linux/amd64') == base


def test_what_is_installed_here_is_what_is_locked(pins, built):
    """And nothing else, which would have come without a hash."""
    locked = pins('locks/project.lock') | built
    listed = json.loads(subprocess.check_output([sys.executable, '-m', 'pip', 'list', '--format', 'json']))
    installed = {canonicalize_name(package['name']): package['version'] for package in listed}
    here = {'chainer-mnist-local-mode', 'setuptools'}  # Python 3.11 brings the latter into an environment
    assert {name: version for name, version in installed.items() if name not in here} == locked


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
    called = re.findall(r'locks/[a-z]+\.lock|\.ci/\w+|container/\w+\.\w+', script)
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
    label = run(sys.executable, '-S', '-m', 'local_mode', 'source', check=True).stdout  # without any package
    assert label == images.source() + '\n' and re.fullmatch(r'[0-9a-f]{64}\n', label)
    assert '--label source="$(python3 -m local_mode source)"' in script


def test_published_images_are_named_by_digest():
    for line in (ROOT / 'locks' / 'images.lock').read_text().splitlines():
        assert re.fullmatch(
            r'#.*|(cpu|gpu) ghcr\.io/[a-z0-9-]+/sagemaker-chainer@sha256:[0-9a-f]{64} [0-9a-f]{64}', line
        )
