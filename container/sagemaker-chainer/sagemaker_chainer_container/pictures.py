"""This module turns a picture of a digit, a PNG or JPEG, into an image normalised as MNIST's were."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps, JpegImagePlugin, PngImagePlugin

LARGEST, LARGEST_WHOLE = 64, 24  # megapixels; LARGEST_WHOLE if the decoder must hold all pixels in memory
SIDE = 500  # pixels of a picture's longer side after reduction
GRID, BOX = 28, 20  # pixels of MNIST's images, and of a digit's longer side in them
FINE = 6  # subpixels for each pixel, for thickening strokes
STROKE, THIN = 2.79, 2.1  # pixels: MNIST's mean stroke width; strokes narrower than THIN are thickened to it
SCAN = b'\xff\xda'  # JPEG's start-of-scan marker


class File(io.BytesIO):
    """A file that can be read in 100,000 parts: Pillow takes microseconds for each chunk, marker or stray byte."""

    parts = 0

    def read(self, size=-1):
        self.parts += 1
        if self.parts > 100_000:
            raise ValueError('it has more than 100,000 parts; save it anew')
        return super().read(size)


def decode_picture(body):
    """Return the digit in a PNG or JPEG as an image, float32 (1, 784), with ink 1 and paper 0.

    The digit may be dark on light or light on dark. Raises ValueError if the picture is damaged, too large or empty.
    """
    try:
        grey = read(body)
    except (ValueError, MemoryError):
        raise
    except Exception as e:  # Pillow raises exceptions of many types
        raise ValueError(f'it is damaged or cut off ({e}); send the whole file') from e
    return centred(thickened(cropped(alone(ink_of(grey))))).reshape(1, -1)


def read(body):
    """Return the picture as a Pillow image of mode L, upright, of at most SIDE x SIDE pixels."""
    whole, scans = True, 0
    if body[:4] == b'\x89PNG':
        picture = PngImagePlugin.PngImageFile(File(body))
    elif body[:2] == b'\xff\xd8':  # this class ignores the extra images that phones append (MPO)
        picture = JpegImagePlugin.JpegImageFile(File(body))
        components = body[body.rfind(SCAN, 0, picture.fp.tell()) + 4]  # colour components of the first scan
        whole, scans = 'progressive' in picture.info or components < picture.layers, body.count(SCAN)
    else:
        raise ValueError('it is neither a PNG nor a JPEG; save it as one of them')
    megapixels, largest = picture.width * picture.height / 1e6, LARGEST_WHOLE if whole else LARGEST
    if megapixels > largest:
        raise ValueError(f'it has {megapixels:.0f} megapixels; send one of at most {largest}')
    most = max(20, int(400 / max(4, megapixels)))  # each may cost a pass over all pixels; 10 are usual, CMYK's 18
    if whole and scans > most:
        raise ValueError(f'it has more than {most} scans; save it anew')
    if getattr(picture, 'is_animated', False):
        raise ValueError('it is an animation; send a single picture')
    picture.draft('L', (SIDE, SIDE))  # the JPEG decoder yields grey, at down to an eighth of the size
    # EXIF's orientation as one of Pillow's Transpose.
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(picture.getexif().get(0x0112))
    if picture.mode == 'I;16':  # Pillow would clip at 255 instead of scaling
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    # One conversion a line, so that the image before it is freed.
    clear = picture.has_transparency_data
    picture = picture.convert('RGBA' if clear else 'L')
    picture = picture.convert('LA') if clear else picture
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    if clear:
        grey, alpha = picture.split()
        opacity, values = np.asarray(alpha, np.float32) / 255, np.asarray(grey)
        mean = (values * opacity).sum() / max(1, opacity.sum())
        # A mostly opaque picture shows paper; a mostly transparent one holds ink only.
        paper = mean if opacity.mean() > 0.5 else 255 * (mean < 128)
        picture = Image.composite(grey, Image.new('L', grey.size, int(paper)), alpha)
    return picture if turn is None else picture.transpose(turn)


def ink_of(grey):
    """Return the ink in a Pillow image of mode L, float32 (height, width), 0 to 1; ValueError if nothing stands out."""
    rough = reduced(grey, SIDE // 2)
    around = rough.filter(ImageFilter.BoxBlur(max(rough.size) // 6 + 1))
    # Ink covers few pixels and differs much, so the sign of the third moment tells light ink from dark.
    if ((np.asarray(rough, np.float32) - around) ** 3).sum() > 0:
        grey = ImageOps.invert(grey)
    # Estimate the paper's brightness: a closing removes dark parts narrower than a third of the picture.
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
    inked = dark >= smooth.getextrema()[1] / 255 / 2  # at least half as dark as the darkest spot
    full, blank = np.median(dark[inked]), dark[~inked] if not inked.all() else np.zeros(1)
    noise = 1.48 * np.median(abs(blank - np.median(blank)))  # a robust estimate of the standard deviation
    if full - np.median(blank) < max(0.08, 6 * noise):
        raise ValueError('nothing is drawn in it; draw one digit, dark on light or light on dark')
    low = min(np.median(blank) + 4 * noise, full / 2)
    return ((dark - low) / (full - low)).clip(0, 1).astype(np.float32)


def reduced(picture, side):
    """Return a copy of a Pillow image whose longer side has at most this many pixels."""
    picture = picture.copy()
    picture.thumbnail((side, side), Image.Resampling.BOX)
    return picture


def alone(ink):
    """Return ink with only its heaviest part and parts near it, without specks; the shape stays.

    A part that the picture's edge cuts off counts as heaviest only if no other is half as heavy.
    """
    k = -(-max(ink.shape) // 200)  # cells of k x k pixels: floodfill() is slow
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
    mass[[0, 255]] = 0  # 0 is paper, 255 the parts beyond the 254th
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
    """Return ink without the empty rows and columns around it."""
    rows, columns = (np.flatnonzero((ink > 0.05).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def scaled(ink, side):
    """Return ink resized so that its longer side has this many pixels."""
    size = [max(1, round(n * side / max(ink.shape))) for n in ink.shape[::-1]]
    how = Image.Resampling.BICUBIC if side > max(ink.shape) else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(ink).resize(size, how)).clip(0, 1)


def thickened(ink):
    """Return ink with thin strokes widened to MNIST's mean: in 28 x 28 pixels they would vanish."""
    fine = scaled(ink, BOX * FINE)
    fine = np.pad((fine / np.median(fine[fine >= fine.max() / 2])).clip(0, 1), 2 * FINE)
    width = 2 * fine.sum() / np.hypot(*np.gradient(fine)).sum()  # area / (length of the edge / 2)
    if width > THIN * FINE:
        return ink
    radius = float(BOX * (STROKE * FINE - width) / (BOX - STROKE) / 2)  # allows for the digit growing, too
    thick, n = fine.copy(), range(-2 * FINE, 2 * FINE + 1)
    for y, x, inside in ((y, x, radius + 0.5 - math.hypot(y, x)) for y in n for x in n):
        if inside > 0:
            np.maximum(thick, np.roll(fine, (y, x), (0, 1)) * min(1, inside), out=thick)
    return cropped(thick)


def centred(ink):
    """Return ink in an image, float32 (28, 28): longer side 20 pixels, centre of mass at index 14."""
    box, image = scaled(ink, BOX), np.zeros((GRID, GRID), np.float32)
    means = (np.average(np.arange(n), weights=box.sum(1 - axis)) for axis, n in enumerate(box.shape))
    y, x = (int(np.clip(GRID / 2 + 0.5 + 1e-6 - mean, 0, GRID - n)) for mean, n in zip(means, box.shape))
    image[y : y + box.shape[0], x : x + box.shape[1]] = box
    return image
