"""This benchmark measures the model's accuracy on drawings, trained with and without them and `augment`.

    .venv-bench/bin/python -m benchmarks.recognition          # trains 25 models, some 10 minutes on two cores

All three sets of drawings are synthetic. The first has the styles ("ways") of digit_pad/, with another seed.
The second has every third style, which one of the trainings leaves out. The third has the skeletons of glyphs
of handwriting fonts, which were not used to tune anything.
"""

import argparse
import functools
import io
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import time

import chainer
import numpy as np

import chainer_mnist_single_machine as script
from benchmarks.report import PAGE, section
from benchmarks.training import machine
from digit_pad import hand, raster, ways

# These fonts of https://fontsource.org come from npm.
FONTS = """
    annie-use-your-telescope arizonia bad-script betania-patmos beth-ellen caveat cedarville-cursive
    charmonman comforter-brush coming-soon courgette crafty-girls dawning-of-a-new-day
    delicious-handrawn delius-swash-caps edu-nsw-act-foundation edu-sa-beginner edu-vic-wa-nt-beginner
    felipa fuzzy-bubbles gamja-flower gloria-hallelujah grape-nuts gwendolyn handlee hi-melody hurricane
    inspiration itim just-me-again-down-here kaushan-script kolker-brush la-belle-aurore leckerli-one
    life-savers long-cang lovers-quarrel mali marck-script merienda moon-dance mr-de-haviland my-soul
    nanum-brush-script nerko-one nixie-one nothing-you-could-do over-the-rainbow passions-conflict
    permanent-marker playwrite-at playwrite-br playwrite-cl playwrite-cu playwrite-de-grund
    playwrite-dk-loopet playwrite-es playwrite-fr-moderne playwrite-hr playwrite-hu playwrite-ie
    playwrite-is playwrite-it-trad playwrite-ng-modern playwrite-no playwrite-pe playwrite-pt
    playwrite-sk playwrite-us-modern playwrite-vn poor-story rancho reenie-beanie romanesco ruthie
    sassy-frass schoolbell sedan send-flowers shantell-sans single-day sofia square-peg stalemate
    sunshiney the-girl-next-door twinkle-star vujahday-script walter-turncoat waterfall yellowtail
    yuji-boku zeyada
""".split()
WAYS = {digit: text.strip().splitlines() for digit, text in ways.WAYS.items()}
HELD_OUT = {digit: '\n'.join(lines[2::3]) for digit, lines in WAYS.items()}
OTHERS = {digit: '\n'.join(line for line in lines if line not in lines[2::3]) for digit, lines in WAYS.items()}
# {training: (fraction of distorted images, styles of the drawings in training: 'all', 'others' or None)}
TRAININGS = {
    'plain': (0, None),
    '`augment`': (0.5, None),
    'drawings': (0, 'all'),
    'the tutorial: both': (0.5, 'all'),
    'both, every third style held out': (0.5, 'others'),
}


def skeleton(font, digit):
    """Return a font's digit as strokes, one for each pair of touching pixels of its skeleton."""
    from PIL import Image, ImageDraw
    from skimage.morphology import skeletonize

    image = Image.new('L', (400, 400))
    ImageDraw.Draw(image).text((120, 100), str(digit), font=font, fill=255)
    pixels = {(x, y) for y, x in np.argwhere(skeletonize(np.array(image) > 127)).tolist()}
    neighbours = (1, 0), (0, 1), (1, 1), (-1, 1)
    return [[p, q] for p in pixels for q in ((p[0] + x, p[1] + y) for x, y in neighbours) if q in pixels]


def fonts():
    """Return drawings of the digits 0 to 9 in each of FONTS, lists of strokes, and the digits."""
    from PIL import ImageFont

    strokes = []
    with tempfile.TemporaryDirectory() as directory:
        for name in FONTS:
            command = ['npm', 'pack', '--silent', f'@fontsource/{name}@5']
            subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
        for path in sorted(pathlib.Path(directory).glob('*.tgz')):
            with tarfile.open(path) as package:
                names = [n for n in package.getnames() if re.search(r'-latin-\d+-normal\.woff$', n)]
                file = io.BytesIO(package.extractfile(min(names, key=lambda n: '-400-' not in n)).read())
            font = ImageFont.truetype(file, 120)
            strokes += [skeleton(font, digit) for digit in range(10)]
    return strokes, np.tile(np.arange(10), len(FONTS))


