"""Splatting features: the renderer, the lift from tokens to Gaussians, and the targets that they give together."""

from training.splat.lift import TokenLift
from training.splat.rasterize import gaussian_covariances, rasterize
from training.splat.targets import (
    TokenTargets,
    blend_with_mask,
    downsample,
    holes_by_alpha,
    holes_by_colour,
    reference_fov_K,
    render_token_targets,
    resize_nearest,
)

__all__ = [
    "TokenLift",
    "TokenTargets",
    "blend_with_mask",
    "downsample",
    "gaussian_covariances",
    "holes_by_alpha",
    "holes_by_colour",
    "rasterize",
    "reference_fov_K",
    "render_token_targets",
    "resize_nearest",
]
