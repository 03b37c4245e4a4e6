"""Pieces of furniture in their own frame: metres, underside on z = 0, looking along +y; pieces for a wall have their back at y = 0.

Each builder draws sizes from `rng` and textures from `look`, and returns a `Piece`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.scene import pictures, skins, textures, things
from pipeline.synthetic.scene.parts import FRONT, TOP, Item, Materials, Part, Skin, box, ellipsoid, frustum, moved
from pipeline.synthetic.scene.textures import hsv


@dataclass(frozen=True)
class Piece:
    """Items with the floor they take: width along x, depth along y, and the height of the tallest."""

    items: list[Item]
    width: float
    depth: float
    height: float


def _legs(x: float, y: float, height: float, radius: float, skin: Skin) -> list[Part]:
    return [frustum((sx * x, sy * y, 0.0), radius * 0.8, radius, height, skin) for sx in (-1, 1) for sy in (-1, 1)]


def plant(rng: np.random.Generator, look: Materials) -> Piece:
    """A pot with a bush in it: two objects."""
    r, h = rng.uniform(0.13, 0.18), rng.uniform(0.26, 0.36)
    soil = look.shared("soil", textures.pile, (0.2, 0.14, 0.1), 128, tile=(0.3, 0.3))
    leaf = look.new(textures.leaves, hsv(rng.uniform(0.24, 0.36), rng.uniform(0.45, 0.7), rng.uniform(0.35, 0.6)), tile=(0.45, 0.45))
    pot = Item("plant pot", (frustum((0, 0, 0), r * 0.72, r, h, skins.glaze(rng, look), soil, gloss=0.2),))
    stem = frustum((0, 0, h), 0.018, 0.012, 0.35, soil)
    turn, tall = rng.uniform(0, 6.28), rng.uniform(0.0, 0.15)
    crown = [
        ellipsoid(
            (0.11 * math.cos(turn + k * 2.1), 0.11 * math.sin(turn + k * 2.1), h + 0.3 + 0.13 * k), (0.17, 0.15, 0.16), leaf, yaw=turn + k
        )
        for k in range(3)
    ]
    crown.append(ellipsoid((0, 0, h + 0.62 + tall), (0.14, 0.15, 0.17 + tall), leaf))
    return Piece([pot, Item("plant", (stem, *crown))], 0.62, 0.62, h + 1.0)


def dustbin(rng: np.random.Generator, look: Materials) -> Piece:
    """A waste-paper bin."""
    skin = look.new(textures.metal, hsv(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.3, 0.8)), tile=(0.3, 0.3))
    return Piece([Item("bin", (frustum((0, 0, 0), 0.11, 0.145, rng.uniform(0.28, 0.36), skin, skins.dark(look)),))], 0.32, 0.32, 0.4)


def parcels(rng: np.random.Generator, look: Materials) -> Piece:
    """A cardboard box on the floor, sometimes with a smaller one on top."""
    big = things.parcel(rng, look, 0.55)
    items = [big]
    if rng.random() < 0.5:
        items += moved([things.parcel(rng, look, 0.26)], 0, 0, 2 * big.parts[0].half[2], rng.uniform(-0.6, 0.6))
    return Piece(items, 0.62, 0.62, 0.85)


def chair(rng: np.random.Generator, look: Materials, style: int) -> Item:
    """A chair whose sitter looks along +y: timber with four legs (style 0) or a swivel chair."""
    cloth = look.shared(
        f"chair cloth {style}", textures.fabric, hsv(rng.random(), rng.uniform(0.2, 0.6), rng.uniform(0.35, 0.9)), tile=(0.35, 0.35)
    )
    if style:
        dark = skins.dark(look)
        return Item(
            "office chair",
            (
                frustum((0, 0, 0), 0.25, 0.2, 0.05, dark),
                frustum((0, 0, 0.05), 0.03, 0.03, 0.37, skins.steel(look), gloss=0.4),
                frustum((0, 0, 0.42), 0.2, 0.23, 0.07, cloth),
                box((0, -0.21, 0.45), (0.06, 0.02, 0.3), dark),
                box((0, -0.185, 0.6), (0.4, 0.05, 0.42), cloth),
            ),
        )
    wood = skins.timber(rng, look, "chair timber")
    back = [box((0, -0.19, z), (0.38, 0.022, 0.09), wood) for z in (0.62, 0.8)]
    posts = [box((sx * 0.18, -0.19, 0.45), (0.03, 0.03, 0.47), wood) for sx in (-1, 1)]
    return Item("chair", (box((0, 0, 0.41), (0.42, 0.42, 0.04), cloth), *_legs(0.18, 0.18, 0.41, 0.02, wood), *posts, *back))


def shelf(rng: np.random.Generator, look: Materials) -> Piece:
    """A bookcase: boards, sides and back, with rows of books and odd things on the boards."""
    width, depth, height, t = rng.uniform(0.8, 1.15), 0.3, rng.uniform(1.75, 2.05), 0.024
    wood, levels = skins.timber(rng, look), 5
    step = (height - t) / levels
    sides = [box((sx * (width - t) / 2, depth / 2, 0), (t, depth, height), wood) for sx in (-1, 1)]
    back = box((0, 0.006, 0), (width - 2 * t, 0.012, height), wood)
    boards = [box((0, depth / 2 + 0.005, k * step), (width - 2 * t, depth - 0.012, t), wood) for k in range(levels + 1)]
    items = [Item("shelf", (*sides, back, *boards))]
    inner = width - 2 * t
    for k in range(levels):
        floor = k * step + t
        span = inner * rng.uniform(0.45, 0.8)
        left = -inner / 2 + (0.01 if rng.random() < 0.5 else inner - span - 0.01)
        row = look.new(pictures.spines, round(span / 0.035))
        pages = skins.pages(look)
        size = (span, rng.uniform(0.17, 0.22), min(step - t - 0.04, rng.uniform(0.2, 0.28)))
        items.append(
            Item(
                "books",
                (box((left + span / 2, 0.025 + size[1] / 2, floor), size, pages, {FRONT: row, 0: skins.dark(look), 1: skins.dark(look)}),),
            )
        )
        free = inner - span - 0.03
        if free > 0.22 and rng.random() < 0.5:
            thing = (things.vase, things.cup, things.books_flat)[rng.integers(3)](rng, look)
            middle = left - free / 2 if left > -inner / 2 + 0.05 else left + span + free / 2
            items += moved([thing], middle, depth / 2 + 0.02, floor, math.pi / 2 if thing.label == "books" else 0.0)
    return Piece(items, width, depth, height)


def desk(rng: np.random.Generator, look: Materials) -> Piece:
    """A desk with a drawer unit, a monitor, a keyboard, a lamp or cup, and a swivel chair."""
    width, depth, height = rng.uniform(1.25, 1.6), rng.uniform(0.65, 0.75), 0.73
    wood = skins.timber(rng, look)
    side = rng.choice([-1, 1])
    drawers = look.new(pictures.panelled, hsv(0.08, rng.uniform(0.0, 0.5), rng.uniform(0.5, 0.92)), 3, 1, True)
    unit = box((side * (width / 2 - 0.24), depth / 2, 0), (0.4, depth - 0.06, height - 0.03), wood, {FRONT: drawers})
    wall = box((-side * (width / 2 - 0.03), depth / 2, 0), (0.03, depth - 0.06, height - 0.03), wood)
    items = [Item("desk", (box((0, depth / 2, height - 0.03), (width, depth, 0.03), wood, gloss=0.1), unit, wall))]
    items += moved([things.monitor(rng, look)], -side * rng.uniform(0.05, 0.2), 0.2, height)
    board = box((0, 0, 0), (0.42, 0.14, 0.02), skins.dark(look), {TOP: look.new(pictures.keys)})
    items += moved([Item("keyboard", (board,))], -side * 0.12, depth - 0.16, height, rng.uniform(-0.08, 0.08))
    items += moved(
        [things.table_lamp(rng, look) if rng.random() < 0.6 else things.books_flat(rng, look)], side * (width / 2 - 0.22), 0.25, height
    )
    items += moved([things.cup(rng, look)], side * (width / 2 - 0.3), depth - 0.16, height)
    items += moved([chair(rng, look, 1)], -side * 0.12, depth + 0.14, 0, math.pi + rng.uniform(-0.5, 0.5))
    return Piece(items, width, depth + 0.42, 1.2)


def cabinet(rng: np.random.Generator, look: Materials) -> Piece:
    """A sideboard on short legs with a few things on top."""
    width, depth, height = rng.uniform(0.95, 1.4), 0.42, rng.uniform(0.72, 0.9)
    colour = hsv(rng.uniform(0.04, 0.6), rng.uniform(0.1, 0.5), rng.uniform(0.45, 0.9))
    front = look.new(pictures.panelled, colour, int(rng.integers(1, 4)), int(rng.integers(2, 4)), True)
    body = look.new(textures.wood, colour, tile=(1.1, 0.5))
    legs = [
        frustum((sx * (width / 2 - 0.07), depth / 2 + sy * 0.14, 0), 0.015, 0.02, 0.12, skins.dark(look))
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]
    top = box((0, depth / 2, height - 0.025), (width + 0.02, depth, 0.025), skins.timber(rng, look))
    items = [Item("cabinet", (box((0, depth / 2 - 0.01, 0.12), (width, depth - 0.02, height - 0.145), body, {FRONT: front}), top, *legs))]
    choice = [things.vase, things.table_lamp, things.books_flat, things.bowl]
    for slot, k in enumerate(rng.permutation(4)[:2]):
        items += moved([choice[k](rng, look)], (slot - 0.5) * width * 0.5, depth / 2, height, rng.uniform(-0.3, 0.3))
    return Piece(items, width + 0.02, depth, height + 0.4)


def wardrobe(rng: np.random.Generator, look: Materials) -> Piece:
    """A tall cupboard with two doors."""
    width, depth, height = rng.uniform(0.95, 1.35), 0.56, rng.uniform(1.9, 2.1)
    colour = hsv(rng.uniform(0.05, 0.12), rng.uniform(0.05, 0.5), rng.uniform(0.5, 0.92))
    front = look.new(pictures.panelled, colour, int(rng.integers(1, 3)), 2, True)
    body = look.new(textures.wood, colour, tile=(0.6, 1.2))
    cornice = box((0, depth / 2, height - 0.05), (width + 0.04, depth, 0.05), body)
    return Piece(
        [Item("wardrobe", (box((0, depth / 2 - 0.01, 0), (width, depth - 0.02, height - 0.05), body, {FRONT: front}), cornice))],
        width + 0.04,
        depth,
        height,
    )


def bed(rng: np.random.Generator, look: Materials) -> Piece:
    """A bed with its head at the wall: frame, mattress, blanket, one or two pillows."""
    width, length = rng.uniform(1.0, 1.6), 2.05
    wood, sheet = skins.timber(rng, look), look.new(textures.fabric, hsv(rng.random(), 0.1, 0.92), tile=(0.6, 0.6))
    frame = box((0, length / 2 + 0.03, 0.06), (width, length, 0.22), wood)
    legs = [
        box((sx * (width / 2 - 0.08), 0.03 + length / 2 + sy * (length / 2 - 0.08), 0), (0.07, 0.07, 0.06), wood)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]
    mattress = box((0, length / 2 + 0.04, 0.28), (width - 0.06, length - 0.06, 0.18), sheet)
    head = box((0, 0.02, 0), (width + 0.06, 0.04, rng.uniform(0.85, 1.05)), wood)
    items = [Item("bed", (frame, mattress, head, *legs))]
    cover = length * rng.uniform(0.55, 0.68)
    items.append(Item("blanket", (box((0, length + 0.02 - cover / 2, 0.3), (width - 0.03, cover, 0.185), skins.cloth(rng, look, 0.8)),)))
    count = 2 if width > 1.25 else 1
    for k in range(count):
        skin = skins.cloth(rng, look, 0.35)
        items.append(
            Item(
                "pillow",
                (ellipsoid(((k - (count - 1) / 2) * width * 0.46, 0.3, 0.525), (0.29, 0.19, 0.085), skin, yaw=rng.uniform(-0.12, 0.12)),),
            )
        )
    return Piece(items, width + 0.06, length + 0.06, 1.05)


def sofa(rng: np.random.Generator, look: Materials) -> Piece:
    """A sofa with seat cushions and scatter cushions."""
    width, depth = rng.uniform(1.6, 2.1), 0.85
    cloth, dark = (
        look.new(textures.fabric, hsv(rng.random(), rng.uniform(0.15, 0.55), rng.uniform(0.35, 0.8)), tile=(0.5, 0.5)),
        skins.dark(look),
    )
    base, back = box((0, depth / 2, 0.09), (width - 0.3, depth - 0.04, 0.2), cloth), box((0, 0.12, 0.29), (width - 0.3, 0.2, 0.5), cloth)
    arms = [box((sx * (width / 2 - 0.08), depth / 2, 0.09), (0.16, depth, 0.5), cloth) for sx in (-1, 1)]
    feet = [box((sx * (width / 2 - 0.08), depth / 2 + sy * 0.35, 0), (0.06, 0.06, 0.09), dark) for sx in (-1, 1) for sy in (-1, 1)]
    half = (width - 0.32) / 2
    seats = [box((sx * (half / 2 + 0.003), 0.535, 0.29), (half - 0.004, 0.61, 0.15), cloth) for sx in (-1, 1)]
    items = [Item("sofa", (base, back, *arms, *feet, *seats))]
    for sx in (-1, 1):
        items.append(
            Item(
                "pillow",
                (
                    ellipsoid(
                        (sx * half * 0.68, 0.33, 0.62), (0.21, 0.1, 0.19), skins.cloth(rng, look, 0.3), yaw=sx * rng.uniform(0.1, 0.5)
                    ),
                ),
            )
        )
    return Piece(items, width, depth, 0.85)


def nightstand(rng: np.random.Generator, look: Materials) -> Piece:
    """A small chest of drawers with a lamp."""
    front = look.new(pictures.panelled, hsv(0.08, rng.uniform(0.1, 0.5), rng.uniform(0.5, 0.9)), 2, 1, True)
    items = [Item("nightstand", (box((0, 0.2, 0), (0.45, 0.4, rng.uniform(0.45, 0.55)), skins.timber(rng, look), {FRONT: front}),))]
    items += moved([things.table_lamp(rng, look)], 0.0, 0.18, 2 * items[0].parts[0].half[2])
    return Piece(items, 0.45, 0.4, 0.95)


def dining(rng: np.random.Generator, look: Materials, seats: int) -> Piece:
    """A table about the origin, laid with two or three things, and `seats` chairs drawn up to it."""
    width, depth, height = rng.uniform(1.15, 1.5), rng.uniform(0.75, 0.9), 0.74
    wood = skins.timber(rng, look, "table timber")
    if rng.random() < 0.35:
        width = depth = rng.uniform(0.95, 1.15)
        table: tuple[Part, ...] = (
            frustum((0, 0, height - 0.03), width / 2, width / 2, 0.03, wood, gloss=0.15),
            frustum((0, 0, 0.03), 0.045, 0.045, height - 0.06, wood),
            frustum((0, 0, 0), 0.27, 0.24, 0.03, wood),
        )
    else:
        apron = box((0, 0, height - 0.1), (width - 0.2, depth - 0.2, 0.07), wood)
        table = (
            box((0, 0, height - 0.03), (width, depth, 0.03), wood, gloss=0.15),
            apron,
            *_legs(width / 2 - 0.07, depth / 2 - 0.07, height - 0.03, 0.03, wood),
        )
    items = [Item("table", table)]
    items += moved([things.bowl(rng, look)], 0.0, 0.0, height)
    items += moved([things.books_flat(rng, look)], rng.uniform(0.26, 0.3), rng.uniform(-0.15, 0.15), height, rng.uniform(0, 3))
    items += moved([things.cup(rng, look)], rng.uniform(-0.34, -0.24), rng.uniform(-0.2, 0.2), height)
    for k in range(seats):
        turn = (0, math.pi, math.pi / 2, -math.pi / 2)[k]
        reach = (depth if k < 2 else width) / 2 + rng.uniform(0.08, 0.2)
        seat = moved([chair(rng, look, 0)], 0, 0, 0, rng.uniform(-0.2, 0.2))
        items += moved(moved(seat, 0, -reach), 0, 0, 0, turn)
    return Piece(items, width + (0.8 if seats > 2 else 0.0), depth + 0.8, 0.95)
