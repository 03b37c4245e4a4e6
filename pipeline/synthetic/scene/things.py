"""Small things that stand on furniture, in their own frame: metres, underside on z = 0, looking along +y."""

from __future__ import annotations

import math

import numpy as np

from pipeline.synthetic.scene import pictures, skins, textures
from pipeline.synthetic.scene.parts import FRONT, TOP, Item, Materials, box, ellipsoid, frustum
from pipeline.synthetic.scene.textures import hsv


def books_flat(rng: np.random.Generator, look: Materials) -> Item:
    """A stack of two or three books lying down."""
    parts, z = [], 0.0
    for _ in range(int(rng.integers(2, 4))):
        cover, pages = look.new(pictures.cover), skins.pages(look)
        height = rng.uniform(0.022, 0.045)
        parts.append(
            box(
                (0, 0, z),
                (rng.uniform(0.2, 0.26), rng.uniform(0.14, 0.18), height),
                pages,
                {TOP: cover, 0: cover},
                yaw=rng.uniform(-0.4, 0.4),
            )
        )
        z += height
    return Item("books", tuple(parts))


def vase(rng: np.random.Generator, look: Materials) -> Item:
    """A waisted vase."""
    glaze, r, h = skins.glaze(rng, look), rng.uniform(0.05, 0.08), rng.uniform(0.1, 0.16)
    return Item(
        "vase",
        (frustum((0, 0, 0), r * 0.7, r, h, glaze, gloss=0.4), frustum((0, 0, h), r, r * 0.45, h * 0.7, glaze, skins.dark(look), gloss=0.4)),
    )


def cup(rng: np.random.Generator, look: Materials) -> Item:
    """A mug of coffee."""
    coffee = look.shared("coffee", textures.metal, (0.2, 0.12, 0.08), tile=(0.2, 0.2))
    return Item("cup", (frustum((0, 0, 0), 0.034, 0.042, 0.095, skins.glaze(rng, look), coffee, gloss=0.3),))


def bowl(rng: np.random.Generator, look: Materials) -> Item:
    """A bowl heaped with fruit."""
    fruit = [
        ellipsoid(
            (0.06 * math.cos(a), 0.06 * math.sin(a), 0.085),
            (0.04, 0.04, 0.037),
            look.new(textures.plaster, hsv(h, 0.75, 0.85), 128, tile=(0.1, 0.1)),
            gloss=0.25,
        )
        for a, h in zip(rng.uniform(0, 0.5) + np.array([0.0, 2.1, 4.2]), rng.uniform(-0.02, 0.3, 3), strict=True)
    ]
    return Item("bowl", (frustum((0, 0, 0), 0.06, 0.13, 0.075, skins.glaze(rng, look), gloss=0.3), *fruit))


def table_lamp(rng: np.random.Generator, look: Materials) -> Item:
    """A lamp with a cloth shade on a turned foot."""
    shade = look.new(textures.fabric, hsv(rng.uniform(0.07, 0.14), 0.25, 0.95), tile=(0.25, 0.25))
    foot = skins.glaze(rng, look)
    stem, r = rng.uniform(0.14, 0.22), rng.uniform(0.1, 0.14)
    return Item(
        "lamp",
        (
            frustum((0, 0, 0), 0.07, 0.06, 0.02, foot),
            frustum((0, 0, 0.02), 0.035, 0.015, stem, foot, gloss=0.3),
            frustum((0, 0, 0.02 + stem), r, r * 0.65, 0.17, shade, emission=0.25),
        ),
    )


def monitor(rng: np.random.Generator, look: Materials) -> Item:
    """A flat screen on a foot, showing a desktop."""
    width, dark = rng.uniform(0.5, 0.66), skins.dark(look)
    panel = box((0, 0.0, 0.13), (width, 0.035, width * 0.6), dark, {FRONT: look.new(pictures.screen)}, gloss=0.25, emission=0.12)
    return Item("monitor", (frustum((0, 0, 0), 0.11, 0.1, 0.015, dark), box((0, -0.035, 0.015), (0.06, 0.03, 0.25), dark), panel))


def parcel(rng: np.random.Generator, look: Materials, limit: float = 0.45) -> Item:
    """A cardboard box, its edges between half of `limit` and `limit` metres."""
    side = look.new(textures.cardboard, hsv(rng.uniform(0.07, 0.1), rng.uniform(0.35, 0.5), rng.uniform(0.6, 0.75)))
    return Item("box", (box((0, 0, 0), tuple(rng.uniform(0.5, 1.0, 3) * limit), side),))
