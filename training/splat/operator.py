"""Building a `TokenOperator`: the way of `render_token_targets` as one sparse matrix, composited straight into token space.

Only the four pixels that each token reads, and the sums over masks, ever leave a tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from storage.records.operators import MAX_TOKENS, Option, SparseRows, TokenOperator, bilinear_taps
from training.splat.lift import TokenLift
from training.splat.rasterize import check_inputs, cpu_geometry
from training.splat.transposed import SparseLift

if TYPE_CHECKING:
    from training.splat.cpu import Box, Geometry, TiledView


class Sampling(NamedTuple):
    """Which pixels of the target's image matter: those that tokens read, and those of the masks that tokens meet."""

    taps: np.ndarray  # [Nt,4] int64: places in the grid `rows` x `columns`, row-major
    weights: np.ndarray  # [Nt,4] float64
    rows: np.ndarray  # image rows that are read, ascending
    columns: np.ndarray  # image columns that are read, ascending
    tap_mask: np.ndarray  # [Nt,4] int32: number of the pixel's mask; [Nt,0] without blending
    masks_hw: np.ndarray  # [H,W] int32: number of each pixel's mask, -1 where no token meets it
    pixels: np.ndarray  # [M] of each mask


def sample_target(target_mask: Tensor, grid: tuple[int, int], with_blend: bool) -> Sampling:
    """target_mask: [H,W] integer labels. Masks are numbered by ascending label; those that no token meets have no number."""
    labels = target_mask.cpu().numpy()
    pixels, weights = bilinear_taps(labels.shape, grid)
    rows, columns = np.unique(pixels // labels.shape[1]), np.unique(pixels % labels.shape[1])
    taps = np.searchsorted(rows, pixels // labels.shape[1]) * len(columns) + np.searchsorted(columns, pixels % labels.shape[1])
    if not with_blend:
        nothing = np.empty((len(taps), 0), np.int32), np.full(labels.shape, -1, np.int32), np.empty(0, np.int64)
        return Sampling(taps, weights, rows, columns, *nothing)
    met, tap_mask = np.unique(labels.ravel()[pixels], return_inverse=True)
    place = np.searchsorted(met, labels).clip(max=len(met) - 1)
    masks_hw = np.where(met[place] == labels, place, -1).astype(np.int32)
    counts = np.bincount(masks_hw[masks_hw >= 0], minlength=len(met))
    return Sampling(taps, weights, rows, columns, tap_mask.reshape(taps.shape).astype(np.int32), masks_hw, counts)


class Matrices(NamedTuple):
    """What the Gaussians decide of an operator."""

    S: SparseRows  # [Nt,Nctx]
    R: SparseRows  # [M,Nctx]
    alpha: np.ndarray  # [Nt] float32


class _TileRow(NamedTuple):
    """What a row of tiles adds. Read pixels: place, alpha and number of tokens of each, then all their tokens; masks: the sums' entries."""

    place: np.ndarray
    alpha: np.ndarray
    lengths: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    mask_keys: np.ndarray  # mask * Nctx + token
    mask_sums: np.ndarray


@torch.no_grad()
def build_token_operator(
    means: Tensor,
    *,
    covars: Tensor | None = None,
    quats: Tensor | None = None,
    scales: Tensor | None = None,
    opacities: Tensor,
    lift: TokenLift | SparseLift,
    target_mask: Tensor,
    viewmat: Tensor,
    K: Tensor,
    grid: tuple[int, int],
    with_blend: bool = True,
    near_plane: float = 0.2,
    eps2d: float = 0.3,
    rasterize_mode: str = "classic",
    alpha_clamp: float = 0.999,
    source_hash: str = "",
) -> TokenOperator:
    """The matrix from the context's tokens to one target's, for any teacher, channel count and blend weight.

    Args:
        means, covars or (quats, scales), opacities: N Gaussians; see `rasterize`. On CUDA the operator is built there, by gsplat.
        lift: from tokens to these Gaussians. All targets of a context share it.
        target_mask: [H,W] integer labels, at the resolution to render; every value is a label, 0 too.
        viewmat: [4,4] world-to-camera and K: [3,3] pixels of the target view, for the size of `target_mask`.
        grid: (h,w) of the targets, at most (H,W).
        with_blend: False leaves the masks out (about a tenth of the work): such an operator is applied with blend = 1 only.
        near_plane, eps2d, rasterize_mode, alpha_clamp: see `rasterize`.
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
    scene = (means, covars, quats, scales, opacities, viewmat[None], K[None], width, height, near_plane, 1e10, eps2d, rasterize_mode)
    check_inputs(*scene, alpha_clamp)
    if lift.gaussians != len(means):
        raise ValueError(f"lift: for {lift.gaussians} Gaussians, but means has {len(means)}")
    sampling = sample_target(target_mask, grid, with_blend)
    if means.is_cuda and len(means):
        from training.splat.operator_cuda import matrices_by_gsplat

        matrices = matrices_by_gsplat(*scene, alpha_clamp, lift, sampling, grid)
    else:
        on_cpu = tuple(part.cpu() if isinstance(part, Tensor) else part for part in scene)
        matrices = _matrices_on_cpu(on_cpu, alpha_clamp, lift, sampling)
    options: dict[str, Option] = {**lift.options, "near_plane": near_plane, "eps2d": eps2d}
    options |= {"rasterize_mode": rasterize_mode, "alpha_clamp": alpha_clamp}
    return TokenOperator(
        S=matrices.S,
        R=matrices.R,
        tap_mask=sampling.tap_mask,
        alpha=matrices.alpha,
        rows=np.arange(grid[0] * grid[1], dtype=np.int32),
        size=(height, width),
        grid=(grid[0], grid[1]),
        context_grid=lift.grid,
        options=options,
        source_hash=source_hash,
    )


def _matrices_on_cpu(scene: tuple, alpha_clamp: float, lift: TokenLift | SparseLift, sampling: Sampling) -> Matrices:
    """A row of tiles is one thread's work and rows are added in order: no bit depends on the number of threads."""
    from training.splat.cpu import on_threads, tile_view
    from training.splat.operator_kernel import mix_rows

    geometry = cpu_geometry(*scene)
    view = tile_view(geometry, 0)
    offsets, tokens, weights = (part.cpu().numpy() for part in lift.rows())
    rows = offsets, tokens, weights
    done = on_threads(lambda row: _tile_row(row, geometry, view, alpha_clamp, rows, lift.tokens, sampling), range(geometry.tiles[1]))
    parts = _TileRow(*(np.concatenate(arrays) for arrays in zip(*done, strict=True)))

    n_pixels = len(sampling.rows) * len(sampling.columns)
    begins, lengths, alpha = np.zeros(n_pixels, np.int64), np.zeros(n_pixels, np.int64), np.zeros(n_pixels)
    begins[parts.place], lengths[parts.place] = np.cumsum(parts.lengths) - parts.lengths, parts.lengths
    alpha[parts.place] = parts.alpha
    splat = mix_rows(sampling.taps, sampling.weights, begins, lengths, parts.columns, parts.values, lift.tokens)
    alpha_t = (alpha[sampling.taps] * sampling.weights).sum(axis=1).astype(np.float32)

    order = np.argsort(parts.mask_keys, kind="stable")
    keys, first = np.unique(parts.mask_keys[order], return_index=True)
    sums = np.add.reduceat(parts.mask_sums[order], first) if len(keys) else parts.mask_sums
    mask, token = np.divmod(keys, lift.tokens)
    offsets = np.searchsorted(mask, np.arange(len(sampling.pixels) + 1))
    means = SparseRows(offsets, token.astype(np.int32), (sums / sampling.pixels[mask]).astype(np.float32))
    return Matrices(SparseRows(*splat), means, alpha_t)


def _tile_row(
    row: int,
    geometry: Geometry,
    view: TiledView,
    alpha_clamp: float,
    lift_rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    tokens: int,
    sampling: Sampling,
) -> _TileRow:
    """One row of tiles, from left to right."""
    from training.splat.cpu import composite_row_of_tiles
    from training.splat.kernels import TILE
    from training.splat.operator_kernel import lift_pixels, sum_masks

    top = row * TILE
    band = sampling.masks_hw[top : top + TILE]
    here, local = np.unique(band, return_inverse=True)  # the band's masks; the first may be -1
    local = local.reshape(band.shape).astype(np.int32) - np.int32(here[0] < 0)
    here = here[here >= 0]
    totals, scratch = np.zeros((len(here), tokens)), np.zeros(tokens)

    def parts(tile: Box) -> list[Box]:
        return [tile] if len(here) else _read_parts(tile, sampling)

    read: list[tuple[np.ndarray, ...]] = [tuple(np.empty(0, t) for t in (np.int64, np.float64, np.int64, np.int32, np.float64))]
    for box, contributions, transmittance in composite_row_of_tiles(geometry, view, row, alpha_clamp, parts):
        if len(here):
            sum_masks(local[:, box.x0 : box.x1], TILE, *contributions, *lift_rows, totals)
        i, j = (np.arange(*np.searchsorted(axis, ends)) for axis, ends in ((sampling.rows, box[2:]), (sampling.columns, box[:2])))
        slots = ((sampling.rows[i, None] - box.y0) * TILE + sampling.columns[j] - box.x0).ravel()
        lengths = np.empty(len(slots), np.int64)
        columns, values = lift_pixels(slots, *contributions, *lift_rows, scratch, lengths)
        place = (i[:, None] * len(sampling.columns) + j).ravel()
        read.append((place, 1.0 - transmittance[slots], lengths, columns, values))
    mask, token = np.nonzero(totals)
    place, alpha, lengths, columns, values = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
    return _TileRow(place, alpha, lengths, columns, values, here[mask].astype(np.int64) * tokens + token, totals[mask, token])


def _read_parts(tile: Box, sampling: Sampling) -> list[Box]:
    """Only the pixels of a tile that are read, neighbours together."""
    from training.splat.cpu import Box

    runs = []
    for read, ends in ((sampling.columns, tile[:2]), (sampling.rows, tile[2:])):
        inside = read[slice(*np.searchsorted(read, ends))]
        runs.append([(int(run[0]), int(run[-1]) + 1) for run in np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1) if len(run)])
    return [Box(*x, *y) for y in runs[1] for x in runs[0]]
