"""input.html: the pixels it computes (in Node), and the pad on a page without Jupyter (in Chromium)."""

import json
import runpy
import shutil

import numpy as np
import pytest

from benchmarks.drawings import STYLES, drawings, run_raster
from pad import BLANK, FOOT, HTML, LISTEN, ONE, ROOT, draw, says, touch


def test_input_html_is_built_from_its_sources(tmp_path):
    """And from every one of them."""
    build = runpy.run_path(str(ROOT / 'pad' / 'build.py'))['build']
    assert build() == HTML, 'python pad/build.py'
    for source in 'pad.html', 'pad.css', 'raster.js', 'kernel.js', 'pad.js':
        folder = shutil.copytree(ROOT / 'pad', tmp_path / source)
        with (folder / source).open('a') as file:
            file.write('changed\n')
        assert build(folder) != HTML, source


def rasterise(*strokes):
    """The image (28, 28) that the pad makes of strokes in its coordinates, 280 x 280."""
    pixels = run_raster(f'rasterise({json.dumps(strokes)})')
    assert len(pixels) == 784 and None not in pixels  # JSON's NaN
    assert all(0 <= pixel <= 1 for pixel in pixels)
    return np.reshape(pixels, (28, 28))


def arc(x, y, rx, ry, start=0, stop=360):
    angles = np.radians(np.linspace(start, stop, 60))
    return np.transpose([x + rx * np.cos(angles), y + ry * np.sin(angles)]).tolist()


def centre(image):
    rows, columns = np.mgrid[:28, :28]
    return (rows * image).sum() / image.sum(), (columns * image).sum() / image.sum()


def sides(image, above=0.5):
    return [np.ptp(np.flatnonzero((image > above).any(axis))) + 1 for axis in (1, 0)]


def test_drawings_have_the_statistics_of_mnist():
    """MNIST's training images: the longer side is 20 pixels, the centre of mass 14 before rounding
    to whole pixels, mean ink 0.131, and 29 % of the inked pixels are white (0.99 or more)."""
    many, _ = drawings(STYLES, 10, seed=2)
    images = np.reshape(run_raster(f'{json.dumps(many)}.map(rasterise)'), (-1, 28, 28))
    assert {max(sides(image, above=0)) for image in images} == {20}
    centres = np.array([centre(image) for image in images])
    assert abs(centres - 14).max() < 0.52
    assert centres.mean(0) == pytest.approx([14, 14], abs=0.05)
    assert images.mean() == pytest.approx(0.131, abs=0.008)
    assert (images >= 0.99).sum() / (images > 0).sum() == pytest.approx(0.29, abs=0.02)


def test_nothing_drawn_is_black():
    assert not rasterise().any()


@pytest.mark.parametrize('stroke', [[[3, 277]], [[140, 140], [140, 140], [141, 140]]])
def test_a_dot_is_a_small_blob(stroke):
    image = rasterise(stroke)
    assert 4 < image.sum() < 12 and max(sides(image)) <= 4
    assert centre(image) == pytest.approx((14, 14), abs=0.51)


@pytest.mark.parametrize(
    'strokes',
    [
        [[[40, 60], [200, 60]]],  # a horizontal line
        [[[30, 10], [31, 270]]],
        [[[100, 80], [140, 40], [140, 240]]],  # 1
        [arc(100, 180, 60, 80)],  # 0
        [arc(200, 60, 30, 30), arc(200, 120, 40, 30)],  # 8
        [[[60, 40], [220, 40], [110, 250]]],  # 7
        [[[150, 20], [60, 170], [230, 170]], [[190, 100], [190, 260]]],  # 4
        [[[270, 0], [0, 150], [279, 300]]],  # partly off the pad
    ],
)
def test_digits_have_mnist_size_place_and_stroke(strokes):
    image = rasterise(*strokes)
    assert max(sides(image, above=0)) == 20
    assert centre(image) == pytest.approx((14, 14), abs=0.51)
    length = sum(np.hypot(*np.diff(stroke, axis=0).T).sum() for stroke in map(np.array, strokes))
    scale = (20 - 2.79) / max(np.ptp(np.concatenate(strokes), axis=0))
    assert image.sum() / (length * scale) == pytest.approx(2.79, abs=0.5)  # less at crossings, more at ends


