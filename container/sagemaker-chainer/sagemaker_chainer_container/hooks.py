"""The user's script: its four hooks, their defaults, and a prediction made of them.

The script must define model_fn; for input_fn, predict_fn and output_fn the defaults below step in.
Errors that the client is to see are werkzeug's HTTPExceptions.
"""

import contextlib
import functools
import importlib
import logging
import os
import sys

import chainer
import numpy as np
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import BadRequest, HTTPException, NotAcceptable, UnsupportedMediaType
from werkzeug.http import parse_accept_header, parse_options_header
from werkzeug.wrappers import Response

from sagemaker_chainer_container.formats import CSV, DECODERS, ENCODERS, JSON, NUMBERS

logger = logging.getLogger('gunicorn.error')
DEFAULT_ACCEPT = os.environ.get('SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT', JSON)


def default_model_fn(model_dir):
    """There is no default: how a model is built is the script's to say."""
    raise NotImplementedError(
        f'The script must define model_fn(model_dir), which loads the model from {model_dir} and returns it.'
    )


def default_input_fn(input_data, content_type):
    """Decode a body of type npy (bytes), JSON or CSV (bytes or str) into a NumPy array.

    Floating point becomes float32, Chainer's default dtype; npy integers stay as they are, for
    models that take indices. Raises UnsupportedMediaType (415) or BadRequest (400).
    """
    if content_type not in DECODERS:
        raise UnsupportedMediaType(
            f'Content-Type must be one of {", ".join(DECODERS)}, but is {content_type!r}.'
        )
    try:
        with np.errstate(over='ignore'):  # too large a number becomes infinity, refused below
            array = DECODERS[content_type](input_data)
            if array.dtype.kind == 'f':
                array = array.astype(np.float32, copy=False)
    except ValueError as e:
        raise BadRequest(f'The body is not valid {content_type}: {str(e).rstrip(".")}.') from e
    if array.ndim == 0:
        raise BadRequest('The body holds a single number, not an array.')
    if array.dtype.kind == 'f' and not np.isfinite(array).all():
        raise BadRequest('The array holds NaN, infinity, or a number too large for float32.')
    return array


def default_predict_fn(data, model):
    """Call the model on data, an array, without training or a graph; return a NumPy array.

    Raises BadRequest (400) where the model refuses the array's shape or dtype.
    """
    try:
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            prediction = model(getattr(model, 'xp', np).asarray(data))
    except (chainer.utils.type_check.InvalidType, ValueError, TypeError, IndexError) as e:
        reason = ' '.join(str(e).split()).rstrip('.')
        raise BadRequest(
            f'The model cannot take an array of shape {data.shape} and dtype {data.dtype}: {reason}.'
        ) from e
    return chainer.backends.cuda.to_cpu(getattr(prediction, 'array', prediction))


def default_output_fn(prediction, accept):
    """Encode a NumPy array, or for JSON also lists and dicts of them; return (bytes or str, content type)."""
    return ENCODERS[accept](prediction), accept


@functools.lru_cache(64)
def negotiate(accept):
    """Return the supported type that an Accept header likes best; NotAcceptable (406) if none."""
    if not accept:
        return DEFAULT_ACCEPT
    supported = sorted(ENCODERS, key=lambda mimetype: mimetype != DEFAULT_ACCEPT)
    best = parse_accept_header(accept, MIMEAccept).best_match(supported)
    if best is None:
        raise NotAcceptable(f'Accept must allow one of {", ".join(ENCODERS)}, but is {accept!r}.')
    return best


@functools.lru_cache(64)
def mimetype(content_type):
    """Return a Content-Type header without its parameters; JSON is the default."""
    return parse_options_header(content_type)[0].lower() or JSON


def as_text(body):
    try:
        return body.decode()
    except UnicodeDecodeError as e:
        raise BadRequest(f'The body is not valid UTF-8: {e}.') from e


