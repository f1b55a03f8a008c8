"""The pad with a trained network in it, as one file that needs no kernel, no endpoint and no network."""

import base64
import gzip
import pathlib
import re
import struct

import numpy as np

PAD = pathlib.Path(__file__).parent
PAGE = """<!doctype html>
<html lang="en" style="color-scheme: light dark">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
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


def write(model, path):
    """Write the page.

    model: a model.npz, as training saves it, of linear layers with ReLU in between, from 784 pixels to ten
    scores; any other is a ValueError. Its weights get seven bits each, which changes a probability by 0.02.
    """
    script = re.sub('^export ', '', (PAD / 'network.js').read_text(), flags=re.MULTILINE)
    network = base64.b64encode(gzip.compress(pack(model), mtime=0)).decode()
    pad = (PAD.parent / 'input.html').read_text(encoding='ascii')
    pathlib.Path(path).write_text(PAGE.format(pad=pad, network=network, script=script), encoding='ascii')


def pack(model):
    """The network as bytes, as network.js unpacks them."""
    with np.load(model) as file:
        names = sorted(name for name in file.files if name.endswith('/W'))  # l1, l2 and so on
        layers = [(file[name], file[name[:-1] + 'b']) for name in names]
        others = {*file.files} - {*names} - {name[:-1] + 'b' for name in names}
    sizes = [784, *(len(bias) for _, bias in layers)]
    if others or sizes[-1] != 10 or [weights.shape for weights, _ in layers] != [*zip(sizes[1:], sizes)]:
        raise ValueError('The page takes networks of linear layers, from 784 pixels to ten scores, only.')
    parts = []
    for weights, bias in layers:
        scale = np.abs(weights).max(axis=1) / 63
        rows = np.round(weights / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
        part = struct.pack('<II', *weights.shape) + np.array([bias, scale], '<f4').tobytes() + rows.tobytes()
        parts.append(part + bytes(-len(part) % 4))
    return b''.join(parts)
