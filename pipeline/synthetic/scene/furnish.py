"""A random furnished room: which pieces, where they stand, what the walls are papered with. Pure in its two random streams."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.scene import fittings, furniture, textures
from pipeline.synthetic.scene.furniture import Piece
from pipeline.synthetic.scene.geometry import SHELL
from pipeline.synthetic.scene.parts import Item, Materials, Part, moved
from pipeline.synthetic.scene.textures import hsv

SURFACES = ("wall", "wall", "wall", "wall", "ceiling", "floor")
"""Labels of the shell's faces, in the order of `geometry.FACES`: each face is an object of its own, ids 1 to 6."""

_GAP = 0.06
_TRIES = 80


@dataclass(frozen=True)
class Furnished:
    """A room before it is lit.

    size: extents (x, y, z) in metres from the corner at the origin. shell: the walls as one part. items: the objects, ids from 7 upwards
    in this order. bulb, pane: where lamp and daylight come from, metres; pane_normal: into the room.
    """

    size: tuple[float, float, float]
    shell: Part
    items: list[Item]
    bulb: tuple[float, float, float]
    pane: tuple[float, float, float]
    pane_normal: tuple[float, float]

    @property
    def labels(self) -> dict[int, str]:
        """Label of every object id."""
        return dict(enumerate([*SURFACES, *(item.label for item in self.items)], start=1))


@dataclass(frozen=True)
class _Footprint:
    """A rectangle on the floor and the heights between which it is taken."""

    x: float
    y: float
    half_width: float
    half_depth: float
    yaw: float
    low: float = 0.0
    high: float = 3.0

    def corners(self) -> np.ndarray:
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        local = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [self.half_width, self.half_depth]
        return local @ np.array([[cos, sin], [-sin, cos]]) + [self.x, self.y]

    def meets(self, other: _Footprint) -> bool:
        """Whether the two overlap, by the separating axes of both rectangles."""
        if self.low >= other.high or other.low >= self.high:
            return False
        a, b = self.corners(), other.corners()
        for yaw in (self.yaw, self.yaw + math.pi / 2, other.yaw, other.yaw + math.pi / 2):
            axis = np.array([math.cos(yaw), math.sin(yaw)])
            if (a @ axis).max() <= (b @ axis).min() or (b @ axis).max() <= (a @ axis).min():
                return False
        return True


class _Plan:
    """The floor as it fills up: what is taken, and the items that stand there."""

    def __init__(self, rng: np.random.Generator, size: tuple[float, float, float]) -> None:
        self.rng, self.size = rng, size
        self.taken: list[_Footprint] = []
        self.items: list[Item] = []

    def wall(self, index: int) -> tuple[float, float, float, float]:
        """Wall 0..3: its length, the yaw of a piece that looks into the room, and the corner from which its length is counted."""
        x, y, _ = self.size
        return ((x, 0.0, 0.0, 0.0), (y, math.pi / 2, x, 0.0), (x, math.pi, x, y), (y, -math.pi / 2, 0.0, y))[index]

    def against(self, piece: Piece, walls: list[int], low: float = 0.0, reach: float = 0.0, back: float = fittings.SKIRTING) -> int | None:
        """Puts a piece against one of the walls, `low` metres up and `back` off it, keeping `reach` metres free before it: the wall, or
        None.
        """
        for _ in range(_TRIES):
            wall = walls[self.rng.integers(len(walls))]
            length, yaw, x0, y0 = self.wall(wall)
            margin = piece.width / 2 + _GAP
            along = self.rng.uniform(margin, length - margin)
            if self.rng.random() < 0.5 and low == 0.0 and not reach:
                along = margin if self.rng.random() < 0.5 else length - margin
            cos, sin = math.cos(yaw), math.sin(yaw)
            middle = (piece.depth + reach) / 2
            footprint = _Footprint(
                x0 + cos * along - sin * middle,
                y0 + sin * along + cos * middle,
                piece.width / 2 + _GAP,
                middle,
                yaw,
                low,
                low + piece.height,
            )
            if not any(footprint.meets(other) for other in self.taken):
                self.taken.append(footprint)
                self.items += moved(piece.items, x0 + cos * along - sin * back, y0 + sin * along + cos * back, low, yaw)
                return wall
        return None

    def free(self, piece: Piece, margin: float, yaw: float) -> tuple[float, float] | None:
        """Puts a piece that is centred on its origin somewhere in the open: its footprint, or None."""
        reach = math.hypot(piece.width, piece.depth) / 2 + _GAP
        for _ in range(_TRIES):
            x, y = (self.rng.uniform(min(reach, s / 2), max(s - reach, s / 2)) for s in self.size[:2])
            turn = yaw + self.rng.uniform(-0.12, 0.12)
            footprint = _Footprint(x, y, piece.width / 2 + margin, piece.depth / 2 + margin, turn, 0.0, piece.height)
            if not any(footprint.meets(other) for other in self.taken):
                self.taken.append(footprint)
                self.items += moved(piece.items, x, y, 0.0, turn)
                return x, y
        return None


