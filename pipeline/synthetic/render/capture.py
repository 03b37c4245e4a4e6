"""The session with the camera: which pictures are taken, from where, under which names, and what is exactly seen in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.render.camera import Lens, lens, walk
from pipeline.synthetic.render.render import develop, photograph, trace
from pipeline.synthetic.scene.room import Room, build_room
from pipeline.synthetic.spec import FRAME_DEFECTS, RoomSpec

GAP = 5
"""Counter values that the defect "gap" skips."""

_TEST_STRIDE = 9
_LAST_NUMBER = 99999


@dataclass(frozen=True)
class Shot:
    """One picture: file name `DSC#####.JPG`, camera-to-world [4,4] (OpenCV axes, metres), and whether it is blurred or a test view."""

    name: str
    c2w: np.ndarray
    bad: bool = False
    test: bool = False

    @property
    def mask(self) -> str:
        """File name of its anonymisation mask."""
        return self.name.removesuffix(".JPG") + ".png"


@dataclass(frozen=True)
class Capture:
    """lens; shots, training ones first, each kind in the order of its names; hits: the training shots that each frame defect falls on."""

    lens: Lens
    shots: list[Shot]
    hits: dict[str, list[int]]
    skipped: list[str]

    @property
    def training(self) -> list[Shot]:
        return [shot for shot in self.shots if not shot.test]

    @property
    def testing(self) -> list[Shot]:
        return [shot for shot in self.shots if shot.test]


def stream(spec: RoomSpec, *key: int) -> np.random.SeedSequence:
    """An independent seed for one purpose of a spec; `build_room` owns the keys 0 and 1."""
    return np.random.SeedSequence([spec.seed, *key])


def _generator(spec: RoomSpec, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(stream(spec, *key)))


def _bad_run(spec: RoomSpec) -> list[int]:
    length = max(2, spec.frames // 8)
    if spec.frames <= length:
        raise ValueError(f"{spec.scene_id}: is_bad_run needs more than {length} frames")
    start = int(_generator(spec, 3, 0).integers(0, spec.frames - length))
    return list(range(start, start + length))


def _hits(spec: RoomSpec) -> dict[str, list[int]]:
    """Indices of the training shots that each frame defect falls on: no shot has two."""
    hits = {"is_bad_run": _bad_run(spec)} if "is_bad_run" in spec.defects else {}
    taken = {index for run in hits.values() for index in run}
    for number, defect in enumerate(FRAME_DEFECTS, start=1):
        if defect not in spec.defects:
            continue
        order = [int(k) for k in _generator(spec, 3, number).permutation(spec.frames) if int(k) not in taken]
        if not order:
            raise ValueError(f"{spec.scene_id}: {spec.frames} frames are too few for the defects {', '.join(spec.defects)}")
        hits[defect] = order[:1]
        taken.add(order[0])
    return hits


def plan(spec: RoomSpec, room: Room) -> Capture:
    """The capture of a spec: lens, names, poses and flags, with no pixel rendered."""
    optics = lens(_generator(spec, 2, 0), spec.scale)
    if "empty" in spec.defects:
        return Capture(optics, [], {}, [])
    hits = _hits(spec)
    gap = spec.frames
    if "gap" in spec.defects:
        if spec.frames < 2:
            raise ValueError(f"{spec.scene_id}: gap needs two frames")
        gap = int(_generator(spec, 3, 20).integers(1, spec.frames))
    steps = [k + GAP * (k >= gap) for k in range(spec.frames)]
    first = int(_generator(spec, 2, 1).integers(1, 4000))
    last = first + spec.frames + GAP + 40 + spec.test_frames
    if last > _LAST_NUMBER:
        raise ValueError(f"{spec.scene_id}: {spec.frames} frames run past the five-digit counter")
    names = [f"DSC{first + step:05d}.JPG" for step in steps]
    skipped = [f"DSC{first + gap + k:05d}.JPG" for k in range(GAP)] if gap < spec.frames else []
    poses = walk(stream(spec, 2, 2), room.prims, room.size, (spec.frames + GAP) * spec.walk_step)[:: spec.walk_step]
    shots = [Shot(name, poses[step], k in hits.get("is_bad_run", [])) for k, (name, step) in enumerate(zip(names, steps, strict=True))]
    if spec.test_frames:
        beyond = first + spec.frames + GAP + 40
        views = walk(stream(spec, 2, 3), room.prims, room.size, spec.test_frames * _TEST_STRIDE)[::_TEST_STRIDE]
        shots += [Shot(f"DSC{beyond + k:05d}.JPG", view, test=True) for k, view in enumerate(views)]
    return Capture(optics, shots, hits, skipped)


def expose(spec: RoomSpec, room: Room, capture: Capture, index: int) -> np.ndarray:
    """The 8-bit picture [H,W,3] RGB of one shot, with sensor noise, and smeared by motion if it is a bad one."""
    shot = capture.shots[index]
    rng = np.random.Generator(np.random.PCG64(stream(spec, 4, int(shot.name[3:8]))))
    blur = (max(5.0, 36 * spec.scale), float(rng.uniform(-30, 30))) if shot.bad else None
    return develop(photograph(room, capture.lens, shot.c2w), rng, blur)


def render_truth(spec: RoomSpec, frame_index: int) -> dict[str, np.ndarray]:
    """What a shot exactly sees, training shots first, then test shots.

    Per fisheye pixel: `depth_z` (planar) and `distance` (along the ray) [H,W] float64 metres, `object_id` [H,W] int32 (the objectId of
    the scan's annotation), `rays` [H,W,3] unit directions in the camera frame; and the `c2w` [4,4] OpenCV camera-to-world pose and the
    noise-free `image` [H,W,3] float32 in [0,1].
    """
    room = build_room(spec.seed)
    capture = plan(spec, room)
    shot = capture.shots[frame_index]
    seen = trace(room, capture.lens, shot.c2w)
    return {
        "depth_z": seen["depth_z"],
        "distance": seen["distance"],
        "object_id": seen["object_id"],
        "rays": capture.lens.rays(),
        "c2w": shot.c2w,
        "image": photograph(room, capture.lens, shot.c2w, seen),
    }
