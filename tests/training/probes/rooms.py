"""Furnished box rooms, ray-cast in numpy: depth, normals, classes, objects and world positions are exact, and nothing is downloaded.

    data = Rooms(train=4, test=2, views=4)          # a ProbeData
    view = data.views("test")[0]                    # a frame, and where in the world each of its pixels lies

The world's z axis points up; a room stands on z = 0 with a corner at the origin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.probes.data.base import Pair, ProbeFrame

CLASSES = ("wall", "floor", "ceiling", "table", "cabinet", "chair", "ball", "picture")
WALL, FLOOR, CEILING, TABLE, CABINET, CHAIR, BALL, PICTURE = range(8)
ORBIT = (5.0, 10.0, 20.0, 26.0, 38.0, 52.0, 70.0, 100.0)  # degrees between the views of a pair: two in each rotation bin
_LIGHT = np.array([0.35, -0.45, 0.82])


@dataclass(frozen=True)
class Solid:
    """A box that is turned about the z axis; a ball where `yaw` is None, with the radius half[0]."""

    centre: np.ndarray
    half: np.ndarray
    yaw: float | None
    label: int
    instance: int


@dataclass(frozen=True)
class Room:
    seed: int
    size: np.ndarray  # [3] metres
    solids: tuple[Solid, ...]

    @property
    def instances(self) -> int:
        return max(solid.instance for solid in self.solids)


@dataclass(frozen=True)
class View:
    """A frame, and the world position [H,W,3] of each of its pixels."""

    frame: ProbeFrame
    xyz: np.ndarray


def make_room(seed: int) -> Room:
    """A room of 3.2-5.5 m with tables, cabinets, chairs, balls and pictures. All furniture is below 1.3 m, the height of eyes."""
    rng = np.random.default_rng([seed, 1])
    size = np.array([rng.uniform(3.2, 5.5), rng.uniform(3.2, 5.5), rng.uniform(2.4, 2.9)])
    solids: list[Solid] = []
    next_instance = 7  # four walls, floor and ceiling are 1 to 6

    def add(label: int, yaw: float | None, corner: np.ndarray, parts: Sequence[tuple[Sequence[float], Sequence[float]]]) -> None:
        nonlocal next_instance
        turn = np.eye(3) if yaw is None else _about_z(yaw)
        for centre, half in parts:
            solids.append(Solid(corner + turn @ np.array(centre), np.array(half), yaw, label, next_instance))
        next_instance += 1

    def spot(margin: float) -> np.ndarray:
        return np.array([rng.uniform(margin, size[0] - margin), rng.uniform(margin, size[1] - margin), 0.0])

    for _ in range(rng.integers(1, 3)):
        w, d, h = rng.uniform(0.4, 0.7), rng.uniform(0.3, 0.45), rng.uniform(0.6, 0.8)
        legs = [((x * (w - 0.05), y * (d - 0.05), h / 2), (0.04, 0.04, h / 2)) for x in (-1, 1) for y in (-1, 1)]
        add(TABLE, rng.uniform(0, np.pi), spot(0.8), [((0, 0, h), (w, d, 0.03)), *legs])
    for _ in range(rng.integers(2, 4)):
        w, d, h = rng.uniform(0.3, 0.6), rng.uniform(0.18, 0.3), rng.uniform(0.4, 0.62)
        side, along = rng.integers(4), rng.uniform(0.2, 0.8)
        at = [(along * size[0], d), (size[0] - d, along * size[1]), (along * size[0], size[1] - d), (d, along * size[1])][side]
        add(CABINET, 0.0 if side % 2 == 0 else np.pi / 2, np.array([*at, 0.0]), [((0, 0, h), (w, d, h))])
    for _ in range(rng.integers(2, 5)):
        s, h = rng.uniform(0.18, 0.24), rng.uniform(0.4, 0.5)
        add(CHAIR, rng.uniform(0, 2 * np.pi), spot(0.6), [((0, 0, h / 2), (s, s, h / 2)), ((0, s, h + 0.2), (s, 0.03, 0.2))])
    for _ in range(rng.integers(2, 5)):
        r = rng.uniform(0.12, 0.3)
        add(BALL, None, spot(0.5), [((0, 0, r), (r, r, r))])
    for side in range(4):
        w, h, along = rng.uniform(0.25, 0.6), rng.uniform(0.2, 0.4), rng.uniform(0.3, 0.7)
        at = [(along * size[0], 0), (size[0], along * size[1]), (along * size[0], size[1]), (0, along * size[1])][side]
        add(PICTURE, 0.0 if side % 2 == 0 else np.pi / 2, np.array([*at, 1.6]), [((0, 0, 0), (w, 0.02, h))])
    return Room(seed, size, tuple(solids))


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Camera-to-world [4,4] (OpenCV) of an upright camera."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(forward, right), forward, eye], axis=1)
    return c2w


def intrinsics(height: int, width: int) -> np.ndarray:
    """[3,3] of a camera that sees 67 degrees across. Its principal point lies beside the middle, so that no axis can be mixed up unseen."""
    return np.array([[0.75 * width, 0, 0.51 * width], [0, 0.76 * width, 0.48 * height], [0, 0, 1.0]])


def render(room: Room, c2w: np.ndarray, height: int, width: int, key: str = "view") -> View:
    """What a camera in the room sees."""
    K = intrinsics(height, width)
    y, x = np.mgrid[:height, :width] + 0.5
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], axis=-1).reshape(-1, 3) @ c2w[:3, :3].T
    eye = c2w[:3, 3]
    # With 1 as the rays' z in the camera, the distance along a ray is depth.
    depth, normals, instances = _hit_inside(room.size, eye, rays)
    labels = np.choose(instances - 1, [WALL, WALL, WALL, WALL, FLOOR, CEILING])
    for solid in room.solids:
        t, normal = _hit_ball(solid, eye, rays) if solid.yaw is None else _hit_box(solid, eye, rays)
        nearer = t < depth
        depth, normals = np.where(nearer, t, depth), np.where(nearer[:, None], normal, normals)
        instances, labels = np.where(nearer, solid.instance, instances), np.where(nearer, solid.label, labels)
    xyz = eye + depth[:, None] * rays
    shape = (height, width)
    frame = ProbeFrame(
        key=key,
        group=f"room-{room.seed}",
        image=_paint(room, xyz, normals, instances).reshape(*shape, 3),
        depth=depth.reshape(shape).astype(np.float32),
        normals=(normals @ c2w[:3, :3]).reshape(*shape, 3).astype(np.float32),
        labels=labels.reshape(shape).astype(np.uint8),
        instances=instances.reshape(shape).astype(np.uint16),
        K=K,
        c2w=c2w,
    )
    return View(frame, xyz.reshape(*shape, 3))


def walk_views(room: Room, count: int, height: int, width: int) -> list[View]:
    """Views from random positions at the height of eyes."""
    rng = np.random.default_rng([room.seed, 2])
    views = []
    for n in range(count):
        eye = np.array([*(rng.uniform(0.4, room.size[:2] - 0.4)), rng.uniform(1.4, 1.7)])
        heading = rng.uniform(0, 2 * np.pi)
        x, y = room.size[:2] / 2 + [np.cos(heading), np.sin(heading)]
        c2w = look_at(eye, np.array([x, y, rng.uniform(0.4, 1.9)]))
        views.append(render(room, c2w, height, width, f"room-{room.seed}/walk-{n}"))
    return views


def orbit_views(room: Room, height: int, width: int, angles: Sequence[float] = ORBIT) -> list[View]:
    """A view of the room's middle, and one from each of `angles` degrees further around it."""
    rng = np.random.default_rng([room.seed, 3])
    target = np.array([*(room.size[:2] / 2), 0.7])
    start, radius, high = rng.uniform(0, 360), 0.5 * room.size[:2].min() - 0.35, rng.uniform(1.4, 1.6)
    views = []
    for angle in (0.0, *angles):
        around = np.deg2rad(start + angle)
        eye = np.array([*(target[:2] + radius * np.array([np.cos(around), np.sin(around)])), high])
        views.append(render(room, look_at(eye, target), height, width, f"room-{room.seed}/orbit-{angle:g}"))
    return views


