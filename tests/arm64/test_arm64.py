"""The image for arm64 trains and serves, emulated on other machines; `make test-arm64` builds it."""

import json

import numpy as np
from support import IMAGE as NATIVE
from support import LABEL, ROOT, docker, load, npy, post, serve

import chainer_mnist_single_machine as script

IMAGE = NATIVE + '-arm64'
# Of QEMU's own choice, a CPU with SME, OpenBLAS 0.3.34 makes NaN of matrix products.
PLATFORM = '--platform linux/arm64 --env QEMU_CPU=neoverse-n1'


def run(options, command, *args):
    return docker(f'run --rm {PLATFORM} --label {LABEL}=arm64 {options} {IMAGE} {command}', *args)


def test_all_is_there():
    code = 'import chainer, chainermn, ideep4py, mpi4py.MPI, platform; print(platform.machine(), bool(ideep4py.dnn))'
    assert run('', 'python -c', code) == 'aarch64 True\n'


def test_chainer_fast_passes_its_tests():
    code = (
        'pip install --quiet --target /tmp/pytest pytest==9.2.0 && PYTHONPATH=/tmp/pytest python -m pytest '
        '-p no:cacheprovider container/chainer_fast || true'
    )
    log = run(f'--volume "{ROOT}":/repository:ro --workdir /repository', 'sh -c', code)
    assert ' passed' in log and ' failed' not in log and ' error' not in log, log


def test_it_trains_and_serves(opt_ml, small_mnist):
    """A model that it trained gives the same scores there and on this machine."""
    root = opt_ml(small_mnist, epochs='1')
    run(f'--hostname algo-1 --volume {root}:/opt/ml', 'train')
    log = json.loads((root / 'output' / 'data' / 'log').read_text())
    assert log[-1]['validation/main/accuracy'] > 0.7

    images = load(small_mnist / 'test' / 'test.npz')['images'][:10]
    with serve(f'{PLATFORM} --volume {root}:/opt/ml:ro --read-only --tmpfs /tmp', image=IMAGE) as (_, url):
        response = post(url, npy(images))
        assert response.status == 200, response.data
        expected = script.model_fn(str(root / 'model'))(images).array
        np.testing.assert_allclose(load(response.data), expected, atol=1e-4)
