"""Fixtures that several test files share. Markers: `docker` needs an engine, `browser` a Chromium."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from pad import LISTEN

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Tests use the embedded AWS, whatever credentials this machine has.
for name in [name for name in os.environ if name.startswith('AWS_') and name != 'AWS_CA_BUNDLE']:
    del os.environ[name]
os.environ.update(
    AWS_CONFIG_FILE=os.devnull,
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
    AWS_EC2_METADATA_DISABLED='true',
    AWS_ENDPOINT_URL='http://127.0.0.1:9',
)  # where nothing answers: no call can leave


def pytest_collection_modifyitems(items):
    """Fast tests first; without a GPU, none that needs one."""
    if not shutil.which('nvidia-smi'):
        for item in items:
            if item.get_closest_marker('gpu'):
                item.add_marker(pytest.mark.skip(reason='there is no NVIDIA GPU'))
    items.sort(
        key=lambda item: sum(
            bool(item.get_closest_marker(m)) * w for m, w in (('slow', 1), ('browser', 2), ('docker', 4))
        )
    )


def write_mnist(root, train, test):
    """Write the channels' files as float32 (the notebook's are bytes): so many images, from the first on."""
    import chainer
    import numpy as np

    from local_mode.mnist import fill_cache

    fill_cache()
    for name, dataset, count in zip(('train', 'test'), chainer.datasets.get_mnist(), (train, test)):
        images, labels = chainer.dataset.concat_examples(dataset[:count])
        (root / name).mkdir()
        np.savez(root / name / name, images=images, labels=labels)
    return root


@pytest.fixture(scope='session')
def mnist(tmp_path_factory):
    """Directories with the channels train and test."""
    return write_mnist(tmp_path_factory.mktemp('mnist'), 60000, 10000)


@pytest.fixture(scope='session')
def small_mnist(tmp_path_factory):
    return write_mnist(tmp_path_factory.mktemp('small_mnist'), 2000, 1000)


def find_python36():
    candidates = [shutil.which('python3.6')] + sorted(
        pathlib.Path(os.environ.get('PYENV_ROOT', pathlib.Path.home() / '.pyenv')).glob(
            'versions/3.6.*/bin/python'
        )
    )
    for candidate in candidates:
        if (
            candidate
            and subprocess.run([str(candidate), '-c', ''], stderr=subprocess.DEVNULL).returncode == 0
        ):
            return str(candidate)
    return None


@pytest.fixture(scope='session')
def aws_python(tmp_path_factory):
    """A Python with what AWS's Chainer image holds: Python 3.6, Chainer 5.0.0, NumPy 1.16.2."""
    python36 = find_python36()
    if python36 is None:
        if os.environ.get('CI'):
            pytest.fail('CI needs a Python 3.6.')
        pytest.skip('There is no Python 3.6 on this machine (pyenv install 3.6).')
    directory = tmp_path_factory.mktemp('aws')
    subprocess.run([python36, '-m', 'venv', str(directory)], check=True)
    python = directory / 'bin' / 'python'
    # The pip that Python 3.6 brings does not look at which Python a package wants.
    for packages in ['pip==21.3.1'], ['chainer==5.0.0', 'numpy==1.16.2', 'matplotlib==2.2.0']:
        subprocess.run([str(python), '-m', 'pip', 'install', '-q'] + packages, check=True)
    return python


@pytest.fixture(scope='session')
def chromium():
    executable = shutil.which('chromium')
    if not executable:
        pytest.fail("There is no 'chromium' on the PATH: run ./setup.sh tests, or install it.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=[
                '--no-sandbox',
                '--disable-gpu',
                '--disable-background-networking',
                '--disable-component-update',
                '--disable-sync',
                '--no-first-run',
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page whose list `digits` holds the data of all digit events."""
    context = chromium.new_context(viewport={'width': 1300, 'height': 950}, has_touch=True)
    context.set_default_timeout(30000)
    context.add_init_script(LISTEN)
    yield context.new_page()
    context.close()