@dataclass
class Rooms:
    """A `ProbeData` of rooms; those of the two splits differ. The test split holds the views of each room's walk, then of its orbit."""

    train: int = 4
    test: int = 2
    views_each: int = 4
    height: int = 126
    width: int = 168
    orbit: Sequence[float] = ORBIT
    name: str = "test-rooms"
    classes: tuple[str, ...] = CLASSES
    depth_range: tuple[float, float] = (0.001, 8.0)
    depth_crop: str | None = None
    tasks: frozenset[str] = frozenset({"depth", "normals", "segmentation", "correspondence"})
    _made: dict[str, list[View]] = field(default_factory=dict)

    def views(self, split: str) -> list[View]:
        """The frames of a split with their world positions."""
        if split not in self._made:
            self._made[split] = []
            for seed in range(self.train) if split == "train" else range(1000, 1000 + self.test):
                room = make_room(seed)
                self._made[split] += walk_views(room, self.views_each, self.height, self.width)
                if split == "test" and self.orbit:
                    self._made[split] += orbit_views(room, self.height, self.width, self.orbit)
        return self._made[split]

    def frames(self, split: str) -> list[ProbeFrame]:
        return [view.frame for view in self.views(split)]

    def pairs(self) -> list[Pair]:
        if not self.orbit:
            return []
        each = self.views_each + 1 + len(self.orbit)
        firsts = [room * each + self.views_each for room in range(self.test)]
        return [Pair(first, first + 1 + n) for first in firsts for n in range(len(self.orbit))]

    def describe(self) -> Mapping[str, Any]:
        return {"name": self.name, "train": [f.key for f in self.frames("train")], "test": [f.key for f in self.frames("test")]}


