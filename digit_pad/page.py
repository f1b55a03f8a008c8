"""This module writes the pad with a trained network into one HTML file, which needs no kernel or endpoint."""

import base64
import gzip
import json
import os
import pathlib
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digit_pad.build import BROWSER, build

Path = str | os.PathLike[str]
Array = NDArray[np.float32]
Layer = tuple[dict[str, Any], bytes]  # a layer's description, for JSON; its parameters, packed
PAGE = """<!doctype html>
<html lang="en" style="color-scheme: light dark">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; form-action 'none'; base-uri 'none'; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<title>Draw a digit</title>
<body style="margin: 16px; font-family: sans-serif">
<main><h1>Draw a digit</h1>
{pad}
</main>
<script type="text/plain" id="network">{network}</script>
<script>
{script}
(async () => {{
  const bytes = Uint8Array.from(atob(document.getElementById('network').textContent), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const layers = unpack({layers}, await new Response(stream).arrayBuffer());
  document.querySelector('.digit-pad').dataset.live = '';
  addEventListener('digit', event => {{
    event.preventDefault();
    const [pixels] = event.detail.data;
    event.detail.respondWith(pixels.some(Boolean) ? scores(layers, pixels) : null);
  }});
}})();
</script>
"""


def write(model: Callable[..., Any], path: Path, images: Array, scores: Array) -> None:
    """Write the page, with a network of Chainer, as model_fn returns it.

    scores: the endpoint's, float32 (N, 10), for images, float32 (N, 784), to check the network. Raises ValueError, and
    writes no page, if they are not the network's, or if it is not a chain of the functions in LAYERS. Weights get seven
    bits each, which changes probabilities by up to 0.03.
    """
    path = pathlib.Path(path)
    path.unlink(missing_ok=True)  # it may be an earlier network's
    try:
        layers = trace(model, images, scores)
    except Exception as e:  # of a network that anybody may have written
        raise ValueError(f'{path} is not written: {e}') from e
    script = re.sub('^export ', '', (BROWSER / 'network.js').read_text(), flags=re.MULTILINE)
    network = base64.b64encode(gzip.compress(b''.join(packed for _, packed in layers), mtime=0)).decode()
    described = json.dumps([layer for layer, _ in layers])
    path.write_text(PAGE.format(pad=build(), network=network, script=script, layers=described), encoding='ascii')


def trace(model: Callable[..., Any], images: Array, scores: Array) -> list[Layer]:
    """Return the network's layers in their order, from the graph that Chainer records of a prediction."""
    import chainer  # it made the network; only this function needs it

    x = chainer.Variable(images)
    with chainer.using_config('train', False), chainer.using_config('enable_backprop', True):
        y = model(x)
    if y.shape != scores.shape or y.shape[1:] != (10,) or not np.allclose(y.array, scores, rtol=0.01, atol=0.01):
        raise ValueError("the network's scores are not the endpoint's.")
    node, layers = y.node, []
    while node is not x.node:
        function = node.creator_node
        layers.append(layer(function, node.shape))
        node = function.inputs[0]
    return layers[::-1]


def layer(function: Any, shape: tuple[int, ...]) -> Layer:
    """Return a layer for a function of Chainer; shape: of the function's output."""
    found = None
    if make := LAYERS.get(type(function).__name__):
        nodes = function.inputs[1:]
        arrays = [node.get_variable().array if node.data is None else node.data for node in nodes]
        found = make(function, *arrays)
    before: tuple[int, ...] = function.inputs[0].shape if function else (0,)
    if not found or before[0] != shape[0]:
        raise ValueError(
            'the page supports only linear layers, convolutions without groups or dilation, pooling, batch '
            f'normalisation and ReLU, one after another, not {getattr(function, "label", "constants")}.'
        )
    return {**found[0], 'shape': [*before[1:], 1, 1][:3], 'size': shape[2:] or (1, 1)}, found[1]


def linear(function: Any, weights: Array, bias: Array | None = None) -> Layer:
    """Return a linear layer, which is a convolution of images of one pixel."""
    return {'kind': 'convolve', 'kernel': (1, 1), 'stride': (1, 1), 'pad': (0, 0)}, quantise(weights, bias)


def convolution(function: Any, weights: Array, bias: Array | None = None) -> Layer | None:
    if not function.groups == function.dy == function.dx == 1:
        return None
    window = {'kernel': weights.shape[2:], 'stride': (function.sy, function.sx), 'pad': (function.ph, function.pw)}
    return {'kind': 'convolve', **window}, quantise(weights.reshape(len(weights), -1), bias)


def pooling(function: Any) -> Layer | None:
    kind = 'max' if type(function).__name__.startswith('Max') else 'average'
    if hasattr(function, 'kh'):
        kernel, stride, pad = (function.kh, function.kw), (function.sy, function.sx), (function.ph, function.pw)
    else:
        kernel, stride, pad = function.ksize, function.stride, function.pad
    return ({'kind': kind, 'kernel': kernel, 'stride': stride, 'pad': pad}, NOTHING) if len(kernel) == 2 else None


def normalisation(function: Any, gamma: Array, beta: Array, mean: Array, variance: Array) -> Layer | None:
    scale = gamma / np.sqrt(variance + function.eps)
    per_channel = function.axis in ((0,), (0, 2, 3))
    return ({'kind': 'scale'}, pack(beta - mean * scale, scale)) if per_channel else None


def quantise(weights: Array, bias: Array | None) -> bytes:
    """Return weights as seven bits each and a scale for each row, with the bias, packed."""
    scale = np.abs(weights).max(axis=1) / 63
    rows = np.round(weights / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
    return pack(np.zeros(len(rows)) if bias is None else bias, scale, rows)


def pack(bias: Any = (), scale: Any = (), rows: NDArray[np.int8] | None = None) -> bytes:
    """Return a layer's parameters as bytes, as network.js unpacks them."""
    weights = np.empty((len(bias), 0), np.int8) if rows is None else rows
    part = struct.pack('<II', *weights.shape) + np.array([bias, scale], '<f4').tobytes() + weights.tobytes()
    return part + bytes(-len(part) % 4)


NOTHING = pack()
# By the names of functions in Chainer's graph. One returns None if the page does not support its arguments.
LAYERS: dict[str, Callable[..., Layer | None]] = {
    'LinearFunction': linear,
    'Convolution2DFunction': convolution,
    'MaxPoolingND': pooling,
    'AveragePooling2D': pooling,
    'FixedBatchNormalization': normalisation,
    'ReLU': lambda function: ({'kind': 'relu'}, NOTHING),
    'Reshape': lambda function: ({'kind': 'reshape'}, NOTHING),
}
