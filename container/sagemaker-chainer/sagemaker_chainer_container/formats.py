"""The formats of request and response bodies, between bytes and NumPy arrays: npy, JSON, CSV; pictures in.

A decoder takes bytes (JSON's and CSV's also str) and raises ValueError for what it cannot read; an
encoder takes an array or what NumPy makes one of.
"""

import csv
import functools
import io
import math

import numpy as np
import orjson

NPY, JSON, CSV = 'application/x-npy', 'application/json', 'text/csv'
PNG, JPEG = 'image/png', 'image/jpeg'
NUMBERS = 'biuf'  # the kinds of dtypes: bool, integer, unsigned, floating point


@functools.lru_cache(64)  # NumPy takes longer for a header than the model for an image
def read_npy_header(header):
    """Return (shape, fortran_order, dtype) from the first bytes of an .npy file; ValueError."""
    stream = io.BytesIO(header)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read_header:
        raise ValueError('npy format version {}.{} is not supported'.format(*version))
    try:
        shape, fortran_order, dtype = read_header[version](stream)
    except ValueError:
        raise
    except Exception as e:  # NumPy parses the header as Python source: SyntaxError, KeyError, ...
        raise ValueError(f'broken npy header: {e}') from e
    if dtype.kind not in NUMBERS:  # objects, above all: they would be pickled
        raise ValueError(f'the dtype must be bool, integer or floating point, but is {dtype}')
    return shape, fortran_order, dtype


def decode_npy(body):
    """Return the array in an .npy body, in the machine's byte order.

    The header is read by NumPy, the data taken as they are: no pickle is ever loaded, and no
    memory is reserved for a shape that the body does not hold.
    """
    long = body[6:7] == b'\2'
    start = (12 if long else 10) + int.from_bytes(body[8 : 12 if long else 10], 'little')
    shape, fortran_order, dtype = read_npy_header(body[: min(start, 16384)])  # NumPy takes 10,000
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(body) - start:
        raise ValueError(
            f'an array of shape {shape} and dtype {dtype} does not fill {len(body) - start} bytes'
        )
    array = np.frombuffer(body, dtype, offset=start).reshape(shape, order='F' if fortran_order else 'C')
    return array.astype(dtype.newbyteorder('='))


def decode_json(body):
    """Return the float32 array in a JSON body of (nested) lists of numbers."""
    try:
        return np.array(orjson.loads(body), dtype=np.float32)
    except TypeError:
        raise ValueError('expected (nested) lists of numbers') from None


def decode_csv(body):
    """Return the float32 array in a CSV body without a header: (rows, columns), or (rows,) of one column."""
    text = body if isinstance(body, str) else body.decode()
    try:
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except csv.Error as e:  # which is no ValueError
        raise ValueError(e) from e
    if not rows:
        raise ValueError('there are no rows')
    array = np.array(rows, dtype=np.float32)
    return array[:, 0] if array.shape[1] == 1 else array


def decode_picture(body):
    """Return the image, float32 (1, 784), of a digit in a PNG or JPEG, as MNIST's images were made."""
    # Not sooner: most servers never see a picture, and do without Pillow's memory.
    from sagemaker_chainer_container import pictures

    return pictures.decode_picture(body)


@functools.lru_cache(64)
def npy_header(shape, descr):
    """Return the first bytes of an .npy file for an array in C order."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {'shape': shape, 'fortran_order': False, 'descr': descr})
    return stream.getvalue()


def encode_npy(array):
    """Return the bytes of an .npy file; ValueError for objects."""
    array = np.asarray(array)
    if array.dtype.kind not in NUMBERS:
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        return stream.getvalue()
    return npy_header(array.shape, array.dtype.str) + array.tobytes()


def encode_json(value):
    """Return arrays, and lists and dicts of them, as JSON, bytes; NaN and infinity become null."""
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(value, lambda array: array.tolist(), options)


def encode_csv(array):
    """Return one line per row, a str."""
    stream = io.StringIO()
    np.savetxt(stream, np.atleast_1d(array), delimiter=',', fmt='%s')
    return stream.getvalue()


DECODERS = {NPY: decode_npy, JSON: decode_json, CSV: decode_csv, PNG: decode_picture, JPEG: decode_picture}
ENCODERS = {NPY: encode_npy, JSON: encode_json, CSV: encode_csv}
