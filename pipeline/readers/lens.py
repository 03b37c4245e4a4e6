"""The camera that took the photographs of a scene, for every layout that has one for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Lens:
    """The camera that took the stored photographs. Its repr enters the versions of scenes: a new field makes every shard anew.

    fx, fy, cx, cy: pixels of a width x height image whose top-left pixel has its centre at (0.5, 0.5).
    distortion: k1..k4 of the Kannala-Brandt polynomial for OPENCV_FISHEYE, empty for PINHOLE.
    """

    model: Literal["OPENCV_FISHEYE", "PINHOLE"]
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...]
    width: int
    height: int

    @property
    def matrix(self) -> np.ndarray:
        """Intrinsics [3,3] float64 in pixels of the source image."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])
