"""What only a comparison with the published Splat and Distill code needs: where that code differs from what it describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from training.splat.rasterize import render
from training.splat.targets import resize_nearest
from training.splat.types import DEFAULT, Splats, Views


def published_footprints(splats: Splats) -> Splats:
    """The Gaussians as the published code really draws them: with the covariance V diag(lambda^2) V^T.

    It hands the eigenvalues lambda of the covariance to the rasteriser as standard deviations, which are their square roots.
    """
    true = splats.covariances()
    # V diag(lambda^2) V^T is the square of the matrix. Element by element: on CUDA a product of matrices may be set to TF32.
    squared = (true[:, :, :, None] * true[:, None, :, :]).sum(dim=2).to(splats.means.dtype)
    return replace(splats, covars=squared, quats=None, scales=None)


def published_K(K: Tensor, width: int, height: int) -> Tensor:  # noqa: N802
    """The intrinsics [...,3,3] that the published code really renders with; `K` in pixels of a width x height image.

    It keeps the angles between the rays through the middles of opposite image edges, and moves the principal point to the image's centre.
    """
    size = torch.tensor([width, height], dtype=K.dtype, device=K.device)
    edge_low = K.new_tensor([[0.0, height / 2, 1.0], [width / 2, 0.0, 1.0]])
    edge_high = K.new_tensor([[width, height / 2, 1.0], [width / 2, height, 1.0]])
    inverse = torch.linalg.inv(K)
    low, high = (torch.nn.functional.normalize(edge @ inverse.mT, dim=-1) for edge in (edge_low, edge_high))
    half_angle = torch.acos((low * high).sum(dim=-1)) / 2
    centred = torch.zeros_like(K)
    centred[..., [0, 1], [0, 1]] = size / (2 * torch.tan(half_angle))
    centred[..., :2, 2] = size / 2
    centred[..., 2, 2] = 1
    return centred


def published_holes(splats: Splats, viewmat: Tensor, K: Tensor, size: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """`holes_by_colour` [h,w] of Gaussians that all are white, in one view [4,4], [3,3] of `size` (H,W): none is black by chance."""
    view = Views(viewmat[None], K[None], size[1], size[0])
    colour, _ = render(splats, view, DEFAULT, torch.ones_like(splats.means))
    return holes_by_colour(colour[0], grid)


def holes_by_colour(colour: Tensor, grid: tuple[int, int]) -> Tensor:
    """The published rule: a token [...,h,w] is a hole where the colour [...,H,W,3] splatted to its patch's top-left pixel is black."""
    return resize_nearest((colour == 0).all(dim=-1), grid)
