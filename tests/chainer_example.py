"""This script runs one of Chainer's examples for a few steps, on random data in place of what it would download.

It writes the losses of each step as JSON. chainer_examples.py calls it in the image, with a file, an example and its
arguments.
"""

import functools
import json
import os
import pathlib
import random
import runpy
import sys
import types
import zlib

import chainer
import numpy as np

STEPS = 6
random.seed(0)
np.random.seed(0)
rng = np.random.RandomState(0)
WORDS = [f'w{i}' for i in range(50)]
SENTENCES = [[WORDS[i] for i in rng.randint(0, 50, rng.randint(3, 9))] for _ in range(200)]


def images(shape, flat=None):
    """Return a function like chainer.datasets.get_mnist."""

    def get(withlabel=True, ndim=1, scale=1.0, **kwargs):
        x = rng.rand(200, *(flat if flat and ndim == 1 else shape)).astype(np.float32) * np.float32(scale)
        data = chainer.datasets.TupleDataset(x, rng.randint(0, 10, 200).astype(np.int32)) if withlabel else x
        return data, data

    return get


def module(name, **names):
    """Put a module in the place of one that the image lacks, with what the examples use of it."""
    sys.modules[name] = types.SimpleNamespace(**names)


def fake():
    """Replace the sources of data."""
    datasets = chainer.datasets
    datasets.get_mnist = images((1, 28, 28), (784,))
    datasets.get_cifar10 = datasets.cifar.get_cifar10 = images((3, 32, 32), None)
    datasets.get_ptb_words = lambda: [rng.randint(0, 50, 3000).astype(np.int32) for _ in range(3)]
    datasets.get_ptb_words_vocabulary = lambda: {word: i for i, word in enumerate(WORDS)}
    tagged = [[(word, word[-1]) for word in sentence] for sentence in SENTENCES]
    brown = types.SimpleNamespace(tagged_sents=lambda: tagged)
    module('nltk', download=print, corpus=types.SimpleNamespace(brown=brown))
    module('nltk.translate', bleu_score=None)
    module('progressbar', ProgressBar=lambda: lambda iterable, max_value: iterable)
    sound = types.SimpleNamespace(melspectrogram=lambda raw, sr, n_mels, **kwargs: np.ones((n_mels, len(raw))))
    module(
        'librosa',
        load=lambda path, sr, **kwargs: (np.random.RandomState(zlib.crc32(path.encode())).randn(900), sr),
        effects=types.SimpleNamespace(trim=lambda raw, top_db: (raw, None)),
        feature=sound,
        power_to_db=lambda spectrogram, ref: spectrogram,
    )


def write_files():
    """Write the files that examples read, in the current directory."""
    lines = [' '.join(sentence) for sentence in SENTENCES]
    trees = [f'({i % 5} ({i % 3} w{i % 50}) ({i % 2} w{i % 7}))' for i in range(50)]
    facts = [f'1 {a} went to {b}.\n2 {b} saw {a}.\n3 Where is {a}?\t{b}\t1' for a, b, *_ in SENTENCES]
    labelled = [f'{i % 6} {line}' for i, line in enumerate(lines)]
    files = {'text': lines, 'words': ['<unk>', '<eos>', *WORDS], 'facts': facts, 'labelled': labelled}
    for name, content in (files | {f'trees/{part}.txt': trees for part in ('train', 'dev', 'test')}).items():
        path = pathlib.Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text('\n'.join(content))
    pathlib.Path('wav48/speaker').mkdir(parents=True)
    for i in range(20):
        pathlib.Path(f'wav48/speaker/{i}.wav').touch()


def record(result):
    """Let every trainer stop after STEPS, and write the losses into a file."""
    run = chainer.training.Trainer.run

    def run_briefly(trainer, *args, **kwargs):
        trainer.stop_trigger = chainer.training.get_trigger((STEPS, 'iteration'))
        losses = []

        def note(trainer):
            found = trainer.observation.items()
            losses.append({key: float(getattr(value, 'array', value)) for key, value in found if 'loss' in key})

        trainer.extend(note, trigger=(1, 'iteration'), name='note')
        run(trainer, *args, **kwargs)
        pathlib.Path(result).write_text(json.dumps(losses))

    chainer.training.Trainer.run = run_briefly


if __name__ == '__main__':
    result, example, *sys.argv[1:] = sys.argv[1:]
    sys.argv[0] = example
    sys.path[0] = os.path.dirname(example)
    fake()
    record(result + os.environ.get('OMPI_COMM_WORLD_RANK', '0'))
    if 'chainermn' in example:
        import chainermn

        chainermn.scatter_dataset = functools.partial(chainermn.scatter_dataset, seed=0)
    if 'text_classification' in example:
        import text_datasets

        text_datasets.download_other_dataset = lambda name: [f'{os.getcwd()}/labelled'] * 2
    if not os.path.exists('text'):
        write_files()
    runpy.run_path(example, run_name='__main__')
