"""This module imports the user's script and answers requests with its four functions.

The script must define model_fn; the defaults below replace input_fn, predict_fn and output_fn if it does
not define them. An error that the client should see is raised as one of werkzeug's HTTPExceptions.
"""

import contextlib
import functools
import importlib
import itertools
import logging
import os
import sys
import time
from typing import NamedTuple

import chainer
import numpy as np
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import BadRequest, HTTPException, NotAcceptable, UnsupportedMediaType
from werkzeug.http import parse_accept_header, parse_options_header
from werkzeug.wrappers import Response as WerkzeugResponse

from sagemaker_chainer_container.formats import CSV, DECODERS, ENCODERS, JSON, NUMBERS

logger = logging.getLogger('gunicorn.error')
DEFAULT_ACCEPT = os.environ.get('SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT', JSON)


class Response(NamedTuple):
    """An HTTP response; headers: [(lower-case name, value)], bytes."""

    status: int
    body: bytes
    headers: list

    @classmethod
    def text(cls, status, sentence, headers=()):
        """Return a plain-text response of one sentence."""
        headers = raw((('Content-Type', 'text/plain; charset=utf-8'), *headers))
        return cls(status, f'{sentence}\n'.encode(errors='backslashreplace'), headers)


def default_model_fn(model_dir):
    """Raise NotImplementedError: only the script knows how its model is built."""
    raise NotImplementedError(f'The script must define model_fn(model_dir), which returns the model in {model_dir}.')


def default_input_fn(input_data, content_type):
    """Decode a body of type npy (bytes), JSON or CSV (bytes or str) into a NumPy array.

    Floating-point numbers become float32, Chainer's default dtype; npy integers keep their dtype, for
    models that take indices. Raises UnsupportedMediaType (415) or BadRequest (400).
    """
    if content_type not in DECODERS:
        raise UnsupportedMediaType(f'Content-Type must be one of {", ".join(DECODERS)}, but is {content_type!r}.')
    try:
        with np.errstate(over='ignore'):  # a number too large for float32 becomes infinity, refused below
            array = DECODERS[content_type](input_data)
            if array.dtype.kind == 'f':
                array = array.astype(np.float32, copy=False)
    except ValueError as e:
        raise BadRequest(f'The body is not valid {content_type}: {str(e)[:300].rstrip(".")}.') from e
    if array.ndim == 0:
        raise BadRequest('The body holds a single number, not an array.')
    if array.dtype.kind == 'f' and not np.isfinite(array).all():
        raise BadRequest('The array holds NaN, infinity, or a number too large for float32.')
    return array


def default_predict_fn(data, model):
    """Return the model's prediction, a NumPy array, in test mode; BadRequest (400) if it refuses the shape or dtype."""
    try:
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            prediction = model(getattr(model, 'xp', np).asarray(data))
    except (chainer.utils.type_check.InvalidType, ValueError, TypeError, IndexError) as e:
        reason, kind = ' '.join(str(e).split()).rstrip('.'), f'shape {data.shape} and dtype {data.dtype}'
        raise BadRequest(f'The model cannot take an array of {kind}: {reason}.') from e
    return chainer.backends.cuda.to_cpu(getattr(prediction, 'array', prediction))


def default_output_fn(prediction, accept):
    """Encode an array (for JSON also lists and dicts of arrays); return (bytes or str, content type)."""
    return ENCODERS[accept](prediction), accept


@functools.lru_cache(64)
def negotiate(accept):
    """Return the supported type that an Accept header prefers. Raises NotAcceptable (406) if none."""
    if not accept:
        return DEFAULT_ACCEPT
    if len(accept) > 1000:  # to parse it takes time that grows with its square
        raise NotAcceptable('Accept is longer than 1,000 characters.')
    supported = sorted(ENCODERS, key=lambda mimetype: mimetype != DEFAULT_ACCEPT)
    ranges = [(item.partition(';')[0].strip(), q) for item, q in parse_accept_header(accept)]
    best = MIMEAccept(ranges).best_match(supported)
    if best is None:
        raise NotAcceptable(f'Accept must allow one of {", ".join(ENCODERS)}, but is {accept!r}.')
    return best


@functools.lru_cache(64)
def mimetype(content_type):
    """Return the media type of a Content-Type header, without parameters; JSON if it is empty."""
    return parse_options_header(content_type)[0].lower() or JSON


@functools.lru_cache(64)
def raw(headers):
    """Encode headers, except those that the server itself sets. Raises TypeError or ValueError."""
    if not all(map(str.isprintable, itertools.chain(*headers))):
        raise ValueError(f'The headers {headers} cannot be sent.')
    headers = [(name.lower().encode('latin-1'), value.encode('latin-1')) for name, value in headers]
    return [header for header in headers if header[0] not in (b'content-length', b'transfer-encoding', b'connection')]


