"""Procedural materials: every one a pure function of a random stream, an [H,W,3] float image of albedo in [0,1] (display-encoded) that
tiles.

Nothing here is photographed or read from a file.
"""

from __future__ import annotations

import cv2
import numpy as np

SIZE = 512
Colour = tuple[float, float, float] | np.ndarray


def noise(rng: np.random.Generator, cells_y: int, cells_x: int, height: int = SIZE, width: int | None = None) -> np.ndarray:
    """Smooth tiling noise [height,width] in about [-1,1]: random values on a lattice of cells, interpolated bicubically. Square by
    default.
    """
    width = width or height
    cells_y, cells_x = min(cells_y, height), min(cells_x, width)
    lattice = np.pad(rng.uniform(-1, 1, (cells_y, cells_x)).astype(np.float32), 2, mode="wrap")
    # Cell centres of the padded lattice fall where they would without the border, so the cut-out still tiles.
    step_y, step_x = height / cells_y, width / cells_x
    full = cv2.resize(lattice, (round(step_x * (cells_x + 4)), round(step_y * (cells_y + 4))), interpolation=cv2.INTER_CUBIC)
    top, left = round(2 * step_y), round(2 * step_x)
    return full[top : top + height, left : left + width]


def clouds(rng: np.random.Generator, cells_y: int, cells_x: int, octaves: int, gain: float = 0.5, size: int = SIZE) -> np.ndarray:
    """A sum of `octaves` noises [size,size], each twice as fine and `gain` times as strong as the one before."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        total += gain**octave * noise(rng, cells_y << octave, cells_x << octave, size)
    return total


def grid(size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres (y, x), each [size,size], in [0,1)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.meshgrid(axis, axis, indexing="ij")


def paint(base: Colour, shade: np.ndarray) -> np.ndarray:
    """The colour times (1 + shade [H,W]), clipped to [0,1]: [H,W,3]."""
    return np.clip(np.asarray(base, np.float32) * (1 + shade[..., None]), 0, 1)


def blend(below: np.ndarray, above: Colour, weight: np.ndarray) -> np.ndarray:
    """`above` over `below` [H,W,3] with opacity `weight` [H,W]."""
    return below + (np.asarray(above, np.float32) - below) * weight[..., None]


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour [3] from hue, saturation and value, each in [0,1]; the hue wraps."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * (hue % 1.0)) % 6
    return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)


def plaster(rng: np.random.Generator, base: Colour, size: int = SIZE) -> np.ndarray:
    """Rolled paint: faint clouds, roller grain, and the marks and patches that daily life leaves."""
    marks = np.clip(clouds(rng, 6, 6, 4, size=size) - 0.9, 0, 1)
    return paint(
        base, 0.05 * clouds(rng, 3, 3, 4, size=size) + 0.07 * noise(rng, 160, 160, size) + 0.04 * noise(rng, 64, 64, size) - 0.2 * marks
    )


def wallpaper(rng: np.random.Generator, base: Colour) -> np.ndarray:
    """Stripes, a lattice of rosettes or sprigs, on plaster."""
    y, x = grid()
    ink = np.clip(np.asarray(base) * rng.uniform(0.55, 0.8) + rng.uniform(-0.05, 0.05, 3), 0, 1)
    repeats = int(rng.integers(4, 8))
    style = rng.integers(3)
    if style == 0:
        phase = (x * repeats) % 1
        pattern = (np.abs(phase - 0.5) < rng.uniform(0.12, 0.25)) * 0.8 + (np.abs(phase - 0.05) < 0.015)
    else:
        shifted = x * repeats + 0.5 * (np.floor(y * repeats) % 2)
        u, v = shifted % 1 - 0.5, (y * repeats) % 1 - 0.5
        radius, angle = np.hypot(u, v), np.arctan2(v, u)
        petals = int(rng.integers(4, 9))
        flower = radius < 0.2 + 0.12 * np.cos(petals * angle)
        ring = np.abs(radius - 0.4) < 0.02 if style == 1 else np.abs(np.abs(u) - np.abs(v)) < 0.025
        pattern = flower * 0.9 + ring * 0.6
    return blend(plaster(rng, base), ink, np.clip(cv2.GaussianBlur(pattern.astype(np.float32), (0, 0), 0.8), 0, 1) * 0.85)


def wood(rng: np.random.Generator, base: Colour, planks: int = 0, size: int = SIZE) -> np.ndarray:
    """Grain along u: growth rings seen lengthwise, pores, knots; with `planks`, that many staggered boards with dark joints."""
    y, x = grid(size)
    board = np.floor(y * planks) if planks else np.zeros_like(y)
    count = max(planks, 1)
    tone = rng.uniform(-0.16, 0.16, count)[board.astype(int)] if planks else 0.0
    shift = rng.uniform(0, 1, count)[board.astype(int)]
    warp = clouds(rng, 4, 2, 3, size=size)
    rings = np.sin(2 * np.pi * (rng.integers(5, 9) * (y + shift) * (1 if not planks else 3) + 1.1 * warp))
    shade = tone + 0.10 * rings + 0.13 * noise(rng, 256, 8, size) + 0.10 * noise(rng, 128, 16, size) + 0.05 * warp
    if planks:
        joint = np.abs((y * planks) % 1 - 0.5) > 0.5 - 0.022
        ends = np.abs(((x * 2 + shift) % 1) - 0.5) > 0.5 - 0.004
        shade = np.where(joint | ends, -0.55, shade)
    else:
        knot_y, knot_x = rng.uniform(0.2, 0.8, 2)
        knot = np.exp(-(((y - knot_y) / 0.03) ** 2) - ((x - knot_x) / 0.05) ** 2)
        shade = shade - 0.4 * knot
    return paint(base, shade)


def tiles(rng: np.random.Generator, base: Colour, count: int = 5, size: int = SIZE) -> np.ndarray:
    """A square of count x count glazed tiles with grout; two tones in a chequer or one, each tile a little different."""
    y, x = grid(size)
    row, column = np.floor(y * count).astype(int), np.floor(x * count).astype(int)
    tone = rng.uniform(-0.1, 0.1, (count, count))[row, column]
    if rng.random() < 0.5 and count % 2 == 0:
        tone = tone - 0.4 * ((row + column) % 2)
    grout = np.maximum(np.abs((y * count) % 1 - 0.5), np.abs((x * count) % 1 - 0.5)) > 0.485
    return blend(paint(base, tone + 0.08 * clouds(rng, 8, 8, 4, size=size)), (0.52, 0.5, 0.47), grout.astype(np.float32))


def fabric(rng: np.random.Generator, base: Colour, size: int = SIZE // 2) -> np.ndarray:
    """Woven cloth: plain, striped, plaid or dotted."""
    y, x = grid(size)
    weave = 0.09 * np.sign(np.sin(2 * np.pi * 64 * x) * np.sin(2 * np.pi * 64 * y))
    shade = weave + 0.12 * noise(rng, 96, 96, size) + 0.10 * clouds(rng, 4, 4, 3, size=size)
    cloth = paint(base, shade)
    accent = hsv(rng.random(), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.95))
    repeats, style = int(rng.integers(4, 9)), rng.integers(4)
    if style == 1:
        cloth = blend(cloth, accent, 0.8 * ((x * repeats) % 1 < rng.uniform(0.2, 0.5)))
    elif style == 2:
        for axis in (x, y):
            cloth = blend(cloth, accent, 0.45 * ((axis * repeats) % 1 < 0.4) + 0.3 * (np.abs((axis * repeats) % 1 - 0.7) < 0.04))
    elif style == 3:
        u, v = (x * repeats * 1.5 + 0.5 * (np.floor(y * repeats * 1.5) % 2)) % 1 - 0.5, (y * repeats * 1.5) % 1 - 0.5
        cloth = blend(cloth, accent, 0.8 * (np.hypot(u, v) < 0.22))
    return np.clip(cloth * (1 + 0.6 * weave[..., None]), 0, 1)


def pile(rng: np.random.Generator, base: Colour, size: int = SIZE) -> np.ndarray:
    """Fitted carpet: coarse grain of tufts over soft clouds."""
    return paint(base, 0.22 * noise(rng, 200, 200, size) + 0.14 * noise(rng, 70, 70, size) + 0.06 * clouds(rng, 3, 3, 3, size=size))


def marble(rng: np.random.Generator, base: Colour, size: int = SIZE // 2) -> np.ndarray:
    """Pale stone with dark veins."""
    y, x = grid(size)
    turbulence = clouds(rng, 4, 4, 6, 0.55, size)
    veins = 1 - np.abs(np.sin(np.pi * (2 * x + 3 * y + 1.3 * turbulence)))
    return paint(base, 0.05 * turbulence - 0.55 * veins**6 - 0.12 * veins**2)


def cardboard(rng: np.random.Generator, base: Colour, size: int = SIZE // 2) -> np.ndarray:
    """A parcel's side: brown board, tape across, a printed label."""
    y, x = grid(size)
    board = paint(base, 0.06 * noise(rng, 4, 120, size) + 0.05 * noise(rng, 128, 128, size) + 0.07 * clouds(rng, 3, 3, 3, size=size))
    board = blend(board, (0.78, 0.69, 0.5), 0.75 * (np.abs(y - 0.5) < 0.06))
    top, left = rng.uniform(0.08, 0.2), rng.uniform(0.1, 0.5)
    label = (y > top) & (y < top + 0.25) & (x > left) & (x < left + 0.35)
    board = blend(board, (0.93, 0.92, 0.88), label.astype(np.float32))
    bars = rng.random(96)[(x * 96).astype(int)] < 0.5
    return blend(board, (0.08, 0.08, 0.1), (label & bars & (y > top + 0.05) & (y < top + 0.2)).astype(np.float32))


