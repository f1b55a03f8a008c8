"""The endpoint predicts the digits in PNG and JPEG pictures, or refuses a picture with a sentence."""

import io
import runpy
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from support import SCRIPT, SERVER, arguments, centre, load, npy, post, python, sides

from digit_pad import hand, raster

PNG, JPEG = 'image/png', 'image/jpeg'
N = 100


@pytest.fixture(scope='module')
def trained(serving, code, mnist, tmp_path_factory):
    """Serve a model trained for one epoch on MNIST and drawings; yield its URL."""
    out = tmp_path_factory.mktemp('trained')
    (out / 'drawings').mkdir()
    strokes, digits = hand.drawings(6000, seed=0)
    np.savez(out / 'drawings' / 'drawings', images=raster.rasterise(strokes), labels=digits)
    options = f'--epochs 1 --batch-size 128 --learning-rate 0.002 --drawings {out}/drawings'
    done = python(SCRIPT, *arguments(mnist, out, options))
    assert done.returncode == 0, done.stderr
    with serving(code, SCRIPT.name, out) as url:
        yield url


@pytest.fixture(scope='module')
def digits(mnist):
    """Return some of MNIST's test images, uint8 (N, 28, 28), and their digits."""
    test = load(mnist / 'test' / 'test.npz')
    return np.uint8(test['images'][:N] * 255).reshape(-1, 28, 28), test['labels'][:N]


@pytest.fixture(scope='module')
def drawn():
    """Return drawings with a seed that is not used in training, and their digits."""
    return hand.drawings(N, seed=7)


def right(url, pictures, labels):
    """Return the accuracy on pictures, each (body, Content-Type)."""
    answers = [post(url, *picture) for picture in pictures]
    assert {answer.status for answer in answers} == {200}, [a.data for a in answers if a.status != 200]
    return np.mean([load(answer.data).argmax() == label for answer, label in zip(answers, labels)])


def right_as_arrays(url, images, labels):
    answer = post(url, npy(images.reshape(-1, 784).astype(np.float32)))
    return np.mean(load(answer.data).argmax(axis=1) == labels)


def saved(picture, content_type=PNG, **options):
    """Encode a picture, a Pillow image or an array; return (body, Content-Type)."""
    stream = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(np.uint8(picture))
    picture.save(stream, content_type.partition('/')[2], **options)
    return stream.getvalue(), content_type


def photo(ink, rng, pen=0.25, content_type=JPEG, dust=8):
    """Return a photo of ink, (height, width), 0 to 1, on paper with grain, dust and shading."""
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]] / max(ink.shape)
    angle, middle = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, 2)
    slope = x * np.cos(angle) + y * np.sin(angle)
    light = 1 - 0.5 * (slope - slope.min()) / np.ptp(slope) - 0.25 * np.hypot(x - middle[0], y - middle[1]) ** 2
    grain = rng.normal(0, 0.02, ink.shape)
    grey = 230 * light * ((0.9 + grain) * (1 - ink) + pen * ink) + rng.normal(0, 6, ink.shape)
    picture = Image.fromarray(np.uint8(grey.clip(0, 255)))
    for x, y, r in rng.uniform([0, 0, 0.5], [*picture.size, 2], (dust, 3)):
        ImageDraw.Draw(picture).ellipse([x - r, y - r, x + r, y + r], 60)
    return saved(picture, content_type, **({'quality': 80} if content_type == JPEG else {}))


def somewhere(image, rng, size=(640, 480), side=(150, 400)):
    """Return an image enlarged and placed at random in an empty one of a given size."""
    side, page = int(rng.integers(*side)), Image.new('L', size)
    corner = [int(rng.integers(room - side)) for room in size]
    page.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), corner)
    return np.asarray(page) / 255


def larger(image, times=10):
    return np.asarray(Image.fromarray(image).resize((28 * times, 28 * times), Image.Resampling.BICUBIC))


