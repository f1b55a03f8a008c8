// This module predicts with a trained network in the page. It uses no DOM: the tests import it in Node.

// Return the layers from the bytes that page.py packs. For each layer these are: rows, columns (uint32), biases, scales
// (float32), weights (int8, padded to a multiple of four bytes). A row's true weights are its int8 times its scale.
export function unpack(buffer) {
  const layers = [];
  for (let at = 0; at < buffer.byteLength;) {
    const [rows, columns] = new Uint32Array(buffer, at, 2), size = rows * columns;
    const [bias, scale] = [8, 8 + 4 * rows].map(offset => new Float32Array(buffer, at + offset, rows));
    layers.push({rows, columns, bias, scale, weights: new Int8Array(buffer, at + 8 + 8 * rows, size)});
    at += 8 + 8 * rows + 4 * Math.ceil(size / 4);
  }
  return layers;
}

// Return the scores for 784 pixels: linear layers, with ReLU in between.
export function scores(layers, pixels) {
  return Array.from(layers.reduce((x, {rows, columns, bias, scale, weights}, i) => {
    const y = new Float32Array(rows);
    for (let row = 0; row < rows; row++) {
      let sum = 0;
      for (let column = 0, at = row * columns; column < columns; column++, at++) sum += weights[at] * x[column];
      y[row] = bias[row] + scale[row] * sum;
      if (i < layers.length - 1 && y[row] < 0) y[row] = 0;
    }
    return y;
  }, pixels));
}
