"""The pad works on a page without Jupyter, in Chromium."""

import json

import numpy as np
import pytest
from support import BLANK, FOOT, HTML, LISTEN, ONE, centre, draw, move, run_raster, says, sides


def show(page, html):
    page.set_content(html)  # takes the listeners away
    page.evaluate(LISTEN)
    return page.locator('.digit-pad')


def show_drawn(page, strokes, answer):
    drawn = json.dumps({'strokes': strokes, 'answer': answer})
    return show(page, HTML.replace('class="digit-pad"', f'class="digit-pad" data-drawn=\'{drawn}\''))


def shares(pad):
    return pad.locator('li b').all_inner_texts()


def seen(pad):
    """Return the 28 x 28 pixels that the pad shows, 0 to 255."""
    return pad.locator('.seen').evaluate(
        'canvas => [...canvas.getContext("2d").getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0)'
    )


@pytest.mark.parametrize('pointer', ['mouse', 'touch', 'pen'])
def test_without_jupyter_the_pad_says_why_it_does_not_send(page, pointer):
    pad = show(page, HTML)
    data = draw(pad, *ONE, pointer=pointer)
    says(pad, 'Not sent: this page has no Jupyter server')
    assert len(data) == 1 and len(data[0]) == 784 and 0.04 < np.mean(data) < 0.2
    assert centre(np.reshape(data, (28, 28))) == pytest.approx((14, 14), abs=0.51)


def test_what_was_drawn_before_the_page_was_saved(page):
    """A saved page shows the drawing of an unattended run, and one can continue it."""
    strokes, answer = [[[140, 40], [140, 240]]], [0, 9, 8] + [0] * 7
    pad = show_drawn(page, strokes, answer)
    says(pad, 'Looks like 1, perhaps 2. Sent to data.')
    assert shares(pad)[1:3] == ['73 %', '27 %']
    pixels = run_raster(f'rasterise({strokes})')
    assert seen(pad) == pytest.approx([255 * value for value in pixels], abs=1)
    assert sides(draw(pad, *FOOT)) == sides(run_raster(f'rasterise({[*strokes, [[84, 238], [196, 238]]]})'))


def test_what_was_drawn_before_the_page_was_saved_and_not_read(page):
    pad = show_drawn(page, [[[140, 40], [140, 240]]], None)
    says(pad, 'Sent to data.')
    assert sum(seen(pad)) > 5000 and shares(pad) == [''] * 10


def test_a_listener_can_take_the_digit_and_answer(page):
    pad = show(page, HTML)
    page.evaluate("""answers = []; addEventListener('digit', event => {
        event.preventDefault();
        event.detail.respondWith(new Promise((resolve, reject) => answers.push({resolve, reject})));
    })""")
    draw(pad, *ONE)
    page.evaluate('answers[0].resolve([0, 19, 1, 0, 0, 0, 0, 0, 0, 0])')
    says(pad, 'Looks like 1.')
    assert shares(pad) == ['0 %', '100 %'] + ['0 %'] * 8
    assert pad.locator('li.best').inner_text().split() == ['1', '100', '%']
    assert pad.locator('li.best i').bounding_box()['width'] > 90
    assert len({row.bounding_box()['height'] for row in pad.locator('li').all()}) == 1  # 100 % is not wrapped

    draw(pad, *FOOT)
    draw(pad, *FOOT)
    page.evaluate('answers[2].resolve([0, 0, 0, 0.25, 0.75, 0, 0, 0, 0, 0])')
    says(pad, 'Looks like 4, perhaps 3.')
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
    for answer, words in [
        ('[0, 0, 0, 0.08, 0.55, 0.08, 0.08, 0.07, 0.07, 0.07]', 'Perhaps a 4.'),
        ('[0, 0, 0, 0, 0, 0, 0, 0, 0.55, 0.45]', 'Perhaps an 8 or a 9.'),
    ]:
        draw(pad, *FOOT)
        page.evaluate(f'answers.at(-1).resolve({answer})')
        says(pad, words)


def test_a_dot_is_drawn_but_too_small_to_be_read(page):
    pad = show(page, HTML)
    pad.locator('.ink').click()
    says(pad, 'too small to be read')
    middle = 'canvas => canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data[0]'
    assert pad.locator('.ink').evaluate(middle) == 255 and max(seen(pad)) == 255
    assert page.evaluate('digits.length') == 0 and shares(pad) == [''] * 10
    draw(pad, *ONE)
    says(pad, 'Not sent: this page has no Jupyter server')
    pad.get_by_role('button', name='Undo').click()
    says(pad, 'too small to be read')
    assert page.evaluate('digits.length') == 1


