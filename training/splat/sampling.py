"""What the two ways of building an operator share: which pixels of the target matter, and what they make of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from storage.records.operators import SparseRows, bilinear_taps


class Sampling(NamedTuple):
    """Which pixels of the target's image matter: those that tokens read, and those of the masks that tokens meet."""

    taps: np.ndarray  # [Nt,4] int64: indices into the grid `rows` x `columns`, row-major
    weights: np.ndarray  # [Nt,4] float64
    rows: np.ndarray  # image rows that are read, ascending
    columns: np.ndarray  # image columns that are read, ascending
    tap_mask: np.ndarray  # [Nt,4] int32: number of the pixel's mask; [Nt,0] without blending
    masks_hw: np.ndarray  # [H,W] int32: number of each pixel's mask, -1 where no token meets it
    pixels: np.ndarray  # [M] of each mask


class Matrices(NamedTuple):
    """What the Gaussians decide of an operator."""

    S: SparseRows  # [Nt,Nctx]
    R: SparseRows  # [M,Nctx]
    alpha: np.ndarray  # [Nt] float32


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
    number = np.searchsorted(met, labels).clip(max=len(met) - 1)
    masks_hw = np.where(met[number] == labels, number, -1).astype(np.int32)
    counts = np.bincount(masks_hw[masks_hw >= 0], minlength=len(met))
    return Sampling(taps, weights, rows, columns, tap_mask.reshape(taps.shape).astype(np.int32), masks_hw, counts)
