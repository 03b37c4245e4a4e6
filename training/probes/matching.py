"""Features of two views, matched: sampled at points, compared in chunks, ranked by the ratio test.

Sources: Lowe 2004 (ratio test), Probe3D's matching of dense features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from training.probes.features import FeatureMap

_CHUNK = 2048  # queries at a time: 2048 x 19200 similarities are 150 MB


@dataclass(frozen=True)
class Matches:
    """Points of the first set and their nearest of the second, most distinct first. first, second: int64 [N]; weight: [N], 1 - d1/d2."""

    first: torch.Tensor
    second: torch.Tensor
    weight: torch.Tensor


def sample_features(features: FeatureMap, n: int, xy: torch.Tensor, size: tuple[int, int], stretch: bool = False) -> torch.Tensor:
    """Features of one image of a batch at points of it, bilinearly between tokens, 0 outside of the map.

    Args:
        n: which image. xy: [N,2] pixels, centres at +0.5. size: (H,W) of the image.
        stretch: takes the map for one of the image alone, though it covers padding too, as the published protocols do.
    Returns: [N,C].
    """
    h, w = features.patch.shape[-2:]
    top, left = features.offset
    if stretch:
        u, v = xy[:, 0] / size[1], xy[:, 1] / size[0]
    else:
        u, v = (xy[:, 0] + left) / (w * features.stride), (xy[:, 1] + top) / (h * features.stride)
    grid = (2 * torch.stack([u, v], dim=-1) - 1).to(features.patch)[None, None]
    sampled = F.grid_sample(features.patch[n : n + 1], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled[0, :, 0].T


def token_centres(features: FeatureMap) -> torch.Tensor:
    """The middle of each token of a map, row by row: [h*w,2] pixels of the image, outside of it for tokens of padding alone."""
    h, w = features.patch.shape[-2:]
    return (pixel_centres(h, w) * features.stride - torch.tensor([features.offset[1], features.offset[0]])).to(features.patch.device)


def pixel_centres(height: int, width: int) -> torch.Tensor:
    """[H*W,2] float32 (x, y), row by row."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def nearest(queries: torch.Tensor, others: torch.Tensor, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` nearest others of each query by cosine distance, nearest first, exactly.

    Args: queries [N,C] and others [M,C], of any length.
    Returns: distances [N,count] of at least 1e-9, and indices [N,count].
    """
    queries, others = F.normalize(queries.float(), dim=1), F.normalize(others.float(), dim=1)
    found = [torch.topk(part @ others.T, count, dim=1) for part in queries.split(_CHUNK)]
    if not found:
        return queries.new_zeros(0, count), torch.zeros(0, count, dtype=torch.int64, device=queries.device)
    return (1 - torch.cat([top.values for top in found])).clamp(min=1e-9), torch.cat([top.indices for top in found])


def match_by_ratio(first: torch.Tensor, second: torch.Tensor, count: int) -> Matches:
    """The `count` matches from the first to the second set whose nearest stands out most from the next but one.

    In one direction, without a mutual check or a threshold: several points may share a partner.

    Args: first [N,C], second [M,C]; with fewer than `count` points, or than two others, there are fewer matches.
    """
    if len(second) < 2:
        nothing = torch.zeros(0, dtype=torch.int64, device=first.device)
        return Matches(nothing, nothing, first.new_zeros(0))
    distance, index = nearest(first, second, 2)
    best = torch.topk(1 - distance[:, 0] / distance[:, 1], min(count, len(first)))
    return Matches(best.indices, index[best.indices, 0], best.values)
