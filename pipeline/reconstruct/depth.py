"""Gaussians straight from the depth that the frames carry: one round, opaque Gaussian on the surface behind each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.fields import check_above
from pipeline.reconstruct.base import BadContext, Reconstructor
from storage.domain import Frame, Gaussians


@dataclass
class Config:
    """Gaussians straight from the depth that the frames carry: perfect geometry, no weights."""

    footprint: float = 0.4
    """Standard deviation of a Gaussian, in pixels of its own view."""

    def __post_init__(self) -> None:
        check_above(self, 0, "footprint")


def make(config: Config) -> DepthReconstructor:
    return DepthReconstructor(config.footprint)


class DepthReconstructor(Reconstructor):
    """footprint: as in `Config`."""

    needs_depth = True
    uses_gpu = False

    def __init__(self, footprint: float) -> None:
        self.footprint = footprint

    def describe(self) -> dict[str, Any]:
        return {"footprint": self.footprint}

    def check_size(self, height: int, width: int) -> None:
        """Any size will do."""

    def reconstruct(self, views: Sequence[Frame]) -> Gaussians:
        """Where a pixel has no surface, or is not valid, its Gaussian has opacity 0 (and stands 1 m before the camera)."""
        means, scales, opacities = [], [], []
        for view in views:
            if view.depth is None:
                raise BadContext(
                    f"frame {view.name}: no depth; the `depth` reconstructor needs a `frames` column built with the scene's mesh"
                )
            seen = (view.depth > 0) & view.valid
            depth = np.where(seen, view.depth, 1.0).astype(np.float64)
            points = view.camera.rays() * depth[..., None]
            c2w = view.camera.c2w
            means.append((points @ c2w[:3, :3].T + c2w[:3, 3]).reshape(-1, 3))
            metres_per_pixel = depth * (1 / view.camera.K[0, 0] + 1 / view.camera.K[1, 1]) / 2
            scales.append(np.repeat((self.footprint * metres_per_pixel).reshape(-1, 1), 3, axis=1))
            opacities.append(seen.reshape(-1))
        count = sum(map(len, means))
        return Gaussians(
            means=np.concatenate(means).astype(np.float32),
            quats=np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
            scales=np.concatenate(scales).astype(np.float32),
            opacities=np.concatenate(opacities).astype(np.float32),
        )
