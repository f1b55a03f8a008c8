"""The bars follow a drawing; this test makes README's picture of that. To make it anew, then look at it:

PAD_GIF=docs/pad.gif .venv/bin/python -m pytest tests/browser/test_picture.py
"""

import io
import os

import numpy as np
from PIL import Image
from support import HTML, LISTEN

import chainer_mnist_single_machine as script

# A four in two strokes, in parts of the pad's sides.
STROKES = [[(0.36, 0.16), (0.33, 0.3), (0.29, 0.45), (0.27, 0.57), (0.45, 0.57), (0.6, 0.56), (0.76, 0.55)],
           [(0.62, 0.32), (0.61, 0.45), (0.6, 0.6), (0.59, 0.74), (0.58, 0.88)]]  # fmt: skip
ASK = """addEventListener('digit', event => {
    event.preventDefault();
    event.detail.respondWith(ask(event.detail.data));
})"""


def test_the_bars_follow_the_drawing(page, model, tmp_path):
    answers, frames = [], []
    predictor = script.model_fn(str(model))

    def ask(data):
        answers.append(predictor(np.array(data, np.float32)).array[0].tolist())
        return answers[-1]

    page.expose_function('ask', ask)
    page.set_content(f'<div style="width: 520px">{HTML}</div>')  # takes the listeners away
    page.evaluate(LISTEN)
    page.evaluate(ASK)
    pad = page.locator('.digit-pad')
    box = pad.locator('.ink').bounding_box()

    def look(milliseconds):
        image = Image.open(io.BytesIO(pad.screenshot()))
        frames.append((image.convert('P', palette=Image.ADAPTIVE, colors=64), milliseconds))

    look(700)
    for number, stroke in enumerate(STROKES, 1):
        for i, (x, y) in enumerate(stroke):
            page.mouse.move(box['x'] + x * box['width'], box['y'] + y * box['height'], steps=4)
            if not i:
                page.mouse.down()
            look(70)
        page.mouse.up()
        page.wait_for_function(f'() => digits.length == {number}')
        page.wait_for_timeout(300)
        look(2500 if number == len(STROKES) else 900)
    assert len({frame.tobytes() for frame, _ in frames}) > len(frames) - 3  # it moves
    assert len(answers) == len(STROKES) and np.argmax(answers[-1]) == 4 != np.argmax(answers[0])
    path = os.environ.get('PAD_GIF', tmp_path / 'pad.gif')
    first, *others = [frame for frame, _ in frames]
    first.save(path, save_all=True, append_images=others, duration=[ms for _, ms in frames], loop=0, optimize=True)
    with Image.open(path) as picture:
        assert picture.n_frames > 10 and os.path.getsize(path) < 300_000
