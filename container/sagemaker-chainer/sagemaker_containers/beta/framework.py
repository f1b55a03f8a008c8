"""This module keeps names that scripts for AWS's image import from here, such as encoders, worker and modules."""

from sagemaker_chainer_container import formats
from sagemaker_training import (
    content_types,
    entry_point,
    environment,
    errors,
    files,
    functions,
    mapping,
    modules,
    params,
)
from werkzeug.exceptions import NotAcceptable, UnsupportedMediaType
from werkzeug.wrappers import Response

__all__ = ['content_types', 'encoders', 'entry_point', 'env', 'errors', 'files', 'functions', 'mapping']
__all__ += ['modules', 'params', 'training_env', 'worker']
env, training_env = environment, environment.Environment


class encoders:
    """Functions that encode and decode arrays, as this image's server does: no pickle is loaded."""

    array_to_npy, npy_to_numpy = staticmethod(formats.encode_npy), staticmethod(formats.decode_npy)
    array_to_json, array_to_csv = staticmethod(formats.encode_json), staticmethod(formats.encode_csv)

    @staticmethod
    def json_to_numpy(text, dtype=None):
        return formats.decode_json(text).astype(dtype or 'float32')

    @staticmethod
    def csv_to_numpy(text, dtype=None):
        return formats.decode_csv(text).astype(dtype or 'float32')

    @staticmethod
    def decode(body, content_type):
        """Return the array in a body. Raises UnsupportedMediaType (415) for a type that is not known."""
        if content_type not in formats.DECODERS:
            raise UnsupportedMediaType(f'Content-Type must be one of {", ".join(formats.DECODERS)}.')
        return formats.DECODERS[content_type](body)

    @staticmethod
    def encode(array, content_type):
        """Return an array as bytes or str of a type. Raises NotAcceptable (406) for one that is not known."""
        if content_type not in formats.ENCODERS:
            raise NotAcceptable(f'Accept must be one of {", ".join(formats.ENCODERS)}.')
        return formats.ENCODERS[content_type](array)


class worker:
    """The response that output_fn may return."""

    class Response(Response):
        def __init__(self, response=None, accept=None, status=200, mimetype=None):
            super().__init__(response, status, mimetype=mimetype or accept)