def world_code(xyz: np.ndarray, frequencies: Sequence[float] = (0.4, 0.9, 2.1, 4.7)) -> np.ndarray:
    """Sines and cosines of a position, [...,3] -> [...,C]: features that say exactly which point of the world a pixel sees."""
    phase = np.concatenate([f * np.pi * xyz for f in frequencies], axis=-1)
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=-1).astype(np.float32)


def _about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _hit_inside(size: np.ndarray, eye: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where rays leave the room: distance, normal inwards, and which side: 1-4 walls, 5 floor, 6 ceiling."""
    with np.errstate(divide="ignore"):
        t = (np.where(rays > 0, size, 0.0) - eye) / rays
    axis = np.argmin(np.where(rays == 0, np.inf, t), axis=1)
    rows = np.arange(len(rays))
    upward = rays[rows, axis] > 0
    normals = np.zeros_like(rays)
    normals[rows, axis] = np.where(upward, -1.0, 1.0)
    return t[rows, axis], normals, 1 + 2 * axis + upward


def _hit_box(solid: Solid, eye: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    assert solid.yaw is not None
    turn = _about_z(solid.yaw)
    origin, d = (eye - solid.centre) @ turn, rays @ turn
    d = np.where(np.abs(d) < 1e-12, 1e-12, d)
    enter, leave = (-np.sign(d) * solid.half - origin) / d, (np.sign(d) * solid.half - origin) / d
    axis, rows = np.argmax(enter, axis=1), np.arange(len(rays))
    near = enter[rows, axis]
    hit = (near > 1e-6) & (near < leave.min(axis=1))
    normals = np.zeros_like(rays)
    normals[rows, axis] = -np.sign(d[rows, axis])
    return np.where(hit, near, np.inf), normals @ turn.T


def _hit_ball(solid: Solid, eye: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    offset, radius = eye - solid.centre, solid.half[0]
    a, b = (rays**2).sum(axis=1), rays @ offset
    inside = b**2 - a * (offset @ offset - radius**2)
    t = (-b - np.sqrt(np.maximum(inside, 0))) / a
    hit = (inside > 0) & (t > 1e-6)
    return np.where(hit, t, np.inf), (offset + t[:, None] * rays) / radius


def _paint(room: Room, xyz: np.ndarray, normals: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """A colour an object, times noise that belongs to the point, times a fixed light: the same from every view."""
    colours = np.random.default_rng([room.seed, 4]).uniform(70, 235, (room.instances + 1, 3))
    noise = 0.7 + 0.4 * _noise(xyz * 3.0, room.seed) + 0.2 * _noise(xyz * 9.0, room.seed + 1)
    light = 0.55 + 0.45 * np.abs(normals @ _LIGHT / np.linalg.norm(_LIGHT))
    return np.clip(colours[instances] * (noise * light)[:, None], 0, 255).astype(np.uint8)


def _noise(points: np.ndarray, seed: int) -> np.ndarray:
    """Value noise in [0,1): random at whole positions, linear between them."""
    base = np.floor(points).astype(np.int64)
    part = points - base
    total = np.zeros(len(points))
    for corner in np.ndindex(2, 2, 2):
        key = (base + corner) @ np.array([73856093, 19349663, 83492791]) + 2654435761 * seed
        key = (key ^ (key >> 13)) * 1274126177 & 0x7FFFFFFF
        weight = np.prod(np.where(corner, part, 1 - part), axis=1)
        total += weight * ((key ^ (key >> 16)) % 65536) / 65536
    return total