def _shell(rng: np.random.Generator, look: Materials, size: tuple[float, float, float]) -> Part:
    wall_hue, wall_value = rng.random(), rng.uniform(0.72, 0.92)
    colour = hsv(wall_hue, rng.uniform(0.05, 0.28), wall_value)
    main = look.new(textures.wallpaper if rng.random() < 0.6 else textures.plaster, colour, tile=(1.3, 1.3))
    accent = look.new(
        textures.plaster if rng.random() < 0.4 else textures.wallpaper,
        hsv(wall_hue + 0.08, rng.uniform(0.15, 0.4), rng.uniform(0.55, 0.85)),
        tile=(1.1, 1.1),
    )
    walls = [main] * 4
    walls[rng.integers(4)] = accent
    choice = rng.random()
    if choice < 0.6:
        floor = look.new(textures.wood, hsv(rng.uniform(0.06, 0.1), rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.8)), 6, tile=(2.2, 1.0))
    elif choice < 0.8:
        floor = look.new(textures.tiles, hsv(rng.uniform(0.03, 0.12), rng.uniform(0.05, 0.4), rng.uniform(0.6, 0.9)), 4, tile=(1.6, 1.6))
    else:
        floor = look.new(textures.pile, hsv(rng.random(), rng.uniform(0.1, 0.4), rng.uniform(0.4, 0.75)), tile=(1.0, 1.0))
    ceiling = look.new(textures.plaster, (0.93, 0.92, 0.9), tile=(1.7, 1.7))
    half = (size[0] / 2, size[1] / 2, size[2] / 2)
    return Part(SHELL, half, half, (*walls, ceiling, floor), gloss=0.05)


def furnish(rng: np.random.Generator, look: Materials) -> Furnished:
    """A room of 4-6.5 x 3.6-5.5 x 2.5-3 m with its furniture; the textures that its skins name are added to `look`."""
    size = (float(rng.uniform(4.0, 6.5)), float(rng.uniform(3.6, 5.5)), float(rng.uniform(2.5, 3.0)))
    shell = _shell(rng, look, size)
    plan = _Plan(rng, size)

    daylight = int(rng.integers(4))
    others = [wall for wall in range(4) if wall != daylight]
    opening = fittings.window(rng, look)
    plan.against(opening, [daylight], back=0.0)
    pane = plan.items[0].parts[0]
    # Low pieces may stand under the window, so only what is above the sill stays taken.
    plan.taken[-1] = _Footprint(**{**vars(plan.taken[-1]), "low": 0.8})
    curtains = [item.parts[0].centre for item in plan.items if item.label == "curtain"]
    plan.taken += [_Footprint(x, y, 0.22, 0.22, 0.0) for x, y, _ in curtains]
    plan.against(fittings.door(rng, look), others, reach=0.8, back=0.0)

    anywhere = [0, 1, 2, 3]
    large: list[Callable[[np.random.Generator, Materials], Piece]] = [furniture.bed, furniture.sofa]
    wanted = [large[rng.integers(2)], furniture.desk, furniture.shelf, furniture.cabinet]
    if rng.random() < 0.5:
        wanted.insert(3, furniture.wardrobe)
    if wanted[0] is furniture.bed:
        wanted.append(furniture.nightstand)
    for build in wanted:
        plan.against(build(rng, look), anywhere)

    rug = fittings.carpet(rng, look)
    seats = int(rng.integers(2, 4))
    turn = math.pi / 2 * rng.integers(2) + (math.pi / 2 if size[1] > size[0] else 0.0)
    centre = plan.free(furniture.dining(rng, look, seats), 0.1, turn) or (size[0] / 2, size[1] / 2)
    for build in (furniture.plant, furniture.dustbin, furniture.parcels):
        piece = build(rng, look)
        plan.against(piece, anywhere, back=piece.depth / 2 + fittings.SKIRTING)
    _lay(plan, rug, centre, turn)
    for _ in range(int(rng.integers(2, 4))):
        plan.against(fittings.picture(rng, look), others, low=float(rng.uniform(1.3, 1.5)), back=0.0)

    lamp, bulb = fittings.pendant(rng, look, size[2])
    plan.items += moved([lamp], size[0] / 2, size[1] / 2)
    plan.items.append(fittings.skirting(look, size))
    _, yaw, _, _ = plan.wall(daylight)
    normal = (-math.sin(yaw), math.cos(yaw))
    light = (pane.centre[0] + 0.05 * normal[0], pane.centre[1] + 0.05 * normal[1], pane.centre[2] + 0.1)
    return Furnished(size, shell, plan.items, (size[0] / 2, size[1] / 2, bulb - 0.03), light, normal)


def _lay(plan: _Plan, rug: Piece, centre: tuple[float, float], yaw: float) -> None:
    """Lays the rug under the table, pushed back from the walls where it would run into them."""
    cos, sin = abs(math.cos(yaw)), abs(math.sin(yaw))
    reach = (cos * rug.width / 2 + sin * rug.depth / 2 + 0.2, sin * rug.width / 2 + cos * rug.depth / 2 + 0.2)
    x, y = (min(max(c, r), s - r) for c, r, s in zip(centre, reach, plan.size, strict=False))
    plan.items += moved(rug.items, x, y, 0.0, yaw)
