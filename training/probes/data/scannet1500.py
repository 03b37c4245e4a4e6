"""The 1500 pairs of ScanNet test frames that SuperGlue chose, as LoFTR packs them: zero-shot correspondence.

`test.npz` (`name`: rows of room, sequence, frame, frame), `intrinsics.npz` (a 3x3 K for each scene, of 640x480 pixels), and
`sceneRRRR_SS/{color/N.jpg,depth/N.png,pose/N.txt}`: depth in mm, pose from camera to world. Colour images are brought to the size of their
depth, bilinearly.

K is used as published, though ScanNet seems to count pixel centres at whole numbers and `ProbeFrame.K` at +0.5: the published protocol
back-projects points at +0.5 with it unchanged, and figures that are compared must do the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from configs.fields import REQUIRED
from storage import location
from storage.location import StorageError
from training.probes.data import files
from training.probes.data.base import Pair, ProbeFrame
from training.probes.data.frames import INDOOR_SIZE, ListedData, Listing

DEPTH_RANGE = (0.001, 10.0)
_REMEDY = "give the folder scannet_test_1500, with test.npz and intrinsics.npz of LoFTR, as root"


@dataclass
class Config:
    """The keys of this data."""

    root: str = REQUIRED
    """The folder `scannet_test_1500`."""


@dataclass(frozen=True)
class _Entry:
    key: str
    scene: str
    image: str
    depth: str
    pose: str
    K: np.ndarray

    @property
    def urls(self) -> tuple[str, ...]:
        return self.image, self.depth, self.pose


def make(config: Config) -> ListedData:
    return ListedData("scannet1500", config, lambda: _listing(config.root), _frame, frozenset({"correspondence"}), depth_range=DEPTH_RANGE)


def _listing(root: str) -> Listing:
    url = location.join(root, "test.npz")
    rows = files.read_arrays(url, _REMEDY).get("name")
    if rows is None or rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iu":
        raise StorageError(f"{url}: has no array 'name' of rows (room, sequence, frame, frame); {_REMEDY}")
    cameras = location.join(root, "intrinsics.npz")
    intrinsics = files.read_arrays(cameras, _REMEDY)
    entries: dict[tuple[str, int], int] = {}
    test: list[_Entry] = []
    pairs = []
    for room, sequence, first, second in rows.tolist():
        scene = f"scene{room:04d}_{sequence:02d}"
        for frame in (first, second):
            if (scene, frame) not in entries:
                entries[scene, frame] = len(test)
                test.append(_entry(root, scene, frame, intrinsics))
        pairs.append(Pair(entries[scene, first], entries[scene, second]))
    files.check_present((path for entry in test for path in (entry.image, entry.depth, entry.pose)), root, url)
    return Listing(test=test, pairs=pairs, annotations=(cameras,))


def _entry(root: str, scene: str, frame: int, intrinsics: Mapping[str, np.ndarray]) -> _Entry:
    K = intrinsics.get(scene)
    if K is None or K.shape != (3, 3) or not np.isfinite(K).all():
        raise StorageError(f"{location.join(root, 'intrinsics.npz')}: has no 3x3 K of {scene}; {_REMEDY}")
    image, depth, pose = (location.join(root, scene, path) for path in (f"color/{frame}.jpg", f"depth/{frame}.png", f"pose/{frame}.txt"))
    return _Entry(f"{scene}/{frame}", scene, image, depth, pose, K.astype(float))


def _frame(entry: _Entry) -> ProbeFrame:
    image, depth, pose = location.read_many([entry.image, entry.depth, entry.pose])
    depth_hw = files.decode_depth(entry.depth, depth, 1000.0, DEPTH_RANGE)
    if depth_hw.shape != INDOOR_SIZE:
        raise StorageError(f"{entry.depth}: {depth_hw.shape[0]}x{depth_hw.shape[1]}, not 480x640, which K refers to; {_REMEDY}")
    pixels = files.decode_rgb(entry.image, image)
    if pixels.shape[:2] != INDOOR_SIZE:
        pixels = cv2.resize(pixels, INDOOR_SIZE[::-1], interpolation=cv2.INTER_LINEAR)
    try:
        c2w = np.array(pose.split(), float).reshape(4, 4)
    except ValueError as error:
        raise StorageError(f"{entry.pose}: not 16 numbers; {_REMEDY}") from error
    check_pose(entry.pose, c2w)
    return ProbeFrame(entry.key, entry.scene, pixels, depth=depth_hw, K=entry.K, c2w=c2w)


def check_pose(url: str, c2w: np.ndarray) -> None:
    """Raises StorageError for a 4x4 matrix that is no rotation and shift; ScanNet writes -inf where tracking was lost."""
    rotation = c2w[:3, :3]
    rigid = np.isfinite(c2w).all() and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-2) and np.linalg.det(rotation) > 0
    if not rigid or not np.allclose(c2w[3], (0, 0, 0, 1)):
        raise StorageError(f"{url}: no pose from camera to world (a rotation and a shift); drop the frame or fetch it again")
