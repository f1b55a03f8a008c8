"""These fixtures serve all tiers of tests; each has a folder: fast, docker, browser, faults, gpu, arm64."""

import atexit
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib

import pytest
from local_mode.session import open_session
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import CHANNELS, DISTRIBUTED, MODULES, ROOT, SCRIPT, free_port, once, run

pytest_plugins = ['pytester']  # runs pytest, for the fixtures that our package brings

# {folder: marker for the Docker engine or browser that its tests need}
MARKERS = {'docker': 'docker', 'faults': 'docker', 'gpu': 'docker', 'arm64': 'docker', 'browser': 'browser'}

# Files that take minutes, to be begun first where several processes test.
LONG = 'test_make_run.py', 'test_install.py', 'test_notebook.py', 'test_training.py', 'test_jobs.py', 'test_hosts.py'
LONG += ('test_as_on_sagemaker.py',)

# Sessions and `make clean` keep to this temporary directory, so that others may test at the same time.
HERE = tempfile.mkdtemp(prefix='tests-')
atexit.register(shutil.rmtree, HERE, ignore_errors=True)
os.chmod(HERE, 0o755)  # for containers and tests that are another user
os.environ['TMPDIR'] = tempfile.tempdir = os.path.realpath(HERE)

# Tests use the embedded AWS, whatever credentials this machine has, and no job's variables.
for name in [name for name in os.environ if name.startswith(('AWS_', 'SM_')) and name != 'AWS_CA_BUNDLE']:
    del os.environ[name]
os.environ.update(
    AWS_CONFIG_FILE=os.devnull,
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
    AWS_EC2_METADATA_DISABLED='true',
    AWS_ENDPOINT_URL='http://127.0.0.1:9',
    LOCAL_MODE='docker',  # even if a test hides Docker
)  # nothing answers at this address, so no call can leave the machine


@pytest.hookimpl(tryfirst=True)  # before -m selects by markers
def pytest_collection_modifyitems(items):
    """Run fast tests first, or last on several processes; skip those that need a GPU if there is none."""
    for item in items:
        if marker := MARKERS.get(item.path.parent.name):
            item.add_marker(marker)
        if item.get_closest_marker('gpu') and not shutil.which('nvidia-smi'):
            item.add_marker(pytest.mark.skip(reason='there is no NVIDIA GPU'))
    weights = {'slow': 1, 'browser': 2, 'docker': 4}
    items.sort(key=lambda item: sum(w for m, w in weights.items() if item.get_closest_marker(m)))
    if os.environ.get('PYTEST_XDIST_WORKER'):  # the long ones side by side, and the short ones fill the rest
        items.sort(key=lambda item: item.path.name not in LONG)


def write_mnist(root, train, test):
    """Write the channels' files with the first images, as float32 (the notebook's are bytes)."""
    import chainer
    import numpy as np
    from local_mode.mnist import fill_cache

    fill_cache()
    for name, dataset, count in zip(CHANNELS, chainer.datasets.get_mnist(), (train, test)):
        images, labels = chainer.dataset.concat_examples(dataset[:count])
        (root / name).mkdir()
        np.savez(root / name / name, images=images, labels=labels)


@pytest.fixture(scope='session')
def mnist(tmp_path_factory):
    """Return a directory with the channels train and test, all of MNIST."""
    return once(tmp_path_factory, 'mnist', lambda root: write_mnist(root, 60000, 10000))


@pytest.fixture(scope='session')
def small_mnist(tmp_path_factory):
    return once(tmp_path_factory, 'small_mnist', lambda root: write_mnist(root, 2000, 1000))


@pytest.fixture(scope='session')
def code(tmp_path_factory):
    """Return a directory with only the scripts and their modules, as after a download from S3."""
    directory = tmp_path_factory.mktemp('code')
    directory.chmod(0o755)  # for workers that are not root
    shutil.copytree(MODULES, directory / MODULES.name, ignore=shutil.ignore_patterns('__pycache__'))
    for script in SCRIPT, DISTRIBUTED:
        shutil.copy(script, directory)
    return directory


@pytest.fixture(scope='module')  # not for the whole session: a test runs `make clean`, which would end it
def session():
    session = open_session(embedded=True, serving_port=free_port())
    yield session
    session.close()


@pytest.fixture(scope='module')
def data(small_mnist):
    """Return the directory of the jobs' channels; a module may override it."""
    return small_mnist


@pytest.fixture(scope='module')
def inputs(session, data):
    """Upload the channels; return {name: URI}. The prefix contains "model"."""
    return {name: session.upload_data(f'{data}/{name}', key_prefix=f'a/model/{name}') for name in CHANNELS}


