"""Correspondence between two views without training: the truth comes from depth and cameras, or from known points.

Every function gives values of each pair, or of each of its matches, so that means and intervals over rooms can be taken of them.

Sources: Probe3D (El Banani et al. 2024) for ScanNet and NAVI pairs, SPair-71k for known points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from training.probes.data.base import ProbeFrame
from training.probes.features import FeatureMap
from training.probes.geometry import ANGLES
from training.probes.matching import Matches, match_by_ratio, nearest, pixel_centres, sample_features


@dataclass(frozen=True)
class Points:
    """Surface points of a view. xy: [N,2] pixels; xyz: [N,3] metres in the camera."""

    xy: torch.Tensor
    xyz: torch.Tensor


@dataclass(frozen=True)
class PairErrors:
    """What became of one pair's matches. pixels: [N] of the second image; metres: [N]; angle: degrees between the cameras."""

    pixels: torch.Tensor
    metres: torch.Tensor
    angle: float
    matches: Matches
    first: Points
    second: Points


def surface_points(depth: torch.Tensor, K: torch.Tensor, step: int, centred: bool = False) -> Points:
    """Every `step`-th pixel in x and y that has a depth.

    Args:
        depth: [H,W] metres, 0 where unknown. K: [3,3] pixels.
        centred: takes the pixel in the middle of its step x step block for what it is. Else as published: the one in the corner, with the
            middle of the block as its position, half a block off.
    """
    start = step // 2 if centred else 0
    few = depth[start::step, start::step][: depth.shape[0] // step, : depth.shape[1] // step]
    xy = pixel_centres(*few.shape).to(depth) * step
    if centred:
        xy = xy - step / 2 + start + 0.5
    known = few.flatten() > 0
    return Points(xy[known], unproject(xy[known], few.flatten()[known], K))


def unproject(xy: torch.Tensor, depth: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """[N,2] pixels with depths [N] as positions [N,3] in the camera. K: [3,3]."""
    return torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1) @ torch.linalg.inv(K.to(depth)).T * depth[:, None]


def project(xyz: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """Positions [N,3] in a camera as pixels [N,2], far outside where they lie behind it. K: [3,3]."""
    image = xyz @ K.to(xyz).T
    return image[:, :2] / image[:, 2:].clamp(min=1e-9)


def transform(xyz: torch.Tensor, rt: torch.Tensor) -> torch.Tensor:
    """Positions [N,3] moved by [R|t], [3 or 4,4]."""
    rt = rt.to(xyz)
    return xyz @ rt[:3, :3].T + rt[:3, 3]


def relative_pose(first: ProbeFrame, second: ProbeFrame) -> torch.Tensor:
    """[4,4] float64 from the first camera to the second. Raises ValueError that names a frame without a camera, or with a wrong one."""
    return torch.from_numpy(np.linalg.inv(_camera(second)[1]) @ _camera(first)[1])


def rotation_angle(rotation: torch.Tensor) -> torch.Tensor:
    """Degrees [...] of rotations [...,3,3]."""
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1)))


def by_angle(values: np.ndarray, angles: np.ndarray, edges: Sequence[float] = ANGLES) -> dict[str, np.ndarray]:
    """The values [N] once for each half-open bin [a,b) of their angles, named `a-b`: NaN where the angle lies in another."""
    return {f"{low:g}-{high:g}": np.where((angles >= low) & (angles < high), values, np.nan) for low, high in itertools.pairwise(edges)}


def recall(errors: torch.Tensor, threshold: float) -> float:
    """The share of errors below a threshold; NaN where there is none."""
    return float((errors < threshold).double().mean()) if len(errors) else math.nan


def match_surfaces(
    maps: tuple[FeatureMap, FeatureMap],
    depths: tuple[torch.Tensor, torch.Tensor],
    Ks: tuple[torch.Tensor, torch.Tensor],
    rt: torch.Tensor,
    step: int = 4,
    count: int = 1000,
    stretch: bool = True,
) -> PairErrors:
    """Matches the surface points of two views by their features, and measures where the matches should lie (Probe3D's ScanNet pairs).

    Args:
        maps: of one image each. depths: [H,W] metres. Ks: [3,3] pixels of the depth maps. rt: [4,4] from the first camera to the second.
        step: between points, in pixels. count: of the matches that are kept. stretch: as published, takes a padded map for one of the
            image alone and a block's corner for its middle.
    """
    first, second = (surface_points(d, K, step, centred=not stretch) for d, K in zip(depths, Ks, strict=True))
    sampled = [
        sample_features(features, 0, points.xy, (depth.shape[0], depth.shape[1]), stretch)
        for features, points, depth in zip(maps, (first, second), depths, strict=True)
    ]
    return measure(match_by_ratio(sampled[0], sampled[1], count), first, second, Ks[1], rt)


