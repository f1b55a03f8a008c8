"""The script alone, as a process, on today's Chainer and on what AWS's last image holds."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import chainer_mnist_single_machine as script
from chainer_mnist import augment, channels

SCRIPT = pathlib.Path(script.__file__)


def run(*args, python=sys.executable, cwd=None, **env):
    """Run the script with SageMaker's variables and no others of its kind."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith('SM_')}
    return subprocess.run(
        [str(python), str(SCRIPT)] + [str(a) for a in args],
        cwd=cwd,
        text=True,
        env={**clean, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def variables(data, out):
    """What SageMaker sets for a data directory and one for all output, which this makes."""
    (out / 'model').mkdir(parents=True)
    return dict(
        SM_CHANNEL_TRAIN=str(data / 'train'),
        SM_CHANNEL_TEST=str(data / 'test'),
        SM_OUTPUT_DATA_DIR=str(out / 'data'),
        SM_MODEL_DIR=str(out / 'model'),
        SM_NUM_GPUS='0',
    )


def train(data, out, *args, **kwargs):
    """Train on a data directory; return (finished process, log of LogReport)."""
    done = run('--epochs', 1, '--batch-size', 100, *args, **variables(data, out), **kwargs)
    assert done.returncode == 0, done.stderr
    return done, json.loads((out / 'data' / 'log').read_text())


@pytest.fixture(scope='module')
def trained(small_mnist, tmp_path_factory):
    out = tmp_path_factory.mktemp('trained')
    train(small_mnist, out)
    return out


def test_writes_model_plots_log_graph_and_snapshot(trained):
    assert (trained / 'model' / 'model.npz').exists()
    written = {path.name for path in (trained / 'data').iterdir()}
    assert written == {'accuracy.png', 'loss.png', 'log', 'cg.dot', 'snapshot_epoch_1'}
    for plot in 'accuracy.png', 'loss.png':
        assert (trained / 'data' / plot).read_bytes().startswith(b'\x89PNG')


def test_model_fn_loads_what_training_saved(trained, small_mnist):
    code = (
        'import sys, numpy as np, chainer_mnist_single_machine as s\n'
        'assert "matplotlib" not in sys.modules\n'
        'model = s.model_fn(sys.argv[1])\n'
        'd = np.load(sys.argv[2])\n'
        'x = d["images"]\n'
        'p = model(x).array\n'
        'print((p.argmax(1) == d["labels"]).mean())\n'
        'for shape in (-1, 28, 28), (-1, 1, 28, 28):\n'
        '    assert np.array_equal(model(x.reshape(shape)).array, p)\n'
        'assert np.allclose(model(x[0]).array, p[:1], atol=1e-5)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, str(trained / 'model'), str(small_mnist / 'test' / 'test.npz')],
        cwd=str(SCRIPT.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.75


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result(trained, small_mnist, tmp_path):
    _, log = train(small_mnist, tmp_path / 'again')
    first = json.loads((trained / 'data' / 'log').read_text())
    _, other = train(small_mnist, tmp_path / 'other', '--seed', 1)
    keys = 'main/loss', 'validation/main/loss', 'validation/main/accuracy'
    assert [log[0][k] for k in keys] == [first[0][k] for k in keys]
    assert [log[0][k] for k in keys] != [other[0][k] for k in keys]


@pytest.mark.slow
def test_a_killed_job_ends_like_one_that_was_not(small_mnist, tmp_path):
    """kill -9 at random moments, start again: the same weights to the bit, and the same log."""
    options = '--epochs', '6', '--augment', 'True'
    _, log = train(small_mnist, tmp_path / 'whole', *options)
    options += '--checkpoint-dir', tmp_path / 'checkpoints'
    rng = random.Random(0)
    for epoch in 1, 2, 4, 5:
        out = tmp_path / f'killed in epoch {epoch + 1}'
        process = subprocess.Popen(
            [sys.executable, SCRIPT, '--batch-size', '100', *options],
            stdout=subprocess.DEVNULL,
            env={**os.environ, **variables(small_mnist, out)},
        )
        while not list((tmp_path / 'checkpoints').glob(f'epoch_{epoch}_*.npz')):
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL and not (out / 'model' / 'model.npz').exists()
    out = tmp_path / 'end'
    done, again = train(small_mnist, out, *options)
    assert 'Resuming after epoch 5' in done.stdout
    for line in log + again:
        del line['elapsed_time']
    assert again == log
    with (
        np.load(tmp_path / 'whole' / 'model' / 'model.npz') as whole,
        np.load(out / 'model' / 'model.npz') as resumed,
    ):
        assert all(np.array_equal(whole[key], resumed[key]) for key in whole.files)
    assert len(list((tmp_path / 'checkpoints').glob('*.npz'))) == 2  # of the last epochs


@pytest.mark.parametrize('spelling', ['--batch-size', '--batch_size'])
def test_both_spellings_of_batch_size_count(spelling):
    assert script.parse_args([spelling, '500']).batch_size == 500


@pytest.mark.slow
def test_hyperparameters_arrive_in_training(small_mnist, tmp_path):
    _, log = train(small_mnist, tmp_path, '--batch_size', 500, '--learning_rate', '1e-12')
    assert log[-1]['iteration'] == 4  # 2,000 images / 500
    assert log[-1]['validation/main/accuracy'] < 0.3


@pytest.mark.parametrize('value, expected', [('True', True), ('False', False), ('1', True), ('0', False)])
def test_augment_is_a_boolean(value, expected):
    assert script.parse_args(['--augment', value]).augment is expected


def test_augment_is_not_anything_else(capsys):
    with pytest.raises(SystemExit):
        script.parse_args(['--augment', 'perhaps'])
    assert 'invalid boolean value' in capsys.readouterr().err


RNG = np.random.RandomState(0)
PICTURES = np.zeros((5, 28, 28), np.float32)
PICTURES[:, 4:24, 4:24] = RNG.rand(5, 20, 20)


ROWS, COLUMNS = np.mgrid[:28, :28].reshape(2, 1, 784).astype(np.float32)


@pytest.mark.parametrize(
    'x, y, expected',
    [
        (COLUMNS, ROWS, PICTURES),
        (COLUMNS + 3, ROWS, np.roll(PICTURES, -3, axis=2)),
        (COLUMNS, ROWS - 2, np.roll(PICTURES, 2, axis=1)),
        (COLUMNS + 0.5, ROWS, (PICTURES + np.roll(PICTURES, -1, axis=2)) / 2),
        (ROWS, COLUMNS, PICTURES.transpose(0, 2, 1)),
        (27 - COLUMNS, ROWS, PICTURES[:, :, ::-1]),
        (
            COLUMNS,
            ROWS + np.arange(5, dtype=np.float32)[:, None],  # another place for each image
            np.array([np.roll(picture, -i, axis=0) for i, picture in enumerate(PICTURES)]),
        ),
    ],
)
def test_resample(x, y, expected):
    resampled = augment.resample(
        PICTURES.reshape(5, 784), *np.broadcast_arrays(x, y, np.zeros((5, 1), np.float32))[:2]
    )
    assert resampled.dtype == np.float32
    assert np.allclose(resampled.reshape(5, 28, 28), expected, atol=2e-3)


def test_distorted_digits_stay_digits(small_mnist):
    """A few degrees and pixels: ink, place and range stay, and no two are distorted alike."""
    images = np.load(small_mnist / 'train' / 'train.npz')['images']
    np.random.seed(0)
    distorted = augment.distort(images)
    assert distorted.dtype == np.float32 and distorted.shape == images.shape
    assert distorted.min() >= 0 and distorted.max() <= 1
    ink = distorted.sum(1) / images.sum(1)
    assert abs(ink.mean() - 1) < 0.03 and 0.6 < ink.min() and ink.max() < 1.6
    grid = np.mgrid[:28, :28].reshape(2, 784)
    moved = (grid @ distorted.T / distorted.sum(1)) - (grid @ images.T / images.sum(1))
    assert abs(moved).max() < 2.5 and 0.3 < moved.std() < 0.9
    same = augment.distort(np.repeat(images[:1], 50, axis=0))
    assert len(np.unique(same, axis=0)) == 50


def test_augmentation_changes_images_only(small_mnist):
    with np.load(small_mnist / 'train' / 'train.npz') as arrays:
        batch = list(zip(arrays['images'][:100], arrays['labels'][:100].astype(np.int32)))
    images, labels = augment.concat_distorted(batch, -1)
    plain, expected = script.chainer.dataset.concat_examples(batch)
    assert (labels == expected).all() and labels.dtype == np.int32
    assert images.shape == plain.shape and 0 < abs(images - plain).mean() < 0.2


@pytest.mark.slow
def test_the_learning_rate_falls_in_the_last_third(small_mnist, tmp_path, monkeypatch):
    rates = []
    update = script.chainer.optimizers.Adam.update
    monkeypatch.setattr(
        script.chainer.optimizers.Adam,
        'update',
        lambda self, *args: (rates.append(self.alpha), update(self, *args)),
    )
    script.train(
        script.parse_args(
            [
                '--epochs',
                '3',
                '--batch-size',
                '1000',
                '--learning-rate',
                '0.002',
                '--num-gpus',
                '0',
                '--train',
                str(small_mnist / 'train'),
                '--test',
                str(small_mnist / 'test'),
                '--model-dir',
                str(tmp_path),
                '--output-data-dir',
                str(tmp_path),
            ]
        )
    )
    assert rates == pytest.approx([0.002, 0.002, 0.002, 0.002, 0.002, 0.001])


@pytest.mark.slow
def test_augment_arrives_in_training(small_mnist, trained, tmp_path):
    _, log = train(small_mnist, tmp_path, '--augment', 'True')
    plain = json.loads((trained / 'data' / 'log').read_text())
    assert log[0]['main/loss'] > plain[0]['main/loss']  # the distorted are harder
    assert log[0]['validation/main/accuracy'] > 0.7


@pytest.mark.parametrize('argument', ['--batchsize', '--epoch', '-e', '--unknown'])
def test_an_unknown_hyperparameter_is_refused(argument, capsys):
    with pytest.raises(SystemExit):
        script.parse_args([argument, '3'])
    assert 'unknown hyperparameter ' + argument in capsys.readouterr().err


def test_hyperparameters_of_sagemaker_itself_are_not_refused():
    args = script.parse_args(['--sagemaker_use_mpi', 'true', '--epochs', '3'])
    assert args.epochs == 3


@pytest.mark.parametrize('argument', ['--epochs', '--batch-size', '--learning-rate'])
@pytest.mark.parametrize('value', ['0', '-1', 'many', 'nan'])
def test_a_hyperparameter_out_of_range_is_refused(argument, value, capsys):
    with pytest.raises(SystemExit):
        script.parse_args([argument + '=' + value])
    assert 'positive' in capsys.readouterr().err


def test_the_test_channel_is_not_the_output_directory(small_mnist, tmp_path):
    done = run(SM_CHANNEL_TRAIN=str(small_mnist / 'train'), SM_OUTPUT_DATA_DIR=str(tmp_path))
    assert done.returncode == 1 and "no 'test' channel" in done.stderr


IMAGES = np.zeros((10, 784), np.float32)
LABELS = np.arange(10)
BAD = {
    'no file': (None, 'No such file'),
    'missing key': ({'images': IMAGES}, 'labels'),
    'wrong shape': ({'images': IMAGES[:, :100], 'labels': LABELS}, 'shape (N, 784)'),
    'integers': ({'images': IMAGES.astype(np.int32), 'labels': LABELS}, 'uint8 or floating point'),
    'too few labels': ({'images': IMAGES, 'labels': LABELS[:9]}, 'shape (10,)'),
    'float labels': ({'images': IMAGES, 'labels': LABELS * 1.0}, 'must be integers'),
    'label 10': ({'images': IMAGES, 'labels': LABELS + 1}, 'must be 0 to 9, but range from 1 to 10'),
    'label -1': ({'images': IMAGES, 'labels': LABELS - 1}, 'must be 0 to 9'),
    'NaN': ({'images': IMAGES + np.nan, 'labels': LABELS}, 'NaN'),
    'empty': ({'images': IMAGES[:0], 'labels': LABELS[:0]}, 'no images'),
    'pickle': ({'images': np.array([object()] * 10), 'labels': LABELS}, 'allow_pickle=False'),
}


@pytest.mark.parametrize('case', sorted(BAD))
def test_bad_data_ends_with_one_sentence(tmp_path, case):
    arrays, sentence = BAD[case]
    if arrays is not None:
        np.savez(tmp_path / 'train.npz', **arrays)
    with pytest.raises(SystemExit) as exit:
        channels.load('train', str(tmp_path))
    assert sentence in exit.value.code and '\n' not in exit.value.code


def test_bytes_are_the_same_pixels_as_get_mnist(tmp_path):
    images, labels = script.chainer.dataset.concat_examples(script.chainer.datasets.get_mnist()[1])
    np.savez_compressed(tmp_path / 'test.npz', images=(images * 255).round().astype(np.uint8), labels=labels)
    assert (channels.load('test', str(tmp_path))._datasets[0] == images).all()


def test_a_model_that_gives_nan_is_not_hosted(tmp_path):
    model = script.L.Classifier(script.MLP())
    model.predictor.l3.b.array[7] = np.nan
    script.serializers.save_npz(str(tmp_path / 'model.npz'), model)
    with pytest.raises(ValueError, match='model.npz gives NaN'):
        script.model_fn(str(tmp_path))


def test_bad_data_ends_the_process_before_any_epoch(tmp_path):
    np.savez(tmp_path / 'train.npz', images=IMAGES + np.nan, labels=LABELS)
    done = run('--train', tmp_path, '--test', tmp_path)
    assert done.returncode == 1 and done.stdout == ''
    assert 'NaN' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.slow
def test_runs_unchanged_on_the_versions_of_awss_image(aws_python, small_mnist, trained, tmp_path):
    _, log = train(small_mnist, tmp_path / 'augmented', '--augment', 'True', python=aws_python)
    assert log[-1]['validation/main/accuracy'] > 0.7
    _, log = train(small_mnist, tmp_path / 'out', python=aws_python)
    assert log[-1]['validation/main/accuracy'] > 0.75
    assert (tmp_path / 'out' / 'data' / 'accuracy.png').exists()
    (tmp_path / 'checkpoints').mkdir()
    for epochs, resuming in (1, False), (2, True):
        done, _ = train(
            small_mnist,
            tmp_path / str(epochs),
            '--epochs',
            epochs,
            '--checkpoint-dir',
            tmp_path / 'checkpoints',
            python=aws_python,
        )
        assert ('Resuming after epoch 1' in done.stdout) is resuming
    # A model trained here is hosted there, and the other way round.
    load = (
        'import sys, chainer; import chainer_mnist_single_machine as s; '
        's.model_fn(sys.argv[1]); print(chainer.__version__)'
    )
    for python, model, version in (
        (aws_python, trained / 'model', '5.0.0'),
        (sys.executable, tmp_path / 'out' / 'model', '7.8.1'),
    ):
        loaded = subprocess.run(
            [str(python), '-c', load, str(model)],
            cwd=str(SCRIPT.parent),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert loaded.stdout.strip() == version, loaded.stderr