def turned(image, rng):
    """Return a picture with one of four of EXIF's eight orientations."""
    turns = {3: 2, 6: 1, 8: 3, 1: 0}
    orientation = int(rng.choice(list(turns)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(np.rot90(255 - larger(image), turns[orientation]), JPEG, exif=exif)


def coloured(image, rng):
    """Return a picture in blue on yellow, with a palette of few colours."""
    ink = larger(image)[:, :, None] / 255
    return saved(Image.fromarray(np.uint8(ink * [20, 40, 160] + (1 - ink) * [250, 240, 150])).quantize(32))


def transparent(image, rng):
    """Return a picture in black or white on a transparent background."""
    alpha = Image.fromarray(larger(image))
    return saved(Image.merge('LA', [Image.new('L', alpha.size, int(rng.choice([0, 255]))), alpha]))


def transparent_corner(image, rng):
    """Return a picture on white paper with one transparent corner."""
    picture = Image.fromarray(255 - larger(image)).convert('RGBA')
    ImageDraw.Draw(picture).polygon([(0, 0), (60, 0), (0, 60)], (0, 0, 0, 0))
    return saved(picture)


PICTURES = {
    'as it is': lambda image, rng: saved(image),
    'dark on light': lambda image, rng: saved(255 - image),
    'large': lambda image, rng: saved(larger(image)),
    'JPEG': lambda image, rng: saved(image, JPEG, quality=60),
    'large JPEG': lambda image, rng: saved(255 - larger(image), JPEG, quality=60),
    '16 bits': lambda image, rng: saved(Image.fromarray((255 - image).astype(np.uint16) << 8)),
    'one bit': lambda image, rng: saved(Image.fromarray(larger(image)).convert('1', dither=0)),
    'photo': lambda image, rng: photo(somewhere(image, rng), rng),
    'small in a photo': lambda image, rng: photo(somewhere(image, rng, (1200, 900), (100, 101)), rng),
    'turned': turned,
    'coloured': coloured,
    'transparent': transparent,
    'transparent corner': transparent_corner,
    'CMYK': lambda image, rng: saved(Image.fromarray(255 - larger(image)).convert('CMYK'), JPEG),
    'blackboard': lambda image, rng: saved(60 + 120 * somewhere(image, rng) + rng.normal(0, 6, (480, 640))),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', PICTURES)
def test_pictures_of_mnist_are_read_as_well_as_mnist(trained, digits, kind):
    images, labels = digits
    rng = np.random.default_rng(0)
    pictures = [PICTURES[kind](image, rng) for image in images]
    assert right(trained, pictures, labels) >= right_as_arrays(trained, images / 255, labels) - 0.02


def stroked(drawing, rng, size, side, width):
    """Return a drawing's strokes of a given width, placed at random in an empty image: ink, 0 to 1."""
    low, high = (f(np.concatenate(drawing), axis=0) for f in (np.min, np.max))
    scale, margin = side / max(high - low), width + 2
    corner = rng.uniform(margin, np.array(size) - margin - (high - low) * scale)
    page = Image.new('L', [3 * n for n in size])
    for stroke in drawing:
        points = [tuple(point) for point in 3 * ((stroke - low) * scale + corner)]
        ImageDraw.Draw(page).line(points, 255, round(3 * width), 'curve')
        for x, y in points:
            ImageDraw.Draw(page).circle((x, y), 1.5 * width, 255)
    return np.asarray(page.reduce(3)) / 255


PENS = {
    'thin dark lines on grey paper': lambda d, rng: saved(
        180 - 140 * stroked(d, rng, (1000, 800), rng.uniform(200, 600), 3)
    ),
    'ball pen': lambda d, rng: photo(stroked(d, rng, (800, 600), rng.uniform(120, 480), 3.5), rng),
    'pencil': lambda d, rng: photo(stroked(d, rng, (800, 600), rng.uniform(160, 480), 4), rng, 0.5),
    'felt pen': lambda d, rng: photo(stroked(d, rng, (800, 600), 320, 56), rng),
    'tiny': lambda d, rng: saved(230 - 200 * stroked(d, rng, (1000, 800), 45, 3), JPEG),
}


@pytest.mark.slow
@pytest.mark.parametrize('pen', PENS)
def test_pictures_of_drawings_are_read_nearly_as_the_pads_own(trained, drawn, pen):
    drawings, labels = drawn
    rng = np.random.default_rng(0)
    pictures = [PENS[pen](drawing, rng) for drawing in drawings]
    assert right(trained, pictures, labels) >= right_as_arrays(trained, raster.rasterise(drawings), labels) - 0.03


@pytest.fixture(scope='module')
def decode():
    path = SERVER / 'sagemaker_chainer_container' / 'pictures.py'
    return runpy.run_path(str(path))['decode_picture']


def test_a_picture_of_an_image_of_mnist_is_nearly_that_image(decode, small_mnist):
    images = load(small_mnist / 'test' / 'test.npz')['images'][:N]
    there = np.concatenate([decode(saved(np.round(255 * image.reshape(28, 28)))[0]) for image in images])
    assert there.shape == (N, 784) and there.dtype == np.float32
    changed = abs(there - images).mean(axis=1)
    assert np.median(changed) < 0.005 and changed.mean() < 0.02  # thin strokes are thickened


@pytest.mark.slow
@pytest.mark.parametrize('width, least', [(1, 0.93), (3, 0.95), (12, 0.95)])
def test_a_picture_of_a_drawing_is_nearly_the_pads_image(decode, drawn, width, least):
    """For any width of pen the image correlates with the pad's, and has MNIST's size and position."""
    rng = np.random.default_rng(0)
    drawings = drawn[0][:50]
    inks = [stroked(drawing, rng, (800, 600), rng.uniform(250, 500), width) for drawing in drawings]
    there = np.concatenate([decode(saved(255 - 255 * ink)[0]) for ink in inks])
    pads = raster.rasterise(drawings)
    alike = [np.corrcoef(image, pad)[0, 1] for image, pad in zip(there, pads)]
    assert np.mean(alike) > least
    assert there.mean() == pytest.approx(pads.mean(), abs=0.02)
    for image in there.reshape(-1, 28, 28):
        assert max(sides(image, above=0)) in (19, 20) and centre(image) == pytest.approx((14, 14), abs=0.52)


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png_of(width, height, data=b''):
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def animation():
    frames = [Image.new('L', (40, 40), grey) for grey in (0, 255)]
    return saved(frames[0], save_all=True, append_images=frames[1:])[0]


def in_scans(n, size=(16, 16)):
    body = saved(Image.new('RGB', size), JPEG, progressive=True)[0]
    last = body[body.rindex(b'\xff\xda') : -2]
    return body[:-2] + last * n + body[-2:]


def in_parts(content_type, place, part):
    """Return 24 MB of a picture with this part, many times, at a place."""
    body = WHOLE[content_type]
    return body[:place] + part * (24_000_000 // len(part)) + body[place:]


SEVEN = np.full((200, 160), 230, np.uint8)
SEVEN[20:32, 30:130], SEVEN[20:180, 118:130] = 20, 20
GRAIN = np.random.RandomState(0).normal(180, 12, (300, 400)).clip(0, 255)
WHOLE = {PNG: saved(SEVEN)[0], JPEG: saved(SEVEN, JPEG)[0]}
BLANK = Image.new('1', (9000, 8000))
BAD = {
    'nothing': (b'', PNG, 'neither a PNG nor a JPEG'),
    'text': (b'a digit', JPEG, 'neither a PNG nor a JPEG'),
    'npy': (npy(np.zeros((1, 784))), PNG, 'neither a PNG nor a JPEG'),
    'GIF': (saved(SEVEN, 'image/gif')[0], PNG, 'neither a PNG nor a JPEG'),
    'PNG, its start': (WHOLE[PNG][:20], PNG, 'damaged or cut off'),
    'PNG, its half': (WHOLE[PNG][: len(WHOLE[PNG]) // 2], PNG, 'damaged or cut off'),
    'JPEG, its start': (WHOLE[JPEG][:200], JPEG, 'damaged or cut off'),
    'JPEG, its half': (WHOLE[JPEG][: len(WHOLE[JPEG]) // 2], JPEG, 'damaged or cut off'),
    'no pixels': (png_of(40, 40, zlib.compress(b'')), PNG, 'damaged or cut off'),
    'of size 0': (png_of(0, 40), PNG, 'damaged or cut off'),
    'bomb': (png_of(60000, 60000, zlib.compress(bytes(10**7))), PNG, '3600 megapixels; send one'),
    'the largest header': (png_of(2**31 - 1, 2**31 - 1), PNG, 'megapixels; send one of at most 24'),
    'large JPEG': (saved(BLANK, JPEG)[0], JPEG, '72 megapixels; send one of at most 64'),
    'progressive JPEG': (saved(BLANK, JPEG, progressive=True)[0], JPEG, 'send one of at most 24'),
    'many scans': (in_scans(200), JPEG, 'more than 100 scans'),
    'many scans of many pixels': (in_scans(88, (4898, 4898)), JPEG, 'more than 20 scans'),
    'many markers': (in_parts(JPEG, 2, b'\xff\xe5\0\2'), JPEG, 'more than 100,000 parts'),
    'many stray bytes': (in_parts(JPEG, 2, b'\xff'), JPEG, 'more than 100,000 parts'),
    'many chunks': (in_parts(PNG, 33, chunk(b'abCd', b'')), PNG, 'more than 100,000 parts'),
    'many chunks at the end': (in_parts(PNG, -12, chunk(b'abCd', b'')), PNG, 'more than 100,000 parts'),
    'many chunks of pixels': (in_parts(PNG, 33, chunk(b'IDAT', b'')), PNG, 'more than 100,000 parts'),
    'animation': (animation(), PNG, 'it is an animation; send a single picture'),
    'white': (saved(np.full((80, 80), 255))[0], PNG, 'nothing is drawn in it; draw one digit'),
    'black': (saved(np.zeros((80, 80, 3)), JPEG)[0], JPEG, 'nothing is drawn'),
    'paper': (photo(np.zeros((300, 400)), np.random.default_rng(0), dust=0)[0], JPEG, 'nothing is drawn'),
    'grain': (saved(GRAIN)[0], PNG, 'nothing is drawn'),
    'transparent': (saved(Image.new('RGBA', (50, 50)))[0], PNG, 'nothing is drawn'),
    'of one pixel': (saved(np.zeros((1, 1)))[0], PNG, 'nothing is drawn'),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_pictures_get_400_with_a_sentence(url, kind):
    body, content_type, sentence = BAD[kind]
    start = time.monotonic()
    answer = post(url, body, content_type)
    assert time.monotonic() - start < 2
    assert answer.status == 400 and f'The body is not valid {content_type}: ' in answer.data.decode()
    assert sentence in answer.data.decode()


@pytest.mark.parametrize('shape', [(8, 8), (1, 200), (200, 1), (3, 2), (9, 4000)])
def test_any_size_is_taken(url, shape):
    picture = np.full(shape, 255, np.uint8)
    picture[shape[0] // 2, shape[1] // 3 : shape[1] // 2 + 1] = 0
    for body in saved(picture), saved(255 - picture):
        assert post(url, *body).status in (200, 400)
    if min(shape) > 4:
        assert post(url, *saved(picture)).status == 200


def test_a_picture_is_taken_under_the_others_type(url):
    scores = load(post(url, WHOLE[PNG], PNG).data)
    assert scores.shape == (1, 10) and (load(post(url, WHOLE[PNG], JPEG).data) == scores).all()


def test_of_a_phones_two_pictures_in_a_jpeg_the_first_is_read(url):
    first, second = (Image.fromarray(array).convert('RGB') for array in (SEVEN, np.rot90(SEVEN, 2)))
    both = saved(first, 'image/mpo', save_all=True, append_images=[second])[0]
    assert Image.open(io.BytesIO(both)).n_frames == 2
    scores = [load(post(url, body, JPEG).data) for body in (both, saved(first, JPEG)[0], saved(second, JPEG)[0])]
    assert (scores[0] == scores[1]).all() and abs(scores[0] - scores[2]).max() > 0.01


@pytest.mark.parametrize('content_type', WHOLE)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_pictures_never_get_5xx(url, content_type, data):
    body = bytearray(WHOLE[content_type])
    # What matters most is in the first bytes: sizes, tables, colours.
    where = st.integers(0, len(body) - 1) | st.integers(2, min(700, len(body) - 1))
    for place, value in data.draw(st.lists(st.tuples(where, st.integers(0, 255)), max_size=4)):
        body[place] = value
    del body[data.draw(st.integers(len(body) // 2, len(body) * 2)) :]
    answer = post(url, bytes(body), content_type)
    assert answer.status in (200, 400) and answer.data


@pytest.fixture(scope='module')
def twelve():
    """Return a phone's photo of a 7, a Pillow image of 12 megapixels."""
    body, _ = photo(np.pad(SEVEN < 99, 300), np.random.default_rng(0), content_type=PNG)
    return Image.open(io.BytesIO(body)).resize((4000, 3000), Image.Resampling.BICUBIC)


def test_a_photo_of_12_megapixels_is_answered_quickly(url, twelve):
    picture = saved(twelve.convert('RGB'), JPEG, quality=90)
    start = time.monotonic()
    assert post(url, *picture).status == 200
    assert time.monotonic() - start < 2


MEMORY = r"""
import re, sys
sys.path.insert(0, 'container/sagemaker-chainer')
from sagemaker_chainer_container.formats import decode_picture
body = sys.stdin.buffer.read()
used = lambda: int(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1]) / 1024
before = used()
print(decode_picture(body).shape, used() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    'size, mode, content_type, options',
    [
        ((5656, 4242), 'RGBA', PNG, dict(compress_level=1)),
        ((5656, 4242), 'CMYK', JPEG, dict(progressive=True)),
        ((9230, 6920), 'RGB', JPEG, dict()),
    ],
)
def test_the_largest_pictures_need_less_than_300_megabytes(twelve, size, mode, content_type, options):
    picture = twelve.resize(size).convert(mode)
    if mode == 'RGBA':
        picture.putalpha(250)
    body, _ = saved(picture, content_type, **options)
    done = python('-c', MEMORY, input=body, text=False)
    assert done.returncode == 0, done.stderr
    shape, _, used = done.stdout.decode().rpartition(' ')
    assert shape == '(1, 784)' and 5 < float(used) < 300
