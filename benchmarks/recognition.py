"""This benchmark measures the model's accuracy on drawings, trained with and without them and `augment`.

    .venv-bench/bin/python -m benchmarks.recognition          # trains 20 models, some 15 minutes on two cores

All sets of drawings are synthetic. The first has the styles of digit_pad/ways.py, with another seed. In the second
each part of a digit is one that one of the trainings leaves out: every third of the part's alternatives. The third has
the skeletons of glyphs of handwriting fonts, which were not used to tune anything. The first and the third are measured
as photos, too. The last has no digits: other letters and shapes than in training.
"""

import argparse
import io
import itertools
import os
import pathlib
import re
import resource
import subprocess
import sys
import tarfile
import tempfile

import chainer
import matplotlib.pyplot as plt
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
SHAPES = """
    10,96 10,4 / 84,6 + 10,50 70,50 | 6,4 94,4 + 50,4 50,96 | 6,4 50,50 + 94,4 50,50 / 50,96 | 6,4 50,96 / 94,4
    | 20,4 20,96 + 20,60 50,44 74,60 76,96 | 10,96 10,40 / 30,36 44,50 44,96 + 44,60 64,36 80,50 82,96
    | 86,20 60,4 20,20 8,60 40,96 84,80 / 86,56 54,56 | 50,30 30,6 6,26 50,96 94,26 70,6 50,30 | 6,60 34,94 / 94,6
    | 50,4 10,30 10,70 50,96 90,70 90,30 50,4 + 34,34 34,40 + 66,34 66,40 + 30,64 50,76 70,64
    | 50,50 60,44 60,60 40,62 34,40 60,26 80,50 60,84 20,76 16,30 50,4
"""


def select(text, held_out):
    """Return a digit's text in ways.py with every third alternative of its parts only, or without these."""
    families = [
        [[part for i, part in enumerate(row) if len(row) < 3 or (i % 3 == 2) == held_out] for row in family]
        for family in hand.parts(text)
    ]
    return '\n\n'.join('\n'.join(' | '.join(row) for row in family) for family in families)


HELD_OUT, OTHERS = ({d: select(text, held_out) for d, text in ways.WAYS.items()} for held_out in (True, False))
HELD, OTHER = 'drawings, held-out parts', 'letters and shapes that are not in training'
# {training: (fraction of distorted images, parts of the drawings in training: 'all', 'others' or None)}
TRAININGS = {
    'plain': (0, None),
    '`augment`': (0.5, None),
    'the tutorial: both': (0.5, 'all'),
    'both, every third part held out': (0.5, 'others'),
}
BY_DIGIT = '`augment`', 'the tutorial: both'
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / 'container' / 'sagemaker-chainer'))


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


def photos(drawings, seed):
    """Return the pixels that the endpoint finds in photos of drawings on paper, in JPEG, float32 (N, 784)."""
    from PIL import Image, ImageDraw, ImageFilter
    from sagemaker_chainer_container.pictures import decode_picture

    rng, y, x = np.random.default_rng(seed), *np.mgrid[:500, :600] / 600
    found = []
    for strokes in drawings:
        page, file = Image.new('L', (600, 500)), io.BytesIO()
        points = np.concatenate([np.asarray(stroke, float) for stroke in strokes])
        scale, pen = rng.uniform(150, 400) / np.ptp(points, axis=0).max(), int(rng.uniform(6, 16))
        for stroke in strokes:
            places = [tuple(p) for p in (np.asarray(stroke) - points.min(axis=0)) * scale + 50]
            ImageDraw.Draw(page).line(places, 255, pen, 'curve')
        ink = np.asarray(page.filter(ImageFilter.GaussianBlur(1.5))) / 255
        light = 1 - 0.5 * abs(np.cos(rng.uniform(0, 6)) * x + np.sin(rng.uniform(0, 6)) * y)
        grey = 220 * light * (1 - rng.uniform(0.6, 0.9) * ink) + rng.normal(0, 5, ink.shape)
        Image.fromarray(np.uint8(grey.clip(0, 255))).save(file, 'JPEG', quality=80)
        found.append(decode_picture(file.getvalue()))
    return np.concatenate(found)


def probabilities(model, x):
    """Return the probabilities that the pad shows, float32 (N, 10), for images x, float32 (N, 784)."""
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return chainer.functions.softmax(model(x)).array


