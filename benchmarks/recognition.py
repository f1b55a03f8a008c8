"""How well drawings are read by the tutorial's model, trained with drawings and distortion and without.

    .venv-bench/bin/python -m benchmarks.recognition          # trains 20 models, some 15 minutes on two cores

Nothing here comes from a real pen. The drawings chosen by are those of drawings/, with another seed; those
held out are in HELD_OUT's ways, none of which is among drawings/'s; the fonts' are the skeletons of glyphs,
and nothing was chosen by them.
"""

import argparse
import functools
import io
import os
import pathlib
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
from drawings import hand, raster

HELD_OUT = {
    0: """
        59,9 76,36 75,67 60,91 39,90 24,64 26,30 42,8 64,12
        43,7 17,24 10,57 26,85 55,94 81,77 90,45 75,16 47,6
        55,5 30,20 22,60 45,95 72,75 75,30 50,6 42,10
    """,
    1: """
        45,5 55,95
        25,40 55,7 / 50,95
        35,20 50,5 / 50,93 / 30,93 / 75,93
        50,5 50,95 + 35,95 66,95 + 50,5 36,22
    """,
    2: """
        22,30 30,10 55,5 72,20 60,50 25,90 / 50,85 70,97 85,88
        22,10 60,6 / 75,25 55,60 18,94 / 82,90
    """,
    3: """
        20,20 45,4 70,15 65,38 35,50 / 60,46 78,65 65,90 35,96 18,78
        22,10 70,8 / 40,45 / 60,50 / 75,70 60,92 25,90
    """,
    4: """
        40,5 18,62 / 82,60 + 60,40 55,95
        30,10 25,48 / 80,46 + 65,20 62,95
        25,10 22,45 45,55 70,35 + 70,5 68,95
    """,
    5: """
        70,5 35,8 / 30,42 / 65,38 72,70 50,95 25,88
        35,10 33,50 / 62,50 68,80 45,96 22,90 + 34,10 80,5
    """,
    6: """
        55,5 30,35 28,75 50,96 72,75 50,55 30,75
        60,5 32,55 / 30,64 41,52 57,51 69,63 70,80 59,92 43,93 31,81 30,64
    """,
    7: """
        20,15 40,10 60,14 78,8 / 45,95
        22,5 75,10 / 50,95 + 40,48 72,44
        18,22 20,8 / 80,8 / 38,95 + 36,55 74,55
    """,
    8: """
        70,15 45,5 32,25 55,48 70,75 45,96 30,75 50,50 72,20 66,10
        50,45 34,39 27,25 34,11 50,5 66,11 73,25 66,39 50,45 + 50,45 66,52 72,70 66,88 50,95 34,88 28,70 49,45
    """,
    9: """
        70,32 66,15 52,6 35,10 26,24 30,41 44,50 61,46 70,32 / 62,95
        63,15 50,6 36,11 28,26 32,44 44,54 59,50 67,36 65,18 / 68,20 70,60 65,90 45,96 25,86
        68,10 40,8 30,30 50,45 70,15 66,60 60,95
    """,
}
# Of https://fontsource.org, from npm.
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
# What is trained with: how many drawings, and whether images are distorted.
TRAININGS = {
    'plain': (0, False),
    '`augment`': (0, True),
    'drawings': (hand.N, False),
    'the tutorial: both': (hand.N, True),
}


def skeleton(font, digit):
    """Return a digit of a font as strokes, one for each two pixels of its skeleton that touch."""
    from PIL import Image, ImageDraw
    from skimage.morphology import skeletonize

    image = Image.new('L', (400, 400))
    ImageDraw.Draw(image).text((120, 100), str(digit), font=font, fill=255)
    pixels = {(x, y) for y, x in np.argwhere(skeletonize(np.array(image) > 127)).tolist()}
    neighbours = (1, 0), (0, 1), (1, 1), (-1, 1)
    return [[p, q] for p in pixels for q in ((p[0] + x, p[1] + y) for x, y in neighbours) if q in pixels]


