"""Synthetic drawings of digits as pen strokes, to measure how well the pad and the model read hands.

STYLES[digit] lists the ways in which people write a digit; HELD_OUT holds other ways, on which
nothing was ever chosen. A style is a list of strokes in the unit square, x to the right, y down.
"""
import numpy as np


def line(*points):
    """Straight segments through points (x, y); return an array (N, 2)."""
    points = np.array(points, float)
    return np.concatenate([a + (b - a) * np.linspace(0, 1, 15)[:, None]
                           for a, b in zip(points, points[1:])])


def curve(*points):
    """A smooth (Catmull-Rom) curve through points (x, y); return an array (N, 2)."""
    p = np.array([points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, 15)[:, None]
    return np.concatenate([
        .5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t ** 2 + (3 * b - a - 3 * c + d) * t ** 3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:])])


def oval(x, y, rx, ry, start=-90, stop=-450):
    """Part of an ellipse; degrees, 0 is to the right, growing clockwise on the screen."""
    angles = np.radians(np.linspace(start, stop, 60))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


STYLES = {
    0: [[oval(.5, .5, .3, .45)],
        [oval(.5, .5, .22, .45, -60, -440)],  # ends past its beginning
        [oval(.5, .5, .36, .42, -120, 230)],
        [oval(.5, .5, .33, .36, -90, -435)]],  # leaves a gap
    1: [[line((.5, .05), (.5, .95))],
        [line((.3, .3), (.52, .05), (.52, .95))],
        [line((.33, .25), (.5, .05), (.5, .95)), line((.28, .95), (.72, .95))],  # with a foot
        [line((.62, .05), (.4, .95))]],
    2: [[curve((.2, .25), (.35, .07), (.65, .07), (.75, .3), (.5, .65), (.2, .93)), line((.2, .93), (.8, .93))],
        [np.concatenate([curve((.2, .25), (.4, .06), (.7, .15), (.68, .4), (.4, .75), (.2, .92)),
                         curve((.2, .92), (.3, .78), (.45, .88), (.65, .95), (.85, .88))])],  # with a loop
        [np.concatenate([curve((.25, .2), (.5, .05), (.75, .2), (.65, .5), (.2, .9)), line((.2, .9), (.8, .92))])]],
    3: [[np.concatenate([curve((.25, .15), (.5, .05), (.72, .2), (.6, .42), (.42, .47)),
                         curve((.42, .47), (.7, .53), (.77, .75), (.5, .95), (.2, .85))])],
        [np.concatenate([line((.25, .07), (.75, .07), (.45, .42)),
                         curve((.45, .42), (.72, .5), (.75, .78), (.5, .95), (.22, .85))])],  # flat top
        [curve((.28, .12), (.6, .06), (.7, .25), (.52, .45), (.72, .6), (.68, .85), (.4, .96), (.22, .85))]],
    4: [[line((.55, .05), (.15, .6), (.85, .6)), line((.62, .35), (.62, .95))],
        [line((.25, .05), (.22, .5), (.75, .5)), line((.72, .05), (.7, .95))],  # open
        [line((.65, .95), (.65, .05), (.15, .65), (.9, .65))],  # in one stroke
        [curve((.25, .08), (.2, .4), (.4, .52), (.72, .45)), line((.74, .08), (.7, .95))]],
    5: [[np.concatenate([line((.3, .07), (.27, .45)),
                         curve((.27, .45), (.5, .36), (.75, .55), (.68, .85), (.4, .95), (.2, .85))]),
         line((.3, .07), (.75, .07))],
        [np.concatenate([line((.75, .07), (.32, .07), (.28, .45)),
                         curve((.28, .45), (.6, .4), (.75, .65), (.6, .92), (.22, .9))])],
        [curve((.75, .08), (.4, .08), (.3, .25), (.4, .42), (.65, .55), (.68, .8), (.45, .95), (.22, .85))]],  # like an S
    6: [[curve((.65, .05), (.35, .3), (.25, .65), (.4, .93), (.65, .85), (.68, .62), (.45, .55), (.27, .7))],
        [curve((.45, .05), (.3, .4), (.3, .8), (.5, .95), (.7, .8), (.6, .6), (.35, .68))],
        [curve((.75, .1), (.5, .12), (.3, .4), (.28, .75), (.5, .95), (.75, .78), (.62, .55), (.35, .62))]],
    7: [[line((.2, .08), (.8, .08), (.4, .95))],
        [line((.2, .08), (.8, .08), (.4, .95)), line((.35, .5), (.75, .5))],  # crossed
        [np.concatenate([line((.2, .2), (.22, .08)), line((.22, .08), (.78, .08)),
                         curve((.78, .08), (.6, .4), (.48, .7), (.45, .95))])]],  # with a serif
    8: [[curve((.68, .18), (.5, .05), (.32, .2), (.42, .42), (.65, .6), (.7, .82), (.5, .95), (.3, .8), (.38, .58),
               (.62, .4), (.68, .18))],
        [oval(.5, .27, .2, .22), oval(.5, .72, .25, .23)],
        [curve((.5, .48), (.32, .3), (.42, .07), (.62, .1), (.65, .32), (.5, .48), (.3, .7), (.45, .95), (.68, .85),
               (.66, .62), (.5, .48))]],
    9: [[np.concatenate([oval(.5, .3, .23, .24, -20, -380), line((.72, .22), (.7, .95))])],
        [curve((.7, .15), (.45, .05), (.28, .28), (.45, .5), (.68, .35), (.72, .12), (.72, .55), (.6, .9), (.3, .92))],  # hooked
        [np.concatenate([oval(.48, .28, .24, .23, 0, -360), curve((.72, .28), (.68, .6), (.45, .95))])]],
}

