// A trained network in the page: it reads drawings without a kernel and an endpoint. No DOM: the tests import it in Node.

// The layers in the bytes that page.py packs. Of each: rows, columns (uint32), biases, scales (float32), weights (int8,
// up to a multiple of four bytes). A row's weights are to be multiplied by its scale.
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

// The scores of 784 pixels: linear layers, with ReLU in between.
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
