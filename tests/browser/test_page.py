"""output/pad.html works from a file, predicts during drawing, and predicts as the model does."""

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from support import LISTEN, ONE, load, move, says

import chainer_mnist_single_machine as script
from digit_pad.page import write


@pytest.fixture(scope='module')
def path(model, small_mnist, tmp_path_factory):
    path = tmp_path_factory.mktemp('page') / 'pad.html'
    images = load(small_mnist / 'test' / 'test.npz')['images'][:100]
    write(model / 'model.npz', path, images, script.model_fn(model)(images).array)
    return path


def test_a_finger_is_read_while_it_draws_and_nothing_is_asked_for(page, path):
    asked = []
    page.on('request', lambda request: asked.append(request.url))
    page.set_viewport_size({'width': 390, 'height': 844})
    page.goto(path.as_uri())
    pad = page.locator('.digit-pad')
    says(pad, 'Draw a digit here')
    box = pad.locator('.ink').bounding_box()
    session = page.context.new_cdp_session(page)
    places = [(box['x'] + x * box['width'], box['y'] + y * box['height']) for x, y in ONE]
    for kind, (x, y) in zip(['Start', 'Move', 'Move'], places):
        move(session, 'touch', kind, x, y)
    says(pad, 'Looks like')  # before the finger is up
    move(session, 'touch', 'End')
    pad.get_by_role('button', name='Clear').click()
    says(pad, '')
    assert asked == [path.as_uri()] and path.stat().st_size < 2_000_000


def test_its_answers_are_the_models(page, path, model, small_mnist):
    images = load(small_mnist / 'test' / 'test.npz')['images']
    page.goto(path.as_uri())
    page.evaluate(LISTEN)
    says(page.locator('.digit-pad'), 'Draw a digit here')
    found = page.evaluate(
        """async images => {
            const ask = data => new Promise(resolve => {
                const detail = {data: [data], respondWith: resolve};
                document.body.dispatchEvent(new CustomEvent('digit', {bubbles: true, detail}));
            });
            return Promise.all(images.map(ask));
        }""",
        images.tolist(),
    )
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        scores = script.model_fn(model)(images)
        expected = chainer.functions.softmax(scores).array
        found = chainer.functions.softmax(np.array(found, np.float32)).array
    assert len(found) == 1000 and np.abs(found - expected).max() < 0.05
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.998


class Sigmoid(script.MLP):
    def forward(self, x):
        return self.l3(F.sigmoid(self.l2(F.sigmoid(self.l1(x)))))


@pytest.mark.parametrize(
    'network',
    [
        Sigmoid(20),
        chainer.Sequential(L.Linear(784, 20), L.BatchNormalization(20), L.Linear(20, 10)),
        chainer.Sequential(lambda x: x.reshape(-1, 1, 28, 28), L.Convolution2D(1, 4, 3), L.Linear(None, 10)),
    ],
    ids=['sigmoid', 'normalised', 'convolution'],
)
def test_another_network_is_refused_and_leaves_no_page_of_an_earlier_one(tmp_path, network):
    images = np.random.RandomState(0).rand(3, 784).astype(np.float32)
    scores = network(images).array
    chainer.serializers.save_npz(tmp_path / 'model.npz', network)
    (tmp_path / 'pad.html').write_text('an earlier one')
    with pytest.raises(ValueError, match='pad.html is not written: it supports only linear layers with ReLU'):
        write(tmp_path / 'model.npz', tmp_path / 'pad.html', images, scores)
    assert not (tmp_path / 'pad.html').exists()