def probabilities(model, x):
    """Return the model's probabilities, float32 (N, 10), for images x, float32 (N, 784)."""
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return chainer.functions.softmax(model(x)).array


def train(channels, augment, seed, directory):
    """Train as the tutorial does; return (model, seconds). channels: arguments of the script."""
    start = time.monotonic()
    words = f'--epochs 3 --batch-size 128 --learning-rate 0.002 --seed {seed} --augment {augment} {channels}'
    words += f' --model-dir {directory} --output-data-dir {directory}'
    command = [sys.executable, script.__file__, *words.split()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return script.model_fn(directory), time.monotonic() - start


def spread(values, form='.3f'):
    return f'{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})'


def main():
    """Train the script's models, and print two tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--seeds', type=int, default=5)
    args = parser.parse_args()
    mnist = {name: chainer.dataset.concat_examples(data)
             for name, data in zip(('train', 'test'), chainer.datasets.get_mnist())}  # fmt: skip
    sets = {"MNIST's test images": mnist['test']}
    for name, (strokes, digits) in {
        'drawings, all styles': hand.drawings(3000, 1),
        'drawings, held-out styles': hand.drawings(3000, 2, HELD_OUT),
        'handwriting fonts': fonts(),
    }.items():
        sets[name] = raster.rasterise(strokes), digits
    with section('benchmarks.recognition', machine(), PAGE.with_name('pad.md')):
        table(sets, train_all(mnist, sets, args.seeds))


def train_all(mnist, sets, seeds):
    """Return {(set, training): [probabilities by seed], ("seconds", training): [seconds by seed]}."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, (images, labels) in mnist.items():
            save(f'{directory}/{name}', images, labels)
        for name, which in ('all', ways.WAYS), ('others', OTHERS):
            strokes, digits = hand.drawings(hand.N, 0, which)
            save(f'{directory}/{name}/drawings', raster.rasterise(strokes), digits)
        for seed, (training, (augment, which)) in itertools.product(range(seeds), TRAININGS.items()):
            print(f'training with seed {seed}, {training}', file=sys.stderr)
            channels = f'--train {directory}/train --test {directory}/test'
            if which:
                channels += f' --drawings {directory}/{which}/drawings'
            model, seconds = train(channels, augment, seed, directory)
            found.setdefault(('seconds', training), []).append(seconds)
            for name, (x, _) in sets.items():
                found.setdefault((name, training), []).append(probabilities(model, x))
    return found


def save(channel, images, labels):
    os.makedirs(channel, exist_ok=True)
    np.savez(f'{channel}/{os.path.basename(channel)}', images=images, labels=labels)


def table(sets, found):
    print(f'| accuracy | images | {" | ".join(TRAININGS)} |\n|---|---|{"---|" * len(TRAININGS)}')
    for name, (x, y) in sets.items():
        cells = [[(p.argmax(axis=1) == y).mean() for p in found[name, training]] for training in TRAININGS]
        print(f'| {name} | {len(x):,} | {" | ".join(map(spread, cells))} |')
    seconds = [spread(found['seconds', training], '.0f') for training in TRAININGS]
    print(f'| seconds of training | | {" | ".join(seconds)} |\n')
    columns = [(name, training) for name in sets for training in ('`augment`', 'the tutorial: both')]
    print('| accuracy by digit | ' + ' | '.join(f'{name}, {training}' for name, training in columns) + ' |')
    print('|---|' + '---|' * len(columns))
    rows = {str(digit): functools.partial(of_digit, digit) for digit in range(10)}
    for name, measure in {**rows, 'errors among answers over 90 %': wrong_though_sure}.items():
        cells = [np.mean([measure(p, sets[s][1]) for p in found[s, training]]) for s, training in columns]
        print(f'| {name} | ' + ' | '.join(f'{cell:.3f}' for cell in cells) + ' |')


def of_digit(digit, p, y):
    return (p[y == digit].argmax(axis=1) == digit).mean()


def wrong_though_sure(p, y):
    sure = p.max(axis=1) > 0.9
    return (p[sure].argmax(axis=1) != y[sure]).mean()


if __name__ == '__main__':
    main()
