"""Pictures of a room through the fisheye: visibility, shading and silhouette anti-aliasing, pixel by pixel, with exact depth and object
ids.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from pipeline.synthetic.compiling import kernel, scalar
from pipeline.synthetic.render.camera import Lens, unproject
from pipeline.synthetic.scene.geometry import SHELL, nearest
from pipeline.synthetic.scene.light import radiance
from pipeline.synthetic.scene.room import Room

_TILE = 16
_SUBPIXELS = np.array([[-0.125, -0.375], [0.375, -0.125], [0.125, 0.375], [-0.375, 0.125]])


@kernel
def _visible_from_tile(prims, eye, rays, row0, row1, column0, column1, among):
    """Fills `among` with the solids whose enclosing spheres meet the cone of rays through a tile, and counts them."""
    ax, ay, az = 0.0, 0.0, 0.0
    for row in (row0, row1 - 1):
        for column in (column0, column1 - 1):
            ax, ay, az = ax + rays[row, column, 0], ay + rays[row, column, 1], az + rays[row, column, 2]
    length = math.sqrt(ax * ax + ay * ay + az * az)
    ax, ay, az = ax / length, ay / length, az / length
    cosine = 1.0
    for row in range(row0, row1):
        for column in range(column0, column1):
            cosine = min(cosine, ax * rays[row, column, 0] + ay * rays[row, column, 1] + az * rays[row, column, 2])
    # Rays through sub-pixels reach a little beyond the pixel centres of the rim.
    spread = math.acos(min(cosine, 1.0)) * (1.0 + 2.0 / _TILE) + 1e-3
    count = 0
    for i in range(len(prims.kind)):
        x, y, z = prims.centre[i, 0] - eye[0], prims.centre[i, 1] - eye[1], prims.centre[i, 2] - eye[2]
        distance = math.sqrt(x * x + y * y + z * z)
        if prims.kind[i] != SHELL and distance > prims.radius[i]:
            angle = math.acos(min(1.0, max(-1.0, (ax * x + ay * y + az * z) / distance)))
            if angle > spread + math.asin(prims.radius[i] / distance):
                continue
        among[count] = i
        count += 1
    return count


@kernel
def _trace(prims, eye, rays, distance, solid, face):
    """First hits of all pixel rays [H,W,3] from the eye, into three [H,W] arrays."""
    height, width = distance.shape
    among = np.empty(len(prims.kind), np.int64)
    for row0 in range(0, height, _TILE):
        for column0 in range(0, width, _TILE):
            row1, column1 = min(row0 + _TILE, height), min(column0 + _TILE, width)
            count = _visible_from_tile(prims, eye, rays, row0, row1, column0, column1, among)
            for row in range(row0, row1):
                for column in range(column0, column1):
                    dx, dy, dz = rays[row, column, 0], rays[row, column, 1], rays[row, column, 2]
                    t, i, f = nearest(prims, among, count, eye[0], eye[1], eye[2], dx, dy, dz)
                    distance[row, column], solid[row, column], face[row, column] = t, i, f


@scalar
def _film(prims, shading, eye, dx, dy, dz, t, i, face, pixel):
    """Exposed colour in [0,1] of the point at distance t along unit direction d; `pixel` is the angle between pixels in radians."""
    x, y, z = eye[0] + t * dx, eye[1] + t * dy, eye[2] + t * dz
    red, green, blue = radiance(prims, shading, i, face, x, y, z, dx, dy, dz, t * pixel)
    e = shading.exposure
    return 1.0 - math.exp(-e * red), 1.0 - math.exp(-e * green), 1.0 - math.exp(-e * blue)


@kernel
def _shade(prims, shading, eye, rays, distance, solid, face, pixel):
    height, width = distance.shape
    film = np.empty((height, width, 3), np.float32)
    for row in range(height):
        for column in range(width):
            dx, dy, dz = rays[row, column, 0], rays[row, column, 1], rays[row, column, 2]
            red, green, blue = _film(prims, shading, eye, dx, dy, dz, distance[row, column], solid[row, column], face[row, column], pixel)
            film[row, column, 0], film[row, column, 1], film[row, column, 2] = red, green, blue
    return film


@scalar
def _four_rays(prims, shading, eye, rotation, parameters, among, count, u, v, pixel):
    """The mean film of four rays round pixel position (u, v)."""
    red, green, blue = 0.0, 0.0, 0.0
    for k in range(len(_SUBPIXELS)):
        x, y, z = unproject(u + _SUBPIXELS[k, 0], v + _SUBPIXELS[k, 1], parameters)
        dx = rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * z
        dy = rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * z
        dz = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z
        t, i, face = nearest(prims, among, count, eye[0], eye[1], eye[2], dx, dy, dz)
        r, g, b = _film(prims, shading, eye, dx, dy, dz, t, i, face, 0.6 * pixel)
        red, green, blue = red + r, green + g, blue + b
    return red / len(_SUBPIXELS), green / len(_SUBPIXELS), blue / len(_SUBPIXELS)


@kernel
def _smooth_edges(prims, shading, eye, rotation, parameters, rays, solid, face, film, pixel):
    """Replaces, in place, pixels where solid, face or shadow changes by the mean of four rays."""
    height, width = solid.shape
    rough = np.zeros((height, width), np.bool_)
    for row in range(height):
        for column in range(width):
            for step in range(2):
                r, c = row + step, column + 1 - step
                if r >= height or c >= width:
                    continue
                jump = abs(film[row, column, 1] - film[r, c, 1])
                if solid[row, column] != solid[r, c] or face[row, column] != face[r, c] or jump > 0.12:
                    rough[row, column] = True
                    rough[r, c] = True
    among = np.empty(len(prims.kind), np.int64)
    for row0 in range(0, height, _TILE):
        for column0 in range(0, width, _TILE):
            row1, column1 = min(row0 + _TILE, height), min(column0 + _TILE, width)
            count = -1
            for row in range(row0, row1):
                for column in range(column0, column1):
                    if not rough[row, column]:
                        continue
                    if count < 0:
                        count = _visible_from_tile(prims, eye, rays, row0, row1, column0, column1, among)
                    red, green, blue = _four_rays(prims, shading, eye, rotation, parameters, among, count, column + 0.5, row + 0.5, pixel)
                    film[row, column, 0], film[row, column, 1], film[row, column, 2] = red, green, blue


def trace(room: Room, lens: Lens, c2w: np.ndarray) -> dict[str, np.ndarray]:
    """Exact geometry of every pixel [H,W]: `distance` along the ray and planar `depth_z` in metres, `object_id`, and the solid and face
    hit.
    """
    camera_rays = lens.rays()
    rays = camera_rays @ c2w[:3, :3].T
    shape = rays.shape[:2]
    distance, solid, face = np.empty(shape), np.empty(shape, np.int64), np.empty(shape, np.int64)
    _trace(room.prims, np.ascontiguousarray(c2w[:3, 3]), rays, distance, solid, face)
    ids = room.shading.object_id[solid, face]
    return {"distance": distance, "depth_z": distance * camera_rays[..., 2], "object_id": ids, "solid": solid, "face": face, "rays": rays}


def photograph(room: Room, lens: Lens, c2w: np.ndarray, traced: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """The picture [H,W,3] float32 in [0,1], display-encoded and free of noise, from camera-to-world `c2w`; `traced` saves tracing again."""
    hits = trace(room, lens, c2w) if traced is None else traced
    eye, rotation = np.ascontiguousarray(c2w[:3, 3]), np.ascontiguousarray(c2w[:3, :3])
    pixel = 1.0 / lens.fx
    film = _shade(room.prims, room.shading, eye, hits["rays"], hits["distance"], hits["solid"], hits["face"], pixel)
    _smooth_edges(room.prims, room.shading, eye, rotation, lens.parameters, hits["rays"], hits["solid"], hits["face"], film, pixel)
    return film ** np.float32(1 / 2.2)


def develop(picture: np.ndarray, rng: np.random.Generator, blur: tuple[float, float] | None = None) -> np.ndarray:
    """8-bit sRGB [H,W,3] with sensor noise; `blur` = (length in pixels, angle in degrees) smears it first, as a moving camera does."""
    if blur is not None:
        reach = max(3, 2 * round(blur[0] / 2) + 1)
        streak = np.zeros((reach, reach), np.float32)
        across, down = (reach / 2 * f(math.radians(blur[1])) for f in (math.cos, math.sin))
        middle = reach // 2
        start, end = (round(middle - across), round(middle - down)), (round(middle + across), round(middle + down))
        cv2.line(streak, start, end, 1.0)
        picture = cv2.filter2D(picture, -1, streak / streak.sum(), borderType=cv2.BORDER_REFLECT_101)
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture * 255 + grain * (0.7 + 0.9 * np.sqrt(picture)) + 0.5, 0, 255).astype(np.uint8)
