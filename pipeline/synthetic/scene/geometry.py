"""Solids with a closed form: where a ray meets them, what lies on their faces, and the triangles that stand for them in a scan.

Four kinds: yawed boxes, axis-aligned ellipsoids (a sphere is one), capped upright frustums (a cylinder is one) and the room's shell, a
box seen from inside. Every face carries a parameter square (u to the right and v downwards for someone who looks at it); the same square
places texture, baked light and mesh vertices, so the three agree by construction.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pipeline.synthetic.compiling import kernel, scalar

BOX, ELLIPSOID, FRUSTUM, SHELL = 0, 1, 2, 3
FACES = {BOX: 6, ELLIPSOID: 1, FRUSTUM: 3, SHELL: 6}
"""Faces per kind. Boxes and shell: +x -x +y -y +z -z. Frustum: side, top, bottom."""

# Per box face: axis and sign of u, axis and sign of v, as seen from outside.
_FRAME = np.array([[1, 1, 2, -1], [1, -1, 2, -1], [0, -1, 2, -1], [0, 1, 2, -1], [0, 1, 1, -1], [0, 1, 1, 1]])
_MISS = -1.0


class Primitives(NamedTuple):
    """N solids as arrays, metres, world frame (z up).

    kind [N]; centre [N,3]; half [N,3] half extents, for a frustum (bottom radius, top radius, half height); heading [N,2] cosine and sine
    of the yaw; radius [N] of the sphere about the centre that encloses the solid.
    """

    kind: np.ndarray
    centre: np.ndarray
    half: np.ndarray
    heading: np.ndarray
    radius: np.ndarray


def primitives(kind: np.ndarray, centre_n3: np.ndarray, half_n3: np.ndarray, yaw_n: np.ndarray) -> Primitives:
    """Solids from kinds [N], centres [N,3], half extents [N,3] and yaws [N] in radians."""
    half = np.ascontiguousarray(half_n3, dtype=np.float64)
    round_radius = np.hypot(np.maximum(half[:, 0], half[:, 1]), half[:, 2])
    radius = np.where(kind == FRUSTUM, round_radius, np.where(kind == ELLIPSOID, half.max(axis=1), np.linalg.norm(half, axis=1)))
    heading = np.stack([np.cos(yaw_n), np.sin(yaw_n)], axis=1)
    return Primitives(np.asarray(kind, dtype=np.int64), np.ascontiguousarray(centre_n3, dtype=np.float64), half, heading, radius)


def enclosing_half(prims: Primitives) -> np.ndarray:
    """Half extents [N,3] of the yawed box round each solid."""
    half = prims.half.copy()
    tapered = prims.kind == FRUSTUM
    half[tapered, :2] = half[tapered, :2].max(axis=1, keepdims=True)
    return half


def clearance(prims: Primitives, points_p3: np.ndarray) -> np.ndarray:
    """Distance [P] in metres from each point to the nearest enclosing box of a solid other than the shell; negative inside one."""
    solid = prims.kind != SHELL
    offset = points_p3[:, None, :] - prims.centre[None, solid]
    cos, sin = prims.heading[solid, 0], prims.heading[solid, 1]
    local = np.stack([cos * offset[..., 0] + sin * offset[..., 1], cos * offset[..., 1] - sin * offset[..., 0], offset[..., 2]], axis=-1)
    beyond = np.abs(local) - enclosing_half(prims)[None, solid]
    outside = np.linalg.norm(np.maximum(beyond, 0.0), axis=-1)
    return (outside + np.minimum(beyond.max(axis=-1), 0.0)).min(axis=1)


@scalar
def _slab(o, d, h):
    """Ray parameters between which the coordinate stays within [-h, h]."""
    if d == 0.0:
        return (-np.inf, np.inf) if abs(o) <= h else (np.inf, -np.inf)
    a = (-h - o) / d
    b = (h - o) / d
    return (a, b) if a < b else (b, a)


@scalar
def _hit_box(hx, hy, hz, ox, oy, oz, dx, dy, dz, from_inside):
    x0, x1 = _slab(ox, dx, hx)
    y0, y1 = _slab(oy, dy, hy)
    z0, z1 = _slab(oz, dz, hz)
    near = max(x0, y0, z0)
    far = min(x1, y1, z1)
    if near > far or far < 0.0:
        return _MISS, 0
    if from_inside:
        if far == x1:
            return far, 0 if dx > 0.0 else 1
        if far == y1:
            return far, 2 if dy > 0.0 else 3
        return far, 4 if dz > 0.0 else 5
    if near == x0:
        face = 1 if dx > 0.0 else 0
    elif near == y0:
        face = 3 if dy > 0.0 else 2
    else:
        face = 5 if dz > 0.0 else 4
    return max(near, 0.0), face


@scalar
def _hit_ellipsoid(hx, hy, hz, ox, oy, oz, dx, dy, dz):
    ox, oy, oz, dx, dy, dz = ox / hx, oy / hy, oz / hz, dx / hx, dy / hy, dz / hz
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 1.0
    root = b * b - a * c
    if root < 0.0:
        return _MISS, 0
    root = math.sqrt(root)
    if root - b < 0.0:
        return _MISS, 0
    return max((-b - root) / a, 0.0), 0


@scalar
def _hit_frustum(bottom, top, hz, ox, oy, oz, dx, dy, dz):
    middle = 0.5 * (bottom + top)
    slope = (top - bottom) / (2.0 * hz)
    ro = middle + slope * oz
    a = dx * dx + dy * dy - slope * slope * dz * dz
    b = ox * dx + oy * dy - slope * dz * ro
    c = ox * ox + oy * oy - ro * ro
    if c < 0.0 and abs(oz) < hz:
        return 0.0, 0
    best = np.inf
    face = 0
    root = b * b - a * c
    if root >= 0.0 and a != 0.0:
        root = math.sqrt(root)
        for sign in (-1.0, 1.0):
            t = (-b + sign * root) / a
            z = oz + t * dz
            if 0.0 <= t < best and abs(z) <= hz and middle + slope * z >= 0.0:
                best = t
    if dz != 0.0:
        t = ((hz if dz < 0.0 else -hz) - oz) / dz
        x, y, r = ox + t * dx, oy + t * dy, top if dz < 0.0 else bottom
        if 0.0 <= t < best and x * x + y * y <= r * r:
            best = t
            face = 1 if dz < 0.0 else 2
    return (_MISS, 0) if best == np.inf else (best, face)


@scalar
def to_local(prims, i, x, y, z):
    """A world direction in the axes of solid i."""
    c, s = prims.heading[i, 0], prims.heading[i, 1]
    return c * x + s * y, c * y - s * x, z


@scalar
def to_world(prims, i, x, y, z):
    """A direction in the axes of solid i, in world axes."""
    c, s = prims.heading[i, 0], prims.heading[i, 1]
    return c * x - s * y, s * x + c * y, z


@scalar
def hit(prims, i, ox, oy, oz, dx, dy, dz):
    """(ray parameter, face) where the ray enters solid i (leaves it, for the shell): 0 if it starts inside a solid, negative on a miss."""
    ox, oy, oz = to_local(prims, i, ox - prims.centre[i, 0], oy - prims.centre[i, 1], oz - prims.centre[i, 2])
    dx, dy, dz = to_local(prims, i, dx, dy, dz)
    hx, hy, hz = prims.half[i, 0], prims.half[i, 1], prims.half[i, 2]
    kind = prims.kind[i]
    if kind == ELLIPSOID:
        return _hit_ellipsoid(hx, hy, hz, ox, oy, oz, dx, dy, dz)
    if kind == FRUSTUM:
        return _hit_frustum(hx, hy, hz, ox, oy, oz, dx, dy, dz)
    return _hit_box(hx, hy, hz, ox, oy, oz, dx, dy, dz, kind == SHELL)


@scalar
def nearest(prims, among, count, ox, oy, oz, dx, dy, dz):
    """(distance, solid, face) of the first hit among the solids `among[:count]`; the direction has length one; solid -1 on a miss."""
    best, solid, face = np.inf, -1, 0
    for k in range(count):
        i = among[k]
        if prims.kind[i] != SHELL:
            cx, cy, cz = prims.centre[i, 0] - ox, prims.centre[i, 1] - oy, prims.centre[i, 2] - oz
            along = cx * dx + cy * dy + cz * dz
            r = prims.radius[i]
            if along < -r or along - r > best or cx * cx + cy * cy + cz * cz - along * along > r * r:
                continue
        t, f = hit(prims, i, ox, oy, oz, dx, dy, dz)
        if 0.0 <= t < best:
            best, solid, face = t, i, f
    return best, solid, face


@kernel
def cast_rays(prims, origins_n3, directions_n3):
    """First hits of N unit rays: distance [N] in metres, solid [N] (-1 on a miss), face [N]."""
    n = len(origins_n3)
    distance, solid, face = np.empty(n), np.empty(n, np.int64), np.empty(n, np.int64)
    everything = np.arange(len(prims.kind))
    for k in range(n):
        ox, oy, oz = origins_n3[k, 0], origins_n3[k, 1], origins_n3[k, 2]
        dx, dy, dz = directions_n3[k, 0], directions_n3[k, 1], directions_n3[k, 2]
        distance[k], solid[k], face[k] = nearest(prims, everything, len(everything), ox, oy, oz, dx, dy, dz)
    return distance, solid, face


@scalar
def surface(kind, hx, hy, hz, face, x, y, z):
    """What lies at a local point of a face: outward normal (3), parameters u, v in [0,1], texture position along u and v in metres."""
    if kind == ELLIPSOID:
        nx, ny, nz = x / (hx * hx), y / (hy * hy), z / (hz * hz)
        length = math.sqrt(nx * nx + ny * ny + nz * nz)
        u = (math.atan2(y / hy, x / hx) / (2.0 * math.pi)) % 1.0
        v = math.acos(min(1.0, max(-1.0, z / hz))) / math.pi
        ax, ay, az = abs(x / hx), abs(y / hy), abs(z / hz)
        if az >= ax and az >= ay:
            s, t = x, -y
        elif ax >= ay:
            s, t = y, -z
        else:
            s, t = x, -z
        return nx / length, ny / length, nz / length, u, v, s, t
    if kind == FRUSTUM:
        angle = (math.atan2(y, x) / (2.0 * math.pi)) % 1.0
        middle, slope = 0.5 * (hx + hy), (hy - hx) / (2.0 * hz)
        if face == 0:
            r = math.sqrt(x * x + y * y)
            tilt = 1.0 / math.sqrt(1.0 + slope * slope)
            return x / r * tilt, y / r * tilt, -slope * tilt, angle, 0.5 - 0.5 * z / hz, (angle - 0.5) * 2.0 * math.pi * middle, -z
        rim = hy if face == 1 else hx
        v = math.sqrt(x * x + y * y) / rim
        return 0.0, 0.0, 1.0 if face == 1 else -1.0, angle if face == 1 else 1.0 - angle, v, x, -y
    inward = -1.0 if kind == SHELL else 1.0
    p = (x, y, z)
    h = (hx, hy, hz)
    a, b = _FRAME[face, 0], _FRAME[face, 2]
    s, t = inward * _FRAME[face, 1] * p[a], _FRAME[face, 3] * p[b]
    sign = inward if face % 2 == 0 else -inward
    axis = face // 2
    nx, ny, nz = sign if axis == 0 else 0.0, sign if axis == 1 else 0.0, sign if axis == 2 else 0.0
    return nx, ny, nz, 0.5 + 0.5 * s / h[a], 0.5 + 0.5 * t / h[b], s, t


def face_size(kind: int, half: np.ndarray, face: int) -> tuple[float, float]:
    """Width and height of a face in metres; of a round one, its girth and slant height or diameter."""
    if kind == ELLIPSOID:
        return 2 * math.pi * max(half[0], half[1]), math.pi * half.max()
    if kind == FRUSTUM:
        if face == 0:
            return math.pi * (half[0] + half[1]), math.hypot(2 * half[2], half[1] - half[0])
        rim = half[1] if face == 1 else half[0]
        return 2 * rim, 2 * rim
    return 2 * half[_FRAME[face, 0]], 2 * half[_FRAME[face, 2]]


def face_grid(kind: int, half: np.ndarray, face: int, cell: float, sagitta: float) -> tuple[int, int]:
    """Vertices along u and v so that flat cells are at most `cell` metres wide and chords leave a curve by at most `sagitta` metres."""
    width, height = face_size(kind, half, face)
    across, down = max(2, math.ceil(width / cell) + 1), max(2, math.ceil(height / cell) + 1)
    if kind in (BOX, SHELL):
        return across, down
    bend = half.max() if kind == ELLIPSOID else max(half[0], half[1])
    turn = 2 * math.pi / (2 * math.acos(1 - min(sagitta / bend, 0.2)))
    if kind == ELLIPSOID:
        return max(13, math.ceil(turn) + 1), max(7, math.ceil(turn / 2) + 1)
    return max(13, math.ceil(turn) + 1), down if face == 0 else max(2, math.ceil(height / 2 / cell) + 1)


def face_points(kind: int, half: np.ndarray, face: int, across: int, down: int) -> np.ndarray:
    """Local points [down*across, 3] at the corners of a face's parameter grid, row by row."""
    u, v = (grid.ravel() for grid in np.meshgrid(np.linspace(0, 1, across), np.linspace(0, 1, down)))
    if kind == ELLIPSOID:
        ring = np.sin(np.pi * v)
        return half * np.stack([ring * np.cos(2 * np.pi * u), ring * np.sin(2 * np.pi * u), np.cos(np.pi * v)], axis=1)
    if kind == FRUSTUM:
        angle = 2 * np.pi * (u if face < 2 else 1 - u)
        if face == 0:
            r, z = half[1] + (half[0] - half[1]) * v, half[2] * (1 - 2 * v)
        else:
            r, z = v * (half[1] if face == 1 else half[0]), np.full(len(v), half[2] if face == 1 else -half[2])
        return np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=1)
    a, a_sign, b, b_sign = _FRAME[face]
    inward = -1 if kind == SHELL else 1
    points = np.empty((len(u), 3))
    points[:, a] = inward * a_sign * (2 * u - 1) * half[a]
    points[:, b] = b_sign * (2 * v - 1) * half[b]
    points[:, face // 2] = half[face // 2] * (1 if face % 2 == 0 else -1)
    return points


def grid_triangles(across: int, down: int) -> np.ndarray:
    """Vertex indices [2*(across-1)*(down-1), 3] of a parameter grid, turned so that the normal points to the viewer."""
    corner = (np.arange(down - 1)[:, None] * across + np.arange(across - 1)).reshape(-1, 1)
    pair = np.array([0, across, 1, 1, across, across + 1])
    return (corner + pair).reshape(-1, 3)
