"""How much of each context token each Gaussian gathers from the pixels that it is visible in."""

from __future__ import annotations

import numpy as np

from training.splat.cpu.kernels import TILE
from training.splat.cpu.operator_kernels import weigh_tokens
from training.splat.cpu.tiles import Geometry, composite_row_of_tiles, on_threads, tile_view


def gather_tokens(
    geometry: Geometry, lift: tuple[np.ndarray, np.ndarray, np.ndarray], n_context: int, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrix (W^T F) / (W^T 1) by rows: offsets [N+1] int32, token [nnz] int32 and weight [nnz] float32 of each entry, ascending.

    Args:
        geometry: N Gaussians and the V context views.
        lift: F by rows, of the context's V*H*W pixels: offsets, tokens and weights.
        n_context: tokens of the context.
        valid: [V*H*W] bool, the pixels that count.

    No bit depends on the number of threads.
    """
    views, gaussians = range(len(geometry.viewmats)), len(geometry.means)
    tiled = on_threads(lambda view: tile_view(geometry, view), views)

    def row_of_tiles(at: int) -> tuple[np.ndarray, np.ndarray]:
        view, row = divmod(at, geometry.tiles[1])
        column_of = np.full(n_context, -1, np.int32)
        found = [(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0))]
        for box, contributions, _ in composite_row_of_tiles(geometry, tiled[view], row, lambda tile: [tile]):
            y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1].reshape(2, -1)
            pixel, slots = (view * geometry.height + y) * geometry.width + x, (y - box.y0) * TILE + x - box.x0
            pixel, slots = pixel[valid[pixel]], slots[valid[pixel]]
            found.append(weigh_tokens(pixel, slots, *contributions, *lift, column_of))
        gaussian, token, value = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return gaussian.astype(np.int64) * (n_context + 1) + token, value

    done = on_threads(row_of_tiles, range(len(views) * geometry.tiles[1]))
    keys, values = (np.concatenate(arrays) for arrays in zip(*done, strict=True))
    order = np.argsort(keys, kind="stable")
    keys, first = np.unique(keys[order], return_index=True)
    sums = np.add.reduceat(values[order], first) if len(keys) else values
    gaussian, token = np.divmod(keys, n_context + 1)
    total = np.ones(gaussians)
    is_total = token == n_context
    total[gaussian[is_total]] = sums[is_total]
    gaussian, token, sums = gaussian[~is_total], token[~is_total], sums[~is_total]
    entries = np.searchsorted(gaussian, np.arange(gaussians + 1)).astype(np.int32)
    return entries, token.astype(np.int32), (sums / total[gaussian]).astype(np.float32)