def test_a_listener_need_not_answer(page):
    pad = show(page, HTML)
    page.evaluate("addEventListener('digit', event => event.preventDefault())")
    draw(pad, *ONE)
    assert pad.get_by_role('status').inner_text() == ''


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
    draw(pad, *FOOT)
    page.keyboard.press('Control+z')
    assert page.evaluate('digits.at(-1)') == one
    page.keyboard.press('Tab')
    page.keyboard.press('Tab')
    page.keyboard.press('Enter')
    assert page.evaluate('digits.at(-1)') == BLANK
    draw(pad, *ONE)
    page.keyboard.press('Delete')
    assert page.evaluate('digits.at(-1)') == BLANK


def test_on_a_phone_the_bars_stand_above_the_drawing(page):
    page.set_viewport_size({'width': 390, 'height': 700})
    pad = show(page, HTML)
    page.evaluate(
        """addEventListener('digit', event => {
            event.preventDefault();
            event.detail.respondWith(Promise.resolve([0, 9, 0, 0, 0, 0, 0, 5, 0, 0]), '');
        })"""
    )
    draw(pad, *ONE)
    says(pad, 'Looks like 1.')
    best, canvas, status = (pad.locator(name).bounding_box() for name in ('li.best i', '.ink', '[role=status]'))
    assert best['y'] + best['height'] < canvas['y'] and 30 < best['height'] < 40
    assert canvas['width'] >= 340 and status['y'] + status['height'] < 700


def test_two_pads_and_other_buttons_and_keys(page):
    first, second = show(page, HTML + HTML).all()
    one = draw(first, *ONE)
    assert draw(second, *FOOT) != one
    page.evaluate('addEventListener("keydown", event => prevented = event.defaultPrevented)')
    page.keyboard.press('Control+s')
    assert page.evaluate('prevented') is False
    second.locator('.ink').click(button='right')
    assert page.evaluate('digits.length') == 2


def test_a_finger_that_the_system_takes_away_ends_the_stroke(page):
    pad = show(page, HTML)
    box = pad.locator('.ink').bounding_box()
    session = page.context.new_cdp_session(page)
    for kind, x in ('Start', 50), ('Move', 90), ('Move', 200), ('Cancel', 200):
        move(session, 'touch', kind, box['x'] + x, box['y'] + 100)
    says(pad, 'Not sent')
    ((pixels,),) = page.evaluate('digits')
    assert sides(pixels) == pytest.approx([3, 20], abs=1)


@pytest.mark.parametrize('pointer', ['mouse', 'touch', 'pen'])
def test_a_stroke_that_leaves_the_pad_goes_on(page, pointer):
    pad = show(page, '<div style="padding: 100px">' + HTML)
    (pixels,) = draw(pad, (0.5, 0.5), (1.2, 0.5), (1.2, 0.9), (0.5, 0.9), pointer=pointer)
    assert sides(pixels) == pytest.approx([13, 20], abs=1)
    draw(pad, *ONE, pointer=pointer)  # and ended well


def test_a_page_that_moves_does_not_bend_the_stroke(page):
    pad = show(page, HTML)
    page.evaluate('addEventListener("pointermove", event => event.buttons && (document.body.style.marginTop = "40px"))')
    (pixels,) = draw(pad, (0.2, 0.5), (0.5, 0.5), (0.8, 0.5))
    assert sides(pixels) == pytest.approx([3, 20], abs=1)


def test_a_fast_stroke_has_no_gaps(page):
    """Two distant points without any between them give one line."""
    pad = show(page, HTML)
    (pixels,) = draw(pad, (0.2, 0.5), (0.4, 0.5), (0.5, 0.5), (0.7, 0.5), (0.75, 0.5), (0.8, 0.5))
    image = np.reshape(pixels, (28, 28))
    assert (image.max(axis=0)[6:21] == 1).all()


def test_the_preview_shows_what_is_sent(page):
    pad = show(page, HTML)
    (pixels,) = draw(pad, *ONE)
    assert seen(pad) == pytest.approx([255 * value for value in pixels], abs=1)


def test_sharp_on_a_dense_screen_and_right_where_the_pad_is_narrow(chromium):
    context = chromium.new_context(device_scale_factor=2)
    page = context.new_page()
    pad = show(page, '<div style="width: 166px">' + HTML)  # 150 and the padding
    assert page.locator('.ink').evaluate('canvas => canvas.width') == 560
    data = draw(pad, (0.2, 0.5), (0.8, 0.5))
    ink = page.locator('.ink').evaluate("""canvas => [120, 280, 440, 80].map(
        x => canvas.getContext('2d').getImageData(x, 280, 1, 1).data[0])""")
    assert ink == [255, 255, 255, 0]
    assert sides(data) == pytest.approx([3, 20], abs=1)
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    context.close()
