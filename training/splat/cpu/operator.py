"""An operator's matrices, composited on the CPU straight into token space.

Only the four pixels that each token reads, and the sums over masks, ever leave a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from storage.records.operators import SparseRows
from training.splat.cpu.kernels import TILE
from training.splat.cpu.operator_kernels import lift_pixels, mix_rows, sum_masks
from training.splat.cpu.tiles import Box, Geometry, TiledView, composite_row_of_tiles, on_threads, tile_view
from training.splat.lift import Lift
from training.splat.sampling import Matrices, Sampling


class _TileRow(NamedTuple):
    """What a row of tiles adds. Read pixels: index, alpha and number of tokens of each, then all their tokens; masks: the sums' entries."""

    pixel: np.ndarray
    alpha: np.ndarray
    lengths: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    mask_keys: np.ndarray  # mask * Nctx + token
    mask_sums: np.ndarray


def matrices_on_cpu(geometry: Geometry, lift: Lift, sampling: Sampling) -> Matrices:
    """S, R and alpha of one view. A row of tiles is one thread's work, and rows are added in order: no bit depends on their number."""
    view = tile_view(geometry, 0)
    csr = lift.offsets.cpu().numpy(), lift.indices.cpu().numpy(), lift.weights.cpu().numpy()
    done = on_threads(lambda row: _tile_row(row, geometry, view, csr, lift.tokens, sampling), range(geometry.tiles[1]))
    parts = _TileRow(*(np.concatenate(arrays) for arrays in zip(*done, strict=True)))

    n_pixels = len(sampling.rows) * len(sampling.columns)
    begins, lengths, alpha = np.zeros(n_pixels, np.int64), np.zeros(n_pixels, np.int64), np.zeros(n_pixels)
    begins[parts.pixel], lengths[parts.pixel] = np.cumsum(parts.lengths) - parts.lengths, parts.lengths
    alpha[parts.pixel] = parts.alpha
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
    lift_rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    tokens: int,
    sampling: Sampling,
) -> _TileRow:
    """One row of tiles, from left to right."""
    top = row * TILE
    band = sampling.masks_hw[top : top + TILE]
    here, local = np.unique(band, return_inverse=True)  # the band's masks; the first may be -1
    local = local.reshape(band.shape).astype(np.int32) - np.int32(here[0] < 0)
    here = here[here >= 0]
    totals, scratch = np.zeros((len(here), tokens)), np.zeros(tokens)

    def parts(tile: Box) -> list[Box]:
        return [tile] if len(here) else _read_parts(tile, sampling)

    read: list[tuple[np.ndarray, ...]] = [tuple(np.empty(0, t) for t in (np.int64, np.float64, np.int64, np.int32, np.float64))]
    for box, contributions, transmittance in composite_row_of_tiles(geometry, view, row, parts):
        if len(here):
            sum_masks(local[:, box.x0 : box.x1], TILE, *contributions, *lift_rows, totals)
        i, j = (np.arange(*np.searchsorted(axis, ends)) for axis, ends in ((sampling.rows, box[2:]), (sampling.columns, box[:2])))
        slots = ((sampling.rows[i, None] - box.y0) * TILE + sampling.columns[j] - box.x0).ravel()
        lengths = np.empty(len(slots), np.int64)
        columns, values = lift_pixels(slots, *contributions, *lift_rows, scratch, lengths)
        pixel = (i[:, None] * len(sampling.columns) + j).ravel()
        read.append((pixel, 1.0 - transmittance[slots], lengths, columns, values))
    mask, token = np.nonzero(totals)
    pixel, alpha, lengths, columns, values = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
    return _TileRow(pixel, alpha, lengths, columns, values, here[mask].astype(np.int64) * tokens + token, totals[mask, token])


def _read_parts(tile: Box, sampling: Sampling) -> list[Box]:
    """Only the pixels of a tile that are read, neighbours together."""
    runs = []
    for read, ends in ((sampling.columns, tile[:2]), (sampling.rows, tile[2:])):
        inside = read[slice(*np.searchsorted(read, ends))]
        runs.append([(int(run[0]), int(run[-1]) + 1) for run in np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1) if len(run)])
    return [Box(*x, *y) for y in runs[1] for x in runs[0]]
