"""The things that the house speaks of: a camera, a frame, a window of frames, a cloud of Gaussians.

One convention everywhere: `c2w` is OpenCV camera-to-world (x right, y down, z forward) in metres of the scene's mesh frame; `K` is in
pixels of the stored image, whose top-left pixel has its centre at (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. `c2w` [4,4] float64, `K` [3,3] float64 (pixels), image size in pixels."""

    c2w: np.ndarray
    K: np.ndarray
    width: int
    height: int

    @property
    def w2c(self) -> np.ndarray:
        """World-to-camera [4,4] float64: what `rasterize` calls a viewmat."""
        inverse = np.eye(4)
        inverse[:3, :3] = self.c2w[:3, :3].T
        inverse[:3, 3] = -self.c2w[:3, :3].T @ self.c2w[:3, 3]
        return inverse

    def rays(self) -> np.ndarray:
        """Directions through the pixel centres [H,W,3] float64 in the camera frame, scaled to z = 1: depth times ray is the point."""
        u = (np.arange(self.width) + 0.5 - self.K[0, 2]) / self.K[0, 0]
        v = (np.arange(self.height) + 0.5 - self.K[1, 2]) / self.K[1, 1]
        x, y = np.meshgrid(u, v)
        return np.stack([x, y, np.ones_like(x)], axis=-1)

    def project(self, points_n3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points [N,3] -> pixels [N,2] and depths [N] along z."""
        camera = points_n3 @ self.w2c[:3, :3].T + self.w2c[:3, 3]
        pixels = camera @ self.K.T
        return pixels[:, :2] / pixels[:, 2:], camera[:, 2]


@dataclass(frozen=True)
class Frame:
    """One view, ready to store.

    image: [H,W,3] uint8 RGB. labels: [H,W] uint16 object ids, 0 where nothing is labelled; None where they were not read. valid: [H,W]
    bool, False where the pixel is anonymised or lies outside the source image. depth: [H,W] float32 metres along z, 0 where no surface was
    hit; None where there is none, or it was not read.
    """

    name: str
    camera: Camera
    image: np.ndarray
    labels: np.ndarray | None
    valid: np.ndarray
    depth: np.ndarray | None = None


@dataclass(frozen=True)
class Gaussians:
    """What a reconstructor makes of a context: one Gaussian per context pixel, in the order view, row, column, on that pixel's ray; or
    where not `pixel_aligned` any number, anywhere.

    means [N,3] float32 metres, world frame; quats [N,4] float32 (w,x,y,z), unit length; scales [N,3] float32 metres (standard deviations);
    opacities [N] float32 in [0,1].
    """

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray
    pixel_aligned: bool = True

    def __post_init__(self) -> None:
        n = len(self.means)
        for name, width in (("means", (3,)), ("quats", (4,)), ("scales", (3,)), ("opacities", ())):
            shape = getattr(self, name).shape
            if shape != (n, *width):
                raise ValueError(f"Gaussians.{name}: shape {shape}, expected {(n, *width)}")

    def __len__(self) -> int:
        return len(self.means)

    def take(self, which: np.ndarray) -> Gaussians:
        """Those that `which` names (indices, or [N] bool), in its order. They no longer are one per pixel."""
        return Gaussians(self.means[which], self.quats[which], self.scales[which], self.opacities[which], pixel_aligned=False)
