"""What a reader of raw scenes gives, whatever their layout on disk.

A reader is a file or package in this folder (or an entry point in `splat_and_distill.readers`) with a dataclass `Config` and a function
`make(config)`, which gives a `Reader`. `BadScene` sets a scene aside, `BadFrame` drops a frame; both carry a reason to count by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from storage.domain import Frame


@dataclass(frozen=True, eq=False)
class FrameEntry:
    """One listed frame that can be used, as far as a listing tells.

    name: of the image file; its stem is the frame's key in the scene. number: its position in the sequence, such as the camera's counter.
    c2w: [4,4] float64 OpenCV camera-to-world, metres of the scene's world frame. mask_url: None where every pixel counts as valid.
    version: changes where anything that this frame alone is made from does (pose, image, mask).
    """

    name: str
    number: int
    c2w: np.ndarray
    image_url: str
    mask_url: str | None
    version: str


@dataclass(frozen=True)
class Skip:
    """One frame that was dropped, and why: `reason` is a fixed word to count by, `detail` is for a person."""

    scene: str
    frame: str
    reason: str
    detail: str


@dataclass(frozen=True)
class SceneIndex:
    """What a scene offers: frames in the order of (number, name), what was dropped, and remarks for the scene's report.

    version: changes where anything that all its frames share does (lens, mesh, annotations).
    """

    scene_id: str
    frames: tuple[FrameEntry, ...]
    skipped: tuple[Skip, ...]
    notes: tuple[str, ...]
    version: str


class Scene(Protocol):
    """One scene, opened: what is loaded once (mesh, search tree, undistortion maps) stays with it."""

    @property
    def index(self) -> SceneIndex:
        """What the scene lists."""
        ...

    def read(self, entry: FrameEntry) -> Frame:
        """One frame at the stored size.

        Args:
            entry: one of `index.frames`.

        Returns:
            Image, camera and validity; depth where the scene has any; labels where the scene has annotated objects, else None.

        Raises:
            BadFrame: the frame cannot be used. BadScene: the whole scene cannot.
        """
        ...

    def report(self) -> dict[str, Any]:
        """What the scene's report says of it, as plain JSON values. Raises BadScene."""
        ...


class Reader(Protocol):
    """Reads raw scenes of one layout below a root URL. Holds no state of a scene, so every process makes its own."""

    def scenes(self, root: str, split: str) -> list[str]:
        """The ids of the scenes of a split, in its order. Raises StorageError naming the URL where there is no such split."""
        ...

    def listing(self, root: str, scene_id: str, keep_bad: bool) -> SceneIndex:
        """What a scene lists, without opening an image or a mesh. keep_bad: keep frames that the scene marks as bad. Raises BadScene."""
        ...

    def open(self, root: str, scene_id: str, width: int, height: int, keep_bad: bool) -> Scene:
        """The scene, its frames to be read at width x height pixels. Raises BadScene."""
        ...


class BadScene(ValueError):
    """The scene cannot be used: set it aside, list the reason, go on with the others. Survives pickling between processes."""

    def __init__(self, scene: str, reason: str, detail: str) -> None:
        super().__init__(scene, reason, detail)
        self.scene, self.reason, self.detail = scene, reason, detail

    def __str__(self) -> str:
        return f"scene {self.scene}: {self.reason}: {self.detail}"


class BadFrame(ValueError):
    """The frame cannot be used: drop it, go on with the scene. Survives pickling between processes."""

    def __init__(self, scene: str, frame: str, reason: str, detail: str) -> None:
        super().__init__(scene, frame, reason, detail)
        self.scene, self.frame, self.reason, self.detail = scene, frame, reason, detail

    def __str__(self) -> str:
        return f"scene {self.scene}, frame {self.frame}: {self.reason}: {self.detail}"

    @property
    def skip(self) -> Skip:
        """The same as a record for the scene's report."""
        return Skip(self.scene, self.frame, self.reason, self.detail)
