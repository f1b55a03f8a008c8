"""This script runs Chainer's own examples in the image, plain and fast, on made-up data, and compares their losses.

    python tests/chainer_examples.py [EXAMPLE ...]

The examples come from the clone that the variable CHAINER names, or from GitHub. `make test-chainer` calls this, too. A
mode is an environment: another accelerator is another line in MODES.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from chainer_suite import IMAGE, MODES, extract

# {name: the script below examples/ with its arguments}. ChainerMN's cifar is no use: its VGG takes a tuple for a size.
EXAMPLES = {
    'mnist': 'mnist/train_mnist.py -b 50',
    'cifar': 'cifar/train_cifar.py -b 8',
    'ptb': 'ptb/train_ptb.py -u 50',
    'word2vec': 'word2vec/train_word2vec.py -b 100',
    'word2vec, ns': 'word2vec/train_word2vec.py -b 100 -o ns -m cbow',
    'vae': 'vae/train_vae.py -b 50',
    'dcgan': 'dcgan/train_dcgan.py -b 8',
    'seq2seq': 'seq2seq/seq2seq.py -u 30 -b 20 text text words words',
    'sentiment': 'sentiment/train_sentiment.py -b 5',
    'pos': 'pos/postagging.py -b 10',
    'memnn': 'memnn/train_memnn.py facts facts -b 20',
    'wavenet': 'wavenet/train.py -i . -b 2 -l 1024 --n_loop 2 --n_layer 3',
    'text, cnn': 'text_classification/train_text_classifier.py --dataset TREC -b 20 -u 30 --model cnn',
    'text, rnn': 'text_classification/train_text_classifier.py --dataset TREC -b 20 -u 30 --model rnn',
    'text, bow': 'text_classification/train_text_classifier.py --dataset TREC -b 20 -u 30 --model bow',
    'chainermn, mnist': 'chainermn/mnist/train_mnist.py -b 20 --communicator naive',
    'chainermn, dcgan': 'chainermn/dcgan/train_dcgan.py -b 8 --communicator naive',
}
# Relative, of the first step's losses, and of all: training amplifies rounding. Another kernel of OpenBLAS changes the
# losses of mnist by 2e-7, of dcgan, with Adam and batch normalisation, by 4e-4, of cifar, a VGG, by 8e-3, as an
# activation on the other side of 0 changes gradients by 4e-3; chance decides which run is nearer to float64.
FIRST, ALL, ALL_OF = 1e-5, 1e-4, {'dcgan': 1e-2, 'chainermn, dcgan': 1e-2, 'cifar': 1e-1}
SCRIPT = r"""
mkdir work && cd work
if [ "${2%%/*}" = chainermn ]; then
    set -- mpirun --allow-run-as-root --oversubscribe -n 2 python /tests/chainer_example.py "$@"
else set -- python /tests/chainer_example.py "$@"; fi
timeout 600 "$@"
"""


def run(folder, mode, name):
    """Return the losses of an example's steps, or what it says of its failure."""
    result = f'{mode}-{name}'
    script, *arguments = EXAMPLES[name].split()
    variables = [f'--env={key}={value}' for key, value in MODES[mode].items()]
    mounts = [f'--volume={pathlib.Path(__file__).parent}:/tests:ro', f'--volume={folder}:/folder']
    quiet = ['OPENBLAS_NUM_THREADS=1', 'PYTHONHASHSEED=0', 'PYTHONWARNINGS=ignore']
    command = ['docker', 'run', '--rm', '--init', '--label', 'chainer-mnist-local-mode', '--workdir', '/tmp', *mounts]
    command += [*variables, *[f'--env={value}' for value in quiet], IMAGE, 'sh', '-ec', SCRIPT, 'sh']
    done = subprocess.run(
        [*command, f'/folder/{result}', f'/folder/examples/{script}', *arguments], capture_output=True, text=True
    )
    losses = folder / f'{result}0'
    return json.loads(losses.read_text()) if losses.exists() else done.stderr.strip().split('\n')[-1]


def difference(plain, fast):
    """Return the greatest relative difference of two runs' losses, infinity if they are of different kinds."""
    if [step.keys() for step in plain] != [step.keys() for step in fast]:
        return float('inf')
    pairs = [(step[key], other[key]) for step, other in zip(plain, fast) for key in step]
    return max(abs(a - b) / max(abs(a), 1e-6) for a, b in pairs)


def compare(folder, name):
    """Run an example in all modes and print a line; return whether its losses agree."""
    results = {mode: run(folder, mode, name) for mode in MODES}
    failed = {mode: result for mode, result in results.items() if not result or isinstance(result, str)}
    if failed:
        print(f'{name:18}', failed)
        return False
    plain, *others = results.values()
    first, greatest = (max(difference(plain[:n], other[:n]) for other in others) for n in (1, None))
    losses = [f'{max(result[-1].items())[1]:<12.7g}' for result in results.values()]
    agree = first < FIRST and greatest < ALL_OF.get(name, ALL)
    print(f'{name:18}{len(plain):5}  ', *losses, f'{first:.1e}  {greatest:.1e}', '' if agree else 'differ', flush=True)
    return agree


if __name__ == '__main__':
    with tempfile.TemporaryDirectory(prefix='chainer-mnist-local-mode-') as folder:
        extract(folder := pathlib.Path(folder), 'examples')
        text = folder / 'examples/text_classification/train_text_classifier.py'
        text.write_text(text.read_text().replace('int(d[1])', 'd[1].item()'))  # as NumPy 2.5 demands
        print(f'{"":18}steps   ' + ' '.join(f'{"loss, " + mode:12}' for mode in MODES), 'difference: first step, all')
        well = [compare(folder, name) for name in sys.argv[1:] or EXAMPLES]
    sys.exit(not all(well))
