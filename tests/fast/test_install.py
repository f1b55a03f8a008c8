"""Other projects can install the wheel, people requirements.txt, and setup.sh the locks, from nothing."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from local_mode import images
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import ROOT, find_python, python, run

pytestmark = pytest.mark.slow
PYTHONS = [found for minor in range(11, 15) if (found := find_python(f'3.{minor}'))]
# Without this checkout, and what it brings the tests.
CLEAN = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'VIRTUAL_ENV')}
CLEAN['UV_SYSTEM_CERTS'] = 'true'  # as the set-up does
FUNCTIONS = (ROOT / 'setup.sh').read_text().split('\nours=')[0]  # of the set-up, which then prepares the steps
BEGIN = (ROOT / 'setup.sh').read_text().split('if [ "${BUNDLE:-}" ]; then\n    [')[0]
WITH_UV = os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']
LOOK = """
import importlib.util, json, os
import local_mode, local_mode.mnist, local_mode.session
from local_mode import aws, images
from local_mode.images import CONTAINER
session, stop = aws.start()
session.client('s3').create_bucket(Bucket='any')
stop()
print(json.dumps({
    'from': local_mode.__file__,
    'chainer': importlib.util.find_spec('chainer') is not None,
    'source': images.source(),
    'tests': [str(path) for path in CONTAINER.rglob('test_*')],
    'runs': os.access(CONTAINER / 'sagemaker-chainer' / 'entrypoint.sh', os.X_OK),
}))
"""


def uv(*words, **options):
    """What uv says of a command that goes well."""
    done = python('-m', 'uv', *words, env=CLEAN, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp('wheel')
    uv('build', '--quiet', '--wheel', '--out-dir', directory, ROOT)
    (wheel,) = directory.glob('*.whl')
    return wheel


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory):
    """Makes a virtual environment of this Python, with the wheel and these packages; returns its Python."""

    def make(base, *packages):
        directory = tmp_path_factory.mktemp('environment')
        uv('venv', '--quiet', '--python', base, directory)
        uv('pip', 'install', '--quiet', '--python', directory, wheel, *packages)
        return directory / 'bin' / 'python'

    return make


@pytest.mark.parametrize(
    ('base', 'versions'),
    [(PYTHONS[0], '--resolution=lowest-direct'), (PYTHONS[-1], f'--constraint={ROOT}/locks/project.lock')],
    ids=['oldest', 'newest'],
)
def test_the_wheel_works_by_itself(environment, tmp_path, base, versions):
    there = environment(base, versions)
    done = run(there, '-c', LOOK, cwd=tmp_path, env=CLEAN)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen.pop('from').startswith(str(there.parent.parent))
    assert seen == {'chainer': False, 'source': images.source(), 'tests': [], 'runs': True}


def test_the_wheel_brings_what_processes_need_and_leaves_others_pins(environment, tmp_path):
    there = environment(PYTHONS[-1], 'numpy==2.4.6')
    env = CLEAN | {'LOCAL_MODE': 'process', 'PATH': WITH_UV}
    done = run(there, '-m', 'local_mode', 'image', cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    code = 'import chainer, numpy, sagemaker_training, uvicorn; print(chainer.__version__, numpy.__version__)'
    assert run(there, '-c', code, cwd=tmp_path, env=CLEAN).stdout == '7.8.1 2.4.6\n'
    assert run(there, '-m', 'local_mode', 'source', cwd=tmp_path).stdout.strip() == images.source()


@pytest.mark.docker
def test_the_wheels_fixtures_and_image(environment, readmes_project):
    there = environment(PYTHONS[-1], 'pytest', f'--constraint={ROOT}/locks/project.lock')
    done = run(there, '-m', 'local_mode', 'image', cwd=readmes_project, env=CLEAN)
    assert (done.returncode, done.stdout) == (0, '')  # it is here, whoever has built it
    done = run(there, '-m', 'pytest', 'test_mine.py', cwd=readmes_project, env=CLEAN)
    assert '1 passed' in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize('neighbours', ['numpy==2.4.6 moto==5.2.4 tqdm==4.67.1', 'scipy==1.14.1'])
def test_the_package_goes_with_others_pins(neighbours, tmp_path):
    (tmp_path / 'theirs.txt').write_text(neighbours.replace(' ', '\n'))
    theirs = ['pyproject.toml', tmp_path / 'theirs.txt', '--extra', 'notebook']
    resolved = uv('pip', 'compile', '--quiet', '--python-version', '3.12', *theirs)
    assert {*neighbours.split()} <= {*resolved.split()}


IMAGES = 'container/requirements.txt', 'container/requirements-gpu.txt', 'container/requirements-build.txt'
ALL = 'requirements.txt', 'pyproject.toml', '--all-extras'
NOT_LOCKED = '--no-emit-package=chainer', '--no-emit-package=chainer-mnist-local-mode'  # built here


@pytest.mark.parametrize(
    ('lock', 'minors', 'wanted'),
    [('container/requirements.lock', [13], IMAGES), ('locks/project.lock', [11, 12, 13, 14], ALL)],
)
def test_a_lock_has_all_that_is_installed_by_it(pins, lock, minors, wanted):
    """Else something would come without a hash, or be refused, on one of the Pythons."""
    own = [f'container/{name}/pyproject.toml' for name in ('chainer', 'chainer_fast')]
    options = f'--universal --quiet --no-header --no-annotate --python-version=3.{minors[0]} --constraint={lock}'
    pinned = [
        Requirement(line) for line in uv('pip', 'compile', *options.split(), *NOT_LOCKED, *wanted, *own).splitlines()
    ]
    for minor in minors:
        here = {'python_version': f'3.{minor}', 'python_full_version': f'3.{minor}.0'}
        applying = [r for r in pinned if not r.marker or r.marker.evaluate(here)]
        resolved = {canonicalize_name(r.name): str(r.specifier)[2:] for r in applying}
        assert len(resolved) > 50 and resolved.items() <= pins(lock, here).items()


def lines(name):
    """What the project's lock has of a package."""
    text = (ROOT / 'locks' / 'project.lock').read_text()
    return re.search(f'^{name}==(.*\\\\\n)+.*\n', text, re.MULTILINE)[0]


