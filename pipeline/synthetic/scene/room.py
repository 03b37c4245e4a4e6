"""A room ready to be photographed and scanned: furnished, textured, meshed and lit."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.synthetic.scene.furnish import SURFACES, Furnished, furnish
from pipeline.synthetic.scene.geometry import (
    BOX,
    FACES,
    SHELL,
    Primitives,
    face_grid,
    face_points,
    face_size,
    grid_triangles,
    primitives,
    surface,
)
from pipeline.synthetic.scene.light import Shading, bake, fan, shadow_lists, vertex_radiance
from pipeline.synthetic.scene.parts import Materials, Part

_CELL_M = 0.06
_SAGITTA_M = 6e-4
_AMBIENT_RAYS = 28
_LEVELS = 10


@dataclass(frozen=True)
class Mesh:
    """The scan: vertices [V,3] float32 metres, colours [V,3] uint8, faces [F,3] int32, object_id [V], one object per vertex."""

    vertices: np.ndarray
    colours: np.ndarray
    faces: np.ndarray
    object_id: np.ndarray


@dataclass(frozen=True)
class Room:
    """size in metres; prims and shading as arrays; labels and yaw of every object id; the mesh that stands for the analytic solids."""

    size: tuple[float, float, float]
    prims: Primitives
    shading: Shading
    labels: dict[int, str]
    yaws: dict[int, float]
    mesh: Mesh


def _pyramids(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texels [bytes], mips [T,levels,3] and linear mean colours [T,3] of the textures; sizes are powers of two."""
    chunks, mips, offset = [], np.zeros((len(images), _LEVELS, 3), np.int64), 0
    means = np.zeros((len(images), 3))
    for k, image in enumerate(images):
        level: np.ndarray = (image.astype(np.float32) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
        for depth in range(_LEVELS):
            mips[k, depth] = offset, *level.shape[:2]
            chunks.append(level.ravel())
            offset += level.size
            if max(level.shape[:2]) <= 64 and not means[k].any():
                means[k] = np.square(level.reshape(-1, 3) / 255.0).mean(axis=0)
            smaller = (max(1, level.shape[1] // 2), max(1, level.shape[0] // 2))
            level = cv2.resize(level, smaller, interpolation=cv2.INTER_AREA).reshape(smaller[1], smaller[0], 3)
    return np.concatenate(chunks), mips, means


def _grids(parts: list[Part]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every face's parameter grid: grid [N,6,3], then per vertex solid, face, world point, normal; and the triangles [F,3]."""
    grid = np.zeros((len(parts), 6, 3), np.int64)
    solids, faces, points, normals, triangles, first = [], [], [], [], [], 0
    for i, part in enumerate(parts):
        half = np.array(part.half)
        cos, sin = math.cos(part.yaw), math.sin(part.yaw)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        for face in range(FACES[part.kind]):
            across, down = face_grid(part.kind, half, face, _CELL_M, _SAGITTA_M)
            local = face_points(part.kind, half, face, across, down)
            grid[i, face] = first, across, down
            solids.append(np.full(len(local), i))
            faces.append(np.full(len(local), face))
            points.append(local @ turn.T + part.centre)
            flat = part.kind in (BOX, SHELL)
            outward = np.array([surface(part.kind, *part.half, face, *p)[:3] for p in (local[:1] if flat else local)])
            normals.append(np.broadcast_to(outward, local.shape) @ turn.T)
            triangles.append(grid_triangles(across, down) + first)
            first += len(local)
    return grid, np.concatenate(solids), np.concatenate(faces), np.concatenate(points), np.concatenate(normals), np.concatenate(triangles)


def _texture_maps(parts: list[Part], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Texture index [N,6] and its map [N,6,4] from metres to repeats; tiled textures start at a random place on every face."""
    texture, texture_map = np.zeros((len(parts), 6), np.int64), np.zeros((len(parts), 6, 4))
    for i, part in enumerate(parts):
        for face in range(FACES[part.kind]):
            skin, shift = part.skins[face], rng.random(2)
            texture[i, face] = skin.texture
            width, height = face_size(part.kind, np.array(part.half), face) if skin.tile is None else skin.tile
            texture_map[i, face] = 1 / width, 1 / height, *((0.5, 0.5) if skin.tile is None else shift)
    return texture, texture_map


def _object_ids(furnished: Furnished) -> tuple[list[Part], np.ndarray]:
    """All parts, the shell first, and the object id [N,6] of each face."""
    parts, ids = [furnished.shell], [list(range(1, 7))]
    for number, item in enumerate(furnished.items, start=len(SURFACES) + 1):
        parts += item.parts
        ids += [[number] * 6] * len(item.parts)
    return parts, np.array(ids, dtype=np.int32)


def furnished_room(seed: int) -> tuple[Furnished, Materials]:
    """The furniture of a seed, unlit, and its textures, not yet drawn: milliseconds."""
    geometry_seed, texture_seed = np.random.SeedSequence([seed, 0]).spawn(2)
    look = Materials(texture_seed)
    return furnish(np.random.Generator(np.random.PCG64(geometry_seed)), look), look


@functools.lru_cache(maxsize=2)
def build_room(seed: int) -> Room:
    """The room of a seed: the same arrays every time. The last two are kept, for their pictures are asked for one by one."""
    furnished, look = furnished_room(seed)
    placing_seed, light_seed = np.random.SeedSequence([seed, 1]).spawn(2)
    parts, object_id = _object_ids(furnished)
    prims = primitives(
        np.array([p.kind for p in parts]),
        np.array([p.centre for p in parts]),
        np.array([p.half for p in parts]),
        np.array([p.yaw for p in parts]),
    )
    grid, solid, face, points, normals, triangles = _grids(parts)
    texture, texture_map = _texture_maps(parts, np.random.Generator(np.random.PCG64(placing_seed)))
    texels, mips, mean_colour = _pyramids(look.images())

    rng = np.random.Generator(np.random.PCG64(light_seed))
    light_at = np.array([furnished.bulb, furnished.pane])
    warm, cold = np.array([1.0, 0.86, 0.68]), np.array([0.86, 0.95, 1.0])
    light_colour = np.stack([warm * rng.uniform(1.5, 2.6), cold * rng.uniform(2.5, 5.0)])
    light_axis = np.array([[0.0, 0.0], furnished.pane_normal])
    casts = np.array([p.casts_shadow for p in parts])
    shading = Shading(
        object_id,
        texture,
        texture_map,
        grid,
        np.array([p.gloss for p in parts]),
        np.array([p.emission for p in parts]),
        texels,
        mips,
        mean_colour,
        np.zeros((len(points), 3), np.float32),
        light_at,
        light_colour,
        light_axis,
        *shadow_lists(prims, light_at, casts),
        1.0,
    )
    shading = shading._replace(ambient=0.3 * bake(prims, shading, points, normals, fan(_AMBIENT_RAYS)))
    colour = vertex_radiance(prims, shading._replace(emission=0 * shading.emission), solid, face, points, normals, _CELL_M)
    # The median surface of the room is exposed to a middle grey, as a camera's meter would.
    seen = solid == 0
    shading = shading._replace(exposure=float(0.30 / np.median(colour[seen].mean(axis=1))))
    film = (1 - np.exp(-shading.exposure * colour)) ** (1 / 2.2)
    vertex_object = object_id[solid, face]
    yaws = {k: 0.0 for k in range(1, 7)} | {k: item.yaw for k, item in enumerate(furnished.items, start=7)}
    mesh = Mesh(points.astype(np.float32), np.rint(film * 255).astype(np.uint8), _proper(points, triangles), vertex_object)
    return Room(furnished.size, prims, shading, furnished.labels, yaws, mesh)


def _proper(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """The triangles that have an area: grids collapse at the poles of an ellipsoid and the middle of a disc."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return triangles[area > 1e-10].astype(np.int32)