def leaves(rng: np.random.Generator, base: Colour) -> np.ndarray:
    """Foliage: many overlapping leaf blades, each with its own green and a pale midrib."""
    size = 256
    canvas = np.full((size, size, 3), 0.06, np.float32) * np.asarray(base, np.float32) * 3
    for _ in range(260):
        centre = rng.uniform(0, size, 2)
        length, angle = rng.uniform(14, 34), rng.uniform(0, 360)
        tone = np.clip(np.asarray(base) * rng.uniform(0.45, 1.5) + rng.uniform(-0.04, 0.04, 3), 0, 1)
        tip = centre + length * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
        for shift in ((0, 0), (size, 0), (0, size), (-size, 0), (0, -size)):
            at = tuple(int(c + s) for c, s in zip(centre, shift, strict=True))
            cv2.ellipse(canvas, at, (int(length), int(length * 0.33)), angle, 0, 360, tone.tolist(), -1, cv2.LINE_AA)
            end = tuple(int(c + s) for c, s in zip(tip, shift, strict=True))
            cv2.line(canvas, at, end, np.clip(tone * 1.5, 0, 1).tolist(), 1, cv2.LINE_AA)
    return np.clip(canvas, 0, 1)


def metal(rng: np.random.Generator, base: Colour, size: int = SIZE // 4) -> np.ndarray:
    """Brushed metal or moulded plastic: fine streaks along u."""
    return paint(base, 0.07 * noise(rng, 256, 6, size) + 0.03 * clouds(rng, 4, 4, 3, size=size))


def paper(rng: np.random.Generator, base: Colour, size: int = SIZE // 4) -> np.ndarray:
    """The fore edge of a block of pages: thin lines along u."""
    return paint(base, 0.16 * noise(rng, 256, 3, size) + 0.04 * noise(rng, 32, 32, size))
