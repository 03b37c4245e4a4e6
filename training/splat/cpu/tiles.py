"""Driving the CPU kernels: a view is projected and binned, then rendered a row of tiles at a time, on as many threads as torch may use.

They are plain Python threads over kernels that release the GIL: safe to fork, and to call concurrently. Every tile is composited by one
thread in a fixed order, so the result does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from training.splat.cpu.kernels import SPLAT, TILE, bin_to_tiles, composite_tile, project, render_tiles
from training.splat.types import RasterOptions, Splats, Views

_ROOM = 128  # contributions per pixel that are made room for at first

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Geometry:
    """A checked scene as the kernels take it: contiguous float64 arrays."""

    means: np.ndarray  # [N,3]
    covars: np.ndarray  # [N,3,3]
    opacities: np.ndarray  # [N]
    viewmats: np.ndarray  # [V,4,4]
    Ks: np.ndarray  # [V,3,3]
    width: int
    height: int
    options: RasterOptions

    @classmethod
    def of(cls, splats: Splats, views: Views, options: RasterOptions) -> Geometry:
        """Of tensors on the CPU."""
        tensors = (splats.means, splats.covariances(), splats.opacities, views.viewmats, views.Ks)
        means, covars, opacities, viewmats, Ks = (tensor.detach().double().contiguous().numpy() for tensor in tensors)
        return cls(means, covars, opacities, viewmats, Ks, views.width, views.height, options)

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles in x and in y."""
        return -(-self.width // TILE), -(-self.height // TILE)


class TiledView(NamedTuple):
    """What one camera sees, nearest first, and which tiles it touches."""

    splats: np.ndarray  # [M] of SPLAT
    ids: np.ndarray  # [M] int32: the Gaussian that each splat is
    offsets: np.ndarray  # [tiles+1] int64: tile t lists the splats lists[offsets[t]:offsets[t+1]]
    lists: np.ndarray  # int32


def tile_view(geometry: Geometry, view: int) -> TiledView:
    """Projects, sorts by depth and bins to tiles."""
    g, n, options = geometry, len(geometry.means), geometry.options
    splats, ids = np.empty(n, SPLAT), np.empty(n, np.int32)
    camera = g.viewmats[view], g.Ks[view], g.width, g.height
    limits = options.near_plane, options.far_plane, options.eps2d, options.rasterize_mode == "antialiased"
    count = project(g.means, g.covars, g.opacities, *camera, *limits, splats, ids)
    # Nearest first, by float32 depth. Depths are positive, so their bits sort as they do; the index below them breaks ties.
    keys = splats["depth"][:count].astype(np.float32).view(np.uint32).astype(np.uint64) << np.uint64(32)
    order = (np.sort(keys | np.arange(count, dtype=np.uint64)) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    splats, ids = np.take(splats, order), np.take(ids, order)
    return TiledView(splats, ids, *bin_to_tiles(splats, *g.tiles))


class Box(NamedTuple):
    """The pixels x0 <= x < x1, y0 <= y < y1."""

    x0: int
    x1: int
    y0: int
    y1: int


class Contributions(NamedTuple):
    """Who weighs how much in each pixel of a box; pixel (x, y) has the slot (y - y0) * TILE + x - x0. See `composite_tile`."""

    entries: np.ndarray  # [TILE^2,room] int32: indices into `ids`
    weights: np.ndarray  # [TILE^2,room] float32
    counts: np.ndarray  # [TILE^2] int32: how many of a slot's entries hold
    ids: np.ndarray  # int32: the tile's Gaussians, nearest first


def composite_row_of_tiles(
    geometry: Geometry, view: TiledView, row: int, parts: Callable[[Box], Iterable[Box]]
) -> Iterator[tuple[Box, Contributions, np.ndarray]]:
    """From left to right, in those parts of each tile that `parts` names: the part, its contributions, and what each slot lets pass.

    The arrays are overwritten by the next step.
    """
    entries, weights = np.empty((TILE * TILE, _ROOM), np.int32), np.empty((TILE * TILE, _ROOM), np.float32)
    counts, transmittance = np.empty(TILE * TILE, np.int32), np.empty(TILE * TILE)
    for column in range(geometry.tiles[0]):
        tile = row * geometry.tiles[0] + column
        near = view.lists[view.offsets[tile] : view.offsets[tile + 1]]
        splats, ids, in_order = view.splats[near], view.ids[near], np.arange(len(near), dtype=np.int32)
        x0, y0 = column * TILE, row * TILE
        for box in parts(Box(x0, min(x0 + TILE, geometry.width), y0, min(y0 + TILE, geometry.height))):
            entries, weights = composite_tile(splats, in_order, *box, geometry.options.alpha_clamp, entries, weights, counts, transmittance)
            yield box, Contributions(entries, weights, counts, ids), transmittance


def on_threads(task: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`task` of every item, on as many threads as torch is set to use. An error in any of them is raised here."""
    threads = torch.get_num_threads()
    if threads == 1:
        return [task(item) for item in items]
    # A pool per call: one that outlived a fork would have lost its threads.
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(task, items))


def rasterize_cpu(geometry: Geometry, colors: np.ndarray, backgrounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`rasterize` on checked, contiguous arrays: colors [N,C] and backgrounds [V,C] are both float32 or both float64, as is the result."""
    views, width, height = len(geometry.viewmats), geometry.width, geometry.height
    clamp = geometry.options.alpha_clamp
    tiles_x, tiles_y = geometry.tiles
    features = np.empty((views, height * width, colors.shape[1]), colors.dtype)
    alpha = np.empty((views, height * width), colors.dtype)
    tiled = on_threads(lambda view: tile_view(geometry, view), range(views))

    def render_row_of_tiles(at: int) -> None:
        view, row = divmod(at, tiles_y)
        splats, ids, offsets, lists = tiled[view]
        first, last = row * tiles_x, (row + 1) * tiles_x
        target = features[view], alpha[view]
        render_tiles(first, last, width, height, splats, ids, offsets, lists, clamp, colors, backgrounds[view], *target)

    on_threads(render_row_of_tiles, range(views * tiles_y))
    return features.reshape(views, height, width, -1), alpha.reshape(views, height, width, 1)