def measure(matches: Matches, first: Points, second: Points, K: torch.Tensor, rt: torch.Tensor) -> PairErrors:
    """How far each match lies from where the first point is in the second view. K: of the second; rt: from first to second."""
    moved, found = transform(first.xyz[matches.first], rt), second.xyz[matches.second]
    pixels = (project(moved, K) - project(found, K)).norm(dim=1)
    return PairErrors(pixels, (moved - found).norm(dim=1), float(rotation_angle(rt[:3, :3].double())), matches, first, second)


def match_frames(
    maps: tuple[FeatureMap, FeatureMap], first: ProbeFrame, second: ProbeFrame, step: int = 4, count: int = 1000, stretch: bool = True
) -> PairErrors:
    """`match_surfaces` of two frames; errors in pixels of their images. Raises ValueError that names a frame without depth or camera."""
    device = maps[0].patch.device
    depths = (_depth(first).to(device), _depth(second).to(device))
    Ks = (torch.from_numpy(_camera(first)[0]), torch.from_numpy(_camera(second)[0]))
    return match_surfaces(maps, depths, Ks, relative_pose(first, second), step, count, stretch)


def match_objects(
    maps: tuple[FeatureMap, FeatureMap], first: ProbeFrame, second: ProbeFrame, step: int = 4, count: int = 1000
) -> PairErrors:
    """Probe3D's NAVI pairs: as `match_frames`, with positions of whole pixels, and features resized bicubically to every `step`-th.

    Raises ValueError that names a frame without depth or camera.
    """
    sides = [_positions(features.patch[0], frame, step) for features, frame in zip(maps, (first, second), strict=True)]
    (tokens_a, points_a), (tokens_b, points_b) = sides
    matches = match_by_ratio(tokens_a, tokens_b, count)
    return measure(matches, points_a, points_b, torch.from_numpy(_camera(second)[0]), relative_pose(first, second))


def _positions(features_chw: torch.Tensor, frame: ProbeFrame, step: int) -> tuple[torch.Tensor, Points]:
    """Of every `step`-th pixel of an object: its features [N,C] and where it is; the pixel's name is its index times `step`."""
    depth = _depth(frame).to(features_chw.device)
    height, width = depth.shape
    xyz = unproject(pixel_centres(height, width).to(depth), depth.flatten(), torch.from_numpy(_camera(frame)[0]))
    few, xyz = depth[::step, ::step], xyz.unflatten(0, (height, width))[::step, ::step].flatten(0, 1)
    resized = F.interpolate(features_chw[None], size=few.shape, mode="bicubic", align_corners=False)[0]
    known = few.flatten() > 0
    return resized.flatten(1).T[known], Points((pixel_centres(*few.shape).to(depth) * step)[known], xyz[known])


def transfer_points(maps: tuple[FeatureMap, FeatureMap], xy: torch.Tensor, sizes: Sequence[tuple[int, int]], step: int = 4) -> torch.Tensor:
    """Where known points of the first image are found in the second: the pixel, of every `step`-th, with the nearest feature.

    Args:
        xy: [P,2] pixels. sizes: (H,W) of both images.
    Returns: [P,2] pixels of the second image.
    """
    height, width = sizes[1]
    centres = pixel_centres(height // step, width // step).to(xy) * step
    queries = sample_features(maps[0], 0, xy, sizes[0])
    return centres[nearest(queries, sample_features(maps[1], 0, centres, sizes[1]))[1][:, 0]]


def pck(found: torch.Tensor, truth: torch.Tensor, size: float, alpha: float = 0.1) -> float:
    """The share of points [P,2] found within alpha * size pixels; size: the longer side of the object's box, or of the image."""
    return float(((found - truth).norm(dim=1) <= alpha * size).double().mean())


def _camera(frame: ProbeFrame) -> tuple[np.ndarray, np.ndarray]:
    if frame.K is None or frame.c2w is None:
        raise ValueError(f"frame {frame.key} has no camera (K and c2w): correspondence by depth needs one, or pairs with points")
    if not np.allclose(frame.K[2], (0, 0, 1)):
        raise ValueError(f"frame {frame.key}: the last row of K is {frame.K[2].tolist()}, not 0, 0, 1: is it transposed?")
    return frame.K, frame.c2w


def _depth(frame: ProbeFrame) -> torch.Tensor:
    if frame.depth is None:
        raise ValueError(f"frame {frame.key} has no depth: correspondence by depth needs it, or pairs with points")
    return torch.from_numpy(frame.depth)
