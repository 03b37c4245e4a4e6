"""Between pixels and tokens: what a token covers, and predictions of tokens as predictions of pixels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from training.probes.data.base import IGNORED, ProbeFrame
from training.probes.extractor import Tokens
from training.probes.features import FeatureMap


def token_pixels(where: FeatureMap, image_hw: np.ndarray, fill: float = 0) -> np.ndarray:
    """The pixels of each token, [h,w,stride*stride,...], of an array over the image [H,W,...]; `fill` outside the image."""
    h, w, s = *where.patch.shape[-2:], where.stride
    rows, columns = np.arange(h * s) - where.offset[0], np.arange(w * s) - where.offset[1]
    height, width = image_hw.shape[:2]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None]
    taken = image_hw[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)[None]]
    taken = np.where(inside.reshape(inside.shape + (1,) * (taken.ndim - 2)), taken, np.asarray(fill, taken.dtype))
    tiles = taken.reshape(h, s, w, s, *taken.shape[2:]).swapaxes(1, 2)
    return tiles.reshape(h, w, s * s, *taken.shape[2:])


def token_depth(where: FeatureMap, frame: ProbeFrame, depth_range: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The mean log depth of each token's pixels within the range, [h,w,1], and whether there is one, [h,w]."""
    assert frame.depth is not None
    tiles = token_pixels(where, frame.depth)
    known = (tiles > depth_range[0]) & (tiles < depth_range[1])
    logs, count = np.log(np.where(known, tiles, 1.0)), known.sum(2)
    return (logs.sum(2) / np.maximum(count, 1))[..., None], count > 0


def token_normals(where: FeatureMap, frame: ProbeFrame) -> tuple[np.ndarray, np.ndarray]:
    """The mean normal of each token's pixels that have one, of unit length, [h,w,3], and whether there is one, [h,w]."""
    assert frame.normals is not None
    total = token_pixels(where, frame.normals).sum(2, dtype=np.float64)
    length = np.linalg.norm(total, axis=-1)
    return total / np.maximum(length, 1e-12)[..., None], length > 1e-6


def token_majority(where: FeatureMap, ids_hw: np.ndarray, ignored: int) -> tuple[np.ndarray, np.ndarray]:
    """The commonest id of each token's pixels but `ignored`, [h,w], the least of equals, and whether there is one, [h,w]."""
    tiles = token_pixels(where, ids_hw, ignored)
    kinds = np.unique(tiles)
    kinds = kinds[kinds != ignored]
    if not len(kinds):
        return np.zeros(tiles.shape[:2], np.int64), np.zeros(tiles.shape[:2], bool)
    counts = np.stack([(tiles == kind).sum(2) for kind in kinds], -1)
    return kinds[counts.argmax(-1)].astype(np.int64), counts.max(-1) > 0


def token_classes(where: FeatureMap, frame: ProbeFrame) -> tuple[np.ndarray, np.ndarray]:
    """The commonest class of each token, [h,w], and whether it has one, [h,w]."""
    assert frame.labels is not None
    return token_majority(where, frame.labels, IGNORED)


def to_pixels(values_khw: torch.Tensor, tokens: Tokens, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions of tokens, bilinearly between their middles, as predictions of pixels.

    Args:
        values_khw: [K,h,w]. tokens: which of them count; others have no part in their neighbours' pixels.
        height, width: of the image.

    Returns:
        [K,H,W], and which pixels lie in a token that counts, bool [H,W].
    """
    h, w, s = *tokens.keep.shape, tokens.map.stride
    keep = tokens.keep[None, None].to(values_khw.dtype)
    both = torch.cat([torch.where(tokens.keep, values_khw, 0)[None], keep], 1)
    fine = F.interpolate(both, (h * s, w * s), mode="bilinear", align_corners=False)[0]
    fine = fine[:-1] / fine[-1:].clamp_min(1e-6)
    judged = tokens.keep.repeat_interleave(s, 0).repeat_interleave(s, 1)
    top, left = tokens.map.offset
    rows, columns = torch.arange(height) + top, torch.arange(width) + left
    inside = ((rows >= 0) & (rows < h * s))[:, None] & ((columns >= 0) & (columns < w * s))[None]
    rows, columns = rows.clamp(0, h * s - 1), columns.clamp(0, w * s - 1)
    return fine[:, rows][:, :, columns], judged[rows][:, columns] & inside
