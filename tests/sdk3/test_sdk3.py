"""The tutorial works with version 3 of the SDK; a failing job gives the reason and leaves nothing."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

import nbformat
import pytest
from local_mode.docker import LABEL, docker, image_uri
from local_mode.engines.docker import Docker, filters
from local_mode.names import of_this_user

ROOT = pathlib.Path(__file__).resolve().parents[2]

NOTEBOOK = ROOT / 'notebooks' / 'chainer_mnist_sdk_v3.ipynb'


def left():
    """Return the containers and networks of this user and temporary directory."""
    ours = '--quiet', *filters(of_this_user())
    return docker('ps', '--all', *ours), docker('network', 'ls', *ours)


def test_the_notebook():
    done = subprocess.run([sys.executable, '-m', 'local_mode.run', NOTEBOOK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    epochs = re.findall(r'(\d)((?: +\d\.\d+){4}) +\d+\.\d+', done.stdout)
    assert [epoch[0] for epoch in epochs] == ['1', '2', '3'] and float(epochs[-1][1].split()[-1]) >= 0.97
    labels, predicted = re.findall(r'labels are: +\[([\d ]+)\]', done.stdout)
    assert sum(a == b for a, b in zip(labels.split(), predicted.split())) >= 4
    assert 'What you wrote is: 3' in done.stdout
    assert not re.search(r'^(\+\+? |Training Container|\[\d+-)', done.stdout, re.MULTILINE)  # raw lines
    notebook = nbformat.read(ROOT / 'output' / NOTEBOOK.name, as_version=4)
    pictures = [o for c in notebook.cells for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
    assert len(pictures) == 3
    assert left() == ('', '')


@pytest.fixture
def trainer(local_sagemaker, tmp_path):
    from sagemaker.core.training.configs import Compute, SourceCode
    from sagemaker.train.model_trainer import Mode, ModelTrainer

    def trainer(script, hosts=1, **options):
        (tmp_path / 'code').mkdir(exist_ok=True)
        (tmp_path / 'code' / 'script.py').write_text(script)
        return ModelTrainer(
            training_mode=Mode.LOCAL_CONTAINER,
            training_image=image_uri('local'),
            source_code=SourceCode(source_dir=str(tmp_path / 'code'), entry_script='script.py'),
            compute=Compute(instance_type='local_cpu', instance_count=hosts),
            sagemaker_session=local_sagemaker,
            local_container_root=str(tmp_path),
            **options,
        )

    return trainer


def test_what_failed_is_told_and_cleared_away(trainer, local_sagemaker, tmp_path):
    local_sagemaker.upload_data(__file__, key_prefix='data')
    data = f's3://{local_sagemaker.default_bucket()}/data'
    from sagemaker.core.training.configs import InputData

    with pytest.raises(RuntimeError, match='Its log ends:[^$]*NameError: name .nonsense. is not defined'):
        trainer('nonsense').train([InputData(channel_name='train', data_source=data)])
    assert left() == ('', '')
    assert not [*pathlib.Path(local_sagemaker.directory).rglob('test_sdk3.py')]  # the channel
    assert {path.name for path in tmp_path.iterdir()} <= {'code', 'artifacts', 'compressed_artifacts'}


def test_variables_and_a_single_file_arrive_as_they_are(trainer, local_sagemaker, tmp_path):
    from sagemaker.core.training.configs import InputData

    text = '*os.listdir("/opt/ml/input/data/one"), os.environ["PRICE"]'
    script = f'import os\nwith open("/opt/ml/model/price", "w") as f: print({text}, end="", file=f)'
    file = local_sagemaker.upload_data(__file__, key_prefix='single')
    trainer(script, environment={'PRICE': '$5 of ${HOME}'}).train([InputData(channel_name='one', data_source=file)])
    assert (tmp_path / 'artifacts' / 'model' / 'price').read_text() == 'test_sdk3.py $5 of ${HOME}'


WRITES = """
import os
open('/opt/ml/model/real', 'w').write('real')
os.chmod('/opt/ml/model/real', 0o600)
os.mkdir('/opt/ml/model/closed', 0)
os.symlink('real', '/opt/ml/model/link')
os.symlink(os.environ['SECRET'], '/opt/ml/model/secret')
"""
AS_USER = """
import os, pathlib, sys, tempfile
from local_mode import open_session
from local_mode.docker import image_uri
from sagemaker.core.training.configs import Compute, SourceCode
from sagemaker.train.model_trainer import Mode, ModelTrainer

def train(root):
    session = open_session(embedded=True)
    ModelTrainer(
        training_mode=Mode.LOCAL_CONTAINER,
        training_image=image_uri('local'),
        source_code=SourceCode(source_dir=root + '/code', entry_script='script.py'),
        compute=Compute(instance_type='local_cpu', instance_count=1),
        environment={'SECRET': sys.executable},
        sagemaker_session=session,
        local_container_root=root,
    ).train()
    session.close()

