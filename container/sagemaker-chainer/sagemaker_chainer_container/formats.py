"""This module decodes request bodies (npy, JSON, CSV, PNG, JPEG) and encodes responses (npy, JSON, CSV).

A decoder takes bytes (JSON's and CSV's also str), returns a NumPy array and raises ValueError for a body
that it cannot decode. An encoder takes an array, or anything that np.asarray accepts.
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


@functools.lru_cache(64)  # NumPy takes longer to parse a header than the model takes to predict an image
def read_npy_header(header):
    """Return (shape, fortran_order, dtype) from the header bytes of an .npy file. Raises ValueError."""
    stream = io.BytesIO(header)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read_header:
        raise ValueError('npy format version {}.{} is not supported'.format(*version))
    try:
        shape, fortran_order, dtype = read_header[version](stream)
    except Exception as e:  # NumPy parses the header as Python source: SyntaxError, KeyError, ...
        raise ValueError(f'broken npy header: {e}') from e
    if dtype.kind not in NUMBERS:  # objects would be unpickled, which runs code
        raise ValueError(f'the dtype must be bool, integer or floating point, but is {dtype}')
    return shape, fortran_order, dtype


def decode_npy(body):
    """Return the array in an .npy body, in the machine's byte order. Raises ValueError.

    No pickle is ever loaded, and no memory is reserved for a shape that the body does not fill.
    """
    long = body[6:7] == b'\2'
    start = (12 if long else 10) + int.from_bytes(body[8 : 12 if long else 10], 'little')
    shape, fortran_order, dtype = read_npy_header(body[: min(start, 16384)])  # NumPy takes 10,000
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(body) - start:
        raise ValueError(f'an array of shape {shape} and dtype {dtype} does not fill {len(body) - start} bytes')
    array = np.frombuffer(body, dtype, offset=start).reshape(shape, order='F' if fortran_order else 'C')
    return array.astype(dtype.newbyteorder('='))


def decode_json(body):
    """Return the float32 array in a JSON body of (nested) lists of numbers. Raises ValueError."""
    try:
        return np.array(orjson.loads(body), dtype=np.float32)
    except TypeError:
        raise ValueError('expected (nested) lists of numbers') from None


def decode_csv(body):
    """Return the float32 array, (rows, columns) or (rows,), in a CSV body without a header. Raises ValueError."""
    text = body if isinstance(body, str) else body.decode()
    try:
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except csv.Error as e:  # not a ValueError
        raise ValueError(e) from e
    if not rows:
        raise ValueError('there are no rows')
    array = np.array(rows, dtype=np.float32)
    return array[:, 0] if array.shape[1] == 1 else array


def decode_picture(body):
    """Return the digit in a PNG or JPEG as an image like MNIST's, float32 (1, 784). Raises ValueError."""
    # Imported late: most servers never get a picture, and save the memory of Pillow.
    from sagemaker_chainer_container import pictures

    return pictures.decode_picture(body)


@functools.lru_cache(64)
def npy_header(shape, descr):
    """Return the header bytes of an .npy file for an array in C order; descr: the dtype's str."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {'shape': shape, 'fortran_order': False, 'descr': descr})
    return stream.getvalue()


def encode_npy(array):
    """Return the array as the bytes of an .npy file. Raises ValueError for an array of objects."""
    array = np.asarray(array)
    if array.dtype.kind not in NUMBERS:
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        return stream.getvalue()
    return npy_header(array.shape, array.dtype.str) + array.tobytes()


def encode_json(value):
    """Return an array, or lists and dicts of arrays, as JSON bytes; NaN and infinity become null."""
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(value, lambda array: array.tolist(), options)


def encode_csv(array):
    """Return the array as CSV, a str with a line for each row."""
    stream = io.StringIO()
    np.savetxt(stream, np.atleast_1d(array), delimiter=',', fmt='%s')
    return stream.getvalue()


DECODERS = {NPY: decode_npy, JSON: decode_json, CSV: decode_csv, PNG: decode_picture, JPEG: decode_picture}
ENCODERS = {NPY: encode_npy, JSON: encode_json, CSV: encode_csv}