def equal(ones, others):
    """Return whether two lists of arrays are equal, within rounding: a larger product adds in another order."""
    ones, others = np.concatenate(ones), np.concatenate(others)
    return ones.shape == others.shape and np.allclose(ones, others, 1e-4, 1e-4 * abs(others).max(initial=0))


class Predictor:
    """Imports the user's script, loads its model and answers requests.

    batches: whether one call may predict several requests. began: when the script was last called.
    """

    def __init__(self):
        program = os.environ.get('SAGEMAKER_PROGRAM')
        if not program:
            raise RuntimeError('SAGEMAKER_PROGRAM must name the script that defines model_fn.')
        sys.path.insert(0, os.environ['SAGEMAKER_SUBMIT_DIRECTORY'])
        script = importlib.import_module(os.path.splitext(program)[0].replace('/', '.'))
        self.input_fn = getattr(script, 'input_fn', default_input_fn)
        self.predict_fn = getattr(script, 'predict_fn', default_predict_fn)
        self.output_fn = getattr(script, 'output_fn', default_output_fn)
        model_fn = getattr(script, 'model_fn', default_model_fn)
        self.model = model_fn(os.environ.get('SM_MODEL_DIR', '/opt/ml/model'))
        self.batches = getattr(script, 'ROWS_ARE_INDEPENDENT', False)
        self.unchecked = 3  # batches whose predictions will be compared with single ones

    def __call__(self, requests):
        """Return a Response to each Request of a list."""
        results, alike = [self.attempt(self.decode, request.body, request.headers) for request in requests], {}
        for i, (data, *_) in enumerate(results):
            rows = self.batches and isinstance(data, np.ndarray) and data.ndim > 1 and data.dtype.kind in NUMBERS
            alike.setdefault((data.dtype.str, data.shape[1:]) if rows else i, []).append(i)
        for places in alike.values():
            if not isinstance(results[places[0]], Response):
                for i, prediction in zip(places, self.predict([results[i][0] for i in places])):
                    results[i] = self.attempt(self.encode, prediction, results[i][1])
        return results

    def attempt(self, function, *args):
        """Return the function's result, or a Response if it raises: an exception would keep the body in memory."""
        self.began = time.monotonic()
        try:
            return function(*args)
        except HTTPException as e:
            return self.attempt(self.answer, e.response) if e.response else Response.text(e.code or 500, e.description)
        except BaseException:  # SystemExit too: a request must not end the server
            logger.exception('A request failed')
            return Response.text(500, "The script failed on this request; the container's log has the traceback.")

    def decode(self, body, headers):
        """Return input_fn's data, and the content type to answer with."""
        accept, content_type = headers.get('accept', ''), mimetype(headers.get('content-type', ''))
        if self.output_fn is default_output_fn:
            accept = negotiate(accept)
        elif accept in ('', '*/*'):
            accept = DEFAULT_ACCEPT
        if self.input_fn is not default_input_fn and content_type in (JSON, CSV):
            try:
                body = body.decode('utf-8-sig')
            except UnicodeDecodeError as e:
                raise BadRequest(f'The body is not valid UTF-8: {e}.') from e
        return self.input_fn(body, content_type), accept

    def predict(self, inputs):
        """Return a prediction, or a Response if it failed, for each of inputs; with one call if possible."""
        together = self.predict_rows(inputs) if len(inputs) > 1 else None
        if together and not self.unchecked:
            return together
        alone = [self.attempt(self.predict_fn, data, self.model) for data in inputs]
        if together:
            self.unchecked -= 1
            self.batches = self.attempt(equal, together, alone) is True
            if not self.batches:
                logger.warning('ROWS_ARE_INDEPENDENT is wrong: a batch changed the predictions. No more batches.')
        return alone

    def predict_rows(self, inputs):
        """Return the predictions of one call for all inputs; None if it fails."""
        with contextlib.suppress(BaseException):
            rows, ends = self.predict_fn(np.concatenate(inputs), self.model), np.cumsum([len(data) for data in inputs])
            if isinstance(rows, np.ndarray) and len(rows) == ends[-1]:
                return np.split(rows, ends[:-1])
            self.unchecked = 1
            return [np.empty(0)] * len(inputs)  # equals nothing

    def answer(self, output):
        """Return werkzeug's response as one of ours. Raises ValueError for headers that cannot be sent."""
        return Response(output.status_code, output.get_data(), raw(tuple(output.headers.to_wsgi_list())))

    def encode(self, prediction, accept):
        """Return the Response that output_fn makes of a prediction."""
        if isinstance(prediction, Response):
            return prediction
        output = self.output_fn(prediction, accept)
        if isinstance(output, WerkzeugResponse):
            return self.answer(output)
        body, content_type = output if isinstance(output, tuple) else (output, None)  # as AWS's toolkits allow
        if not isinstance(body, (str, bytes, bytearray, memoryview)):
            raise TypeError(f'output_fn must return bytes or str, alone or with a content type, not {type(body)}.')
        body = body.encode() if isinstance(body, str) else bytes(body)
        return Response(200, body, raw((('Content-Type', content_type or accept),)))