def train(channels, augment, seed, directory):
    """Train as the tutorial does; return (model, CPU seconds). channels: arguments of the script."""
    seconds = -sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    words = f'--epochs 3 --batch-size 128 --learning-rate 0.002 --seed {seed} --augment {augment} {channels}'
    words += f' --model-dir {directory} --output-data-dir {directory}'
    command = [sys.executable, script.__file__, *words.split()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return script.model_fn(directory), seconds + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def spread(values, form='.3f'):
    return f'{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})'


def main():
    """Train the script's models, and print tables of their accuracy, and twelve drawings that are misread."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--seeds', type=int, default=5)
    args = parser.parse_args()
    mnist = {name: chainer.dataset.concat_examples(data)
             for name, data in zip(('train', 'test'), chainer.datasets.get_mnist())}  # fmt: skip
    sets = {"MNIST's test images": mnist['test']}
    drawn = {
        'drawings, all styles': hand.drawings(3000, 1),
        HELD: hand.drawings(3000, 2, HELD_OUT),
        'handwriting fonts': fonts(),
        OTHER: hand.drawings(1000, 3, {-1: SHAPES}),
        'scribbles, letters, two digits': hand.drawings(1000, 5, {-1: ways.WAYS[0]}, no_digit=1),
    }
    for name, (strokes, digits) in drawn.items():
        sets[name] = raster.rasterise(strokes), digits
    for name in 'drawings, all styles', 'handwriting fonts':
        strokes, digits = drawn[name]
        sets[f'{name}, as photos'] = photos(strokes[:1000], 4), digits[:1000]
    with section('benchmarks.recognition', machine(), PAGE.with_name('pad.md')):
        found = train_all(mnist, sets, args.seeds)
        table(sets, found)
        held_out = found[HELD, 'both, every third part held out']
        confusions(*sets[HELD], [p.argmax(axis=1) for p in held_out])


def train_all(mnist, sets, seeds):
    """Return {(set, training): [probabilities by seed], ("seconds", training): [seconds by seed]}."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, (images, labels) in mnist.items():
            save(f'{directory}/{name}', images, labels)
        for name, which in ('all', ways.WAYS), ('others', OTHERS):
            strokes, digits = hand.drawings(hand.N, 0, which, no_digit=hand.NO_DIGIT)
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
    digits = {name: (x, y) for name, (x, y) in sets.items() if y[0] >= 0}
    print(f'| accuracy | images | {" | ".join(TRAININGS)} |\n|---|---|{"---|" * len(TRAININGS)}')
    for name, (x, y) in digits.items():
        cells = [[(p.argmax(axis=1) == y).mean() for p in found[name, training]] for training in TRAININGS]
        print(f'| {name} | {len(x):,} | {" | ".join(map(spread, cells))} |')
    seconds = [spread(found['seconds', training], '.0f') for training in TRAININGS]
    print(f'| seconds of training, on all cores together | | {" | ".join(seconds)} |\n')
    print(f'| share of answers over 90 %, errors among them, share under 60 % | {" | ".join(TRAININGS)} |')
    print(f'|---|{"---|" * len(TRAININGS)}')
    for name, (_, y) in sets.items():
        cells = [np.mean([sure(p, y) for p in found[name, training]], axis=0) for training in TRAININGS]
        print(f'| {name} | ' + ' | '.join(', '.join(map('{:.3f}'.format, c)) for c in cells) + ' |')
    print(f'\n| accuracy by digit | | {" | ".join(map(str, range(10)))} |\n|---|---|{"---|" * 10}')
    for (name, (_, y)), training in itertools.product(digits.items(), BY_DIGIT):
        cells = [np.mean([of_digit(digit, p, y) for p in found[name, training]]) for digit in range(10)]
        print(f'| {name} | {training} | ' + ' | '.join(f'{cell:.3f}' for cell in cells) + ' |')


def confusions(x, y, guesses):
    """Print how often each digit is read as each other, in percent, and draw twelve of the misread."""
    print(f'\n| {HELD}, read as, in % | {" | ".join(map(str, range(10)))} |\n|---|{"---|" * 10}')
    for digit in range(10):
        shares = np.mean([np.bincount(g[y == digit], minlength=10) / (y == digit).sum() for g in guesses], axis=0)
        print(f'| {digit} | ' + ' | '.join(f'{100 * share:.1f}' if share else '' for share in shares) + ' |')
    misread = np.flatnonzero(guesses[0] != y)
    twelve = misread[np.linspace(0, len(misread) - 1, 12).astype(int)]
    twelve = twelve[np.argsort(y[twelve], kind='stable')]
    picture = np.hstack([np.pad(x[i].reshape(28, 28), 2) for i in twelve])
    plt.imsave(PAGE.with_name('misread.png'), np.kron(1 - picture, np.ones((3, 3))), cmap='gray', vmin=0, vmax=1)
    print('\n![twelve misread drawings](misread.png)\n')
    print('These were read as', ', '.join(f'{y[i]} → {guesses[0][i]}' for i in twelve) + '.')


def of_digit(digit, p, y):
    return (p[y == digit].argmax(axis=1) == digit).mean()


def sure(p, y):
    """Return the share of answers over 90 %, the share of errors among these, and that of answers under 60 %."""
    over, under = p.max(axis=1) > 0.9, p.max(axis=1) < 0.6
    return over.mean(), (p[over].argmax(axis=1) != y[over]).mean(), under.mean()


if __name__ == '__main__':
    main()