train(sys.argv[1])  # as root, which may read this Python: it imports what is imported late
os.setgroups([os.stat('/var/run/docker.sock').st_gid])
os.setgid(23456)
os.setuid(12345)
os.environ['HOME'] = tempfile.tempdir = sys.argv[2]
train(sys.argv[2])
"""


@pytest.mark.skipif(os.getuid() != 0, reason='becomes another user')
def test_an_ordinary_user_gets_the_files_and_links_lead_nowhere(tmp_path):
    """The script runs as root and writes files that only root may read."""
    roots = [tempfile.mkdtemp(), tempfile.mkdtemp()]  # not below a directory of root's
    try:
        for root in map(pathlib.Path, roots):
            (root / 'code').mkdir(mode=0o755)
            (root / 'code' / 'script.py').write_text(WRITES)
            (root / 'old artifacts').mkdir()  # somebody else's
        os.chown(roots[1], 12345, 23456)
        done = subprocess.run([sys.executable, '-c', AS_USER, *roots], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        kept = pathlib.Path(roots[1]) / 'artifacts' / 'model'
        assert {path.name for path in kept.iterdir()} == {'real', 'link', 'closed'}
        assert (kept / 'link').read_text() == 'real'
        written = [
            path for name in ('artifacts', 'compressed_artifacts') for path in kept.parents[1].glob(f'{name}/**/*')
        ]
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in written} == {(12345, 23456)}
        assert (kept.parents[1] / 'old artifacts').stat().st_uid == 0
        assert not list(pathlib.Path(roots[1]).glob(LABEL + '-*'))
    finally:
        for root in roots:
            shutil.rmtree(root)
    assert left() == ('', '')


@pytest.mark.skipif(os.getuid() != 0, reason='plays another user')
def test_the_container_that_gives_files_away_is_the_sessions(trainer, local_sagemaker, monkeypatch):
    monkeypatch.setattr(os, 'getuid', lambda: 12345)
    commands, call = [], Docker.__call__
    monkeypatch.setattr(Docker, '__call__', lambda self, *a, **k: commands.append(a) or call(self, *a, **k))
    trainer('').train()
    (chown,) = [command for command in commands if '--entrypoint=sh' in command]
    assert f'--label={LABEL}={local_sagemaker.name}' in chown  # `clean` finds it


def packed(root):
    with tarfile.open(root / 'compressed_artifacts' / 'model.tar.gz') as tar:
        return {member.name for member in tar if member.isfile()}


def test_two_jobs_at_once_in_one_directory_lose_nothing(trainer, tmp_path):
    script = (
        'import os\nfor i in range(20):\n'
        '    open(f"/opt/ml/model/{os.environ[\'OUT\']}{i}", "w").write(os.urandom(200000).hex())'
    )
    jobs = [trainer(script, environment={'OUT': name}, base_job_name=f'job-{name}') for name in 'ab']
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda job: job.train(), jobs))
    wanted = {f'{name}{i}' for name in 'ab' for i in range(20)}
    assert {path.name for path in (tmp_path / 'artifacts' / 'model').iterdir()} == wanted == packed(tmp_path)


def test_a_failed_job_leaves_the_model_of_the_job_before(trainer, tmp_path):
    trainer('open("/opt/ml/model/good", "w")').train()
    with pytest.raises(RuntimeError, match='no more'):
        trainer('raise SystemExit("no more")').train()
    assert packed(tmp_path) == {'good'}


def test_two_hosts_find_the_first_and_print_what_the_script_prints(trainer, capsys):
    script = 'import os, socket, time\nprint("first:", socket.gethostbyname(os.environ["SM_MASTER_ADDR"]))\n'
    script += 'time.sleep(5)  # the first host must not end before the other asks'
    trainer(script, hosts=2).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('algo-')]
    assert sorted(line.partition(' | ')[2].split()[0] for line in lines) == ['first:', 'first:']
    assert len({line.split()[-1] for line in lines}) == 1


def test_an_apostrophe_is_refused(trainer):
    with pytest.raises(ValueError, match='apostrophe: change the hyperparameter s'):
        trainer('', hyperparameters={'s': "it's"}).train()


def test_ctrl_c_stops_a_job(trainer, local_sagemaker, capsys):
    """The SDK's telemetry would swallow it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def interrupt():
        while 'it runs' not in ''.join(shown):
            time.sleep(0.1)
            shown.append(capsys.readouterr().out.strip())
        os.kill(os.getpid(), signal.SIGINT)

    shown = []
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match='Training was stopped: run this cell again.'):
        trainer('import time\nprint("it runs", flush=True)\ntime.sleep(100)').train()
    assert not local_sagemaker.engine.find({LABEL: local_sagemaker.name})


def test_a_job_that_nobody_waits_for_is_refused(trainer):
    with pytest.raises(ValueError, match='wait=True'):
        trainer('').train(wait=False)
