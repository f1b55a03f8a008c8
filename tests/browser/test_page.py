"""output/pad.html works from a file, predicts during drawing, and predicts as the model does."""

import contextlib
import socket

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import playwright.sync_api
import pytest
from support import LISTEN, ONE, load, move, says

import chainer_mnist_single_machine as script
from digit_pad.build import build
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


ASK = """async url => {
    const image = new Image();
    image.src = url + 'image';
    navigator.sendBeacon(url + 'beacon', 'drawn');
    const script = document.createElement('script');
    script.src = url + 'script.js';
    document.body.append(script);
    const form = document.createElement('form');
    Object.assign(form, {action: url + 'form', method: 'POST', target: 'other'});
    document.body.append(form, Object.assign(document.createElement('iframe'), {name: 'other'}));
    form.submit();
    new WebSocket(url.replace('http', 'ws')).onerror = () => {};
    const signal = AbortSignal.timeout(500);
    await fetch(url, {method: 'POST', mode: 'no-cors', body: 'drawn', signal}).catch(() => {});
}"""


def test_it_can_send_nothing_and_holds_only_the_network(page, tmp_path):
    network, path = script.MLP(20), tmp_path / 'pad.html'
    chainer.serializers.save_npz(tmp_path / 'model.npz', network)
    write(tmp_path / 'model.npz', path, images := np.eye(3, 784, dtype=np.float32), network(images).array)
    with socket.create_server(('127.0.0.1', 0)) as server:
        page.goto(path.as_uri())
        says(page.locator('.digit-pad'), 'Draw a digit here')
        with contextlib.suppress(playwright.sync_api.Error):  # the policy refuses
            page.evaluate(ASK, f'http://127.0.0.1:{server.getsockname()[1]}/')
        page.wait_for_timeout(300)
        server.settimeout(0.1)
        with contextlib.suppress(TimeoutError):  # Chromium connects ahead of what it then does not send
            while True:
                with server.accept()[0] as connection:
                    connection.settimeout(0.1)
                    with contextlib.suppress(TimeoutError):
                        assert connection.recv(1000) == b''
    assert path.stat().st_mode & 0o022 == 0
    parts = path.read_text().replace(build(), '').split('<script')
    assert len(parts) == 3 and 'network' in parts[1] and str(path.parent) not in ''.join(parts)


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
