"""Building a `TokenOperator`: the way of `render_token_targets` as one sparse matrix."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from storage.records.operators import MAX_TOKENS, TokenOperator
from training.splat.lift import Lift
from training.splat.sampling import sample_target
from training.splat.types import DEFAULT, RasterOptions, Splats, Views, check_scene


@torch.no_grad()
def build_token_operator(
    splats: Splats,
    *,
    lift: Lift,
    target_mask: Tensor,
    viewmat: Tensor,
    K: Tensor,
    grid: tuple[int, int],
    with_blend: bool = True,
    options: RasterOptions = DEFAULT,
    source_hash: str = "",
) -> TokenOperator:
    """The matrix from the context's tokens to one target's, for any teacher, channel count and blend weight.

    Args:
        splats: N Gaussians. On CUDA the operator is built there, by gsplat.
        lift: from tokens to these Gaussians. All targets of a context share it.
        target_mask: [H,W] integer labels, at the resolution to render; every value is a label, 0 too.
        viewmat: [4,4] world-to-camera and K: [3,3] pixels of the target view, for the size of `target_mask`.
        grid: (h,w) of the targets, at most (H,W).
        with_blend: False leaves the masks out (about a tenth of the work): such an operator is applied with blend = 1 only.
        options: how the Gaussians are drawn.
        source_hash: is kept in the operator, for `decode_operator` to compare; see `storage.records.operators.content_hash`.

    Raises ValueError, naming the argument, for what `rasterize` refuses, for a lift of another number of Gaussians, and for more than
    65,535 tokens in either grid.
    """
    if target_mask.ndim != 2 or target_mask.is_floating_point() or target_mask.dtype == torch.bool or 0 in target_mask.shape:
        raise ValueError(f"target_mask: shape {tuple(target_mask.shape)}, dtype {target_mask.dtype}; expected [H,W] integer labels")
    if len(grid) != 2 or not all(1 <= n <= size for n, size in zip(grid, target_mask.shape, strict=True)):
        raise ValueError(f"grid: {grid}, expected (h, w) between 1 and the target's size {tuple(target_mask.shape)}")
    if max(grid[0] * grid[1], lift.tokens) > MAX_TOKENS:
        raise ValueError(f"grid: {lift.tokens} context and {grid[0] * grid[1]} target tokens; an operator holds at most {MAX_TOKENS} each")
    height, width = target_mask.shape
    view = Views(viewmat[None], K[None], width, height)
    check_scene(splats, view)
    if lift.gaussians != len(splats):
        raise ValueError(f"lift: for {lift.gaussians} Gaussians, but means has {len(splats)}")
    sampling = sample_target(target_mask, grid, with_blend)
    if splats.means.is_cuda and len(splats):
        from training.splat.cuda.operator import matrices_by_gsplat

        matrices = matrices_by_gsplat(splats, view, options, lift, sampling, grid)
    else:
        from training.splat.cpu.operator import matrices_on_cpu
        from training.splat.cpu.tiles import Geometry

        matrices = matrices_on_cpu(Geometry.of(splats.to("cpu"), view.to("cpu"), options), lift, sampling)
    recorded = asdict(options)
    if options.far_plane == DEFAULT.far_plane:
        del recorded["far_plane"]  # records do not name the one that all have
    return TokenOperator(
        S=matrices.S,
        R=matrices.R,
        tap_mask=sampling.tap_mask,
        alpha=matrices.alpha,
        rows=np.arange(grid[0] * grid[1], dtype=np.int32),
        size=(height, width),
        grid=(grid[0], grid[1]),
        context_grid=lift.grid,
        options={**lift.options, **recorded},
        source_hash=source_hash,
    )
