"""What serves: SageMaker's hosting contract on port 8080, for a user's script with four hooks.

GET /ping answers 200 once a worker has loaded the model. POST /invocations runs
output_fn(predict_fn(input_fn(body, content_type), model), accept). The script must define
model_fn; for the other three, what it does not define falls back to the defaults below.

Started by `serve` through gunicorn.conf.py, one create_app() in each worker: an ASGI application
that takes in requests side by side and runs predictions one at a time.
"""

import asyncio
import concurrent.futures
import csv
import functools
import importlib
import io
import json
import logging
import math
import os
import sys
import threading
import time

import chainer
import numpy as np
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    RequestEntityTooLarge,
    ServiceUnavailable,
    UnsupportedMediaType,
)
from werkzeug.http import parse_accept_header, parse_options_header
from werkzeug.wrappers import Response

NPY, JSON, CSV = 'application/x-npy', 'application/json', 'text/csv'
# SageMaker passes on bodies of up to 25 MB; batch transform sets a limit of its own.
MAX_PAYLOAD_IN_MB = int(os.environ.get('SAGEMAKER_MAX_PAYLOAD_IN_MB', 25))
DEFAULT_ACCEPT = os.environ.get('SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT', JSON)

# The requests, and the bytes of bodies, that a worker takes in at a time; to more it answers 503.
MAX_REQUESTS = 256
MAX_BYTES = 16 * MAX_PAYLOAD_IN_MB * 2**20
BUSY = 'The endpoint has more requests than it can take: try again later.'

QUICK = 0.02  # seconds of a prediction for which /ping and other requests may wait

logger = logging.getLogger('gunicorn.error')


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
    if dtype.kind not in 'biuf':
        raise ValueError(f'the dtype must be bool, integer or floating point, but is {dtype}')
    return shape, fortran_order, dtype


def decode_npy(body):
    """Return the array in an .npy body; ValueError for any other bytes.

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
        return np.array(json.loads(body), dtype=np.float32)
    except RecursionError:
        raise ValueError('the lists are nested too deeply') from None
    except TypeError:
        raise ValueError('expected (nested) lists of numbers') from None
    except OverflowError:  # an integer of some 300 digits
        raise ValueError('a number is too large for float32') from None


def decode_csv(body):
    """Return the float32 array, shape (rows, columns), in a CSV body without a header line."""
    try:
        rows = [row for row in csv.reader(io.StringIO(body.decode('utf-8'))) if row]
    except csv.Error as e:  # which is no ValueError
        raise ValueError(e) from e
    if not rows:
        raise ValueError('there are no rows')
    return np.array(rows, dtype=np.float32)


@functools.lru_cache(64)
def npy_header(shape, descr):
    """Return the first bytes of an .npy file for an array in C order."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {'shape': shape, 'fortran_order': False, 'descr': descr})
    return stream.getvalue()


def encode_npy(array):
    """Return the bytes of an .npy file."""
    if array.dtype.kind not in 'biuf':
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        return stream.getvalue()
    return npy_header(array.shape, array.dtype.str) + array.tobytes()


def encode_json(array):
    """Return (nested) lists as JSON."""
    return json.dumps(array.tolist())


def encode_csv(array):
    """Return one line per row."""
    stream = io.StringIO()
    np.savetxt(stream, np.atleast_1d(array), delimiter=',', fmt='%s')
    return stream.getvalue()


DECODERS = {NPY: decode_npy, JSON: decode_json, CSV: decode_csv}
ENCODERS = {NPY: encode_npy, JSON: encode_json, CSV: encode_csv}


def default_model_fn(model_dir):
    """There is no default: how a model is built is the script's to say."""
    raise NotImplementedError(
        f'The script must define model_fn(model_dir), which loads the model from {model_dir} and returns it.'
    )


