"""This module decodes request bodies (npy, JSON, CSV, PNG, JPEG) and encodes responses (npy, JSON, CSV).

A decoder takes bytes (JSON's and CSV's also str), returns a NumPy array and raises ValueError for a body
that it cannot decode. An encoder takes an array, or anything that np.asarray accepts.
"""

import functools
import io
import itertools
import math

import numpy as np
import orjson

NPY, JSON, CSV = 'application/x-npy', 'application/json', 'text/csv'
PNG, JPEG = 'image/png', 'image/jpeg'
NUMBERS = 'biuf'  # the kinds of dtypes: bool, integer, unsigned, floating point
PIECE = 2**16  # bytes of a long text that are parsed at a time: it takes 40 times the memory, and other threads wait


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
    if not all(type(n) is int and 0 <= n < 2**63 for n in shape):  # NumPy takes True for 1 in a header
        raise ValueError(f'an array of shape {shape} does not fill any body')
    return shape, fortran_order, dtype


def decode_npy(body):
    """Return the array in an .npy body, in the machine's byte order. Raises ValueError.

    No pickle is ever loaded, and no memory is reserved for a shape that the body does not fill.
    """
    long = body[6:7] == b'\2'
    start = (12 if long else 10) + int.from_bytes(body[8 : 12 if long else 10], 'little')
    shape, fortran_order, dtype = read_npy_header(body[: min(start, 16384)])  # NumPy takes 10,000
    if math.prod(shape) * dtype.itemsize != len(body) - start:
        raise ValueError(f'an array of shape {shape} and dtype {dtype} does not fill {len(body) - start} bytes')
    array = np.frombuffer(body, dtype, offset=start).reshape(shape, order='F' if fortran_order else 'C')
    return array.astype(dtype.newbyteorder('='))


def decode_json(body):
    """Return the float32 array in a JSON body of (nested) lists of numbers. Raises ValueError."""
    body = without_bom(body)
    try:
        if len(body) <= 16 * PIECE:  # quicker
            return np.array(orjson.loads(body), dtype=np.float32)
        shape = json_shape(only(b'[],', body))
        values = np.concatenate(list(json_values(body, len(shape))))
    except TypeError:
        raise ValueError('expected (nested) lists of numbers') from None
    if shape[-1] == 1:
        shape[-1] = min(1, values.size)  # the brackets of [[], []] and [[1], [2]] are the same
    return values.reshape(shape)


def json_shape(brackets):
    """Return the shape of nested lists of which only brackets and commas are left. Raises ValueError."""
    depth, shape, part = len(brackets) - len(brackets.lstrip(b'[')), [], b''
    for level in range(1, min(depth, 64) + 1):  # from the innermost list out (64: NumPy's most dimensions)
        length = brackets.find(b']' * level) + 2 * level - depth
        shape.insert(0, (length - 1) // (len(part) + 1))
        part = b'[' + ((part + b',') * shape[0])[:-1] + b']'
    if part != brackets or not depth:
        raise ValueError('expected (nested) lists of numbers, equally long ones')
    return shape


def json_values(body, depth):
    """Yield the numbers in a JSON body of lists of this depth, as float32 arrays. Raises ValueError or TypeError."""
    opened = 0
    for piece in pieces(body):
        closed = opened + piece.count(b'[') - piece.count(b']')
        values = orjson.loads(b'[' * opened + piece + b']' * closed)
        for _ in range(depth - 1):
            values = itertools.chain.from_iterable(values)
        yield np.fromiter(values, np.float32)
        opened = closed


def decode_csv(body):
    """Return the float32 array, (rows, columns) or (rows,), in a CSV body without a header. Raises ValueError."""
    body = without_bom(body).replace(b'\r\n', b'\n').strip()
    while b'\n\n' in body:
        body = body.replace(b'\n\n', b'\n')
    if not body:
        raise ValueError('there are no rows')
    separators = only(b',\n', body) + b'\n'
    columns = separators.index(b'\n') + 1
    rows = len(separators) // columns
    if separators != separators[:columns] * rows:
        raise ValueError('the rows have different numbers of columns')
    values = np.concatenate([csv_values(piece) for piece in pieces(body.replace(b'\n', b','))])
    return values.reshape((rows, columns) if columns > 1 else rows)


def csv_values(line):
    """Return the numbers in a line of CSV, float32 (columns,). Raises ValueError."""
    try:
        return np.loadtxt([line], np.float32, delimiter=',', comments=None, quotechar='"', encoding='utf-8', ndmin=1)
    except ValueError as e:
        raise ValueError(str(e).partition(' at row')[0]) from None


def without_bom(text):
    """Return text, str or bytes, as bytes without the byte order mark that Excel writes."""
    return (text.encode() if isinstance(text, str) else text).removeprefix(b'\xef\xbb\xbf')


def only(kept, text):
    """Return text, bytes, with only these characters."""
    return text.translate(None, bytes(set(range(256)).difference(kept)))


def pieces(text):
    """Yield text, bytes, in pieces of PIECE bytes or a little more, without the commas at which it is cut."""
    start = 0
    while start < len(text):
        end = text.find(b',', start + PIECE) % (len(text) + 1)  # len(text) if there is no such comma
        yield text[start:end]
        start = end + 1


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
