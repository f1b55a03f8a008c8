// This module turns strokes into 784 pixels, and scores into probabilities. It uses no DOM: tests import it in Node.

export const SIZE = 280;  // the pad's coordinates
// MNIST's image, the box that the digit fills, the mean stroke width, and the width of its soft edges, with which
// 29 % of the inked pixels are fully white.
export const GRID = 28;
const BOX = 20, INK = 2.79, SOFT = 1.5;
const DOT = SIZE / 10;  // a drawing whose sides are shorter is a dot

// Return the grey values, row by row, of a width x height image of strokes [[[x, y], ...], ...] mapped by
// (x * scale + dx, y * scale + dy). A value is the depth of the pixel's centre in the ink; caps and joins are round.
function paint(strokes, scale, dx, dy, width, height) {
  const pixels = new Array(width * height).fill(0), reach = (INK + SOFT) / 2;
  const range = (a, b, size) => [Math.max(0, Math.floor(Math.min(a, b) - reach)),
                                 Math.min(size - 1, Math.ceil(Math.max(a, b) + reach))];
  for (const stroke of strokes) stroke.forEach((end, i) => {
    const [[ax, ay], [bx, by]] = [stroke[Math.max(0, i - 1)], end].map(([x, y]) => [x * scale + dx, y * scale + dy]);
    const ux = bx - ax, uy = by - ay, length2 = ux * ux + uy * uy;
    const [left, right] = range(ax, bx, width), [top, bottom] = range(ay, by, height);
    for (let row = top; row <= bottom; row++) for (let column = left; column <= right; column++) {
      const x = column + 0.5 - ax, y = row + 0.5 - ay;
      const t = length2 && Math.min(1, Math.max(0, (x * ux + y * uy) / length2));
      const value = Math.min(1, (reach - Math.hypot(x - t * ux, y - t * uy)) / SOFT), at = row * width + column;
      if (value > pixels[at]) pixels[at] = value;
    }
  });
  return pixels;
}

// Return the left, right, top and bottom end of strokes that have points.
function ends(strokes) {
  const points = strokes.flat();
  return [0, 1].flatMap(axis => [Math.min, Math.max].map(
    extreme => points.reduce((value, point) => extreme(value, point[axis]), points[0][axis])));
}

// Tell whether strokes are too small for a digit: a dot is one.
export function isDot(strokes) {
  const [left, right, top, bottom] = strokes.flat().length ? ends(strokes) : [0, SIZE, 0, SIZE];
  return Math.max(right - left, bottom - top) < DOT;
}

// Return the 784 pixels of strokes, normalised as MNIST's images were: the digit fills a box whose longer side is
// 20 pixels, and the box is moved by whole pixels so that the centre of mass is at pixel index 14.
export function rasterise(strokes) {
  const image = new Array(GRID * GRID).fill(0);
  if (!strokes.flat().length) return image;
  const [left, right, top, bottom] = ends(strokes);
  // A dot stays small: it is not enlarged to a digit's size.
  const scale = (BOX - INK) / Math.max(DOT, right - left, bottom - top);
  const fit = side => Math.min(BOX, Math.round(side * scale + INK) + 2);  // includes the soft edges, up to BOX
  const width = fit(right - left), height = fit(bottom - top);
  const box = paint(strokes, scale, (width - scale * (left + right)) / 2, (height - scale * (top + bottom)) / 2,
                    width, height);
  const mass = box.reduce((sum, value) => sum + value);
  // 1e-9 makes halves, which straight lines have, round up.
  const place = (size, index) => Math.max(0, Math.min(GRID - size, Math.round(
    GRID / 2 + 1e-9 - box.reduce((sum, value, i) => sum + value * index(i), 0) / mass)));
  const x = place(width, i => i % width), y = place(height, i => Math.floor(i / width));
  box.forEach((value, i) => {
    image[(y + Math.floor(i / width)) * GRID + x + i % width] = Math.round(value * 1e4) / 1e4;
  });
  return image;
}

// Return ten probabilities: an endpoint's answer, or the softmax of its ten scores. Throws an Error for other answers.
export function probabilities(values) {
  const numbers = Array.isArray(values) ? values.flat() : [];
  if (numbers.length !== 10 || !numbers.every(Number.isFinite)) {
    throw Error('The endpoint did not answer with ten numbers.');
  }
  const total = numbers.reduce((sum, number) => sum + number);
  if (Math.min(...numbers) >= 0 && Math.abs(total - 1) < 0.01) return numbers;
  const exponentials = numbers.map(number => Math.exp(number - Math.max(...numbers)));
  return exponentials.map(value => value / exponentials.reduce((sum, value) => sum + value));
}
