"""Splatting features: the renderer, the lift from tokens to Gaussians, the targets that they give together, and all of it as a matrix."""

from training.splat.apply import OperatorBatch, apply_operators, collate_operators, flip_operator, select_tokens, token_validity
from training.splat.lift import TokenLift
from training.splat.operator import build_token_operator
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
from training.splat.transposed import SparseLift

__all__ = [
    "OperatorBatch",
    "SparseLift",
    "TokenLift",
    "TokenTargets",
    "apply_operators",
    "blend_with_mask",
    "build_token_operator",
    "collate_operators",
    "downsample",
    "flip_operator",
    "gaussian_covariances",
    "holes_by_alpha",
    "holes_by_colour",
    "rasterize",
    "reference_fov_K",
    "render_token_targets",
    "resize_nearest",
    "select_tokens",
    "token_validity",
]