def test_a_stroke_is_as_wide_as_in_mnist():
    angles = np.linspace(0, np.pi, 30)
    x, y = np.cos(angles), np.sin(angles)
    lines = [[[[140, 140], [140 + 100 * dx, 140 + 100 * dy]]] for dx, dy in zip(x, y)]
    ink = np.sum(run_raster(f'{json.dumps(lines)}.map(rasterise)'), axis=1)
    lengths = (20 - 2.79) / np.maximum(abs(x), abs(y)) + np.pi / 4 * 2.79  # the ends are two half discs
    widths = ink / lengths
    assert widths == pytest.approx([2.79] * 30, abs=0.15) and np.mean(widths) == pytest.approx(2.79, abs=0.03)


def test_a_line_is_even_and_soft_at_its_edges():
    image = rasterise([[40, 60], [200, 60]])
    across = image[12:17, 7:21]
    assert (across == across[:, :1]).all()
    assert (
        across[2, 0] == 1
        and 0.6 < across[1, 0] == across[3, 0] < 0.9
        and 0 < across[0, 0] == across[4, 0] < 0.3
    )
    assert image[:12].max() == image[17:].max() == 0


def test_size_and_place_on_the_pad_do_not_count():
    stroke = np.array(arc(50, 60, 20, 35, 10, 300))
    assert abs(rasterise(stroke.tolist()) - rasterise((stroke * 2.5 + 30).tolist())).max() < 0.002


def test_no_ink_leaves_the_image():
    """An L whose centre of mass, put into the middle, would push its foot out."""
    stroke = [[20, 20], [20, 260], [260, 260], [20, 260], [250, 250], [20, 250]]
    image = rasterise(stroke)
    assert (
        sides(image, above=0)
        == sides(rasterise([[280 - x, 280 - y] for x, y in stroke]), above=0)
        == [20, 20]
    )


def test_probabilities_of_scores():
    scores = [3.5, -2, 0, 1, 1000, 999, 2, 2, 2, 2]
    expected = np.exp(np.array(scores) - 1000)
    assert run_raster(f'probabilities({scores})') == pytest.approx(list(expected / expected.sum()))


def test_probabilities_stay_what_they_are():
    given = [0.02, 0.9, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.008]  # rounded
    assert run_raster(f'probabilities({given})') == given
    assert run_raster(f'probabilities({[given]})') == given


@pytest.mark.parametrize('answer', ['[1, 2]', '[1, 2, 3, 4, 5, 6, 7, 8, 9, NaN]', '"0123456789"', '{}'])
def test_what_is_not_ten_numbers_is_no_answer(answer):
    code = f'(() => {{ try {{ probabilities({answer}) }} catch ({{message}}) {{ return message }} }})()'
    assert run_raster(code) == 'The endpoint did not answer with ten numbers.'


def show(page, html):
    page.set_content(html)  # takes the listeners away
    page.evaluate(LISTEN)
    return page.locator('.digit-pad')


def shares(pad):
    return pad.locator('li b').all_inner_texts()


@pytest.mark.browser
@pytest.mark.parametrize('pointer', ['mouse', 'touch', 'pen'])
def test_without_jupyter_the_pad_says_why_it_does_not_send(page, pointer):
    pad = show(page, HTML)
    data = draw(pad, *ONE, pointer=pointer)
    says(pad, 'Not sent: this page has no Jupyter server')
    assert len(data) == 1 and len(data[0]) == 784 and 0.04 < np.mean(data) < 0.2
    assert centre(np.reshape(data, (28, 28))) == pytest.approx((14, 14), abs=0.51)


@pytest.mark.browser
def test_a_listener_can_take_the_digit_and_answer(page):
    pad = show(page, HTML)
    page.evaluate("""answers = []; addEventListener('digit', event => {
        event.preventDefault();
        event.detail.respondWith(new Promise((resolve, reject) => answers.push({resolve, reject})));
    })""")
    draw(pad, *ONE)
    page.evaluate('answers[0].resolve([0, 9, 1, 0, 0, 0, 0, 0, 0, 0])')
    says(pad, 'Looks like 1.')
    assert shares(pad) == ['0 %', '100 %'] + ['0 %'] * 8
    assert pad.locator('li.best').inner_text().split() == ['1', '100', '%']
    assert pad.locator('li.best i').bounding_box()['width'] > 90
    assert len({row.bounding_box()['height'] for row in pad.locator('li').all()}) == 1  # 100 % is not wrapped

    draw(pad, *FOOT)
    draw(pad, *FOOT)
    page.evaluate('answers[2].resolve([0, 0, 0, 0.25, 0.75, 0, 0, 0, 0, 0])')
    says(pad, 'Looks like 4.')
    page.evaluate('answers[1].resolve([9, 0, 0, 0, 0, 0, 0, 0, 0, 0])')  # too late: for an older drawing
    page.evaluate('Promise.resolve()')
    assert shares(pad)[:5] == ['0 %', '0 %', '0 %', '25 %', '75 %']

    draw(pad, *FOOT)
    says(pad, 'Waiting for the kernel and the endpoint')
    page.evaluate("answers[3].reject(Error('Out of order.'))")
    says(pad, 'Out of order.')
    assert shares(pad) == [''] * 10
    draw(pad, *FOOT)
    page.evaluate('answers[4].resolve([1, 2])')
    says(pad, 'The endpoint did not answer with ten numbers.')


