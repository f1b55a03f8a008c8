"""What the tests of the pad share: the page, and hands that draw on it."""

import pathlib
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
HTML = (ROOT / 'input.html').read_text(encoding='ascii')  # notebooks open() it with the locale's encoding
BLANK = [[0.0] * 784]
ONE = (0.4, 0.3), (0.5, 0.15), (0.5, 0.85)  # parts of the pad's sides
FOOT = (0.3, 0.85), (0.7, 0.85)

# Only an event that bubbles arrives at the window.
LISTEN = """digits = []; addEventListener('digit', event => digits.push(event.detail.data));"""


def wait_for(get, seconds=60):
    """The first true result of get()."""
    deadline = time.monotonic() + seconds
    while True:
        result = get()
        if result:
            return result
        assert time.monotonic() < deadline, f'waited {seconds} s in vain'
        time.sleep(0.1)


def draw(pad, *points, pointer='mouse'):
    """Draw a stroke with the mouse, a finger ('touch') or a pen; return its digit event's data."""
    page = pad.page
    before = page.evaluate('digits.length')
    canvas = pad.locator('.ink')
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    places = [(box['x'] + x * box['width'], box['y'] + y * box['height']) for x, y in points]
    if pointer == 'mouse':
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=1 if len(places) > 5 else 3)
        page.mouse.up()
    else:
        session = page.context.new_cdp_session(page)
        if pointer == 'touch':
            for kind, place in zip(['Start'] + ['Move'] * len(places), places):
                touch(session, kind, place)
            touch(session, 'End')
        else:
            for kind, (x, y) in (
                [('Pressed', places[0])] + [('Moved', p) for p in places] + [('Released', places[-1])]
            ):
                session.send(
                    'Input.dispatchMouseEvent',
                    {
                        'type': 'mouse' + kind,
                        'x': x,
                        'y': y,
                        'button': 'left',
                        'buttons': kind != 'Released' and 1 or 0,
                        'clickCount': 1,
                        'pointerType': 'pen',
                        'force': 0.5,
                    },
                )
        session.detach()
    wait_for(lambda: page.evaluate('digits.length') > before)
    assert page.evaluate('digits.length') == before + 1
    return page.evaluate('digits.at(-1)')


def touch(session, kind, place=None):
    session.send(
        'Input.dispatchTouchEvent',
        {'type': 'touch' + kind, 'touchPoints': [{'x': place[0], 'y': place[1]}] if place else []},
    )


def says(pad, text):
    """Wait until the pad says this."""
    pad.get_by_role('status').filter(has_text=text).wait_for()
