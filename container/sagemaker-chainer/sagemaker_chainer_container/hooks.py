"""This module imports the user's script and answers requests with its four functions.

The script must define model_fn; the defaults below replace input_fn, predict_fn and output_fn if it does
not define them. An error that the client should see is raised as one of werkzeug's HTTPExceptions.
"""

import contextlib
import functools
import importlib
import logging
import os
import sys
from typing import Any, NamedTuple

import chainer
import numpy as np
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import BadRequest, HTTPException, NotAcceptable, UnsupportedMediaType
from werkzeug.http import parse_accept_header, parse_options_header
from werkzeug.wrappers import Response as WerkzeugResponse

from sagemaker_chainer_container.formats import CSV, DECODERS, ENCODERS, JSON, NUMBERS

logger = logging.getLogger('gunicorn.error')
DEFAULT_ACCEPT = os.environ.get('SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT', JSON)


class Request(NamedTuple):
    """The body of a POST /invocations and its headers, {lower-case name: value}."""

    body: bytes
    headers: dict


class Response(NamedTuple):
    """An HTTP response; headers: [(name, value)]."""

    status: int
    body: bytes
    headers: list

    @classmethod
    def text(cls, status, sentence):
        """Return a plain-text response of one sentence."""
        return cls(status, (sentence + '\n').encode(), [('Content-Type', 'text/plain; charset=utf-8')])


class Refusal(Response):
    """The response to a request that failed."""


class Input(NamedTuple):
    """The data that input_fn decoded from a request, and the content type of its response."""

    data: Any
    accept: str


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


def as_text(body):
    try:
        return body.decode('utf-8-sig')
    except UnicodeDecodeError as e:
        raise BadRequest(f'The body is not valid UTF-8: {e}.') from e


class Predictor:
    """Imports the user's script, loads its model and answers requests."""

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
        # Whether predict_fn accepts rows of several requests: a script's own must declare it, as `batches`.
        self.may_batch = self.predict_fn is default_predict_fn or getattr(self.predict_fn, 'batches', False)
        self.batched = {}  # {(dtype, *shape of a row): whether batching them leaves the predictions the same}

    @property
    def batches(self):
        """Whether a batch of several requests may be predicted with one call."""
        return self.may_batch and (not self.batched or any(self.batched.values()))

    def __call__(self, requests):
        """Return a Response to each Request of a list; a Refusal if one of the script's functions failed."""
        results = [attempt(self.decode, *request) for request in requests]
        decoded = [i for i, result in enumerate(results) if not isinstance(result, Refusal)]
        for i, prediction in zip(decoded, self.predict([results[i].data for i in decoded])):
            refused = isinstance(prediction, Refusal)
            results[i] = prediction if refused else attempt(self.encode, prediction, results[i].accept)
        return results

    def decode(self, body, headers):
        """Return the Input of a request: input_fn's data, and the content type to answer with."""
        accept, content_type = headers.get('accept', ''), mimetype(headers.get('content-type', ''))
        if self.output_fn is default_output_fn:
            accept = negotiate(accept)
        elif accept in ('', '*/*'):
            accept = DEFAULT_ACCEPT
        if self.input_fn is not default_input_fn and content_type in (JSON, CSV):
            body = as_text(body)
        return Input(self.input_fn(body, content_type), accept)

    def predict(self, inputs):
        """Return a prediction, or a Refusal, for each of inputs; rows of one dtype and shape are batched."""
        predictions, together = [None] * len(inputs), {}
        for i, data in enumerate(inputs):
            kind = None
            if self.may_batch and isinstance(data, np.ndarray) and data.ndim and data.dtype.kind in NUMBERS:
                kind = data.dtype.str, *data.shape[1:]
            if self.batched.get(kind):
                together.setdefault(kind, []).append(i)
                continue
            predictions[i] = attempt(self.predict_fn, data, self.model)
            untried = kind and kind not in self.batched and len(self.batched) < 64
            # Worth testing only if several requests wait and this prediction succeeded.
            if untried and len(inputs) > 1 and not isinstance(predictions[i], Refusal):
                self.try_batch(kind, data)
        for places in together.values():
            for i, prediction in zip(places, self.predict_rows([inputs[i] for i in places])):
                predictions[i] = prediction
        return predictions

    def predict_rows(self, inputs):
        if len(inputs) > 1:
            with contextlib.suppress(Exception):  # if the batch fails, predict each request by itself below
                rows = self.predict_fn(np.concatenate(inputs), self.model)
                if len(rows) == sum(map(len, inputs)):
                    return np.split(rows, np.cumsum([len(data) for data in inputs[:-1]]))
        return [attempt(self.predict_fn, data, self.model) for data in inputs]

    def try_batch(self, kind, data):
        """Test whether two different rows get the same predictions in one batch as apart, within rounding."""
        rows = np.concatenate([data[:1], np.flip(data[:1], axis=range(1, data.ndim))])
        if np.array_equal(rows[:1], rows[1:]):
            return  # equal rows prove nothing: test with the next request
        try:
            apart = np.concatenate([self.predict_fn(row, self.model) for row in (rows[:1], rows[1:])])
            both = self.predict_fn(rows, self.model)
            if apart.dtype.kind == 'f' and np.array_equal(apart[:1], apart[1:]):
                return
            # Integers, such as labels, may be equal by chance.
            alike = apart.dtype.kind == 'f' and len(apart) == 2 and both.shape == apart.shape
            self.batched[kind] = alike and np.allclose(both, apart, rtol=1e-4, atol=1e-5 * abs(apart).max())
        except Exception:
            self.batched[kind] = False

    def encode(self, prediction, accept):
        """Return the Response that output_fn makes of a prediction."""
        output = self.output_fn(prediction, accept)
        if isinstance(output, WerkzeugResponse):
            return Response(output.status_code, output.get_data(), output.headers.to_wsgi_list())
        if not isinstance(output, tuple):  # (body, content type), as AWS's toolkits allow
            output = output, accept
        body, content_type = output
        # memoryview raises TypeError for anything but bytes.
        body = body.encode() if isinstance(body, str) else bytes(memoryview(body))
        return Response(200, body, [('Content-Type', content_type)])


def attempt(function, *args):
    """Return the function's result, or a Refusal if it raises: an exception's traceback would keep bodies in memory."""
    try:
        return function(*args)
    except HTTPException as e:
        return Refusal.text(e.code, e.description)
    except Exception:
        logger.exception('A request failed')
        return Refusal.text(500, "The script failed on this request; the container's log has the traceback.")