def default_input_fn(input_data, content_type):
    """Decode a body of type npy, JSON or CSV into a NumPy array.

    Floating point becomes float32, Chainer's default dtype; npy integers stay as they are, for
    models that take indices. Raises UnsupportedMediaType (415) or BadRequest (400).
    """
    if content_type not in DECODERS:
        raise UnsupportedMediaType(
            'Content-Type must be one of {}, but is {!r}.'.format(', '.join(DECODERS), content_type)
        )
    try:
        with np.errstate(over='ignore'):  # too large a number becomes infinity, refused below
            array = DECODERS[content_type](input_data)
            if array.dtype.kind == 'f':
                array = array.astype(np.float32, copy=False)
    except ValueError as e:
        raise BadRequest('The body is not valid {}: {}.'.format(content_type, str(e).rstrip('.'))) from e
    if array.ndim == 0:
        raise BadRequest('The body holds a single number, not an array.')
    if array.dtype.kind == 'f' and not np.isfinite(array).all():
        raise BadRequest('The array holds NaN, infinity, or a number too large for float32.')
    return array


def default_predict_fn(data, model):
    """Call the model on data without training or a graph; return a NumPy array.

    Raises BadRequest (400) where the model refuses the array's shape or dtype.
    """
    try:
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            prediction = model(getattr(model, 'xp', np).asarray(data))
    except (chainer.utils.type_check.InvalidType, ValueError, TypeError, IndexError) as e:
        raise BadRequest(
            'The model cannot take an array of shape {} and dtype {}: {}.'.format(
                data.shape, data.dtype, ' '.join(str(e).split()).rstrip('.')
            )
        ) from e
    return chainer.backends.cuda.to_cpu(getattr(prediction, 'array', prediction))


def default_output_fn(prediction, accept):
    """Encode a NumPy array as npy, JSON or CSV."""
    return ENCODERS[accept](np.asarray(prediction)), accept


async def read_body(receive, length, take):
    """Return the request's body; RequestEntityTooLarge (413) if it is over the limit.

    length: what the client announces, 0 if it does not. take(n): whether there is room for n more bytes; else
    ServiceUnavailable (503). None if the client went away.
    """
    limit = MAX_PAYLOAD_IN_MB * 2**20
    chunks, size, room = [], 0, True
    while True:
        message = await receive()
        if message['type'] == 'http.disconnect':
            return None
        chunk = message.get('body', b'')
        size += len(chunk)
        room = room and take(len(chunk))
        if room and max(size, length) <= limit:
            chunks.append(chunk)
        else:
            chunks.clear()
        # Most clients look for an answer only when all is sent, so take in twice as much before one.
        if not message.get('more_body') or size > 2 * limit:
            break
    if max(size, length) > limit:
        raise RequestEntityTooLarge(f'The body must not be larger than {MAX_PAYLOAD_IN_MB} MB.')
    if not room:
        raise ServiceUnavailable(BUSY)
    return b''.join(chunks)


@functools.lru_cache(64)
def negotiate(accept):
    """Return the supported type that an Accept header likes best; NotAcceptable (406) if none."""
    if not accept:
        return DEFAULT_ACCEPT
    supported = sorted(ENCODERS, key=lambda mimetype: mimetype != DEFAULT_ACCEPT)
    best = parse_accept_header(accept, MIMEAccept).best_match(supported)
    if best is None:
        raise NotAcceptable('Accept must allow one of {}, but is {!r}.'.format(', '.join(ENCODERS), accept))
    return best


@functools.lru_cache(64)
def mimetype(content_type):
    """Return a Content-Type header without its parameters; JSON is the default."""
    return parse_options_header(content_type)[0].lower() or JSON


def load():
    """Import the user's script and load its model; return predict(body, headers).

    body: bytes; headers: {lower-case name: value}. It returns (status, body, [(name, value)]), or
    raises one of werkzeug's HTTPExceptions.
    """
    program = os.environ.get('SAGEMAKER_PROGRAM')
    if not program:
        raise RuntimeError('SAGEMAKER_PROGRAM must name the script that defines model_fn.')
    sys.path.insert(0, os.environ['SAGEMAKER_SUBMIT_DIRECTORY'])
    script = importlib.import_module(os.path.splitext(program)[0].replace('/', '.'))
    hooks = {
        name: getattr(script, name, globals()['default_' + name])
        for name in ('model_fn', 'input_fn', 'predict_fn', 'output_fn')
    }
    model = hooks['model_fn'](os.environ.get('SM_MODEL_DIR', '/opt/ml/model'))

    def predict(body, headers):
        accept = headers.get('accept', '')
        if hooks['output_fn'] is default_output_fn:
            accept = negotiate(accept)
        data = hooks['input_fn'](body, mimetype(headers.get('content-type', '')))
        output = hooks['output_fn'](hooks['predict_fn'](data, model), accept or DEFAULT_ACCEPT)
        if isinstance(output, Response):
            return output.status_code, output.get_data(), output.headers.to_wsgi_list()
        if not isinstance(output, tuple):  # (body, content type), as AWS's toolkits allow
            output = output, accept or DEFAULT_ACCEPT
        body, content_type = output
        body = body.encode() if isinstance(body, str) else bytes(memoryview(body))  # TypeError for all else
        return 200, body, [('Content-Type', content_type)]

    return predict


