"""The vocabulary of furnishing: a part is one solid with its skins, an item is one labelled object made of parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.synthetic.scene.geometry import BOX, ELLIPSOID, FACES, FRUSTUM

FRONT, TOP = 2, 4
"""Box faces +y and +z: furniture looks along +y of its own frame."""


@dataclass(frozen=True)
class Skin:
    """A texture by index, repeated every `tile` = (width, height) metres, or stretched over the face where `tile` is None."""

    texture: int
    tile: tuple[float, float] | None = None


@dataclass(frozen=True)
class Part:
    """One solid: geometry as in `geometry.Primitives`, one skin per face, gloss and emission in [0,1]; lamps do not cast shadows."""

    kind: int
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    skins: tuple[Skin, ...]
    yaw: float = 0.0
    gloss: float = 0.0
    emission: float = 0.0
    casts_shadow: bool = True


@dataclass(frozen=True)
class Item:
    """One object of the room: an open-vocabulary label and its parts, and the yaw of its own axes in radians."""

    label: str
    parts: tuple[Part, ...]
    yaw: float = 0.0


class Materials:
    """The textures of one room, named now and drawn when asked for, each from a stream of its own: geometry never depends on how a
    texture draws.
    """

    def __init__(self, seed: np.random.SeedSequence) -> None:
        self._seed = seed
        self._drawings: list[tuple[Callable[..., np.ndarray], tuple[object, ...]]] = []
        self._shared: dict[str, Skin] = {}

    def new(self, draw: Callable[..., np.ndarray], *arguments: object, tile: tuple[float, float] | None = None) -> Skin:
        """A fresh texture `draw(rng, *arguments)`."""
        self._drawings.append((draw, arguments))
        return Skin(len(self._drawings) - 1, tile)

    def shared(self, name: str, draw: Callable[..., np.ndarray], *arguments: object, tile: tuple[float, float] | None = None) -> Skin:
        """The room's one texture of that name, as it was first asked for."""
        if name not in self._shared:
            self._shared[name] = self.new(draw, *arguments, tile=tile)
        return self._shared[name]

    def images(self) -> list[np.ndarray]:
        """Every texture [H,W,3] float in [0,1], in the order of their indices."""
        streams = np.random.SeedSequence(self._seed.entropy, spawn_key=self._seed.spawn_key).spawn(len(self._drawings))
        return [
            draw(np.random.Generator(np.random.PCG64(s)), *arguments) for s, (draw, arguments) in zip(streams, self._drawings, strict=True)
        ]


def box(
    low: tuple[float, float, float], size: tuple[float, float, float], skin: Skin, faces: dict[int, Skin] | None = None, **finish: Any
) -> Part:
    """A box from the centre of its underside and its full size; `faces` overrides single skins; `finish` names further fields of `Part`."""
    skins = tuple((faces or {}).get(face, skin) for face in range(FACES[BOX]))
    centre = (low[0], low[1], low[2] + size[2] / 2)
    return Part(BOX, centre, (size[0] / 2, size[1] / 2, size[2] / 2), skins, **finish)


def frustum(
    low: tuple[float, float, float], bottom: float, top: float, height: float, side: Skin, cap: Skin | None = None, **finish: Any
) -> Part:
    """An upright capped cone or cylinder from the centre of its underside, its two radii and its height."""
    centre = (low[0], low[1], low[2] + height / 2)
    return Part(FRUSTUM, centre, (bottom, top, height / 2), (side, cap or side, cap or side), **finish)


def ellipsoid(centre: tuple[float, float, float], half: tuple[float, float, float], skin: Skin, **finish: Any) -> Part:
    """An ellipsoid from its centre and half axes."""
    return Part(ELLIPSOID, centre, half, (skin,), **finish)


def moved(items: list[Item], x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> list[Item]:
    """The items turned by `yaw` about the origin, then shifted."""
    cos, sin = math.cos(yaw), math.sin(yaw)

    def place(part: Part) -> Part:
        px, py, pz = part.centre
        return replace(part, centre=(cos * px - sin * py + x, sin * px + cos * py + y, pz + z), yaw=part.yaw + yaw)

    return [Item(item.label, tuple(place(part) for part in item.parts), item.yaw + yaw) for item in items]
