"""From a splatted feature image to the student's targets: blend within masks, down-sample to tokens.

Images of features are channel-last here, [...,H,W,C], as `rasterize` returns them. Blending, down-sampling and compositing are linear in
the features, and none of them divides by the accumulated alpha.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.splat.lift import Lift
from training.splat.rasterize import render
from training.splat.types import DEFAULT, RasterOptions, Splats, Views, check_scene


@dataclass(frozen=True)
class TokenTargets:
    """What the splat says about a target view, per token."""

    features: Tensor  # [h,w,C]
    alpha: Tensor  # [h,w] accumulated alpha, sampled where the features are
    coverage: Tensor  # [h,w] what tokens of ones would give there without blending: the part of alpha that carries a feature


def blend_with_mask(features: Tensor, masks: Tensor, alpha: float = 0.5, unblended: int | None = None) -> Tensor:
    """alpha * features + (1 - alpha) * their mean over the pixels with the same label in the same image.

    features: [...,H,W,C] float. masks: [...,Hm,Wm] integer labels with the same leading sizes; another resolution is resized to (H,W) by
    nearest (top-left) neighbour. Every value is a label, 0 too; pixels that nothing was splatted to count in the means.
    alpha = 1 returns the features themselves. unblended: a label whose pixels keep their features.
    Source: Splat and Distill, mask-aware blending.
    """
    if masks.shape[:-2] != features.shape[:-3] or masks.ndim != features.ndim - 1 or masks.ndim < 2:
        shapes = f"masks {tuple(masks.shape)}, features {tuple(features.shape)}"
        raise ValueError(f"masks: shapes do not fit: {shapes}; expected [...,Hm,Wm] and [...,H,W,C]")
    if masks.is_floating_point() or masks.dtype == torch.bool:
        raise ValueError(f"masks: dtype {masks.dtype}, expected integer labels")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: {alpha}, expected a number in [0,1]")
    if alpha == 1.0:
        return features
    height, width, channels = features.shape[-3:]
    labels_bhw = resize_nearest(masks, (height, width)).reshape(-1, height, width)
    means_mc, region = _region_means(features.reshape(-1, channels), labels_bhw)
    blended = torch.nn.functional.embedding(region, means_mc * (1.0 - alpha))
    blended = blended.add_(features.reshape(-1, channels), alpha=alpha).view(features.shape)
    return blended if unblended is None else torch.where((labels_bhw == unblended).view(features.shape[:-1])[..., None], features, blended)


def resize_nearest(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[...,H,W] -> [...,h,w]: the pixel (floor(i*H/h), floor(j*W/w)), the top-left one of each cell."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    rows, columns = (torch.arange(n, device=image.device) * full // n for n, full in zip(size, image.shape[-2:], strict=True))
    return image[..., rows[:, None], columns]


def downsample(features: Tensor, grid: tuple[int, int], area: bool = False) -> Tensor:
    """[...,H,W,C] -> [...,h,w,C], bilinear without antialias: a token reads the 2x2 pixels round its patch's centre; area: all of it."""
    if features.ndim < 3:
        raise ValueError(f"features: shape {tuple(features.shape)}, expected [...,H,W,C]")
    channels_first = features.reshape(-1, *features.shape[-3:]).movedim(-1, 1)
    how: dict = {"mode": "area"} if area else {"mode": "bilinear", "align_corners": False}
    tokens = torch.nn.functional.interpolate(channels_first, size=tuple(grid), **how)
    return tokens.movedim(1, -1).reshape(*features.shape[:-3], *grid, features.shape[-1])


@torch.no_grad()
def render_token_targets(
    splats: Splats,
    *,
    lift: Lift,
    tokens: Tensor,
    target_mask: Tensor,
    viewmat: Tensor,
    K: Tensor,
    blend: float = 0.5,
    grid: tuple[int, int] | None = None,
    area: bool = False,
    unblended: int | None = None,
    options: RasterOptions = DEFAULT,
) -> TokenTargets:
    """Lift, splat, blend and down-sample at full resolution: the teacher's context tokens as the target view should see them.

    Args:
        splats: N Gaussians.
        lift: from the tokens to these Gaussians.
        tokens: [V,h,w,C] teacher features of the context views; splatted in the dtype of the splats.
        target_mask: [Ht,Wt] integer labels, at the resolution to render.
        viewmat: [4,4] world-to-camera and K: [3,3] pixels of the target view, for the size of `target_mask`.
        blend: weight of the splatted feature against its mask's mean; 1 means no blending.
        grid: (h,w) of the targets; that of the tokens by default.
        area, unblended: see `downsample` and `blend_with_mask`.
        options: how the Gaussians are drawn.

    Not normalised by alpha: where alpha < 1, targets shrink. Runs under `no_grad`. Source: Splat and Distill, supervision of the student.
    """
    if tokens.ndim != 4:
        raise ValueError(f"tokens: shape {tuple(tokens.shape)}, expected [V,h,w,C]")
    if target_mask.ndim != 2:
        raise ValueError(f"target_mask: shape {tuple(target_mask.shape)}, expected [H,W]")
    if not 0.0 <= blend <= 1.0:
        raise ValueError(f"blend: {blend}, expected a number in [0,1]")
    height, width = target_mask.shape
    view = Views(viewmat[None], K[None], width, height)
    if len(splats) != lift.gaussians:
        raise ValueError(f"means: {len(splats)} Gaussians, but {lift.gaussians} rows of lift; expected one each")
    tokens = tokens.flatten(0, 2).to(splats.means.dtype)
    colors = lift.apply(torch.cat([tokens, torch.ones_like(tokens[:, :1])], 1))
    check_scene(splats, view, colors)
    features_vhwc, alpha_vhw1 = render(splats, view, options, colors)
    grid = grid or lift.grid[1:]
    blended = blend_with_mask(features_vhwc[0, ..., :-1], target_mask, blend, unblended)
    alpha, coverage = downsample(torch.cat([alpha_vhw1[0], features_vhwc[0, ..., -1:]], -1), grid, area).unbind(-1)
    return TokenTargets(downsample(blended, grid, area), alpha, coverage)


def _region_means(features_pc: Tensor, labels_bhw: Tensor) -> tuple[Tensor, Tensor]:
    """Means [M,C] over the regions (one per image and label), and each pixel's region [P]."""
    images, height, _ = labels_bhw.shape
    labels, label_bhw = torch.unique(labels_bhw.long(), return_inverse=True)
    row = torch.arange(images * height, device=labels_bhw.device).view(images, height, 1)
    # Within rows first, then over rows: two sums of some hundred terms, where one over a wall's 1e5 pixels would lose digits in float32.
    pieces, piece_of_pixel = torch.unique((row * len(labels) + label_bhw).flatten(), return_inverse=True)
    regions, region_of_piece = torch.unique(pieces // (height * len(labels)) * len(labels) + pieces % len(labels), return_inverse=True)
    region_of_pixel = region_of_piece[piece_of_pixel]
    sums = _segment_sums(_segment_sums(features_pc, piece_of_pixel, len(pieces)), region_of_piece, len(regions))
    return sums / torch.bincount(region_of_pixel, minlength=len(regions))[:, None], region_of_pixel


def _segment_sums(rows_nc: Tensor, segment_n: Tensor, segments: int) -> Tensor:
    """Sums [segments,C] of the rows of each segment, none of which is empty."""
    offsets = torch.bincount(segment_n, minlength=segments).cumsum(0).roll(1)
    offsets[0] = 0
    return torch.nn.functional.embedding_bag(segment_n.argsort(stable=True), rows_nc, offsets, mode="sum")
