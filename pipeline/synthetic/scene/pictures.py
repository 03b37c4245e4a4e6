"""Drawn surfaces that are stretched over one face: paintings, posters, book spines, rugs, screens, doors, drawers, windows, curtains.

As in `textures`: pure functions of a random stream, [H,W,3] float in [0,1], row 0 at the top of the face.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from pipeline.synthetic.scene.textures import SIZE, Colour, blend, clouds, grid, hsv, noise, paint, wood


def _rectangle(image: np.ndarray, box: tuple[float, float, float, float], colour: Colour) -> None:
    """Fills (left, top, right, bottom), each in [0,1], in place."""
    height, width = image.shape[:2]
    left, top, right, bottom = box
    image[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = np.asarray(colour, np.float32)


def _text(rng: np.random.Generator, image: np.ndarray, box: tuple[float, float, float, float], lines: int, ink: Colour) -> None:
    """Lines of word-like dashes in a box, in place."""
    left, top, right, bottom = box
    pitch = (bottom - top) / lines
    for line in range(lines):
        x = left
        end = right - (rng.uniform(0, 0.5) * (right - left) if rng.random() < 0.3 else 0)
        while x < end:
            word = rng.uniform(0.02, 0.09) * (right - left) * 2
            _rectangle(image, (x, top + (line + 0.25) * pitch, min(x + word, end), top + (line + 0.75) * pitch), ink)
            x += word + 0.02 * (right - left) + 0.008


def _landscape(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = grid(size)
    low, high = hsv(rng.uniform(0.0, 0.15), 0.45, 0.95), hsv(rng.uniform(0.5, 0.7), 0.55, 0.8)
    image = low + (high - low) * np.clip(1 - y * 1.6, 0, 1)[..., None]
    sun = np.hypot(x - rng.uniform(0.2, 0.8), y - rng.uniform(0.15, 0.35)) < rng.uniform(0.05, 0.1)
    image = blend(image, hsv(rng.uniform(0.05, 0.15), 0.5, 1.0), sun.astype(np.float32))
    hue = rng.uniform(0.2, 0.75)
    for layer in range(5):
        ridge = 0.42 + 0.12 * layer + 0.13 * np.interp(x[0], np.linspace(0, 1, 9 + layer * 4), rng.uniform(-0.6, 0.6, 9 + layer * 4))
        image = blend(image, hsv(hue + 0.03 * layer, 0.35 + 0.08 * layer, 0.75 - 0.12 * layer), (y > ridge).astype(np.float32))
    return image


def _squares(rng: np.random.Generator, size: int) -> np.ndarray:
    image = np.ones((size, size, 3), np.float32) * 0.93
    cuts_x, cuts_y = (np.sort(np.concatenate([[0, 1], rng.uniform(0.1, 0.9, rng.integers(3, 6))])) for _ in range(2))
    for top, bottom in pairwise(cuts_y):
        for left, right in pairwise(cuts_x):
            colour = hsv(rng.random(), rng.choice([0.0, 0.75, 0.85]), rng.uniform(0.5, 0.95))
            _rectangle(image, (left, top, right, bottom), colour)
            _rectangle(image, (left, top, left + 0.018, bottom), (0.05, 0.05, 0.06))
            _rectangle(image, (left, top, right, top + 0.018), (0.05, 0.05, 0.06))
    return image


def _blots(rng: np.random.Generator, size: int) -> np.ndarray:
    image = np.ones((size, size, 3), np.float32) * hsv(rng.random(), 0.2, rng.uniform(0.6, 0.95)).astype(np.float32)
    for _ in range(40):
        at = tuple(int(c) for c in rng.uniform(0, size, 2))
        axes = tuple(int(a) for a in rng.uniform(0.02, 0.16, 2) * size)
        colour = hsv(rng.random(), rng.uniform(0.3, 0.9), rng.uniform(0.2, 1.0)).tolist()
        thickness = int(rng.choice([-1, 2, 4]))
        cv2.ellipse(image, at, axes, rng.uniform(0, 180), 0, float(rng.uniform(160, 360)), colour, thickness, cv2.LINE_AA)
    return image


def _poster(rng: np.random.Generator, size: int) -> np.ndarray:
    ground = hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.5, 0.95)).astype(np.float32)
    image = np.ones((size, size, 3), np.float32) * ground
    ink = hsv(rng.random(), 0.6, 0.2 if ground.mean() > 0.5 else 0.95)
    y, x = grid(size)
    rings = np.sin(np.hypot(x - 0.5, y - 0.35) * rng.uniform(60, 140)) > 0
    image = blend(image, ink, (rings & (np.hypot(x - 0.5, y - 0.35) < 0.28)).astype(np.float32))
    _text(rng, image, (0.1, 0.66, 0.9, 0.78), 1, ink)
    _text(rng, image, (0.15, 0.8, 0.85, 0.95), 5, ink)
    return image


def picture(rng: np.random.Generator) -> np.ndarray:
    """A framed painting or poster with brushwork, on a pale mount."""
    size = SIZE // 2
    style = (_landscape, _squares, _blots, _poster)[rng.integers(4)]
    image = np.clip(style(rng, size) * (1 + 0.14 * clouds(rng, 32, 16, 3, 0.8, size)[..., None]), 0, 1)
    mount = rng.uniform(0.02, 0.1)
    inner = round(size * (1 - 2 * mount - 0.1))
    canvas = np.ones((size, size, 3), np.float32) * hsv(rng.uniform(0.05, 0.12), rng.uniform(0, 0.6), rng.uniform(0.1, 0.6)).astype(
        np.float32
    )
    _rectangle(canvas, (0.05, 0.05, 0.95, 0.95), (0.92, 0.91, 0.88))
    start = (size - inner) // 2
    canvas[start : start + inner, start : start + inner] = cv2.resize(
        image.astype(np.float32), (inner, inner), interpolation=cv2.INTER_AREA
    )
    return canvas


def spines(rng: np.random.Generator, count: int) -> np.ndarray:
    """A row of `count` books seen from the spine: own widths, heights, colours, bands and titles."""
    image = np.full((SIZE // 2, SIZE, 3), 0.05, np.float32)
    edges = np.concatenate([[0], np.cumsum(rng.uniform(0.5, 1.5, count))])
    edges /= edges[-1]
    for left, right in pairwise(edges):
        cover = hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.85))
        ink = (0.9, 0.85, 0.6) if cover.mean() < 0.5 else (0.1, 0.1, 0.12)
        top = rng.uniform(0.0, 0.14)
        _rectangle(image, (left, top, right - 0.004, 1), cover)
        for at in rng.uniform(top + 0.05, 0.95, rng.integers(1, 4)):
            _rectangle(image, (left, at, right - 0.004, at + rng.uniform(0.01, 0.04)), np.clip(cover * rng.uniform(0.4, 1.7), 0, 1))
        middle, half = (left + right) / 2, (right - left) * 0.18
        start = rng.uniform(top + 0.12, 0.4)
        while start < 0.8:
            _rectangle(image, (middle - half, start, middle + half, start + 0.035), ink)
            start += rng.uniform(0.045, 0.09)
    return np.clip(image * (1 + 0.08 * noise(rng, 64, 128, SIZE // 2, SIZE)[..., None]), 0, 1)


def cover(rng: np.random.Generator) -> np.ndarray:
    """The front of a book."""
    image = _poster(rng, SIZE // 4) if rng.random() < 0.5 else _blots(rng, SIZE // 4)
    return np.clip(image * (1 + 0.06 * noise(rng, 64, 64, SIZE // 4)[..., None]), 0, 1)


def rug(rng: np.random.Generator) -> np.ndarray:
    """An oriental rug: nested borders, a medallion, mirror symmetry in both axes, woven grain."""
    half = SIZE // 2
    y, x = grid(half)
    palette = np.stack(
        [hsv(rng.uniform(-0.06, 0.1) + 0.55 * (k % 2) * rng.random(), rng.uniform(0.35, 0.8), rng.uniform(0.25, 0.85)) for k in range(6)]
    )
    field = clouds(rng, 5, 5, 3, 0.7, half) + 0.6 * np.sin(2 * np.pi * (rng.integers(3, 6) * x)) * np.sin(
        2 * np.pi * (rng.integers(3, 6) * y)
    )
    image = palette[np.clip(((field + 1.5) / 3 * 4).astype(int), 0, 3)]
    medallion = np.hypot(1 - x, 1 - y) + 0.05 * np.cos(12 * np.arctan2(1 - y, 1 - x))
    image = np.where((medallion < 0.5)[..., None], palette[np.clip((field * 1.5 + 2.5).astype(int), 1, 4)], image)
    image = np.where((np.abs(medallion - 0.5) < 0.03)[..., None], palette[5], image)
    edge = np.minimum(x, y)
    for k, (start, stop) in enumerate([(0.0, 0.04), (0.04, 0.06), (0.06, 0.2), (0.2, 0.23)]):
        image = np.where(((edge >= start) & (edge < stop))[..., None], palette[(k * 2) % 6] * (0.6 if k % 2 else 1), image)
    along = np.where(x < y, y, x)
    motif = (edge >= 0.08) & (edge < 0.18) & (np.abs((along * 9) % 1 - 0.5) + np.abs(edge - 0.13) * 8 < 0.42)
    image = np.where(motif[..., None], palette[3], image)
    image = np.concatenate([image, image[:, ::-1]], axis=1)
    image = np.concatenate([image, image[::-1]], axis=0)
    return np.clip(image * (1 + 0.22 * noise(rng, 200, 256)[..., None] + 0.08 * noise(rng, 64, 64)[..., None]), 0, 1)


def screen(rng: np.random.Generator) -> np.ndarray:
    """A desktop: wallpaper, a task bar, overlapping windows with text."""
    image = _landscape(rng, SIZE // 2).astype(np.float32)
    for _ in range(3):
        left, top = rng.uniform(0.03, 0.5, 2)
        right, bottom = left + rng.uniform(0.3, 0.47), top + rng.uniform(0.25, 0.4)
        dark = rng.random() < 0.4
        _rectangle(image, (left, top, right, bottom), (0.12, 0.13, 0.16) if dark else (0.95, 0.95, 0.94))
        _rectangle(image, (left, top, right, top + 0.035), hsv(rng.random(), 0.5, 0.6))
        _text(rng, image, (left + 0.02, top + 0.06, right - 0.02, bottom - 0.02), 9, (0.75, 0.85, 0.7) if dark else (0.2, 0.2, 0.25))
    _rectangle(image, (0, 0.95, 1, 1), (0.1, 0.1, 0.12))
    return image


def keys(rng: np.random.Generator) -> np.ndarray:
    """A keyboard from above."""
    y, x = grid(SIZE // 4)
    cap = (np.abs((x * 15) % 1 - 0.5) < 0.4) & (np.abs((y * 5) % 1 - 0.5) < 0.38)
    image = blend(np.full((SIZE // 4, SIZE // 4, 3), 0.08, np.float32), (0.28, 0.28, 0.3), cap.astype(np.float32))
    return blend(image, (0.85, 0.85, 0.85), (cap & (noise(rng, 60, 90, SIZE // 4) > 0.55)).astype(np.float32) * 0.7)


def panelled(rng: np.random.Generator, base: Colour, rows: int, columns: int, knobs: bool) -> np.ndarray:
    """A timber front of rows x columns raised panels with bevels, gaps between them and, if asked, knobs: doors, drawers, cupboards."""
    y, x = grid()
    image = wood(rng, base).transpose(1, 0, 2)
    v, u = (y * rows) % 1, (x * columns) % 1
    edge = np.minimum(np.minimum(u, 1 - u) / rows, np.minimum(v, 1 - v) / columns) * max(rows, columns)
    image = image * (1 - 0.75 * (edge < 0.014))[..., None]
    bevel = (edge > 0.09) & (edge < 0.12)
    lit = np.where((v < 0.5) & (v / columns < np.minimum(u, 1 - u) / rows + 0.02), -0.35, 0.2)
    image = image * (1 + np.where(bevel, lit, 0.0))[..., None]
    if knobs:
        knob = np.hypot((u - 0.5) / rows, (v - 0.5) / columns) * max(rows, columns) < 0.045
        image = blend(image, (0.78, 0.74, 0.62), knob.astype(np.float32))
    return np.clip(image, 0, 1)


def window_view(rng: np.random.Generator) -> np.ndarray:
    """A daylit view of sky, houses and trees behind white glazing bars."""
    size = SIZE // 2
    y, x = grid(size)
    image = hsv(0.58, 0.25, 0.98) + (hsv(0.58, 0.05, 1.0) - hsv(0.58, 0.25, 0.98)) * y[..., None]
    image = blend(image, (1, 1, 1), np.clip(clouds(rng, 3, 3, 5, 0.55, size), 0, 1) * 0.8)
    left = 0.0
    while left < 1:
        width, top = rng.uniform(0.12, 0.3), rng.uniform(0.4, 0.62)
        wall = hsv(rng.uniform(0.02, 0.12), rng.uniform(0.1, 0.5), rng.uniform(0.55, 0.9))
        house = (x > left) & (x < left + width) & (y > top)
        image = blend(image, wall, house.astype(np.float32))
        pane = house & (np.abs((x * 14) % 1 - 0.5) < 0.25) & (np.abs((y * 11) % 1 - 0.5) < 0.28)
        image = blend(image, (0.3, 0.36, 0.45), pane.astype(np.float32))
        left += width
    crown = y > 0.78 + 0.16 * noise(rng, 4, 10, size) * (1 - y)
    trees = hsv(0.3, 0.5, 0.5) * (1 + 0.45 * clouds(rng, 24, 24, 3, 0.7, size))[..., None]
    image = np.where(crown[..., None], trees, image)
    bars = (np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)) < 0.04) | (np.abs(x - 0.5) < 0.025) | (np.abs(y - 0.36) < 0.018)
    return np.clip(blend(image, (0.9, 0.9, 0.88), bars.astype(np.float32)), 0, 1)


def curtain(rng: np.random.Generator, base: Colour) -> np.ndarray:
    """Hanging cloth in soft folds."""
    y, x = grid()
    folds = 0.3 * np.sin(2 * np.pi * (7 * x + 0.25 * np.sin(2 * np.pi * (2 * x + 0.1 * y)))) + 0.1 * noise(rng, 2, 24)
    weave = 0.08 * noise(rng, 200, 200)
    return paint(base, folds + weave + 0.06 * (np.abs((y * 16) % 1 - 0.5) < 0.08))
