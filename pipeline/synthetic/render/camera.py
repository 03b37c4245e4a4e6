"""The lens and the hand that holds it: a Kannala-Brandt fisheye and a slow walk through a furnished room.

Pixel positions are continuous, the top-left pixel's centre at (0.5, 0.5), as COLMAP counts. Camera frame: x right, y down, z forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.compiling import kernel, scalar
from pipeline.synthetic.scene.geometry import Primitives, clearance

FULL_SIZE = (1752, 1168)
# Two published ScanNet++ DSLR calibrations at 1752 x 1168: fx, fy, cx, cy, k1..k4.
_FAMILIES = (
    (616.721, 617.354, 878.593, 589.767, 0.06109, 0.00335, 0.002988, -0.001002),
    (789.908, 791.557, 879.204, 584.789, -0.02947, -0.00577, -0.002148, 0.0001484),
)

_STEP_M = 0.018
_TURN_RAD = math.radians(1.25)
_WALL_MARGIN_M = 0.7
_SIDE_MARGIN_M = 0.32
_EYE_M = (1.35, 1.65)


@dataclass(frozen=True)
class Lens:
    """An OPENCV_FISHEYE camera: image size in pixels, focal lengths and centre in pixels, distortion k1..k4."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    k: tuple[float, float, float, float]

    @property
    def parameters(self) -> np.ndarray:
        """fx, fy, cx, cy, k1..k4 as float64 [8], in COLMAP's order."""
        return np.array([self.fx, self.fy, self.cx, self.cy, *self.k])

    def rays(self) -> np.ndarray:
        """Unit directions [H,W,3] through the pixel centres, camera frame."""
        return unproject_grid(self.width, self.height, self.parameters)

    def project(self, points_n3: np.ndarray) -> np.ndarray:
        """Pixel positions [N,2] of camera-frame points."""
        radius = np.hypot(points_n3[:, 0], points_n3[:, 1])
        theta = np.arctan2(radius, points_n3[:, 2])
        square = theta**2
        bent = theta * (1 + square * (self.k[0] + square * (self.k[1] + square * (self.k[2] + square * self.k[3]))))
        scale = np.where(radius > 1e-12, bent / np.maximum(radius, 1e-12), 1.0 / np.maximum(points_n3[:, 2], 1e-12))
        return np.stack([self.fx * points_n3[:, 0] * scale + self.cx, self.fy * points_n3[:, 1] * scale + self.cy], axis=1)


def lens(rng: np.random.Generator, scale: float) -> Lens:
    """One of the two lens families at `scale` times 1752 x 1168 (rounded to even sizes), refocused by a few parts in a thousand."""
    width, height = (max(2, 2 * round(full * scale / 2)) for full in FULL_SIZE)
    fx, fy, cx, cy, *k = _FAMILIES[rng.integers(2)]
    focus = 1 + rng.uniform(-0.003, 0.003)
    centre = rng.uniform(-2, 2, 2)
    sx, sy = width / FULL_SIZE[0], height / FULL_SIZE[1]
    return Lens(width, height, fx * focus * sx, fy * focus * sy, (cx + centre[0]) * sx, (cy + centre[1]) * sy, (k[0], k[1], k[2], k[3]))


@scalar
def unproject(u, v, parameters):
    """Unit direction (3) through pixel position (u, v): the bent angle is inverted by Newton steps kept inside a shrinking bracket."""
    x, y = (u - parameters[2]) / parameters[0], (v - parameters[3]) / parameters[1]
    bent = math.sqrt(x * x + y * y)
    if bent < 1e-12:
        return 0.0, 0.0, 1.0
    low, high = 0.0, math.pi
    theta = min(bent, 1.5)
    k1, k2, k3, k4 = parameters[4], parameters[5], parameters[6], parameters[7]
    for _ in range(60):
        q = theta * theta
        error = theta * (1 + q * (k1 + q * (k2 + q * (k3 + q * k4)))) - bent
        if abs(error) < 1e-14:
            break
        if error > 0:
            high = theta
        else:
            low = theta
        slope = 1 + q * (3 * k1 + q * (5 * k2 + q * (7 * k3 + q * 9 * k4)))
        step = theta - error / slope if slope > 1e-3 else low
        theta = step if low < step < high else 0.5 * (low + high)
        if high - low < 1e-15:
            break
    sine = math.sin(theta) / bent
    return x * sine, y * sine, math.cos(theta)


@kernel
def unproject_grid(width, height, parameters):
    """Unit directions [height,width,3] through the pixel centres."""
    rays = np.empty((height, width, 3))
    for row in range(height):
        for column in range(width):
            x, y, z = unproject(column + 0.5, row + 0.5, parameters)
            rays[row, column, 0], rays[row, column, 1], rays[row, column, 2] = x, y, z
    return rays


def _standing_room(prims: Primitives, size: tuple[float, float, float]) -> np.ndarray:
    """Spots [P,2] on a 10 cm lattice where a camera at eye height keeps its distance from walls and furniture."""
    x, y = (np.arange(_WALL_MARGIN_M, s - _WALL_MARGIN_M, 0.1) for s in size[:2])
    spots = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    return spots[_side_clearance(prims, spots) > _SIDE_MARGIN_M]


