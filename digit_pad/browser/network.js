// This module predicts with a trained network in the page. It uses no DOM: the tests import it in Node.

// Return the layers with their parameters, from the bytes that page.py packs. For each layer these are: rows, columns
// (uint32), biases, scales (float32), weights (int8, padded to a multiple of four bytes). A row's true weights are its
// int8 times its scale.
export function unpack(layers, buffer) {
  let at = 0;
  return layers.map(layer => {
    const [rows, columns] = new Uint32Array(buffer, at, 2), size = rows * columns;
    const [bias, scale] = [8, 8 + 4 * rows].map(offset => new Float32Array(buffer, at + offset, rows));
    const weights = new Int8Array(buffer, at + 8 + 8 * rows, size);
    at += 8 + 8 * rows + 4 * Math.ceil(size / 4);
    return {...layer, rows, columns, bias, scale, weights};
  });
}

// Return valueOf(seen, channel) for each channel and each place of the output. The place's window shows `seen` of each
// channel of x, with `empty` beyond the edges.
function slide(x, {shape: [depth, height, width], kernel, stride, pad, size}, empty, channels, valueOf) {
  const seen = new Float32Array(depth * kernel[0] * kernel[1]), places = size[0] * size[1];
  const y = new Float32Array(channels * places);
  for (let place = 0; place < places; place++) {
    const top = Math.floor(place / size[1]) * stride[0] - pad[0], left = place % size[1] * stride[1] - pad[1];
    for (let layer = 0, at = 0; layer < depth; layer++)
      for (let i = top; i < top + kernel[0]; i++)
        for (let j = left; j < left + kernel[1]; j++, at++)
          seen[at] = i >= 0 && i < height && j >= 0 && j < width ? x[(layer * height + i) * width + j] : empty;
    for (let channel = 0; channel < channels; channel++) y[channel * places + place] = valueOf(seen, channel);
  }
  return y;
}

function pool(x, layer, empty, reduce) {
  const area = layer.kernel[0] * layer.kernel[1];
  return slide(x, layer, empty, layer.shape[0], (seen, i) => reduce(seen.subarray(i * area, (i + 1) * area)));
}

const KINDS = {
  convolve: (x, layer) => slide(x, layer, 0, layer.rows, (seen, row) => {
    let sum = 0;
    for (let i = 0, at = row * layer.columns; i < layer.columns; i++, at++) sum += layer.weights[at] * seen[i];
    return layer.bias[row] + layer.scale[row] * sum;
  }),
  max: (x, layer) => pool(x, layer, -Infinity, values => Math.max(...values)),
  average: (x, layer) => pool(x, layer, 0, values => values.reduce((a, b) => a + b) / values.length),
  scale: (x, {rows, bias, scale}) => x.map((value, i) => {
    const channel = Math.floor(i * rows / x.length);
    return value * scale[channel] + bias[channel];
  }),
  relu: x => x.map(value => Math.max(value, 0)),
  reshape: x => x,
};

// Return the scores for 784 pixels.
export function scores(layers, pixels) {
  return Array.from(layers.reduce((x, layer) => KINDS[layer.kind](x, layer), pixels));
}