@pytest.mark.browser
def test_a_listener_need_not_answer(page):
    pad = show(page, HTML)
    page.evaluate("addEventListener('digit', event => event.preventDefault())")
    draw(pad, *ONE)
    assert pad.get_by_role('status').inner_text() == ''


@pytest.mark.browser
def test_undo_and_clear_with_the_mouse_and_with_keys(page):
    pad = show(page, HTML)
    one = draw(pad, *ONE)
    assert draw(pad, *FOOT) != one
    pad.get_by_role('button', name='Undo').click()
    assert page.evaluate('digits.at(-1)') == one
    pad.get_by_role('button', name='Clear').click()
    assert page.evaluate('digits.at(-1)') == BLANK
    pad.get_by_role('button', name='Undo').click()  # there is nothing
    assert page.evaluate('digits.length') == 4
    assert draw(pad, *ONE) == one
    page.keyboard.press('Tab')
    page.keyboard.press('Tab')
    page.keyboard.press('Enter')
    assert page.evaluate('digits.at(-1)') == BLANK


@pytest.mark.browser
def test_two_pads_and_other_buttons_and_keys(page):
    first, second = show(page, HTML + HTML).all()
    one = draw(first, *ONE)
    assert draw(second, *FOOT) != one
    page.evaluate('addEventListener("keydown", event => prevented = event.defaultPrevented)')
    page.keyboard.press('Control+s')
    assert page.evaluate('prevented') is False
    second.locator('.ink').click(button='right')
    assert page.evaluate('digits.length') == 2


@pytest.mark.browser
def test_a_finger_that_the_system_takes_away_ends_the_stroke(page):
    pad = show(page, HTML)
    box = pad.locator('.ink').bounding_box()
    session = page.context.new_cdp_session(page)
    for kind, x in ('Start', 50), ('Move', 90), ('Move', 200), ('Cancel', None):
        touch(session, kind, x and (box['x'] + x, box['y'] + 100))
    says(pad, 'Not sent')
    ((pixels,),) = page.evaluate('digits')
    assert sides(np.reshape(pixels, (28, 28))) == pytest.approx([3, 20], abs=1)


@pytest.mark.browser
@pytest.mark.parametrize('pointer', ['mouse', 'touch', 'pen'])
def test_a_stroke_that_leaves_the_pad_goes_on(page, pointer):
    pad = show(page, '<div style="padding: 100px">' + HTML)
    (pixels,) = draw(pad, (0.5, 0.5), (1.2, 0.5), (1.2, 0.9), (0.5, 0.9), pointer=pointer)
    assert sides(np.reshape(pixels, (28, 28))) == pytest.approx([13, 20], abs=1)
    draw(pad, *ONE, pointer=pointer)  # and ended well


@pytest.mark.browser
def test_a_page_that_moves_does_not_bend_the_stroke(page):
    pad = show(page, HTML)
    page.evaluate(
        'addEventListener("pointermove", event => event.buttons && (document.body.style.marginTop = "40px"))'
    )
    (pixels,) = draw(pad, (0.2, 0.5), (0.5, 0.5), (0.8, 0.5))
    assert sides(np.reshape(pixels, (28, 28))) == pytest.approx([3, 20], abs=1)


@pytest.mark.browser
def test_a_fast_stroke_has_no_gaps(page):
    """Two places, far apart, with nothing reported between them."""
    pad = show(page, HTML)
    (pixels,) = draw(pad, (0.2, 0.5), (0.4, 0.5), (0.5, 0.5), (0.7, 0.5), (0.75, 0.5), (0.8, 0.5))
    image = np.reshape(pixels, (28, 28))
    assert (image.max(axis=0)[6:21] == 1).all()