@pytest.fixture
def install_packages(tmp_path):
    """Runs the set-up's function of this name, for python-dateutil, which needs six, with this lock."""
    call = '\ninstall_packages locks/project.lock six requirements.txt\n'
    (tmp_path / 'setup.sh').write_text(FUNCTIONS + call)
    shutil.copytree(ROOT / 'container', tmp_path / 'container')
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    (tmp_path / 'requirements.txt').write_text('python-dateutil>=2\n')
    (tmp_path / 'locks').mkdir()
    uv('venv', '--quiet', '--seed', '--python', sys.executable, tmp_path / '.venv')

    def install_packages(lock):
        (tmp_path / 'locks' / 'project.lock').write_text(lock)
        return run('bash', 'setup.sh', cwd=tmp_path, env=CLEAN | {'PATH': WITH_UV})

    return install_packages


@pytest.mark.parametrize('name', ['six', 'python-dateutil'])
def test_the_set_up_installs_nothing_but_what_is_locked(install_packages, tmp_path, name):
    others = 'six', 'python-dateutil'
    right = ''.join(lines(other) for other in others)
    wrong = right.replace(lines(name), re.sub('sha256:....', 'sha256:0000', lines(name)))
    missing = right.replace(lines(name), '')
    there = tmp_path / '.venv' / 'bin' / 'python', '-c', 'import dateutil, six'
    for lock, said in (wrong, 'Hash mismatch'), (missing, f'none were provided for: {name}'):
        done = install_packages(lock)
        assert done.returncode and said in ' '.join(done.stderr.split()) and run(*there).returncode
    done = install_packages(right)
    assert (done.returncode, run(*there).returncode) == (0, 0), done.stderr


CELL = 'import boto3, chainer, matplotlib, local_mode.session, sagemaker.chainer; chainer.__version__'


def test_pip_makes_of_requirements_txt_what_the_tutorial_needs(tmp_path):
    """Plain pip, in a checkout with an odd name: JupyterLab, and a kernel that has what cells import."""
    checkout = tmp_path / 'my clône'
    ignore = shutil.ignore_patterns('.*', 'output', 'build', '__pycache__')
    shutil.copytree(ROOT, checkout, ignore=ignore)
    run(PYTHONS[-1], '-m', 'venv', checkout / 'v', check=True)
    there = checkout / 'v' / 'bin' / 'python'
    without_bytecode = CLEAN | {'PIP_NO_COMPILE': '1'}  # of which little is used here
    done = run(there, '-m', 'pip', 'install', '--quiet', '-r', 'requirements.txt', cwd=checkout, env=without_bytecode)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run(there, '-m', 'jupyterlab', '--version').returncode == 0
    assert run(there, '-m', 'pip', 'check').returncode == 0
    (checkout / 'any.ipynb').write_text(nbformat.writes(new_notebook(cells=[new_code_cell(CELL)])))
    convert = '-m nbconvert --to notebook --execute --stdout any.ipynb'.split()
    done = run(there, *convert, cwd=checkout, env=CLEAN)
    assert done.returncode == 0 and '7.8.1' in done.stdout, done.stderr