DEPLOY = f"""
import pathlib, sys, tempfile
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
import chainer
import chainer_mnist_single_machine as script
from local_mode.session import open_session
from support import make_estimator, make_model, pack

session = open_session(embedded=True, serving_port=int(sys.argv[1]))
with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / 'model.npz'
    chainer.serializers.save_npz(path, chainer.links.Classifier(script.MLP()))
    model = make_model(session, pack(path.with_name('model.tar.gz'), path))
predictor = model.deploy(1, 'local')
print('deployed', flush=True)
"""


@pytest.fixture(scope='session')
def deploy():
    """Return a function that returns a command; it deploys an untrained model on a port, then runs code."""
    return lambda port, then='', *args: [sys.executable, '-c', DEPLOY + then, str(port), *map(str, args)]


MY_SCRIPT = """
import os
import chainer

def model_fn(model_dir):
    model = chainer.links.Linear(784, 10)
    chainer.serializers.load_npz(os.path.join(model_dir, 'model.npz'), model)
    return model

if __name__ == '__main__':
    path = os.path.join(os.environ['SM_MODEL_DIR'], 'model.npz')
    chainer.serializers.save_npz(path, chainer.links.Linear(784, 10))
"""


@pytest.fixture
def readmes_project(tmp_path):
    """A directory with the test in README, and what that needs."""
    _, snippet = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    (tmp_path / 'test_mine.py').write_text(snippet)
    (tmp_path / 'my_script.py').write_text(MY_SCRIPT)
    (tmp_path / 'tests' / 'data').mkdir(parents=True)
    (tmp_path / 'tests' / 'data' / 'any').write_text('data')
    return tmp_path


@pytest.fixture
def opt_ml(code, tmp_path):
    """Return a function that makes a directory in the layout of SageMaker's contract, as in docs/image.md."""

    def make(data=None, owner=None, host='algo-1', hosts=('algo-1',), name='ml', **hyperparameters):
        root = tmp_path / name
        for directory in 'input/config', 'input/data', 'model', 'output/data':
            (root / directory).mkdir(parents=True)
        shutil.copytree(code, root / 'code')
        if data:
            shutil.copytree(data, root / 'input' / 'data', dirs_exist_ok=True)
        program = dict(sagemaker_program=SCRIPT.name, sagemaker_submit_directory='/opt/ml/code')
        for file, content in {
            'hyperparameters': program | hyperparameters,
            'resourceconfig': dict(current_host=host, hosts=hosts, network_interface_name='eth0'),
            'inputdataconfig': {name: {'TrainingInputMode': 'File'} for name in CHANNELS if data},
        }.items():
            (root / 'input' / 'config' / f'{file}.json').write_text(json.dumps(content))
        tmp_path.chmod(0o755)
        if owner:
            run('chown', '-R', owner, root, check=True)
        return root

    return make


def requirements(source):
    """Return the lines of a requirements file or lock, or of a pyproject.toml with its [extra]."""
    path, _, extra = source.rstrip(']').partition('[')
    text = (ROOT / path).read_text()
    if path.endswith('.toml'):
        project = tomllib.loads(text)['project']
        return project['dependencies'] + (project['optional-dependencies'][extra] if extra else [])
    lines = text.replace('\\\n', ' ').splitlines()
    bare = [re.sub(r'\s*(#.*|--hash=\S+\s*)', '', line).strip() for line in lines]
    return [line for line in bare if line and line[0] not in '-.']  # those are packages of ours


@pytest.fixture(scope='session')
def asked():
    """Return a function that returns the requirements of a source whose markers apply here."""

    def asked(source, environment=None):
        lines = [Requirement(line) for line in requirements(source)]
        return [r for r in lines if not r.marker or r.marker.evaluate(environment)]

    return asked


@pytest.fixture(scope='session')
def pins(asked):
    """Return a function that returns the pins of a source, {name: version}, whose markers apply here."""

    def pins(source, environment=None):
        found = [r for r in asked(source, environment) if '==' in str(r.specifier)]
        return {canonicalize_name(r.name): str(r.specifier)[2:] for r in found}

    return pins


@pytest.fixture(scope='session')
def built():
    """Return {name: version} of the packages that are built here, Chainer and chainer_fast."""
    files = ROOT.glob('container/*/pyproject.toml')
    projects = [tomllib.loads(file.read_text())['project'] for file in files]
    return {project['name']: project['version'] for project in projects}
