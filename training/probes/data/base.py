"""The frames that probes read, whatever layout they come from.

A source is a file in this folder (or an entry point in `splat_and_distill.probe_data`) with a dataclass `Config` and a function
`make(config)`, which gives a `ProbeData`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

IGNORED = 255  # of labels: a pixel that is neither trained on nor judged


@dataclass(frozen=True)
class ProbeFrame:
    """One image and what is true of it; None where the data does not say.

    key: names the frame in lists that are written out, unique in its data. group: the scene or room, over which intervals are taken.
    """

    key: str
    group: str
    image: np.ndarray  # [H,W,3] uint8 RGB
    depth: np.ndarray | None = None  # [H,W] float32 metres along the camera's z axis; 0 where unknown
    normals: np.ndarray | None = None  # [H,W,3] float32, unit length, camera axes (x right, y down, z forward), facing it; 0 where unknown
    labels: np.ndarray | None = None  # [H,W] uint8 classes 0..len(classes)-1; IGNORED elsewhere
    instances: np.ndarray | None = None  # [H,W] uint16 objects of this frame; 0 where there is none
    K: np.ndarray | None = None  # [3,3] float64 pixels of `image`; pixel centres at +0.5
    c2w: np.ndarray | None = None  # [4,4] float64 OpenCV camera-to-world, metres


@dataclass(frozen=True)
class Pair:
    """Two views of one thing, by their indices in `ProbeData.frames("test")`.

    points: [P,4] pixels (x, y in the first; x, y in the second) that are known to be the same; None: depth and cameras say.
    """

    first: int
    second: int
    points: np.ndarray | None = None


class ProbeData(Protocol):
    """Frames of two disjoint splits, and pairs of test frames. Frames are decoded as they are asked for.

    name: of the source; classes: names of the labels, () without; depth_range: (least, largest) metres that are judged; depth_crop:
    `indoor` or `kitti` where the metric judges a part of the image only, else None; tasks: of depth, normals, segmentation,
    correspondence, those that the data can judge.
    """

    name: str
    classes: tuple[str, ...]
    depth_range: tuple[float, float]
    depth_crop: str | None
    tasks: frozenset[str]

    def frames(self, split: str) -> Sequence[ProbeFrame]:
        """The frames of `train` or `test`, in an order that never changes. Raises StorageError that names a file and a remedy."""
        ...

    def pairs(self) -> Sequence[Pair]:
        """Pairs of test frames, in an order that never changes; empty without the task correspondence."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What decides about the result, as plain JSON values: the configuration, counts, the keys of all frames and pairs, and
        what tells other files under the same names from these."""
        ...
