"""The image for arm64, emulated where the machine is another one. `make test-arm64` builds it and runs this."""

import contextlib
import io
import json
import shutil
import time

import numpy as np
import pytest
import urllib3
from test_serving import ROOT, free_port, http, npy, post

import chainer_mnist_single_machine as script
from local_mode.docker import LABEL, docker, image_uri

pytestmark = pytest.mark.docker
IMAGE = image_uri('local') + '-arm64'
PROGRAM = 'chainer_mnist_single_machine.py'


def run(*args):
    return docker('run', '--rm', '--platform', 'linux/arm64', '--label', LABEL + '=arm64', *args)


def test_all_is_there():
    assert (
        run(
            IMAGE,
            'python',
            '-c',
            'import chainer, chainer_fast, chainermn, mpi4py.MPI, platform; '
            'print(platform.machine(), hasattr(chainer_fast, "loops"))',
        )
        == 'aarch64 True\n'
    )


def test_chainer_fast_passes_its_tests():
    log = run(
        '--volume',
        f'{ROOT}:/repository:ro',
        '--workdir',
        '/repository',
        IMAGE,
        'sh',
        '-c',
        'pip install --quiet --target /tmp/pytest pytest==9.2.0 && PYTHONPATH=/tmp/pytest python -m pytest '
        '-p no:cacheprovider container/chainer_fast || true',
    )
    assert ' passed' in log and ' failed' not in log and ' error' not in log, log


def test_it_trains_and_serves(small_mnist, tmp_path):
    """The trained model scores as it does on this machine."""
    for name in 'code', 'model', 'output/data', 'input/config', 'input/data':
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(script.__file__, tmp_path / 'code')
    for name, config in (
        (
            'hyperparameters',
            {'sagemaker_program': PROGRAM, 'sagemaker_submit_directory': '/opt/ml/code', 'epochs': '1'},
        ),
        ('resourceconfig', {'current_host': 'algo-1', 'hosts': ['algo-1'], 'network_interface_name': 'eth0'}),
        ('inputdataconfig', {name: {'TrainingInputMode': 'File'} for name in ('train', 'test')}),
    ):
        (tmp_path / 'input' / 'config' / (name + '.json')).write_text(json.dumps(config))
    run(
        '--hostname',
        'algo-1',
        '--volume',
        f'{tmp_path}:/opt/ml',
        '--volume',
        f'{small_mnist}:/opt/ml/input/data:ro',
        IMAGE,
        'train',
    )
    assert (
        json.loads((tmp_path / 'output' / 'data' / 'log').read_text())[-1]['validation/main/accuracy'] > 0.7
    )

    with np.load(small_mnist / 'test' / 'test.npz') as test:
        images = test['images'][:10]
    port = free_port()
    server = run(
        '--detach',
        '--publish',
        f'127.0.0.1:{port}:8080',
        '--volume',
        f'{tmp_path}:/opt/ml:ro',
        '--read-only',
        '--tmpfs',
        '/tmp',
        '--env',
        'SAGEMAKER_PROGRAM=' + PROGRAM,
        IMAGE,
        'serve',
    ).strip()
    try:
        url, deadline = f'http://127.0.0.1:{port}', time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if http.request('GET', url + '/ping').status == 200:
                    break
            time.sleep(0.5)
        response = post(url, npy(images))
        assert response.status == 200, response.data
        np.testing.assert_allclose(
            np.load(io.BytesIO(response.data)),
            script.model_fn(str(tmp_path / 'model'))(images).array,
            atol=1e-4,
        )
    finally:
        docker('rm', '--force', server)
