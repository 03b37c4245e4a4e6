"""What identifies a room: everything that decides its bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

FRAME_DEFECTS = ("missing_image", "truncated_jpeg", "nan_pose", "far_pose", "non_rigid_pose", "missing_mask", "duplicate", "anonymised")
"""Defects that hit one training frame each, never the same one twice."""

DEFECTS = ("is_bad_run", "gap", *FRAME_DEFECTS, "multilabel", "unlabelled_object", "empty")
"""Every defect that a room can be given."""


@dataclass(frozen=True)
class RoomSpec:
    """One room: the same spec gives the same bytes.

    scene_id: 10 lower-case hex digits. seed: decides room, lens, walk and noise. frames, test_frames: pictures of the training walk and
    of a second one. scale: image size over 1752 x 1168. defects: names from `DEFECTS`. walk_step: poses of the walk (about 1.8 cm and 1.2
    degrees each) from one picture to the next. Raises ValueError for a spec that cannot be made.
    """

    scene_id: str
    seed: int
    frames: int
    test_frames: int = 0
    scale: float = 0.25
    defects: tuple[str, ...] = ()
    walk_step: int = 1

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{10}", self.scene_id):
            raise ValueError(f"scene_id {self.scene_id!r}: 10 lower-case hex digits are needed")
        if self.seed < 0 or self.frames < 0 or self.test_frames < 0:
            raise ValueError(f"{self.scene_id}: seed, frames and test_frames must not be negative")
        if self.walk_step < 1:
            raise ValueError(f"{self.scene_id}: walk_step {self.walk_step} is below 1")
        if not 0.02 <= self.scale <= 1.0:
            raise ValueError(f"{self.scene_id}: scale {self.scale} is outside 0.02 .. 1.0")
        unknown = sorted(set(self.defects) - set(DEFECTS))
        if unknown or len(set(self.defects)) != len(self.defects):
            raise ValueError(f"{self.scene_id}: defects {list(self.defects)} must be distinct names from {', '.join(DEFECTS)}")


def room_specs(count: int, seed: int, frames: int, scale: float, defects: Sequence[str] = (), walk_step: int = 1) -> list[RoomSpec]:
    """`count` specs whose ids and seeds come from (seed, index) alone: asking for more rooms never changes the first ones."""
    digests = [hashlib.sha256(f"room {seed} {index}".encode()).digest() for index in range(count)]
    return [
        RoomSpec(d.hex()[:10], int.from_bytes(d[8:14], "big"), frames, scale=scale, defects=tuple(defects), walk_step=walk_step)
        for d in digests
    ]
