"""The sparse model beside the pictures: COLMAP's text files, with true points and the pixels at which each picture sees them."""

from __future__ import annotations

import numpy as np

from pipeline.synthetic.render.camera import Lens
from pipeline.synthetic.render.capture import Capture, Shot
from pipeline.synthetic.scene.geometry import cast_rays
from pipeline.synthetic.scene.light import vertex_radiance
from pipeline.synthetic.scene.room import Room

_SOURCES = 12
_POINTS_PER_SOURCE = 30


def rotation_to_quaternion(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion [4] (w,x,y,z), w >= 0, of a rotation [3,3]."""
    m = rotation
    trace = np.trace(m)
    # The eigenvector form is stable for every rotation, half turns included.
    symmetric = np.array(
        [
            [trace, m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [0, m[0, 0] - m[1, 1] - m[2, 2], m[1, 0] + m[0, 1], m[2, 0] + m[0, 2]],
            [0, 0, m[1, 1] - m[0, 0] - m[2, 2], m[2, 1] + m[1, 2]],
            [0, 0, 0, m[2, 2] - m[0, 0] - m[1, 1]],
        ]
    )
    _, vectors = np.linalg.eigh(symmetric, UPLO="U")
    quaternion = vectors[:, -1]
    return quaternion if quaternion[0] >= 0 else -quaternion


def _observe(room: Room, lens: Lens, shot: Shot, points_n3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices [M] of the points that the shot sees and their pixels [M,2]."""
    offset = points_n3 - shot.c2w[:3, 3]
    camera = offset @ shot.c2w[:3, :3]
    ahead = np.flatnonzero(camera[:, 2] > 0.05 * np.linalg.norm(camera, axis=1))
    pixel = lens.project(camera[ahead])
    inside = ((pixel >= 0) & (pixel < [lens.width, lens.height])).all(axis=1)
    ahead, pixel = ahead[inside], pixel[inside]
    distance = np.linalg.norm(offset[ahead], axis=1)
    eye = np.tile(shot.c2w[:3, 3], (len(ahead), 1))
    hit, _, _ = cast_rays(room.prims, eye, np.ascontiguousarray(offset[ahead] / distance[:, None]))
    seen = np.abs(hit - distance) < 1e-5
    return ahead[seen], pixel[seen]


def _points(room: Room, capture: Capture, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """True surface points [N,3] under random pixels of some shots, and their colours [N,3] uint8."""
    lens = capture.lens
    rays = lens.rays()
    origins, directions = [], []
    for shot in capture.shots[:: max(1, len(capture.shots) // _SOURCES)][:_SOURCES]:
        rows, columns = rng.integers(0, lens.height, _POINTS_PER_SOURCE), rng.integers(0, lens.width, _POINTS_PER_SOURCE)
        directions.append(rays[rows, columns] @ shot.c2w[:3, :3].T)
        origins.append(np.tile(shot.c2w[:3, 3], (_POINTS_PER_SOURCE, 1)))
    origin, direction = np.concatenate(origins), np.concatenate(directions)
    distance, solid, face = cast_rays(room.prims, origin, direction)
    points = origin + distance[:, None] * direction
    light = vertex_radiance(room.prims, room.shading, solid, face, points, -direction, 0.005)
    return points, np.rint(255 * (1 - np.exp(-room.shading.exposure * light)) ** (1 / 2.2)).astype(np.uint8)


def text_model(room: Room, capture: Capture, rng: np.random.Generator) -> tuple[dict[str, bytes], int, int]:
    """`cameras.txt`, `images.txt` and `points3D.txt` by name, and how many points and observations they hold.

    The world is the mesh frame. Poses are world-to-camera; pixels count from the corner of the image. A point is kept if two pictures see
    it.
    """
    lens = capture.lens
    camera = " ".join(["1 OPENCV_FISHEYE", str(lens.width), str(lens.height), *(repr(float(p)) for p in lens.parameters)])
    shots = sorted(capture.shots, key=lambda shot: shot.name)
    points, colours = _points(room, capture, rng) if shots else (np.empty((0, 3)), np.empty((0, 3), np.uint8))
    observed = [_observe(room, lens, shot, points) for shot in shots]
    views = np.bincount(np.concatenate([which for which, _ in observed]), minlength=len(points)) if shots else np.zeros(0, int)
    number = np.where(views >= 2, np.cumsum(views >= 2), 0)

    tracks: dict[int, list[str]] = {int(n): [] for n in number if n}
    images, total = [], 0
    for image_id, (shot, (which, pixel)) in enumerate(zip(shots, observed, strict=True), start=1):
        rotation = shot.c2w[:3, :3].T
        pose = [*rotation_to_quaternion(rotation), *(-rotation @ shot.c2w[:3, 3])]
        kept = number[which] > 0
        for index, point in enumerate(number[which][kept]):
            tracks[int(point)].append(f"{image_id} {index}")
        images.append(" ".join([str(image_id), *(repr(float(p)) for p in pose), "1", shot.name]))
        images.append(" ".join(f"{u:.4f} {v:.4f} {n}" for (u, v), n in zip(pixel[kept], number[which][kept], strict=True)))
        total += int(kept.sum())
    lines = [
        " ".join([str(n), *(f"{x:.6f}" for x in points[k]), *(str(c) for c in colours[k]), "0.0", *tracks[int(n)]])
        for k, n in enumerate(number)
        if n
    ]
    mean = total / max(len(shots), 1)
    header = {
        "cameras.txt": [
            "# Camera list with one line of data per camera:",
            "#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]",
            "# Number of cameras: 1",
            camera,
        ],
        "images.txt": [
            "# Image list with two lines of data per image:",
            "#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
            "#   POINTS2D[] as (X, Y, POINT3D_ID)",
            f"# Number of images: {len(shots)}, mean observations per image: {mean}",
            *images,
        ],
        "points3D.txt": [
            "# 3D point list with one line of data per point:",
            "#   POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)",
            f"# Number of points: {len(lines)}, mean track length: {total / max(len(lines), 1)}",
            *lines,
        ],
    }
    return {name: ("\n".join(content) + "\n").encode() for name, content in header.items()}, len(lines), total
