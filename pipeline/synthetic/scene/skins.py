"""Materials that several objects of a room share or choose alike."""

from __future__ import annotations

import numpy as np

from pipeline.synthetic.scene import textures
from pipeline.synthetic.scene.parts import Materials, Skin
from pipeline.synthetic.scene.textures import hsv


def timber(rng: np.random.Generator, look: Materials, name: str = "timber") -> Skin:
    """The room's wood of that name."""
    return look.shared(name, textures.wood, hsv(rng.uniform(0.06, 0.1), rng.uniform(0.3, 0.62), rng.uniform(0.45, 0.88)), tile=(1.1, 0.5))


def cloth(rng: np.random.Generator, look: Materials, tile: float = 0.5) -> Skin:
    """A fabric of its own, repeated every `tile` metres."""
    return look.new(textures.fabric, hsv(rng.random(), rng.uniform(0.15, 0.6), rng.uniform(0.4, 0.95)), tile=(tile, tile))


def dark(look: Materials) -> Skin:
    """Black plastic."""
    return look.shared("dark", textures.metal, (0.13, 0.13, 0.14), tile=(0.3, 0.3))


def steel(look: Materials) -> Skin:
    """Brushed steel."""
    return look.shared("steel", textures.metal, (0.66, 0.66, 0.68), tile=(0.3, 0.3))


def glaze(rng: np.random.Generator, look: Materials) -> Skin:
    """Veined pottery."""
    return look.new(textures.marble, hsv(rng.random(), rng.uniform(0.2, 0.7), rng.uniform(0.5, 0.95)), tile=(0.3, 0.3))


def pages(look: Materials) -> Skin:
    """The paper between two covers."""
    return look.shared("pages", textures.paper, (0.9, 0.87, 0.78), tile=(0.1, 0.1))


def trim(look: Materials) -> Skin:
    """White gloss paint on woodwork."""
    return look.shared("trim", textures.plaster, (0.9, 0.89, 0.86), tile=(1.0, 1.0))
