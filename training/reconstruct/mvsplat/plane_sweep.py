"""The cost volume: how well each pixel of a view fits the other view at each of 128 depths (MVSplat, ECCV 2024, section 3.1).

Two quirks of the published code matter for the numbers and are kept: pixels are counted by whole numbers (no half offset) on an intrinsic
matrix scaled by the full map size, and the reference view's intrinsics project into the other view too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CANDIDATES = 128

_SCORES_BYTES = 32 << 20
_NEAREST_Z = 1e-3


def disparity_candidates(near_n: Tensor, far_n: Tensor) -> Tensor:
    """[N,128] in 1/metres, evenly spaced from 1/far (candidate 0) to 1/near (candidate 127)."""
    steps = torch.linspace(0, 1, CANDIDATES, device=near_n.device)
    return 1 / far_n[:, None] + steps * (1 / near_n - 1 / far_n)[:, None]


def relative_poses(c2w_bv44: Tensor) -> Tensor:
    """From each view's camera frame to the other's, [2B,4,4] float64, view-major."""
    first, second = c2w_bv44.double().unbind(1)
    forth = torch.linalg.inv(second) @ first
    return torch.cat([forth, torch.linalg.inv(forth)])


def sweep_points(K_33: Tensor, pose_44: Tensor, depths_d: Tensor, pixels_p2: Tensor, h: int, w: int) -> Tensor:
    """Where the pixels (x,y) [P,2] of one view at the given depths fall in the other: [P,D,2], -1 and 1 at the border pixels' centres.

    K in pixels of the map, z-depths. What lies behind the other camera lands far outside.
    """
    K, pose = K_33.double(), pose_44.double()
    rays = torch.cat([pixels_p2, torch.ones_like(pixels_p2[:, :1])], dim=1).double() @ (K @ pose[:3, :3] @ torch.linalg.inv(K)).T
    offset = K @ pose[:3, 3]
    projected = rays.float()[:, None] * depths_d[:, None] + offset.float()
    points = projected[..., :2] / projected[..., 2:].clamp_min(_NEAREST_Z)
    return 2 * points / points.new_tensor([w - 1, h - 1]) - 1


def correlate(features_nchw: Tensor, K_n33: Tensor, poses_n44: Tensor, disparities_nd: Tensor, scores_bytes: int = _SCORES_BYTES) -> Tensor:
    """Correlation [N,128,h,w] (channels last) of each view's features with the other's along the sweep; N = 2B, view-major.

    Interpolation and dot product commute, so the products of all pairs of pixels are taken first, as a matrix product, and scalars are
    interpolated instead of 128 channels. `scores_bytes` bounds what is held of them at a time; it does not change the result.
    """
    n, c, h, w = features_nchw.shape
    rows = features_nchw.permute(0, 2, 3, 1).reshape(n, h * w, c)
    others = rows.roll(n // 2, 0)
    y, x = torch.meshgrid(torch.arange(h, device=rows.device), torch.arange(w, device=rows.device), indexing="ij")
    pixels = torch.stack([x, y], dim=-1).view(-1, 2).float()
    volume = rows.new_empty(n, h * w, disparities_nd.shape[1])
    step = max(1, scores_bytes // (rows.element_size() * h * w))
    for view in range(n):
        depths = 1 / disparities_nd[view]
        for start in range(0, h * w, step):
            chunk = slice(start, start + step)
            scores = (rows[view, chunk] * c**-0.5) @ others[view].T
            points = sweep_points(K_n33[view], poses_n44[view], depths, pixels[chunk], h, w)
            sampled = F.grid_sample(scores.view(-1, 1, h, w), points[:, None], "bilinear", "zeros", align_corners=True)
            volume[view, chunk] = sampled[:, 0, 0]
    return volume.view(n, h, w, -1).permute(0, 3, 1, 2)