@pytest.mark.browser
def test_the_preview_shows_what_is_sent(page):
    pad = show(page, HTML)
    (pixels,) = draw(pad, *ONE)
    shown = pad.locator('.seen').evaluate(
        'canvas => [...canvas.getContext("2d").getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0)'
    )
    assert shown == pytest.approx([255 * value for value in pixels], abs=1)


@pytest.mark.browser
def test_sharp_on_a_dense_screen_and_right_where_the_pad_is_narrow(chromium):
    context = chromium.new_context(device_scale_factor=2)
    page = context.new_page()
    pad = show(page, '<div style="width: 166px">' + HTML)  # 150 and the padding
    assert page.locator('.ink').evaluate('canvas => canvas.width') == 560
    data = draw(pad, (0.2, 0.5), (0.8, 0.5))
    ink = page.locator('.ink').evaluate("""canvas => [120, 280, 440, 80].map(
        x => canvas.getContext('2d').getImageData(x, 280, 1, 1).data[0])""")
    assert ink == [255, 255, 255, 0]
    assert sides(np.reshape(data, (28, 28))) == pytest.approx([3, 20], abs=1)
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    context.close()


FAILURES = {
    'silent once': None,
    'down': 'the Jupyter server does not answer',
    'forbidden': 'the Jupyter server refused to list its kernels (403)',
    'no kernel': 'no kernel runs for sub/x y.ipynb (start it, then draw on)',
    'closed': 'the connection to the kernel broke',
    'died': 'the kernel stopped.',
    'shut down': 'the kernel stopped.',
    'gone': 'the kernel stopped.',
    'idle without an answer': 'the kernel stopped.',
    'error': 'the kernel could not take it (MemoryError)',
    'outside': 'this pad is not inside its notebook',
}


@pytest.mark.browser
@pytest.mark.parametrize('failure', FAILURES)
def test_failures_are_said(page, failure):
    """Against a server that is made up."""
    paths = ['y.ipynb', 'x y.ipynb', 'a/sub/x y.ipynb'] + ['sub/x y.ipynb'] * (failure != 'no kernel')

    messages = []

    def serve(route):
        if '/api/' not in route.request.url:
            route.fulfill(
                content_type='text/html',
                body=''.join(
                    [
                        '<script id="jupyter-config-data" type="application/json">',
                        '{"baseUrl": "/base/", "token": "t"}</script>',
                        '<div class="jp-NotebookPanel">' * (failure != 'outside'),
                        HTML,
                    ]
                ),
            )
        elif failure == 'down':
            route.abort()
        elif 'api/kernels/sub' in route.request.url:
            route.fulfill(status=404 if failure == 'gone' else 200, json={'execution_state': 'idle'})
        else:
            assert route.request.headers['authorization'] == 'token t'
            route.fulfill(
                status=403 if failure == 'forbidden' else 200,
                json=[
                    {'path': 'sub/x y.ipynb', 'type': 'console', 'kernel': {'id': 'console'}},
                    *({'path': path, 'type': 'notebook', 'kernel': {'id': path[:3]}} for path in paths),
                ],
            )

    def answer(socket):
        assert '/base/api/kernels/sub/channels' in socket.url

        def on_message(text):
            message = json.loads(text)
            assert message['content']['code'].startswith('data = [[0.0000, ')
            if failure == 'closed':
                return socket.close()
            messages.append(message)
            if (
                failure in ('gone', 'idle without an answer')
                or failure == 'silent once'
                and len(messages) == 1
            ):
                return None
            kind, content = {
                'died': ('status', {'execution_state': 'dead'}),
                'shut down': ('shutdown_reply', {'restart': True}),
                'silent once': ('execute_reply', {'status': 'ok'}),
                'error': ('execute_reply', {'status': 'error', 'ename': 'MemoryError'}),
            }[failure]
            socket.send(
                json.dumps({'msg_type': kind, 'content': content, 'parent_header': message['header']})
            )

        socket.on_message(on_message)

    page.route('http://jupyter.test/**', serve)
    page.route_web_socket('ws://jupyter.test/**', answer)
    page.goto('http://jupyter.test/base/lab/workspaces/auto-q/tree/sub/x%20y.ipynb')
    pad = page.locator('.digit-pad')
    draw(pad, *ONE)
    if failure == 'silent once':
        says(pad, 'Sent to data.')
        assert len(messages) == 2 and messages[0]['content'] == messages[1]['content']
    else:
        says(pad, 'Not sent: ' + FAILURES[failure])