def fonts():
    """Return the digits of FONTS as strokes, and the digits."""
    from PIL import ImageFont

    strokes = []
    with tempfile.TemporaryDirectory() as directory:
        for name in FONTS:
            command = ['npm', 'pack', '--silent', f'@fontsource/{name}']
            subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
        for path in sorted(pathlib.Path(directory).glob('*.tgz')):
            with tarfile.open(path) as package:
                names = [n for n in package.getnames() if n.endswith('-normal.woff') and '-latin-' in n]
                file = io.BytesIO(package.extractfile(min(names, key=lambda n: '-400-' not in n)).read())
            font = ImageFont.truetype(file, 120)
            strokes += [skeleton(font, digit) for digit in range(10)]
    return strokes, np.tile(np.arange(10), len(FONTS))


def probabilities(model, x):
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return chainer.functions.softmax(model(x)).array


def train(channels, augment, seed, directory):
    """Train as the tutorial does; return (model, seconds)."""
    start = time.monotonic()
    words = f'--epochs 3 --batch-size 128 --seed {seed} --augment {augment} {channels}'
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
        'drawings chosen by': hand.drawings(3000, 1),
        'drawings held out': hand.drawings(3000, 2, HELD_OUT),
        'handwriting fonts': fonts(),
    }.items():
        sets[name] = raster.rasterise(strokes), digits
    strokes, digits = hand.drawings(hand.N, 0)
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, (images, labels) in {**mnist, 'drawings': (raster.rasterise(strokes), digits)}.items():
            os.mkdir(f'{directory}/{name}')
            np.savez(f'{directory}/{name}/{name}', images=images, labels=labels)
        for seed in range(args.seeds):
            for training, (n, augment) in TRAININGS.items():
                print(f'training with seed {seed}, {training}', file=sys.stderr)
                names = ['train', 'test'] + ['drawings'] * (n > 0)
                channels = ' '.join(f'--{name} {directory}/{name}' for name in names)
                model, seconds = train(channels, augment, seed, directory)
                found.setdefault(('seconds', training), []).append(seconds)
                for name, (x, _) in sets.items():
                    found.setdefault((name, training), []).append(probabilities(model, x))

    with section('benchmarks.recognition', machine(), PAGE.with_name('pad.md')):
        table(sets, found)


def table(sets, found):
    print(f'| accuracy | images | {" | ".join(TRAININGS)} |\n|---|---|{"---|" * len(TRAININGS)}')
    for name, (x, y) in sets.items():
        cells = [[(p.argmax(axis=1) == y).mean() for p in found[name, training]] for training in TRAININGS]
        print(f'| {name} | {len(x):,} | {" | ".join(map(spread, cells))} |')
    seconds = [spread(found['seconds', training], '.0f') for training in TRAININGS]
    print(f'| seconds of training | | {" | ".join(seconds)} |\n')
    columns = [(name, training) for name in sets for training in ('`augment`', 'the tutorial: both')]
    print('| of the digit | ' + ' | '.join(f'{name}, {training}' for name, training in columns) + ' |')
    print('|---|' + '---|' * len(columns))
    rows = {str(digit): functools.partial(of_digit, digit) for digit in range(10)}
    for name, measure in {**rows, 'wrong, of answers over 90 %': wrong_though_sure}.items():
        cells = [np.mean([measure(p, sets[s][1]) for p in found[s, training]]) for s, training in columns]
        print(f'| {name} | ' + ' | '.join(f'{cell:.3f}' for cell in cells) + ' |')


def of_digit(digit, p, y):
    return (p[y == digit].argmax(axis=1) == digit).mean()


def wrong_though_sure(p, y):
    sure = p.max(axis=1) > 0.9
    return (p[sure].argmax(axis=1) != y[sure]).mean()


if __name__ == '__main__':
    main()
