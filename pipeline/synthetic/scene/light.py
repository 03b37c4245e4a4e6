"""Radiance of a lit surface: mip-mapped texture, baked ambient light, two point lights with shadows, a little gloss. Scalar kernels for
numba.

Ambient light is baked on the vertices of every face's parameter grid (the mesh's own vertices): each vertex looks at the room along a
fixed fan of rays and averages the colour of what it sees, near things counting as dark. That gives corner darkening, contact shadows and
colour bleeding that do not depend on the view.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pipeline.synthetic.compiling import kernel, scalar
from pipeline.synthetic.scene.geometry import SHELL, Primitives, hit, nearest, surface, to_local, to_world

_NEAR_M = 0.35
_REACH_M = 1.3
_BLOCK = 64
_CELLS = 24


class Shading(NamedTuple):
    """How the solids look. N solids, up to six faces each, L lights, V grid vertices.

    object_id [N,6]; texture [N,6]; texture_map [N,6,4] scale and offset from metres to texture repeats, along u and v; grid [N,6,3] first
    vertex, vertices across, vertices down; gloss, emission [N]; texels [bytes] uint8 and mips [T,levels,3] (offset, height, width) of the
    texture pyramids; mean_colour [T,3] linear; ambient [V,3] linear; light_at, light_colour [L,3]; light_axis [L,2] (zero: shines all
    round; else like an upright pane that faces along it); shadow_start [L*cells+1], shadow_solid, shadow_near: for every light and every
    cell of an octahedral map of directions the solids that may cast a shadow there and how far they are at least, nearest first;
    exposure: linear radiance to film.
    """

    object_id: np.ndarray
    texture: np.ndarray
    texture_map: np.ndarray
    grid: np.ndarray
    gloss: np.ndarray
    emission: np.ndarray
    texels: np.ndarray
    mips: np.ndarray
    mean_colour: np.ndarray
    ambient: np.ndarray
    light_at: np.ndarray
    light_colour: np.ndarray
    light_axis: np.ndarray
    shadow_start: np.ndarray
    shadow_solid: np.ndarray
    shadow_near: np.ndarray
    exposure: float


@scalar
def _bilinear(texels, offset, height, width, u, v):
    """Linear colour of a tiling image at (u, v) in repeats. Stored values are display-encoded; squaring is close enough to linear light."""
    x, y = u * width - 0.5, v * height - 0.5
    x0, y0 = math.floor(x), math.floor(y)
    fx, fy = x - x0, y - y0
    # Sizes are powers of two, so a mask wraps, below zero too.
    left, top = int(x0) & (width - 1), int(y0) & (height - 1)
    right, bottom = (left + 1) & (width - 1), (top + 1) & (height - 1)
    a, b = offset + 3 * (top * width + left), offset + 3 * (top * width + right)
    c, d = offset + 3 * (bottom * width + left), offset + 3 * (bottom * width + right)
    wa, wb, wc, wd = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
    red = wa * texels[a] + wb * texels[b] + wc * texels[c] + wd * texels[d]
    green = wa * texels[a + 1] + wb * texels[b + 1] + wc * texels[c + 1] + wd * texels[d + 1]
    blue = wa * texels[a + 2] + wb * texels[b + 2] + wc * texels[c + 2] + wd * texels[d + 2]
    k = 1.0 / 255.0
    return (red * k) ** 2, (green * k) ** 2, (blue * k) ** 2


@scalar
def _albedo(shading, i, face, s, t, footprint):
    """Linear albedo of a face at (s, t) metres, averaged over about `footprint` metres."""
    texture_map, mips, texture = shading.texture_map, shading.mips, shading.texture[i, face]
    across, down = texture_map[i, face, 0], texture_map[i, face, 1]
    u, v = s * across + texture_map[i, face, 2], t * down + texture_map[i, face, 3]
    texels_wide = footprint * max(across * mips[texture, 0, 2], down * mips[texture, 0, 1])
    last = mips.shape[1] - 1
    level = min(max(math.log2(max(texels_wide, 1e-6)), 0.0), float(last))
    low = min(int(level), last - 1)
    part = level - low
    r0, g0, b0 = _bilinear(shading.texels, mips[texture, low, 0], mips[texture, low, 1], mips[texture, low, 2], u, v)
    if part <= 0.0:
        return r0, g0, b0
    low += 1
    r1, g1, b1 = _bilinear(shading.texels, mips[texture, low, 0], mips[texture, low, 1], mips[texture, low, 2], u, v)
    return r0 + part * (r1 - r0), g0 + part * (g1 - g0), b0 + part * (b1 - b0)


@scalar
def _ambient(shading, i, face, u, v):
    first, across, down = shading.grid[i, face, 0], shading.grid[i, face, 1], shading.grid[i, face, 2]
    x, y = min(u, 0.999999) * (across - 1), min(v, 0.999999) * (down - 1)
    x, y = max(x, 0.0), max(y, 0.0)
    left, top = int(x), int(y)
    fx, fy = x - left, y - top
    k = first + top * across + left
    light, below = shading.ambient, k + across
    wa, wb, wc, wd = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
    return (
        wa * light[k, 0] + wb * light[k + 1, 0] + wc * light[below, 0] + wd * light[below + 1, 0],
        wa * light[k, 1] + wb * light[k + 1, 1] + wc * light[below, 1] + wd * light[below + 1, 1],
        wa * light[k, 2] + wb * light[k + 1, 2] + wc * light[below, 2] + wd * light[below + 1, 2],
    )


@scalar
def _direction_cell(x, y, z):
    """The cell of an octahedral map of directions, _CELLS on a side."""
    norm = abs(x) + abs(y) + abs(z)
    a, b = x / norm, y / norm
    if z < 0.0:
        a, b = (1.0 - abs(b)) * (1.0 if a >= 0.0 else -1.0), (1.0 - abs(a)) * (1.0 if b >= 0.0 else -1.0)
    row, column = int((0.5 * b + 0.5) * _CELLS), int((0.5 * a + 0.5) * _CELLS)
    return min(row, _CELLS - 1) * _CELLS + min(column, _CELLS - 1)


@scalar
def _shadowed(prims, shading, light, px, py, pz):
    """Whether a solid stands between a light and a point."""
    ax, ay, az = shading.light_at[light, 0], shading.light_at[light, 1], shading.light_at[light, 2]
    dx, dy, dz = px - ax, py - ay, pz - az
    distance = math.sqrt(dx * dx + dy * dy + dz * dz)
    dx, dy, dz = dx / distance, dy / distance, dz / distance
    cell = light * _CELLS * _CELLS + _direction_cell(dx, dy, dz)
    reach = distance - 1e-6
    for k in range(shading.shadow_start[cell], shading.shadow_start[cell + 1]):
        # Nearest first: nothing further down the list can be in between.
        if shading.shadow_near[k] >= distance:
            break
        t, _ = hit(prims, shading.shadow_solid[k], ax, ay, az, dx, dy, dz)
        if 0.0 <= t < reach:
            return True
    return False


@scalar
def radiance(prims, shading, i, face, px, py, pz, vx, vy, vz, footprint):
    """Linear RGB that leaves world point p of a face against the unit view direction v."""
    lx, ly, lz = to_local(prims, i, px - prims.centre[i, 0], py - prims.centre[i, 1], pz - prims.centre[i, 2])
    nx, ny, nz, u, v, s, t = surface(prims.kind[i], prims.half[i, 0], prims.half[i, 1], prims.half[i, 2], face, lx, ly, lz)
    nx, ny, nz = to_world(prims, i, nx, ny, nz)
    slant = max(-(nx * vx + ny * vy + nz * vz), 0.0)
    red, green, blue = _albedo(shading, i, face, s, t, footprint / math.sqrt(max(slant, 0.1)))
    er, eg, eb = _ambient(shading, i, face, u, v)
    shine = 0.0
    # Shadow rays start a little off the surface, towards its outside.
    qx, qy, qz = px + 1e-4 * nx, py + 1e-4 * ny, pz + 1e-4 * nz
    for light in range(len(shading.light_at)):
        dx, dy, dz = shading.light_at[light, 0] - px, shading.light_at[light, 1] - py, shading.light_at[light, 2] - pz
        square = dx * dx + dy * dy + dz * dz
        length = math.sqrt(square)
        cosine = (nx * dx + ny * dy + nz * dz) / length
        if cosine <= 0.0:
            continue
        lit = cosine / (square + 0.6)
        ax, ay = shading.light_axis[light, 0], shading.light_axis[light, 1]
        if ax != 0.0 or ay != 0.0:
            lit *= max(0.0, -(ax * dx + ay * dy) / length)
        if lit <= 1e-6 or _shadowed(prims, shading, light, qx, qy, qz):
            continue
        er += lit * shading.light_colour[light, 0]
        eg += lit * shading.light_colour[light, 1]
        eb += lit * shading.light_colour[light, 2]
        if shading.gloss[i] > 0.0:
            hx, hy, hz = dx / length - vx, dy / length - vy, dz / length - vz
            half = (nx * hx + ny * hy + nz * hz) / math.sqrt(hx * hx + hy * hy + hz * hz)
            sharp = max(half, 0.0) ** 2
            sharp *= sharp
            sharp *= sharp
            sharp *= sharp
            shine += shading.gloss[i] * sharp**4 * shading.light_colour[light, 1] / (square + 0.6) * 0.5
    glow = shading.emission[i] * (1.0 / shading.exposure)
    return red * (er + glow) + shine, green * (eg + glow) + shine, blue * (eb + glow) + shine


@kernel
def _within_reach(prims, points_v3, start, stop, among):
    """Fills `among` with the solids less than _REACH_M from some of points_v3[start:stop], the shell included, and counts them."""
    low, high = points_v3[start].copy(), points_v3[start].copy()
    for k in range(start, stop):
        for axis in range(3):
            low[axis], high[axis] = min(low[axis], points_v3[k, axis]), max(high[axis], points_v3[k, axis])
    count = 0
    for i in range(len(prims.kind)):
        square = 0.0
        for axis in range(3):
            c = prims.centre[i, axis]
            square += max(low[axis] - c, 0.0, c - high[axis]) ** 2
        if prims.kind[i] == SHELL or math.sqrt(square) < prims.radius[i] + _REACH_M:
            among[count] = i
            count += 1
    return count


@scalar
def _look_round(prims, shading, among, count, ox, oy, oz, nx, ny, nz, fan_k3):
    """Mean colour that a point sees along a fan of directions turned to its normal."""
    # A frame round the normal (Duff et al. 2017): the same for all points of a flat face.
    sign = 1.0 if nz >= 0.0 else -1.0
    a = -1.0 / (sign + nz)
    b = nx * ny * a
    red, green, blue = 0.0, 0.0, 0.0
    for m in range(len(fan_k3)):
        x, y, z = fan_k3[m, 0], fan_k3[m, 1], fan_k3[m, 2]
        dx = x * (1.0 + sign * nx * nx * a) + y * b + z * nx
        dy = x * sign * b + y * (sign + ny * ny * a) + z * ny
        dz = -x * sign * nx - y * ny + z * nz
        t, i, face = nearest(prims, among, count, ox, oy, oz, dx, dy, dz)
        if i < 0:
            continue
        seen = (1.0 - math.exp(-t / _NEAR_M)) / len(fan_k3)
        texture = shading.texture[i, face]
        red += seen * (0.2 + 0.8 * shading.mean_colour[texture, 0])
        green += seen * (0.2 + 0.8 * shading.mean_colour[texture, 1])
        blue += seen * (0.2 + 0.8 * shading.mean_colour[texture, 2])
    return red, green, blue


@kernel
def bake(prims, shading, points_v3, normals_v3, fan_k3):
    """Ambient light [V,3] at grid vertices (world points and normals): the mean over a fan [K,3] of directions round +z, turned to the
    normal.
    """
    among = np.empty(len(prims.kind), np.int64)
    count = 0
    result = np.zeros((len(points_v3), 3), np.float32)
    for k in range(len(points_v3)):
        if k % _BLOCK == 0:
            count = _within_reach(prims, points_v3, k, min(k + _BLOCK, len(points_v3)), among)
        nx, ny, nz = normals_v3[k, 0], normals_v3[k, 1], normals_v3[k, 2]
        ox, oy, oz = points_v3[k, 0] + 2e-3 * nx, points_v3[k, 1] + 2e-3 * ny, points_v3[k, 2] + 2e-3 * nz
        red, green, blue = _look_round(prims, shading, among, count, ox, oy, oz, nx, ny, nz, fan_k3)
        result[k, 0], result[k, 1], result[k, 2] = red, green, blue
    return result


@kernel
def vertex_radiance(prims, shading, solid_v, face_v, points_v3, normals_v3, footprint):
    """Linear RGB [V,3] of grid vertices seen along their normals."""
    result = np.empty((len(points_v3), 3))
    for k in range(len(points_v3)):
        x, y, z = points_v3[k, 0], points_v3[k, 1], points_v3[k, 2]
        vx, vy, vz = -normals_v3[k, 0], -normals_v3[k, 1], -normals_v3[k, 2]
        red, green, blue = radiance(prims, shading, solid_v[k], face_v[k], x, y, z, vx, vy, vz, footprint)
        result[k, 0], result[k, 1], result[k, 2] = red, green, blue
    return result


def shadow_lists(prims: Primitives, light_at: np.ndarray, casts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`shadow_start`, `shadow_solid` and `shadow_near` of `Shading`, for lights [L,3] and the solids that cast shadows, [N] bool."""
    a, b = (grid.ravel() for grid in np.meshgrid(np.linspace(-1, 1, 4 * _CELLS + 1), np.linspace(-1, 1, 4 * _CELLS + 1)))
    z = 1 - np.abs(a) - np.abs(b)
    fold = np.maximum(-z, 0.0)
    lattice = np.stack([a - np.sign(a) * fold, b - np.sign(b) * fold, z], axis=1)
    lattice = (lattice / np.linalg.norm(lattice, axis=1, keepdims=True)).reshape(4 * _CELLS + 1, 4 * _CELLS + 1, 3)
    axis = lattice[2::4, 2::4]
    corners = np.stack([lattice[i : i + 4 * _CELLS : 4, j : j + 4 * _CELLS : 4] for i in range(5) for j in range(5) if 0 in (i % 4, j % 4)])
    # A tenth more than the widest rim point, which the cell's own curved edge could exceed.
    cell_angle = 1.1 * np.arccos(np.clip((corners * axis).sum(axis=-1), -1, 1)).max(axis=0).reshape(-1, 1)
    start, solids, nears = [np.zeros(1, np.int64)], [], []
    candidates = np.flatnonzero(casts & (prims.kind != SHELL))
    for at in light_at:
        offset = prims.centre[candidates] - at
        distance = np.linalg.norm(offset, axis=1)
        near = np.maximum(distance - prims.radius[candidates], 0.0)
        wide = np.where(near > 0, np.arcsin(np.minimum(prims.radius[candidates] / distance, 1.0)), np.pi)
        apart = np.arccos(np.clip(axis.reshape(-1, 3) @ (offset / distance[:, None]).T, -1, 1))
        order = np.argsort(near, kind="stable")
        cell, which = np.nonzero((apart <= wide + cell_angle)[:, order])
        start.append(start[-1][-1] + np.cumsum(np.bincount(cell, minlength=_CELLS**2)))
        solids.append(candidates[order][which])
        nears.append(near[order][which])
    return np.concatenate(start), np.concatenate(solids), np.concatenate(nears)


def fan(count: int) -> np.ndarray:
    """`count` directions [count,3] round +z with cosine-weighted density, on a sunflower spiral."""
    k = np.arange(count)
    sine = np.sqrt((k + 0.5) / count)
    turn = k * math.pi * (3 - math.sqrt(5))
    return np.stack([sine * np.cos(turn), sine * np.sin(turn), np.sqrt(1 - sine**2)], axis=1)
