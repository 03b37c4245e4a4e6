"""The splat written for reading: every Gaussian over every pixel, nearest first, in float64. What the kernels must give."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Projection(NamedTuple):
    """N Gaussians in one camera. Entries mean something only where `valid`."""

    valid: np.ndarray  # [N] bool: in the depth range, not degenerate, opaque enough to show anywhere
    uv: np.ndarray  # [N,2] centre, pixels
    depth: np.ndarray  # [N] z in the camera
    conic: np.ndarray  # [N,3] (a,b,c) of the inverse 2D covariance [[a,b],[b,c]]
    opacity: np.ndarray  # [N], compensated where antialiased


class Render(NamedTuple):
    """One view. `fragile` marks pixels in which a decision (skip, stop) is so near that float32 may take it the other way."""

    features: np.ndarray  # [H,W,C]
    alpha: np.ndarray  # [H,W]
    fragile: np.ndarray  # [H,W] bool


def project_reference(
    means_n3: np.ndarray,
    covars_n33: np.ndarray,
    opacities_n: np.ndarray,
    viewmat: np.ndarray,
    K: np.ndarray,
    width: int,
    height: int,
    near_plane: float = 0.2,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    antialiased: bool = False,
) -> Projection:
    """Perspective projection, linearised at each centre (gsplat 1.5.3 semantics)."""
    means_n3, covars_n33, viewmat, K = (np.asarray(a, np.float64) for a in (means_n3, covars_n33, viewmat, K))
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    focal, centre, size = np.array([K[0, 0], K[1, 1]]), K[:2, 2], np.array([width, height])
    camera = means_n3 @ rotation.T + translation
    z = camera[:, 2]
    with np.errstate(all="ignore"):
        slope = camera[:, :2] / z[:, None]
        margin = 0.15 * size / focal
        clamped = np.clip(slope, -(centre / focal + margin), (size - centre) / focal + margin)
        jacobian = np.zeros((len(z), 2, 3))
        jacobian[:, [0, 1], [0, 1]] = focal / z[:, None]
        jacobian[:, :, 2] = -focal * clamped / z[:, None]
        to_image = jacobian @ rotation
        sharp = to_image @ covars_n33 @ to_image.transpose(0, 2, 1)
        blurred = sharp + eps2d * np.eye(2)
        xx, xy, yy = blurred[:, 0, 0], blurred[:, 0, 1], blurred[:, 1, 1]
        det_sharp, det = sharp[:, 0, 0] * sharp[:, 1, 1] - sharp[:, 0, 1] ** 2, xx * yy - xy**2
        opacity = np.asarray(opacities_n, np.float64)
        if antialiased:
            opacity = opacity * np.sqrt(np.maximum(0.0, det_sharp / det))
        valid = (z >= near_plane) & (z <= far_plane) & (det > 0) & np.isfinite(det) & (opacity >= 1 / 255)
        conic = np.stack([yy, -xy, xx], axis=-1) / det[:, None]
        return Projection(valid, focal * slope + centre, z, conic, opacity)


def composite_reference(
    projection: Projection, colors_nc: np.ndarray, width: int, height: int, background: np.ndarray | None = None, alpha_clamp: float = 0.999
) -> Render:
    """Front-to-back compositing of one view."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    transmittance, stopped, fragile = np.ones((height, width)), np.zeros((height, width), bool), np.zeros((height, width), bool)
    features = np.zeros((height, width, colors_nc.shape[1]))
    for i in np.argsort(projection.depth.astype(np.float32), kind="stable"):
        if not projection.valid[i]:
            continue
        dx, dy = projection.uv[i, 0] - x, projection.uv[i, 1] - y
        a, b, c = projection.conic[i]
        sigma = 0.5 * (a * dx**2 + c * dy**2) + b * dx * dy
        with np.errstate(over="ignore"):
            alpha = np.minimum(alpha_clamp, projection.opacity[i] * np.exp(-sigma))
        shows = ~stopped & (sigma >= 0) & (alpha >= 1 / 255)
        after = transmittance * (1 - alpha)
        fragile |= ~stopped & (np.abs(alpha * 255 - 1) < 2e-4)
        fragile |= shows & (np.abs(after / 1e-4 - 1) < 2e-3)
        stopped |= shows & (after <= 1e-4)
        shows &= ~stopped
        features += np.where(shows, alpha * transmittance, 0.0)[..., None] * colors_nc[i]
        transmittance = np.where(shows, after, transmittance)
    if background is not None:
        features += transmittance[..., None] * background
    return Render(features, 1 - transmittance, fragile)