class Predictor:
    """The user's script, imported, with its model loaded."""

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
        # Whether rows of several requests may be predicted together: the script's own function must say so.
        self.may_batch = self.predict_fn is default_predict_fn or getattr(self.predict_fn, 'batches', False)
        self.batched = {}  # by dtype and shape of a row: whether the model takes them

    @property
    def batches(self):
        """Whether it is of use to bring several requests."""
        return self.may_batch and (not self.batched or any(self.batched.values()))

    def __call__(self, requests):
        """Answer requests, pairs of a body (bytes) and headers {lower-case name: value}.

        Returns (status, body, [(name, value)]) for each; a Refusal where one of the functions failed.
        """
        answers = [attempt(self.read, *request) for request in requests]
        read = [i for i, answer in enumerate(answers) if not isinstance(answer, Refusal)]
        for i, prediction in zip(read, self.predict([answers[i][0] for i in read])):
            refused = isinstance(prediction, Refusal)
            answers[i] = prediction if refused else attempt(self.write, prediction, answers[i][1])
        return answers

    def read(self, body, headers):
        """Return input_fn's data, and the type that the answer is to have."""
        accept, content_type = headers.get('accept', ''), mimetype(headers.get('content-type', ''))
        if self.output_fn is default_output_fn:
            accept = negotiate(accept)
        elif accept in ('', '*/*'):
            accept = DEFAULT_ACCEPT
        if self.input_fn is not default_input_fn and content_type in (JSON, CSV):
            body = as_text(body)
        return self.input_fn(body, content_type), accept

    def predict(self, inputs):
        """Return a prediction, or a Refusal, for each of inputs; like rows are predicted together."""
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
            # Only where others wait, and what was predicted is no nonsense.
            if untried and len(inputs) > 1 and not isinstance(predictions[i], Refusal):
                self.try_batch(kind, data)
        for places in together.values():
            for i, prediction in zip(places, self.predict_rows([inputs[i] for i in places])):
                predictions[i] = prediction
        return predictions

    def predict_rows(self, inputs):
        if len(inputs) > 1:
            with contextlib.suppress(Exception):  # then each by itself
                rows = self.predict_fn(np.concatenate(inputs), self.model)
                if len(rows) == sum(map(len, inputs)):
                    return np.split(rows, np.cumsum([len(data) for data in inputs[:-1]]))
        return [attempt(self.predict_fn, data, self.model) for data in inputs]

    def try_batch(self, kind, data):
        """Find out whether two different rows together give what they give apart, within rounding."""
        rows = np.concatenate([data[:1], np.flip(data[:1], axis=range(1, data.ndim))])
        if np.array_equal(rows[:1], rows[1:]):
            return  # the next request may tell
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

    def write(self, prediction, accept):
        """Return (status, body, [(name, value)]) of what output_fn makes of a prediction."""
        output = self.output_fn(prediction, accept)
        if isinstance(output, Response):
            return output.status_code, output.get_data(), output.headers.to_wsgi_list()
        if not isinstance(output, tuple):  # (body, content type), as AWS's toolkits allow
            output = output, accept
        body, content_type = output
        body = body.encode() if isinstance(body, str) else bytes(memoryview(body))  # TypeError for all else
        return 200, body, [('Content-Type', content_type)]


class Refusal(tuple):
    """The response, (status, body, [(name, value)]), to a request that failed."""


def attempt(function, *args):
    """Return what the function returns, or a Refusal: a kept exception would keep bodies in memory."""
    try:
        return function(*args)
    except HTTPException as e:
        return Refusal(text(e.code, e.description))
    except Exception:
        logger.exception('A request failed')
        return Refusal(text(500, "The script failed on this request; the container's log has the traceback."))


def text(status, sentence):
    """Return a response of one sentence."""
    return status, (sentence + '\n').encode(), [('Content-Type', 'text/plain; charset=utf-8')]
