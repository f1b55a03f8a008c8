"""The tutorial works with version 3 of the SDK; a failing job gives the reason and leaves nothing."""

import os
import pathlib
import re
import signal
import subprocess
import sys
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

    def trainer(script, **options):
        (tmp_path / 'code').mkdir()
        (tmp_path / 'code' / 'script.py').write_text(script)
        return ModelTrainer(
            training_mode=Mode.LOCAL_CONTAINER,
            training_image=image_uri('local'),
            source_code=SourceCode(source_dir=str(tmp_path / 'code'), entry_script='script.py'),
            compute=Compute(instance_type='local_cpu', instance_count=1),
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
os.symlink('real', '/opt/ml/model/link')
os.symlink(os.environ['SECRET'], '/opt/ml/model/secret')
"""


@pytest.mark.skipif(os.getuid() != 0, reason='gives files away')
def test_files_belong_to_the_directorys_owner_and_links_lead_nowhere(trainer, local_sagemaker, tmp_path, monkeypatch):
    """Rootless engines know this machine's users by other numbers; the directory's owner counts there, too."""
    os.chown(tmp_path, 12345, 23456)
    (tmp_path / 'old artifacts').mkdir()  # somebody else's
    monkeypatch.setattr(os, 'getuid', lambda: 12345)
    commands, call = [], Docker.__call__
    monkeypatch.setattr(Docker, '__call__', lambda self, *a, **k: commands.append(a) or call(self, *a, **k))
    trainer(WRITES, environment={'SECRET': __file__}).train()
    kept = tmp_path / 'artifacts' / 'model'
    assert {path.name: path.read_text() for path in kept.iterdir()} == {'real': 'real', 'link': 'real'}
    written = [path for name in ('artifacts', 'compressed_artifacts') for path in (tmp_path / name).rglob('*')]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in written} == {(12345, 23456)}
    assert (tmp_path / 'old artifacts').stat().st_uid == 0
    (chown,) = [command for command in commands if '--entrypoint=sh' in command]
    assert f'--label={LABEL}={local_sagemaker.name}' in chown  # `clean` finds it


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
