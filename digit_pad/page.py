"""This module writes the pad with a trained network into one HTML file, which needs no kernel or endpoint."""

import base64
import gzip
import os
import pathlib
import re
import struct

import numpy as np
from numpy.typing import NDArray

from digit_pad.build import BROWSER, build

Path = str | os.PathLike[str]
Layer = tuple[NDArray[np.float32], NDArray[np.float32]]  # weights, bias
PAGE = """<!doctype html>
<html lang="en" style="color-scheme: light dark">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; form-action 'none'; base-uri 'none'; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<title>Draw a digit</title>
<body style="margin: 16px">
{pad}
<script type="text/plain" id="network">{network}</script>
<script>
{script}
(async () => {{
  const bytes = Uint8Array.from(atob(document.getElementById('network').textContent), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const layers = unpack(await new Response(stream).arrayBuffer());
  document.querySelector('.digit-pad').dataset.live = '';
  addEventListener('digit', event => {{
    event.preventDefault();
    const [pixels] = event.detail.data;
    event.detail.respondWith(pixels.some(Boolean) ? scores(layers, pixels) : null);
  }});
}})();
</script>
"""


def write(model: Path, path: Path, images: NDArray[np.float32], scores: NDArray[np.float32]) -> None:
    """Write the page, with the network of a model.npz, as training saves it.

    scores: the endpoint's, float32 (N, 10), for images, float32 (N, 784), to check the network. Raises ValueError, and
    writes no page, if it is not one of linear layers with ReLU in between. Weights get seven bits each, which changes
    probabilities by up to 0.02.
    """
    path = pathlib.Path(path)
    path.unlink(missing_ok=True)  # it may be an earlier network's
    layers, x = read(model), images
    for weights, bias in layers:
        x = np.maximum(x, 0) @ weights.T + bias
    fits = layers and x.shape == scores.shape == (len(images), 10)
    if not fits or not np.allclose(x, scores, rtol=0.01, atol=0.01):
        raise ValueError(f'{path} is not written: it supports only linear layers with ReLU in between.')
    script = re.sub('^export ', '', (BROWSER / 'network.js').read_text(), flags=re.MULTILINE)
    network = base64.b64encode(gzip.compress(pack(layers), mtime=0)).decode()
    path.write_text(PAGE.format(pad=build(), network=network, script=script), encoding='ascii')


def read(model: Path) -> list[Layer]:
    """Return [(weights, bias), ...], in the order of their names, or none where there is anything else."""
    with np.load(model, allow_pickle=False) as file:
        arrays = {name: file[name] for name in sorted(file.files, key=lambda name: (len(name), name))}
    layers = [(arrays.pop(name), arrays.pop(name[:-1] + 'b', None)) for name in [*arrays] if name.endswith('/W')]
    sizes = [784] + [weights.shape[0] for weights, _ in layers]
    fit = [weights.shape for weights, _ in layers] == [*zip(sizes[1:], sizes)]
    return layers if fit and not arrays and all(bias is not None for _, bias in layers) else []


def pack(layers: list[Layer]) -> bytes:
    """Return the network as bytes, as network.js unpacks them."""
    parts = []
    for weights, bias in layers:
        scale = np.abs(weights).max(axis=1) / 63
        rows = np.round(weights / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
        part = struct.pack('<II', *weights.shape) + np.array([bias, scale], '<f4').tobytes() + rows.tobytes()
        parts.append(part + bytes(-len(part) % 4))
    return b''.join(parts)
