"""Splatting features: the renderer, the lift from tokens to Gaussians, the targets that they give together, and all of it as a matrix."""

from training.splat.apply import OperatorBatch, apply_operators, collate_operators, flip_operator, select_tokens
from training.splat.lift import Lift
from training.splat.operator import build_token_operator
from training.splat.rasterize import rasterize
from training.splat.targets import TokenTargets, blend_with_mask, downsample, render_token_targets, resize_nearest
from training.splat.types import RasterOptions, Splats, Views, gaussian_covariances

__all__ = [
    "Lift",
    "OperatorBatch",
    "RasterOptions",
    "Splats",
    "TokenTargets",
    "Views",
    "apply_operators",
    "blend_with_mask",
    "build_token_operator",
    "collate_operators",
    "downsample",
    "flip_operator",
    "gaussian_covariances",
    "rasterize",
    "render_token_targets",
    "resize_nearest",
    "select_tokens",
]
