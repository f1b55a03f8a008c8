"""Synthetic drawings of digits as pen strokes, to measure how well the pad and the model read hands.

STYLES[digit] lists the ways in which people write a digit; HELD_OUT holds other ways, on which
nothing was ever chosen. A style is a list of strokes in the unit square, x to the right, y down.
"""

import json
import pathlib
import subprocess

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_raster(expression):
    """The value of a JavaScript expression that uses what pad/raster.js exports, in Node."""
    code = f"""import {{probabilities, rasterise}} from './pad/raster.js';
        console.log(JSON.stringify({expression}));"""
    command = ['node', '--input-type=module']
    done = subprocess.run(command, input=code, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def line(*points):
    """Straight segments through points (x, y); return an array (N, 2)."""
    points = np.array(points, float)
    return np.concatenate([a + (b - a) * np.linspace(0, 1, 15)[:, None] for a, b in zip(points, points[1:])])


def curve(*points):
    """A smooth (Catmull-Rom) curve through points (x, y); return an array (N, 2)."""
    p = np.array([points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, 15)[:, None]
    return np.concatenate(
        [
            0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
            for a, b, c, d in zip(p, p[1:], p[2:], p[3:])
        ]
    )


def oval(x, y, rx, ry, start=-90, stop=-450):
    """Part of an ellipse; degrees, 0 is to the right, growing clockwise on the screen."""
    angles = np.radians(np.linspace(start, stop, 60))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


STYLES = {
    0: [
        [oval(0.5, 0.5, 0.3, 0.45)],
        [oval(0.5, 0.5, 0.22, 0.45, -60, -440)],  # ends past its beginning
        [oval(0.5, 0.5, 0.36, 0.42, -120, 230)],
        [oval(0.5, 0.5, 0.33, 0.36, -90, -435)],
    ],  # leaves a gap
    1: [
        [line((0.5, 0.05), (0.5, 0.95))],
        [line((0.3, 0.3), (0.52, 0.05), (0.52, 0.95))],
        [line((0.33, 0.25), (0.5, 0.05), (0.5, 0.95)), line((0.28, 0.95), (0.72, 0.95))],  # with a foot
        [line((0.62, 0.05), (0.4, 0.95))],
    ],
    2: [
        [
            curve((0.2, 0.25), (0.35, 0.07), (0.65, 0.07), (0.75, 0.3), (0.5, 0.65), (0.2, 0.93)),
            line((0.2, 0.93), (0.8, 0.93)),
        ],
        [
            np.concatenate(
                [
                    curve((0.2, 0.25), (0.4, 0.06), (0.7, 0.15), (0.68, 0.4), (0.4, 0.75), (0.2, 0.92)),
                    curve((0.2, 0.92), (0.3, 0.78), (0.45, 0.88), (0.65, 0.95), (0.85, 0.88)),
                ]
            )
        ],  # with a loop
        [
            np.concatenate(
                [
                    curve((0.25, 0.2), (0.5, 0.05), (0.75, 0.2), (0.65, 0.5), (0.2, 0.9)),
                    line((0.2, 0.9), (0.8, 0.92)),
                ]
            )
        ],
    ],
    3: [
        [
            np.concatenate(
                [
                    curve((0.25, 0.15), (0.5, 0.05), (0.72, 0.2), (0.6, 0.42), (0.42, 0.47)),
                    curve((0.42, 0.47), (0.7, 0.53), (0.77, 0.75), (0.5, 0.95), (0.2, 0.85)),
                ]
            )
        ],
        [
            np.concatenate(
                [
                    line((0.25, 0.07), (0.75, 0.07), (0.45, 0.42)),
                    curve((0.45, 0.42), (0.72, 0.5), (0.75, 0.78), (0.5, 0.95), (0.22, 0.85)),
                ]
            )
        ],  # flat top
        [
            curve(
                (0.28, 0.12),
                (0.6, 0.06),
                (0.7, 0.25),
                (0.52, 0.45),
                (0.72, 0.6),
                (0.68, 0.85),
                (0.4, 0.96),
                (0.22, 0.85),
            )
        ],
    ],
    4: [
        [line((0.55, 0.05), (0.15, 0.6), (0.85, 0.6)), line((0.62, 0.35), (0.62, 0.95))],
        [line((0.25, 0.05), (0.22, 0.5), (0.75, 0.5)), line((0.72, 0.05), (0.7, 0.95))],  # open
        [line((0.65, 0.95), (0.65, 0.05), (0.15, 0.65), (0.9, 0.65))],  # in one stroke
        [curve((0.25, 0.08), (0.2, 0.4), (0.4, 0.52), (0.72, 0.45)), line((0.74, 0.08), (0.7, 0.95))],
    ],
    5: [
        [
            np.concatenate(
                [
                    line((0.3, 0.07), (0.27, 0.45)),
                    curve((0.27, 0.45), (0.5, 0.36), (0.75, 0.55), (0.68, 0.85), (0.4, 0.95), (0.2, 0.85)),
                ]
            ),
            line((0.3, 0.07), (0.75, 0.07)),
        ],
        [
            np.concatenate(
                [
                    line((0.75, 0.07), (0.32, 0.07), (0.28, 0.45)),
                    curve((0.28, 0.45), (0.6, 0.4), (0.75, 0.65), (0.6, 0.92), (0.22, 0.9)),
                ]
            )
        ],
        [
            curve(
                (0.75, 0.08),
                (0.4, 0.08),
                (0.3, 0.25),
                (0.4, 0.42),
                (0.65, 0.55),
                (0.68, 0.8),
                (0.45, 0.95),
                (0.22, 0.85),
            )
        ],
    ],  # like an S
    6: [
        [
            curve(
                (0.65, 0.05),
                (0.35, 0.3),
                (0.25, 0.65),
                (0.4, 0.93),
                (0.65, 0.85),
                (0.68, 0.62),
                (0.45, 0.55),
                (0.27, 0.7),
            )
        ],
        [curve((0.45, 0.05), (0.3, 0.4), (0.3, 0.8), (0.5, 0.95), (0.7, 0.8), (0.6, 0.6), (0.35, 0.68))],
        [
            curve(
                (0.75, 0.1),
                (0.5, 0.12),
                (0.3, 0.4),
                (0.28, 0.75),
                (0.5, 0.95),
                (0.75, 0.78),
                (0.62, 0.55),
                (0.35, 0.62),
            )
        ],
    ],
    7: [
        [line((0.2, 0.08), (0.8, 0.08), (0.4, 0.95))],
        [line((0.2, 0.08), (0.8, 0.08), (0.4, 0.95)), line((0.35, 0.5), (0.75, 0.5))],  # crossed
        [
            np.concatenate(
                [
                    line((0.2, 0.2), (0.22, 0.08)),
                    line((0.22, 0.08), (0.78, 0.08)),
                    curve((0.78, 0.08), (0.6, 0.4), (0.48, 0.7), (0.45, 0.95)),
                ]
            )
        ],
    ],  # with a serif
    8: [
        [
            curve(
                (0.68, 0.18),
                (0.5, 0.05),
                (0.32, 0.2),
                (0.42, 0.42),
                (0.65, 0.6),
                (0.7, 0.82),
                (0.5, 0.95),
                (0.3, 0.8),
                (0.38, 0.58),
                (0.62, 0.4),
                (0.68, 0.18),
            )
        ],
        [oval(0.5, 0.27, 0.2, 0.22), oval(0.5, 0.72, 0.25, 0.23)],
        [
            curve(
                (0.5, 0.48),
                (0.32, 0.3),
                (0.42, 0.07),
                (0.62, 0.1),
                (0.65, 0.32),
                (0.5, 0.48),
                (0.3, 0.7),
                (0.45, 0.95),
                (0.68, 0.85),
                (0.66, 0.62),
                (0.5, 0.48),
            )
        ],
    ],
    9: [
        [np.concatenate([oval(0.5, 0.3, 0.23, 0.24, -20, -380), line((0.72, 0.22), (0.7, 0.95))])],
        [
            curve(
                (0.7, 0.15),
                (0.45, 0.05),
                (0.28, 0.28),
                (0.45, 0.5),
                (0.68, 0.35),
                (0.72, 0.12),
                (0.72, 0.55),
                (0.6, 0.9),
                (0.3, 0.92),
            )
        ],  # hooked
        [
            np.concatenate(
                [oval(0.48, 0.28, 0.24, 0.23, 0, -360), curve((0.72, 0.28), (0.68, 0.6), (0.45, 0.95))]
            )
        ],
    ],
}

HELD_OUT = {
    0: [
        [oval(0.5, 0.5, 0.27, 0.44, -70, 300)],
        [oval(0.5, 0.5, 0.4, 0.44, -100, -455)],
        [
            curve(
                (0.55, 0.05),
                (0.3, 0.2),
                (0.22, 0.6),
                (0.45, 0.95),
                (0.72, 0.75),
                (0.75, 0.3),
                (0.5, 0.06),
                (0.42, 0.1),
            )
        ],
    ],
    1: [
        [line((0.45, 0.05), (0.55, 0.95))],
        [line((0.25, 0.4), (0.55, 0.07), (0.5, 0.95))],  # a long upstroke
        [line((0.35, 0.2), (0.5, 0.05), (0.5, 0.93), (0.3, 0.93), (0.75, 0.93))],  # a foot in the same stroke
        [line((0.5, 0.05), (0.5, 0.95)), line((0.35, 0.95), (0.66, 0.95)), line((0.5, 0.05), (0.36, 0.22))],
    ],
    2: [
        [
            np.concatenate(
                [
                    curve((0.22, 0.3), (0.3, 0.1), (0.55, 0.05), (0.72, 0.2), (0.6, 0.5), (0.25, 0.9)),
                    curve((0.25, 0.9), (0.5, 0.85), (0.7, 0.97), (0.85, 0.88)),
                ]
            )
        ],  # a wavy foot
        [
            np.concatenate(
                [
                    line((0.22, 0.1), (0.6, 0.06)),
                    curve((0.6, 0.06), (0.75, 0.25), (0.55, 0.6), (0.18, 0.94)),
                    line((0.18, 0.94), (0.82, 0.9)),
                ]
            )
        ],
    ],
    3: [
        [
            np.concatenate(
                [
                    curve((0.2, 0.2), (0.45, 0.04), (0.7, 0.15), (0.65, 0.38), (0.35, 0.5)),
                    curve((0.35, 0.5), (0.6, 0.46), (0.78, 0.65), (0.65, 0.9), (0.35, 0.96), (0.18, 0.78)),
                ]
            )
        ],
        [
            np.concatenate(
                [
                    line((0.22, 0.1), (0.7, 0.08), (0.4, 0.45), (0.6, 0.5)),
                    curve((0.6, 0.5), (0.75, 0.7), (0.6, 0.92), (0.25, 0.9)),
                ]
            )
        ],
    ],
    4: [
        [line((0.4, 0.05), (0.18, 0.62), (0.82, 0.6)), line((0.6, 0.4), (0.55, 0.95))],
        [line((0.3, 0.1), (0.25, 0.48), (0.8, 0.46)), line((0.65, 0.2), (0.62, 0.95))],
        [
            np.concatenate(
                [curve((0.25, 0.1), (0.22, 0.45), (0.45, 0.55), (0.7, 0.35)), line((0.7, 0.05), (0.68, 0.95))]
            )
        ],
    ],
    5: [
        [
            np.concatenate(
                [
                    line((0.7, 0.05), (0.35, 0.08), (0.3, 0.42)),
                    curve((0.3, 0.42), (0.65, 0.38), (0.72, 0.7), (0.5, 0.95), (0.25, 0.88)),
                ]
            )
        ],
        [
            np.concatenate(
                [
                    line((0.35, 0.1), (0.33, 0.5)),
                    curve((0.33, 0.5), (0.62, 0.5), (0.68, 0.8), (0.45, 0.96), (0.22, 0.9)),
                ]
            ),
            line((0.34, 0.1), (0.8, 0.05)),
        ],
    ],
    6: [
        [curve((0.55, 0.05), (0.3, 0.35), (0.28, 0.75), (0.5, 0.96), (0.72, 0.75), (0.5, 0.55), (0.3, 0.75))],
        [np.concatenate([line((0.6, 0.05), (0.32, 0.55)), oval(0.5, 0.72, 0.21, 0.22, 200, 560)])],
    ],
    7: [
        [
            np.concatenate(
                [curve((0.2, 0.15), (0.4, 0.1), (0.6, 0.14), (0.78, 0.08)), line((0.78, 0.08), (0.45, 0.95))]
            )
        ],
        [line((0.22, 0.05), (0.75, 0.1), (0.5, 0.95)), line((0.4, 0.48), (0.72, 0.44))],
        [line((0.18, 0.22), (0.2, 0.08), (0.8, 0.08), (0.38, 0.95)), line((0.36, 0.55), (0.74, 0.55))],
    ],
    8: [
        [
            curve(
                (0.7, 0.15),
                (0.45, 0.05),
                (0.32, 0.25),
                (0.55, 0.48),
                (0.7, 0.75),
                (0.45, 0.96),
                (0.3, 0.75),
                (0.5, 0.5),
                (0.72, 0.2),
                (0.66, 0.1),
            )
        ],
        [oval(0.5, 0.25, 0.23, 0.2, 90, 450), oval(0.5, 0.7, 0.22, 0.25, -90, 270)],
    ],
    9: [
        [np.concatenate([oval(0.48, 0.28, 0.22, 0.22, 10, -350), line((0.7, 0.3), (0.62, 0.95))])],
        [
            np.concatenate(
                [
                    oval(0.48, 0.3, 0.2, 0.24, -40, -390),
                    curve((0.68, 0.2), (0.7, 0.6), (0.65, 0.9), (0.45, 0.96), (0.25, 0.86)),
                ]
            )
        ],
        [curve((0.68, 0.1), (0.4, 0.08), (0.3, 0.3), (0.5, 0.45), (0.7, 0.15), (0.66, 0.6), (0.6, 0.95))],
    ],
}


def draw(style, rng):
    """A person's version of a style: strokes [[[x, y], ...], ...] in the pad's 280 x 280.

    Written askew, in another size and place, with an unsteady hand, and picked up at as few points
    as a slow tablet gives.
    """
    slant, turn = rng.normal(0, 0.2), np.radians(rng.normal(0, 8))
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [
        [rng.uniform(0.65, 1.15), -slant],
        [0, 1],
    ]
    wave = rng.normal(
        0, 0.025, (2, 2, 2, 2)
    )  # of amplitude (axis, axis it depends on, sine or cosine, frequency)
    spacing = rng.uniform(0.02, 0.12)
    strokes = []
    for points in style:
        points = points + rng.normal(0, 0.015, 2)  # strokes do not meet quite as they should
        angles = np.pi * points[:, :, None] * [1, 2]
        waves = np.stack([np.sin(angles), np.cos(angles)], axis=2)
        points = points + np.einsum('abcd,nbcd->na', wave, waves)
        along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
        at = np.linspace(0, along[-1], max(2, round(along[-1] / spacing) + 1))
        points = np.stack([np.interp(at, along, points[:, axis]) for axis in (0, 1)], axis=1)
        strokes.append((points + rng.normal(0, 0.006, points.shape) - 0.5) @ matrix.T)
    every = np.concatenate(strokes)
    low, high = every.min(0), every.max(0)
    size = rng.uniform(0.4, 0.95) * 280 / (high - low).max()
    room = 280 - size * (high - low)
    corner = rng.uniform(0, 1, 2) * room
    return [((stroke - low) * size + corner).tolist() for stroke in strokes]


def drawings(styles, n, seed):
    """n drawings of every style; return (list of drawings, int array of their digits)."""
    rng = np.random.default_rng(seed)
    made = [(draw(style, rng), digit) for digit in styles for style in styles[digit] for _ in range(n)]
    return [strokes for strokes, _ in made], np.array([digit for _, digit in made])
