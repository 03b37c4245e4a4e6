"""What is fixed to the room itself: door, window with curtains, pictures, skirting boards, ceiling lamp, carpet. Frames as in
`furniture`.
"""

from __future__ import annotations

import numpy as np

from pipeline.synthetic.scene import pictures, skins, textures
from pipeline.synthetic.scene.furniture import Piece
from pipeline.synthetic.scene.parts import FRONT, TOP, Item, Materials, box, ellipsoid, frustum
from pipeline.synthetic.scene.textures import hsv

CARPET_THICKNESS = 0.012
SKIRTING = 0.014


def door(rng: np.random.Generator, look: Materials) -> Piece:
    """A panelled door in its frame, with a knob."""
    width, height = rng.uniform(0.8, 0.92), rng.uniform(2.0, 2.1)
    colour = hsv(rng.uniform(0.05, 0.12), rng.uniform(0.05, 0.55), rng.uniform(0.55, 0.95))
    white = skins.trim(look)
    leaf = box(
        (0, 0.02, 0.005),
        (width, 0.04, height),
        look.new(textures.wood, colour, tile=(1.0, 1.0)),
        {FRONT: look.new(pictures.panelled, colour, int(rng.integers(2, 4)), int(rng.integers(1, 3)), False)},
    )
    jambs = [box((sx * (width / 2 + 0.045), 0.03, 0), (0.09, 0.06, height + 0.005), white) for sx in (-1, 1)]
    lintel = box((0, 0.03, height + 0.005), (width + 0.18, 0.06, 0.09), white)
    knob = ellipsoid(
        (width / 2 - 0.08, 0.06, 1.02),
        (0.028, 0.03, 0.028),
        look.shared("brass", textures.metal, (0.75, 0.62, 0.35), tile=(0.2, 0.2)),
        gloss=0.6,
    )
    return Piece([Item("door", (leaf, knob, *jambs, lintel))], width + 0.18, 0.06, height + 0.1)


def window(rng: np.random.Generator, look: Materials) -> Piece:
    """A window with its sill between two curtains on a pelmet; the pane is a daylit view and glows."""
    width, height, low = rng.uniform(1.1, 1.7), rng.uniform(1.1, 1.3), rng.uniform(0.85, 0.95)
    white = skins.trim(look)
    pane = box((0, 0.02, low), (width, 0.04, height), white, {FRONT: look.new(pictures.window_view)}, emission=0.9, casts_shadow=False)
    sill = box((0, 0.06, low - 0.04), (width + 0.1, 0.12, 0.04), white)
    cloth = look.new(pictures.curtain, hsv(rng.random(), rng.uniform(0.1, 0.55), rng.uniform(0.5, 0.9)))
    drop = height + low - 0.12
    items = [Item("window", (pane, sill))]
    for sx in (-1, 1):
        items.append(Item("curtain", (box((sx * (width / 2 + 0.21), 0.08, 0.12), (0.3, 0.07, drop), cloth, casts_shadow=False),)))
    pelmet = box((0, 0.08, low + height + 0.002), (width + 0.8, 0.16, 0.09), skins.timber(rng, look))
    items.append(Item("pelmet", (pelmet,)))
    return Piece(items, width + 0.8, 0.16, low + height + 0.1)


def picture(rng: np.random.Generator, look: Materials) -> Piece:
    """A picture; its lower edge is at z = 0."""
    width, height = rng.uniform(0.42, 0.95), rng.uniform(0.42, 0.75)
    dark = skins.dark(look)
    return Piece(
        [Item("picture", (box((0, 0.013, 0), (width, 0.026, height), dark, {FRONT: look.new(pictures.picture)}),))], width, 0.026, height
    )


def carpet(rng: np.random.Generator, look: Materials) -> Piece:
    """An oriental rug about the origin."""
    width, depth = rng.uniform(1.7, 2.4), rng.uniform(1.2, 1.6)
    edge = look.shared("edge", textures.pile, (0.5, 0.4, 0.3), 128, tile=(0.3, 0.3))
    return Piece(
        [Item("carpet", (box((0, 0, 0), (width, depth, CARPET_THICKNESS), edge, {TOP: look.new(pictures.rug)}),))],
        width,
        depth,
        CARPET_THICKNESS,
    )


def pendant(rng: np.random.Generator, look: Materials, ceiling: float) -> tuple[Item, float]:
    """The ceiling lamp above the origin, and the height of its bulb."""
    shade = look.new(textures.fabric, hsv(rng.uniform(0.05, 0.15), rng.uniform(0.1, 0.4), 0.95), tile=(0.3, 0.3))
    dark, low = skins.dark(look), ceiling - rng.uniform(0.45, 0.6)
    cord = frustum((0, 0, low + 0.2), 0.006, 0.006, ceiling - low - 0.2, dark, casts_shadow=False)
    body = frustum((0, 0, low), rng.uniform(0.2, 0.26), rng.uniform(0.08, 0.16), 0.2, shade, emission=0.45, casts_shadow=False)
    return Item("ceiling lamp", (cord, body)), low


def skirting(look: Materials, size: tuple[float, float, float]) -> Item:
    """Skirting boards along all four walls: one object in four pieces."""
    white, height = skins.trim(look), 0.08
    along_x = [box((size[0] / 2, y, 0), (size[0], SKIRTING, height), white) for y in (SKIRTING / 2, size[1] - SKIRTING / 2)]
    along_y = [box((x, size[1] / 2, 0), (SKIRTING, size[1] - 2 * SKIRTING, height), white) for x in (SKIRTING / 2, size[0] - SKIRTING / 2)]
    return Item("skirting board", (*along_x, *along_y))