def create_app():
    """Load the user's script and model, and return the ASGI application."""
    predict = load()
    # What model_fn set in chainer.config counts in this thread only; it must in the other one, too.
    config = dict(chainer.config._local.__dict__)
    thread = concurrent.futures.ThreadPoolExecutor(
        1, initializer=lambda: chainer.config._local.__dict__.update(config)
    )
    turn = threading.Lock()  # Chainer models need not be thread-safe
    quick_size = 0

    def timed(*args):
        start = time.perf_counter()
        return predict(*args), time.perf_counter() - start <= QUICK

    def in_turn(*args):
        with turn:
            return timed(*args)

    async def predict_one(body, headers):
        """Call predict, here if it has been quick for bodies of this size, else in the thread."""
        nonlocal quick_size
        if len(body) <= quick_size and turn.acquire(blocking=False):
            try:  # the way to the thread and back would take as long as the prediction
                response, quick = timed(body, headers)
            finally:
                turn.release()
        else:
            response, quick = await asyncio.get_running_loop().run_in_executor(thread, in_turn, body, headers)
        quick_size = max(quick_size, len(body)) if quick else min(quick_size, len(body) - 1)
        return response

    async def respond(scope, receive):
        """Return (status, body, headers), or None if nobody waits for it."""
        allowed = {'/ping': ('GET', 'HEAD'), '/invocations': ('POST',)}.get(scope['path'])
        if allowed is None:
            raise NotFound('There are GET /ping and POST /invocations.')
        if scope['method'] not in allowed:
            raise MethodNotAllowed(allowed)
        if scope['path'] == '/ping':
            return 200, b'', []
        headers = {name.decode('latin-1'): value.decode('latin-1') for name, value in scope['headers']}
        taken = 0

        def take(n):
            nonlocal taken
            if app.bytes + n > MAX_BYTES:
                app.bytes -= taken
                taken = 0
                return False
            app.bytes += n
            taken += n
            return True

        try:
            body = await read_body(receive, int(headers.get('content-length', 0)), take)
            if body is None:
                return None
            if app.waiting >= MAX_REQUESTS:
                raise ServiceUnavailable(BUSY)
            app.waiting += 1
            try:
                return await predict_one(body, headers)
            finally:
                app.waiting -= 1
        finally:
            app.bytes -= taken

    async def app(scope, receive, send):
        app.in_flight += 1
        try:
            await answer(scope, receive, send)
        finally:
            app.in_flight -= 1

    async def answer(scope, receive, send):
        try:
            response = await respond(scope, receive)
        except HTTPException as e:
            response = (
                e.code,
                (e.description + '\n').encode(),
                [('Content-Type', 'text/plain; charset=utf-8')],
            )
        except Exception:
            logger.exception('%s failed', scope['path'])
            response = (
                500,
                (b"The script failed on this request; the container's log has the traceback.\n"),
                [('Content-Type', 'text/plain; charset=utf-8')],
            )
        if response is None:
            return
        status, body, headers = response
        headers = [
            (name.lower().encode('latin-1'), value.encode('latin-1'))
            for name, value in headers
            if name.lower() != 'content-length'
        ]
        headers.append((b'content-length', str(len(body)).encode()))
        await send({'type': 'http.response.start', 'status': status, 'headers': headers})
        await send({'type': 'http.response.body', 'body': body})

    app.in_flight = 0  # requests; gunicorn.conf.py stops a worker once there are none
    app.waiting = app.bytes = 0  # requests that have been read, and what the bodies of all take
    return app