HELD_OUT = {
    0: [[oval(.5, .5, .27, .44, -70, 300)],
        [oval(.5, .5, .4, .44, -100, -455)],
        [curve((.55, .05), (.3, .2), (.22, .6), (.45, .95), (.72, .75), (.75, .3), (.5, .06), (.42, .1))]],
    1: [[line((.45, .05), (.55, .95))],
        [line((.25, .4), (.55, .07), (.5, .95))],  # a long upstroke
        [line((.35, .2), (.5, .05), (.5, .93), (.3, .93), (.75, .93))],  # a foot in the same stroke
        [line((.5, .05), (.5, .95)), line((.35, .95), (.66, .95)), line((.5, .05), (.36, .22))]],
    2: [[np.concatenate([curve((.22, .3), (.3, .1), (.55, .05), (.72, .2), (.6, .5), (.25, .9)),
                         curve((.25, .9), (.5, .85), (.7, .97), (.85, .88))])],  # a wavy foot
        [np.concatenate([line((.22, .1), (.6, .06)), curve((.6, .06), (.75, .25), (.55, .6), (.18, .94)),
                         line((.18, .94), (.82, .9))])]],
    3: [[np.concatenate([curve((.2, .2), (.45, .04), (.7, .15), (.65, .38), (.35, .5)),
                         curve((.35, .5), (.6, .46), (.78, .65), (.65, .9), (.35, .96), (.18, .78))])],
        [np.concatenate([line((.22, .1), (.7, .08), (.4, .45), (.6, .5)),
                         curve((.6, .5), (.75, .7), (.6, .92), (.25, .9))])]],
    4: [[line((.4, .05), (.18, .62), (.82, .6)), line((.6, .4), (.55, .95))],
        [line((.3, .1), (.25, .48), (.8, .46)), line((.65, .2), (.62, .95))],
        [np.concatenate([curve((.25, .1), (.22, .45), (.45, .55), (.7, .35)), line((.7, .05), (.68, .95))])]],
    5: [[np.concatenate([line((.7, .05), (.35, .08), (.3, .42)),
                         curve((.3, .42), (.65, .38), (.72, .7), (.5, .95), (.25, .88))])],
        [np.concatenate([line((.35, .1), (.33, .5)), curve((.33, .5), (.62, .5), (.68, .8), (.45, .96), (.22, .9))]),
         line((.34, .1), (.8, .05))]],
    6: [[curve((.55, .05), (.3, .35), (.28, .75), (.5, .96), (.72, .75), (.5, .55), (.3, .75))],
        [np.concatenate([line((.6, .05), (.32, .55)), oval(.5, .72, .21, .22, 200, 560)])]],
    7: [[np.concatenate([curve((.2, .15), (.4, .1), (.6, .14), (.78, .08)), line((.78, .08), (.45, .95))])],
        [line((.22, .05), (.75, .1), (.5, .95)), line((.4, .48), (.72, .44))],
        [line((.18, .22), (.2, .08), (.8, .08), (.38, .95)), line((.36, .55), (.74, .55))]],
    8: [[curve((.7, .15), (.45, .05), (.32, .25), (.55, .48), (.7, .75), (.45, .96), (.3, .75), (.5, .5), (.72, .2), (.66, .1))],
        [oval(.5, .25, .23, .2, 90, 450), oval(.5, .7, .22, .25, -90, 270)]],
    9: [[np.concatenate([oval(.48, .28, .22, .22, 10, -350), line((.7, .3), (.62, .95))])],
        [np.concatenate([oval(.48, .3, .2, .24, -40, -390),
                         curve((.68, .2), (.7, .6), (.65, .9), (.45, .96), (.25, .86))])],
        [curve((.68, .1), (.4, .08), (.3, .3), (.5, .45), (.7, .15), (.66, .6), (.6, .95))]],
}


def draw(style, rng):
    """A person's version of a style: strokes [[[x, y], ...], ...] in the pad's 280 x 280.

    Written askew, in another size and place, with an unsteady hand, and picked up at as few points
    as a slow tablet gives.
    """
    slant, turn = rng.normal(0, .2), np.radians(rng.normal(0, 8))
    matrix = (np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
              @ [[rng.uniform(.65, 1.15), -slant], [0, 1]])
    wave = rng.normal(0, .025, (2, 2, 2, 2))  # of amplitude (axis, axis it depends on, sine or cosine, frequency)
    spacing = rng.uniform(.02, .12)
    strokes = []
    for points in style:
        points = points + rng.normal(0, .015, 2)  # strokes do not meet quite as they should
        angles = np.pi * points[:, :, None] * [1, 2]
        waves = np.stack([np.sin(angles), np.cos(angles)], axis=2)
        points = points + np.einsum('abcd,nbcd->na', wave, waves)
        along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
        at = np.linspace(0, along[-1], max(2, round(along[-1] / spacing) + 1))
        points = np.stack([np.interp(at, along, points[:, axis]) for axis in (0, 1)], axis=1)
        strokes.append((points + rng.normal(0, .006, points.shape) - .5) @ matrix.T)
    every = np.concatenate(strokes)
    low, high = every.min(0), every.max(0)
    size = rng.uniform(.4, .95) * 280 / (high - low).max()
    room = 280 - size * (high - low)
    corner = rng.uniform(0, 1, 2) * room
    return [((stroke - low) * size + corner).tolist() for stroke in strokes]


def drawings(styles, n, seed):
    """n drawings of every style; return (list of drawings, int array of their digits)."""
    rng = np.random.default_rng(seed)
    made = [(draw(style, rng), digit) for digit in styles for style in styles[digit] for _ in range(n)]
    return [strokes for strokes, _ in made], np.array([digit for _, digit in made])
