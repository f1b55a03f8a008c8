"""Set-up twice in a row; kernels that are killed or just end; `make clean`."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest
from test_serving import free_port

import chainer_mnist_single_machine as script
from local_mode.docker import LABEL, docker, image_uri
from local_mode.session import open_session

pytestmark = pytest.mark.docker
ROOT = pathlib.Path(script.__file__).parent

DEPLOY = """
import os, sys, tarfile, tempfile
import chainer
import chainer_mnist_single_machine as script
from local_mode.session import open_session
from local_mode.docker import image_uri
from sagemaker.chainer.model import ChainerModel

session = open_session(embedded=True, serving_port=int(sys.argv[1]))
with tempfile.TemporaryDirectory() as d:
    chainer.serializers.save_npz(d + '/model.npz', chainer.links.Classifier(script.MLP(1000, 10)))
    with tarfile.open(d + '/model.tar.gz', 'w:gz') as tar:
        tar.add(d + '/model.npz', 'model.npz')
    model_data = session.upload_data(d + '/model.tar.gz', key_prefix='model')
model = ChainerModel(model_data, 'arn:aws:iam::123456789012:role/r', script.__file__,
                     image_uri=image_uri('local'), sagemaker_session=session)
predictor = model.deploy(initial_instance_count=1, instance_type='local')
print('deployed', flush=True)
"""


def deploy(port, then=''):
    return subprocess.Popen(
        [sys.executable, '-c', DEPLOY + then, str(port)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture
def port():
    return free_port()


def ours():
    """What there is of this project: names of containers, ids of networks, temporary directories."""
    label = '--filter', 'label=' + LABEL
    return (
        docker('ps', '--all', '--format', '{{.Names}}', *label).split(),
        docker('network', 'ls', '--quiet', *label).split(),
        sorted(pathlib.Path(tempfile.gettempdir()).glob(LABEL + '-*')),
    )


@pytest.mark.parametrize('end', ['', 'raise SystemExit(3)', 'raise ValueError("oops")'])
def test_a_script_that_ends_with_a_live_endpoint_ends_and_cleans_up(port, end):
    before = ours()
    process = deploy(port, end)
    out, _ = process.communicate(timeout=60)  # the SDK alone would hang here
    assert 'deployed' in out
    assert ours() == before


def test_a_killed_notebook_leaves_what_deploy_names_and_make_clean_removes(port):
    subprocess.run(['make', 'clean'], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    stranger = docker('run', '--detach', '--entrypoint', 'sleep', image_uri('local'), '600').strip()
    process = deploy(port, 'input()')
    try:
        for line in process.stdout:
            if line == 'deployed\n':
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        containers, networks, directories = ours()
        assert len(containers) == len(networks) == len(directories) == 1  # or this test shows nothing
        session = open_session(embedded=True, serving_port=port)
        with pytest.raises(RuntimeError, match='docker rm -f ' + containers[0]):
            session.check_serving_port()
        session.close()
        subprocess.run(['make', 'clean'], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        assert ours() == ([], [], [])
        with socket.socket() as s:
            assert s.connect_ex(('127.0.0.1', port)) != 0
        assert docker('ps', '--quiet', '--no-trunc', '--filter', 'id=' + stranger).strip() == stranger
    finally:
        docker('rm', '--force', stranger)


def test_set_up_twice_in_a_row_is_quick_and_changes_nothing():
    image = docker('images', '--quiet', '--no-trunc', image_uri('local'))
    start = time.monotonic()
    done = subprocess.run(['./setup.sh'], cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 15
    assert done.stdout.splitlines() == ['setup: ready']
    assert docker('images', '--quiet', '--no-trunc', image_uri('local')) == image


def test_set_up_without_docker_and_without_a_package_manager_says_what_to_do(tmp_path):
    for name in 'bash', 'dirname', 'uname', 'id', 'cmp', 'find', 'sort', 'xargs', 'cat', 'cksum', 'sed':
        (tmp_path / name).symlink_to(
            subprocess.run(['which', name], capture_output=True, text=True, check=True).stdout.strip()
        )
    done = subprocess.run(
        [str(tmp_path / 'bash'), './setup.sh'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, 'PATH': str(tmp_path)},
    )
    assert done.returncode == 1
    assert 'Docker is not installed: see https://docs.docker.com/get-docker/' in done.stderr
