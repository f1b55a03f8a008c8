"""What serves: SageMaker's hosting contract on port 8080, for a user's script with four hooks.

GET /ping answers 200 once a worker has loaded the model. POST /invocations runs
output_fn(predict_fn(input_fn(body, content_type), model), accept). The script must define
model_fn; for the other three, what it does not define falls back to the defaults below.

Started by `serve` through gunicorn.conf.py, one create_app() in each worker.
"""
import csv
import importlib
import io
import json
import logging
import math
import os
import sys
import threading

import chainer
import numpy as np
from werkzeug.exceptions import (BadRequest, HTTPException, InternalServerError, NotAcceptable,
                                 RequestEntityTooLarge, UnsupportedMediaType)
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

NPY, JSON, CSV = 'application/x-npy', 'application/json', 'text/csv'
# SageMaker passes on bodies of up to 25 MB; batch transform sets a limit of its own.
MAX_PAYLOAD_IN_MB = int(os.environ.get('SAGEMAKER_MAX_PAYLOAD_IN_MB', 25))
DEFAULT_ACCEPT = os.environ.get('SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT', JSON)

logger = logging.getLogger('gunicorn.error')


def decode_npy(body):
    """Return the array in an .npy body; ValueError for any other bytes.

    The header is read by NumPy, the data taken as they are: no pickle is ever loaded, and no
    memory is reserved for a shape that the body does not hold.
    """
    stream = io.BytesIO(body)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0,
                   (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read_header:
        raise ValueError('npy format version {}.{} is not supported'.format(*version))
    try:
        shape, fortran_order, dtype = read_header[version](stream)
    except ValueError:
        raise
    except Exception as e:  # NumPy parses the header as Python source: SyntaxError, KeyError, ...
        raise ValueError('broken npy header: {}'.format(e)) from e
    if dtype.kind not in 'biuf':
        raise ValueError('the dtype must be bool, integer or floating point, but is {}'
                         .format(dtype))
    data = body[stream.tell():]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError('an array of shape {} and dtype {} does not fill {} bytes'
                         .format(shape, dtype, len(data)))
    array = np.frombuffer(data, dtype).reshape(shape, order='F' if fortran_order else 'C')
    return array.astype(dtype.newbyteorder('='))


def decode_json(body):
    """Return the float32 array in a JSON body of (nested) lists of numbers."""
    try:
        return np.array(json.loads(body), dtype=np.float32)
    except RecursionError:
        raise ValueError('the lists are nested too deeply') from None
    except TypeError:
        raise ValueError('expected (nested) lists of numbers') from None


def decode_csv(body):
    """Return the float32 array, shape (rows, columns), in a CSV body without a header line."""
    rows = [row for row in csv.reader(io.StringIO(body.decode('utf-8'))) if row]
    if not rows:
        raise ValueError('there are no rows')
    return np.array(rows, dtype=np.float32)


def encode_npy(array):
    """Return the bytes of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


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
    raise NotImplementedError('The script must define model_fn(model_dir), which loads the model '
                              'from {} and returns it.'.format(model_dir))


def default_input_fn(input_data, content_type):
    """Decode a body of type npy, JSON or CSV into a NumPy array.

    Floating point becomes float32, Chainer's default dtype; npy integers stay as they are, for
    models that take indices. Raises UnsupportedMediaType (415) or BadRequest (400).
    """
    if content_type not in DECODERS:
        raise UnsupportedMediaType('Content-Type must be one of {}, but is {!r}.'.format(
            ', '.join(DECODERS), content_type))
    try:
        with np.errstate(over='ignore'):  # too large a number becomes infinity, refused below
            array = DECODERS[content_type](input_data)
            if array.dtype.kind == 'f':
                array = array.astype(np.float32, copy=False)
    except ValueError as e:
        raise BadRequest('The body is not valid {}: {}.'.format(
            content_type, str(e).rstrip('.'))) from e
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
        raise BadRequest('The model cannot take an array of shape {} and dtype {}: {}.'.format(
            data.shape, data.dtype, ' '.join(str(e).split()).rstrip('.'))) from e
    return chainer.backends.cuda.to_cpu(getattr(prediction, 'array', prediction))


def default_output_fn(prediction, accept):
    """Encode a NumPy array as npy, JSON or CSV."""
    return Response(ENCODERS[accept](np.asarray(prediction)), mimetype=accept)


def read_body(request):
    """Return the request's body; RequestEntityTooLarge (413) if it is over the limit."""
    limit = MAX_PAYLOAD_IN_MB * 2 ** 20
    # Not request.get_data(): it would cut off a chunked body at the limit, and not say so.
    stream = request.environ['wsgi.input']
    if (request.content_length or 0) <= limit:
        body = stream.read(limit + 1)
        if len(body) <= limit:
            return body
    # Most clients look for an answer only when all is sent, so take in twice as much before one.
    for _ in range(2 * limit // 2 ** 16):
        if not stream.read(2 ** 16):
            break
    raise RequestEntityTooLarge('The body must not be larger than {} MB.'.format(MAX_PAYLOAD_IN_MB))


def negotiate(accept_mimetypes):
    """Return the supported type that the client likes best; NotAcceptable (406) if none."""
    supported = sorted(ENCODERS, key=lambda mimetype: mimetype != DEFAULT_ACCEPT)
    accept = accept_mimetypes.best_match(supported) if accept_mimetypes else DEFAULT_ACCEPT
    if accept is None:
        raise NotAcceptable('Accept must allow one of {}, but is {!r}.'.format(
            ', '.join(ENCODERS), str(accept_mimetypes)))
    return accept


def create_app():
    """Import the user's script, load its model, and return the WSGI application."""
    program = os.environ.get('SAGEMAKER_PROGRAM')
    if not program:
        raise RuntimeError('SAGEMAKER_PROGRAM must name the script that defines model_fn.')
    sys.path.insert(0, os.environ['SAGEMAKER_SUBMIT_DIRECTORY'])
    script = importlib.import_module(os.path.splitext(program)[0].replace('/', '.'))
    hooks = {name: getattr(script, name, globals()['default_' + name])
             for name in ('model_fn', 'input_fn', 'predict_fn', 'output_fn')}
    model = hooks['model_fn'](os.environ.get('SM_MODEL_DIR', '/opt/ml/model'))
    one_at_a_time = threading.Lock()  # Chainer models need not be thread-safe; /ping must not wait
    routes = Map([Rule('/ping', methods=['GET'], endpoint='ping'),
                  Rule('/invocations', methods=['POST'], endpoint='invocations')])

    def invocations(request):
        if hooks['output_fn'] is default_output_fn:
            accept = negotiate(request.accept_mimetypes)
        else:
            accept = request.headers.get('Accept') or DEFAULT_ACCEPT
        body = read_body(request)
        with one_at_a_time:
            data = hooks['input_fn'](body, request.mimetype or JSON)
            output = hooks['output_fn'](hooks['predict_fn'](data, model), accept)
        if isinstance(output, tuple):  # (body, content type), as AWS's toolkits allow
            return Response(output[0], mimetype=output[1])
        return output if isinstance(output, Response) else Response(output, mimetype=accept)

    @Request.application
    def app(request):
        try:
            endpoint, _ = routes.bind_to_environ(request.environ).match()
            return Response() if endpoint == 'ping' else invocations(request)
        except HTTPException as e:
            error = e
        except Exception:
            logger.exception('%s failed', request.path)
            error = InternalServerError('The script failed on this request; '
                                        'the container\'s log has the traceback.')
        return Response(error.description + '\n', error.code, mimetype='text/plain')

    return app
