"""A picture of a digit, a PNG or JPEG of any size, as the image that MNIST's makers would have made of it."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps, JpegImagePlugin, PngImagePlugin

LARGEST, LARGEST_WHOLE = 64, 24  # megapixels; the latter where the decoder holds all of them
SIDE = 500  # pixels to which a picture's longer side is reduced
GRID, BOX, FINE = 28, 20, 6  # MNIST's image, a digit's longer side, parts of a pixel to thicken strokes by
STROKE, THIN = 2.79, 2.1  # the width of MNIST's mean stroke, and of those that are thickened to it
SCAN = b'\xff\xda'


def decode_picture(body):
    """Return the image, float32 (1, 784), white ink (1) on black (0), of one digit in a PNG or JPEG.

    Dark on light or light on dark: ink is what stands out. Raises ValueError for what is damaged, too large
    or empty.
    """
    try:
        grey = read(body)
    except (ValueError, MemoryError):
        raise
    except Exception as e:  # Pillow raises all sorts
        raise ValueError(f'it is damaged or cut off ({e}); send the whole file') from e
    return centred(thickened(cropped(alone(ink_of(grey))))).reshape(1, -1)


def read(body):
    """Return a Pillow image of mode L, upright, of at most SIDE x SIDE pixels."""
    if body[:4] == b'\x89PNG':
        picture, whole = PngImagePlugin.PngImageFile(io.BytesIO(body)), True
    elif body[:2] == b'\xff\xd8':  # read like this, what phones append (MPO) is no matter
        picture = JpegImagePlugin.JpegImageFile(io.BytesIO(body))
        components = body[body.rfind(SCAN, 0, picture.fp.tell()) + 4]  # of the first scan
        whole = 'progressive' in picture.info or components < picture.layers
        if whole and body.count(SCAN) > 100:  # each may cost a pass over all pixels
            raise ValueError('it has more than 100 scans; save it anew')
    else:
        raise ValueError('it is neither a PNG nor a JPEG; save it as one of them')
    megapixels, largest = picture.width * picture.height / 1e6, LARGEST_WHOLE if whole else LARGEST
    if megapixels > largest:
        raise ValueError(f'it has {megapixels:.0f} megapixels; send one of at most {largest}')
    if getattr(picture, 'is_animated', False):
        raise ValueError('it is an animation; send a single picture')
    picture.draft('L', (SIDE, SIDE))  # JPEG: grey, and down to an eighth of its size
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(picture.getexif().get(0x0112))  # EXIF's to Pillow's
    if picture.mode == 'I;16':  # Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    # One step a line: what came before is freed.
    clear = picture.has_transparency_data
    picture = picture.convert('RGBA' if clear else 'L')
    picture = picture.convert('LA') if clear else picture
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    if clear:
        grey, alpha = picture.split()
        share, opaque = np.asarray(alpha, np.float32) / 255, np.asarray(grey)
        mean = (opaque * share).sum() / max(1, share.sum())
        # Most of it is paper, or else there is ink only.
        paper = mean if share.mean() > 0.5 else 255 * (mean < 128)
        picture = Image.composite(grey, Image.new('L', grey.size, int(paper)), alpha)
    return picture if turn is None else picture.transpose(turn)


def ink_of(grey):
    """Return how much of each pixel is ink, float32 (height, width), 0 to 1, of a Pillow image of mode L."""
    rough = reduced(grey, SIDE // 2)
    around = rough.filter(ImageFilter.BoxBlur(max(rough.size) // 6 + 1))
    if ((np.asarray(rough, np.float32) - around) ** 3).sum() > 0:  # ink is little, and differs much
        grey = ImageOps.invert(grey)
    # The paper in its light: without what is dark and narrower than a third of the picture.
    small = reduced(grey, 64)
    n = max(small.size) // 6 + 1
    paper = Image.fromarray(np.pad(np.asarray(small), 2 * n, 'edge'))
    closing = [ImageFilter.MaxFilter(3)] * n + [ImageFilter.MinFilter(3)] * n
    for step in *closing, ImageFilter.BoxBlur(n // 3):
        paper = paper.filter(step)
    paper = paper.crop((2 * n, 2 * n, *(2 * n + side for side in small.size)))
    paper = np.asarray(paper.resize(grey.size, Image.Resampling.BILINEAR), np.float32)
    dark = (paper - grey) / np.maximum(paper, 12)
    smooth = Image.fromarray(np.uint8(255 * dark.clip(0, 1))).filter(ImageFilter.BoxBlur(1))
    inked = dark >= smooth.getextrema()[1] / 255 / 2  # half as dark as it gets
    full, blank = np.median(dark[inked]), dark[~inked] if not inked.all() else np.zeros(1)
    noise = 1.48 * np.median(abs(blank - np.median(blank)))  # its standard deviation, but for outliers
    if full - np.median(blank) < max(0.08, 6 * noise):
        raise ValueError('nothing is drawn in it; draw one digit, dark on light or light on dark')
    low = min(np.median(blank) + 4 * noise, full / 2)
    return ((dark - low) / (full - low)).clip(0, 1).astype(np.float32)


def reduced(picture, side):
    picture = picture.copy()
    picture.thumbnail((side, side), Image.Resampling.BOX)
    return picture


def alone(ink):
    """Return the heaviest part of ink and what is near it: no specks, nothing that the edge cuts off."""
    k = -(-max(ink.shape) // 200)  # in cells of k x k pixels, as parts are found one pixel at a time
    cells = np.pad(ink, [(0, -side % k) for side in ink.shape])
    cells = cells.reshape(cells.shape[0] // k, k, -1, k)
    parts = Image.fromarray(np.uint8(cells.max((1, 3)) > 0.5) * 255).filter(ImageFilter.MaxFilter(3))
    for part in range(1, 255):
        rest = np.argwhere(np.asarray(parts) == 255)
        if not len(rest):
            break
        ImageDraw.floodfill(parts, tuple(rest[0, ::-1].tolist()), part)
    parts = np.asarray(parts)
    mass = np.bincount(parts.ravel(), cells.sum((1, 3)).ravel(), 256)
    mass[[0, 255]] = 0  # paper, and what is left of too many parts
    inner = mass.copy()
    inner[np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = 0
    mass = inner if inner.max() > mass.max() / 2 else mass
    places = np.argwhere(parts == mass.argmax())
    low, high = places.min(axis=0), places.max(axis=0)
    (y, x), (y1, x1) = np.maximum(0, low - max(high - low) // 3), high + max(high - low) // 3 + 1
    near = parts[y:y1, x:x1]
    keep = np.isin(np.arange(256), near) & (mass > 0.05 * mass.max())
    return ink * np.kron(keep[parts], np.ones((k, k), bool))[: ink.shape[0], : ink.shape[1]]


def cropped(ink):
    rows, columns = (np.flatnonzero((ink > 0.05).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def scaled(ink, side):
    """Return ink with a longer side of so many pixels."""
    size = [max(1, round(n * side / max(ink.shape))) for n in ink.shape[::-1]]
    how = Image.Resampling.BICUBIC if side > max(ink.shape) else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(ink).resize(size, how)).clip(0, 1)


def thickened(ink):
    """Return ink with strokes as wide as MNIST's, if they are thinner: at its size they would vanish."""
    fine = scaled(ink, BOX * FINE)
    fine = np.pad((fine / np.median(fine[fine >= fine.max() / 2])).clip(0, 1), 2 * FINE)
    width = 2 * fine.sum() / np.hypot(*np.gradient(fine)).sum()  # the area by half the edge's length
    if width > THIN * FINE:
        return ink
    radius = float(BOX * (STROKE * FINE - width) / (BOX - STROKE) / 2)  # which the box grows by, too
    thick, n = fine.copy(), range(-2 * FINE, 2 * FINE + 1)
    for y, x, inside in ((y, x, radius + 0.5 - math.hypot(y, x)) for y in n for x in n):
        if inside > 0:
            np.maximum(thick, np.roll(fine, (y, x), (0, 1)) * min(1, inside), out=thick)
    return cropped(thick)


def centred(ink):
    """Return the image (28, 28): the longer side is 20 pixels, the centre of mass comes to index 14."""
    box, image = scaled(ink, BOX), np.zeros((GRID, GRID), np.float32)
    means = (np.average(np.arange(n), weights=box.sum(1 - axis)) for axis, n in enumerate(box.shape))
    y, x = (int(np.clip(GRID / 2 + 0.5 + 1e-6 - mean, 0, GRID - n)) for mean, n in zip(means, box.shape))
    image[y : y + box.shape[0], x : x + box.shape[1]] = box
    return image