def _side_clearance(prims: Primitives, points_p2: np.ndarray) -> np.ndarray:
    heights = np.linspace(_EYE_M[0] - 0.1, _EYE_M[1] + 0.1, 4)
    return np.min([clearance(prims, np.column_stack([points_p2, np.full(len(points_p2), z)])) for z in heights], axis=0)


def _route(rng: np.random.Generator, prims: Primitives, size: tuple[float, float, float], length: float) -> np.ndarray:
    """A smooth path [M,2] over free floor, one point every centimetre, at least `length` metres long. A longer one begins with the same
    points.
    """
    spots = _standing_room(prims, size)
    if len(spots) == 0:
        raise ValueError("the room has no spot to stand on: every spot at eye height is within 0.32 m of furniture or 0.7 m of a wall")
    here = spots[rng.integers(len(spots))]
    pieces, total = [here[None]], 0.0
    # Half the moving average below comes before the first point that it returns.
    while total < length + 1.0:
        there = spots[rng.integers(len(spots))]
        stretch = float(np.linalg.norm(there - here))
        samples = here + (there - here) * (np.arange(1, max(2, round(stretch * 100)) + 1) / max(2, round(stretch * 100)))[:, None]
        if (stretch < 0.5 and len(spots) > 30) or _side_clearance(prims, samples[::5]).min() < _SIDE_MARGIN_M - 0.06:
            if rng.random() > 0.02:
                continue
            # Hemmed in: step aside to the nearest spots and look again from there.
            near = spots[np.argsort(np.linalg.norm(spots - here, axis=1))[:9]]
            there = near[rng.integers(len(near))]
            samples = here + (there - here) * (np.arange(1, 16) / 15)[:, None]
            stretch = float(np.linalg.norm(there - here))
        pieces.append(samples)
        total += stretch
        here = there
    window = np.hanning(43)[1:-1]
    path = np.concatenate(pieces)
    return np.stack([np.convolve(path[:, axis], window / window.sum(), mode="valid") for axis in range(2)], axis=1)


def _look_at(eye: np.ndarray, yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Camera-to-world [4,4] of a camera that looks along yaw (from +x towards +y) and pitch (up), rolled about its axis; radians."""
    forward = np.array([math.cos(pitch) * math.cos(yaw), math.cos(pitch) * math.sin(yaw), math.sin(pitch)])
    level = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    below = np.cross(forward, level)
    right = math.cos(roll) * level + math.sin(roll) * below
    c2w = np.eye(4)
    c2w[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    c2w[:3, 3] = eye
    return c2w


def walk(seed: np.random.SeedSequence, prims: Primitives, size: tuple[float, float, float], steps: int) -> np.ndarray:
    """A hand-held walk: camera-to-world poses [steps,4,4] float64 in metres, about 1.8 cm and 1.2 degrees apart.

    The camera keeps at eye height, off walls and furniture, and turns towards one thing after another on the far side of the room. A
    longer walk from the same seed begins with the shorter one.
    """
    route_rng, hand_rng, gaze_rng = (np.random.Generator(np.random.PCG64(child)) for child in seed.spawn(3))
    hand = hand_rng.normal(size=(max(steps, 1), 6))
    along = np.cumsum(_STEP_M * np.clip(1 + 0.25 * hand[:, 0], 0.3, 1.9))
    route = _route(route_rng, prims, size, float(along[-1]) + 1.0)
    covered = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(route, axis=0), axis=1))])
    spots = np.stack([np.interp(along, covered, route[:, axis]) for axis in range(2)], axis=1)

    middle = np.array(size[:2]) / 2
    bob, tilt, roll, pitch_aim = 0.0, 0.0, 0.0, math.radians(-12)
    inward = math.atan2(*(middle - spots[0])[::-1])
    gaze = gaze_rng.uniform(-1.1, 1.1)
    yaw, rate, pitch = inward + gaze_rng.uniform(-0.9, 0.9), 0.0, math.radians(-12)
    height = gaze_rng.uniform(1.42, 1.58)
    poses = np.empty((steps, 4, 4))
    for k in range(steps):
        offset = middle - spots[k]
        if np.hypot(*offset) > 0.45:
            inward = math.atan2(offset[1], offset[0])
        error = (inward + gaze - yaw + math.pi) % (2 * math.pi) - math.pi
        if abs(error) < 0.05 or gaze_rng.random() < 0.004:
            gaze, pitch_aim = gaze_rng.uniform(-1.1, 1.1), math.radians(gaze_rng.uniform(-26, 4))
        rate += 0.2 * (float(np.clip(error, -_TURN_RAD, _TURN_RAD)) - rate)
        yaw += rate + math.radians(0.12) * hand[k, 1]
        pitch += float(np.clip(pitch_aim - pitch, -0.006, 0.006))
        tilt += 0.3 * (math.radians(0.25) * hand[k, 2] - 0.2 * tilt)
        roll += 0.25 * (math.radians(0.6) * hand[k, 3] - 0.15 * roll)
        bob += 0.003 * hand[k, 4] - 0.03 * bob
        eye = np.array([*spots[k], float(np.clip(height + bob, *_EYE_M))])
        poses[k] = _look_at(eye, yaw, pitch + tilt, roll)
    return poses