STEPS = """
quick() { say 'doing a quick thing'; echo noise; }
slow() { sleep 2.2; say "doing a slow thing"; }
nothing() { :; }
bad() { echo noise; fail 'the reason'; }
chain() { step slow slow; }
another() { step first quick; step empty nothing; }
together chain another
step last bad
echo never
"""


@pytest.mark.parametrize(
    'variables, said',
    [
        ({'BUNDLE': 'nowhere'}, 'There is no whole bundle in the folder nowhere. (A URL begins with http://.)'),
        ({'BUNDLE': 'http://127.0.0.1:9/x y'}, 'No bundle answers at http://127.0.0.1:9/x%20y: is it whole'),
        ({'BUNDLE': '.', 'LOCAL_MODE': 'process'}, 'it has no packages for LOCAL_MODE=process'),
    ],
)
def test_a_bundle_that_is_none_is_refused_at_once(tmp_path, variables, said):
    shutil.copy(ROOT / 'setup.sh', tmp_path)
    uv('venv', '--quiet', '--seed', '--python', sys.executable, tmp_path / '.venv')
    done = run('bash', 'setup.sh', cwd=tmp_path, env=CLEAN | variables)
    assert done.returncode == 1 and said in done.stderr and not done.stdout


def test_a_python_without_pip_makes_the_environment(tmp_path):
    """Debian packs pip apart from Python."""
    (tmp_path / 'setup.sh').write_text(FUNCTIONS + '\nmake_venv; .venv/bin/python -m pip --version')
    (tmp_path / 'python3').write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"')
    (tmp_path / 'python3').chmod(0o700)
    done = run('bash', 'setup.sh', cwd=tmp_path, env=CLEAN | {'PATH': f'{tmp_path}:/usr/bin:/bin'})
    assert done.returncode == 0 and '/.venv/lib' in done.stdout, done.stderr


def test_an_environment_that_was_left_half_made_is_made_anew(tmp_path):
    (tmp_path / 'setup.sh').write_text(FUNCTIONS + '\nmake_venv; .venv/bin/python -m pip --version')
    run(sys.executable, '-m', 'venv', '--without-pip', tmp_path / '.venv', check=True)
    done = run('bash', 'setup.sh', cwd=tmp_path, env=CLEAN)
    assert done.returncode == 0 and '/.venv/lib' in done.stdout


def test_two_set_ups_at_once_wait_for_each_other(tmp_path):
    (tmp_path / 'setup.sh').write_text(BEGIN + 'echo runs\n')
    (tmp_path / 'output').mkdir()
    with (tmp_path / 'output' / 'setup.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(['bash', 'setup.sh'], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert second.stdout.readline() == 'setup: another set-up runs here: waiting\n'
    assert second.communicate()[0] == 'runs\n' and second.returncode == 0


@pytest.mark.parametrize('terminal', [False, True])
def test_the_set_up_prints_a_line_for_each_step_and_the_end_of_one_that_fails(tmp_path, terminal):
    (tmp_path / 'setup.sh').write_text(BEGIN + STEPS)
    reader, writer = os.openpty() if terminal else os.pipe()
    done = run('bash', 'setup.sh', cwd=tmp_path, stdout=writer, stderr=writer)
    os.close(writer)
    with open(reader, errors='replace', newline='') as file:
        shown = read_all(file)
    lines = [line.split('\r')[-1] for line in shown.replace('\r\n', '\n').split('\n')[:-1]]
    log = f'{tmp_path}/output/setup.log'
    assert done.returncode == 1 and re.fullmatch(r'setup: doing a slow thing \([23] s\)', lines[1]), lines
    told = ['noise', 'setup: the reason', f'setup: last failed, after 0 s. {log} has more.']
    rest = [re.sub('(?<=[( ])1 s', '0 s', line) for line in (lines[0], *lines[2:])]  # bash counts whole seconds
    assert rest == ['setup: doing a quick thing (0 s)', *told]
    assert ('setup: slow: ' in shown) == terminal
    assert (tmp_path / 'output' / 'setup.log').read_text().count('noise') == 2


def read_all(file):
    """Return what is in a pipe or a terminal that nobody writes to any more."""
    text = ''
    with contextlib.suppress(OSError):  # a terminal's end
        while part := file.read(1):
            text += part
    return text
