"""How well drawings are read: with and without the pad's normalisation, with and without augmentation.

    .venv/bin/python -m benchmarks.recognition          # trains 10 models, some 6 minutes on two cores

The drawings are synthetic (benchmarks/drawings.py). What augmentation does was chosen on STYLES alone;
HELD_OUT are other ways of writing. "naive" scales the pad's whole canvas down to 28 x 28. Two cores
printed:

    accuracy                     images   plain                  augmented
    MNIST test images             10000   0.9848 (0.9836-0.9863) 0.9879 (0.9871-0.9885)
    drawings chosen on, naive      1650   0.2195 (0.2109-0.2236) 0.4473 (0.4303-0.4606)
    drawings chosen on             1650   0.9659 (0.9618-0.9679) 0.9825 (0.9812-0.9842)
    drawings held out, naive       1300   0.2043 (0.1969-0.2108) 0.4038 (0.3923-0.4208)
    drawings held out              1300   0.9332 (0.9300-0.9369) 0.9577 (0.9492-0.9677)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import chainer
import numpy as np

import chainer_mnist_single_machine as script
from benchmarks.drawings import HELD_OUT, STYLES, drawings, run_raster

NAIVE = """strokes => {  // 10 x 10 of the canvas's pixels, lines 24 wide as drawn there, for one of the image
  const value = (x, y) => strokes.some(stroke => stroke.some(([bx, by], i) => {
    const [ax, ay] = stroke[Math.max(0, i - 1)], ux = bx - ax, uy = by - ay;
    const t = Math.min(1, Math.max(0, ((x - ax) * ux + (y - ay) * uy) / (ux * ux + uy * uy || 1)));
    return Math.hypot(x - ax - t * ux, y - ay - t * uy) <= 12;
  })) ? 1 : 0;
  return Array.from({length: 784}, (_, i) => {
    let sum = 0;
    const x = i % 28 * 10, y = Math.floor(i / 28) * 10;
    for (const dx of [2, 5, 8]) for (const dy of [2, 5, 8]) sum += value(x + dx, y + dy);
    return sum / 9;
  });
}"""


def images(strokes, how='rasterise'):
    """The images, float32 (N, 784), that a JavaScript function next to the pad's makes of drawings."""
    return np.array(run_raster(f'{json.dumps(strokes)}.map({how})'), np.float32)


def accuracy(model, x, labels):
    """The share of images x that the model reads as their labels."""
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return (model(x).array.argmax(axis=1) == labels).mean()


def main():
    """Train the script's models, and print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--n', type=int, default=50, help='drawings of each style')
    args = parser.parse_args()
    sets = []
    train, test = chainer.datasets.get_mnist()
    sets.append(('MNIST test images', *chainer.dataset.concat_examples(test)))
    for name, styles, seed in ('chosen on', STYLES, 1), ('held out', HELD_OUT, 2):
        strokes, labels = drawings(styles, args.n, seed)
        sets.append((f'drawings {name}, naive', images(strokes, NAIVE), labels))
        sets.append((f'drawings {name}', images(strokes), labels))

    results = {}
    with tempfile.TemporaryDirectory() as directory:
        channels = {}
        for name, dataset in ('train', train), ('test', test):
            channels[name] = os.path.join(directory, name)
            os.mkdir(channels[name])
            x, y = chainer.dataset.concat_examples(dataset)
            np.savez(os.path.join(channels[name], name), images=x, labels=y)
        for seed in range(args.seeds):
            for augment in False, True:
                print(f'training with seed {seed}, augment {augment}', file=sys.stderr)
                subprocess.run(
                    [
                        sys.executable,
                        script.__file__,
                        '--epochs',
                        '3',
                        '--batch-size',
                        '128',
                        '--seed',
                        str(seed),
                        '--augment',
                        str(augment),
                        '--train',
                        channels['train'],
                        '--test',
                        channels['test'],
                        '--model-dir',
                        directory,
                        '--output-data-dir',
                        directory,
                    ],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                model = script.model_fn(directory)
                for name, x, labels in sets:
                    results.setdefault((name, augment), []).append(accuracy(model, x, labels))

    print(f'{"accuracy":<28} {"images":>6}   {"plain":<22} {"augmented":<22}')
    for name, x, _ in sets:
        plain, augmented = (
            f'{np.mean(values):.4f} ({min(values):.4f}-{max(values):.4f})'
            for values in (results[name, False], results[name, True])
        )
        print(f'{name:<28} {len(x):>6}   {plain:<22} {augmented:<22}')


if __name__ == '__main__':
    main()
