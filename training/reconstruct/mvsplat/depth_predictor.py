"""Depth from the cost volume, refined at full size together with density and raw Gaussians (MVSplat, ECCV 2024, sections 3.1 and 3.2).

At full size the 128-channel features and the heads' hidden layers would be the largest things by far; they exist a strip of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.reconstruct.mvsplat.cnn import CHANNELS, DOWNSCALE
from training.reconstruct.mvsplat.norm import GroupNorm
from training.reconstruct.mvsplat.plane_sweep import CANDIDATES, correlate, disparity_candidates, relative_poses
from training.reconstruct.mvsplat.unet import UNet

RAW_CHANNELS = 84  # see gaussian_adapter

_FINE = 32
_STRIP_PIXELS = 1 << 14


@dataclass(frozen=True)
class DepthMaps:
    """All [2B,...], view-major. depth [N,H,W] in metres, clamped to near..far; density [N,H,W] in 0..1; raw [N,C,H,W], channels last."""

    depth: Tensor
    density: Tensor
    raw: Tensor


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, 1, 1)


class DepthPredictor(nn.Module):
    """`forward` is in two steps: `coarse` at a quarter of the size, `fine` at full size."""

    def __init__(self) -> None:
        super().__init__()
        both = CANDIDATES + CHANNELS
        self.corr_refine_net = nn.Sequential(
            _conv(both, CHANNELS), GroupNorm(8, CHANNELS), nn.GELU(), UNet(CHANNELS, levels=3), _conv(CHANNELS, CANDIDATES)
        )
        self.regressor_residual = nn.Conv2d(both, CANDIDATES, 1)
        self.depth_head_lowres = nn.Sequential(_conv(CANDIDATES, 2 * CANDIDATES), nn.GELU(), _conv(2 * CANDIDATES, CANDIDATES))
        self.upsampler = nn.Sequential(_conv(2 * CHANNELS, CHANNELS))
        self.proj_feature = _conv(CHANNELS, _FINE)
        # 4 groups here, 8 everywhere else: as published.
        self.refine_unet = nn.Sequential(_conv(3 + _FINE + 2, _FINE), GroupNorm(4, _FINE), nn.GELU(), UNet(_FINE, levels=5))
        self.to_gaussians = nn.Sequential(_conv(_FINE + 3 + CHANNELS, 2 * RAW_CHANNELS), nn.GELU(), _conv(2 * RAW_CHANNELS, RAW_CHANNELS))
        self.to_disparity = nn.Sequential(_conv(_FINE, 2 * _FINE), nn.GELU(), _conv(2 * _FINE, 2))

    def forward(
        self, image_n3hw: Tensor, features_nchw: Tensor, cnn_nchw: Tensor, c2w_bv44: Tensor, K_n33: Tensor, near_n: Tensor, far_n: Tensor,
        raw_channels: int = RAW_CHANNELS,
    ) -> DepthMaps:  # fmt: skip
        """Images in [0,1] at full size; features of transformer and CNN at a quarter of it; K normalised by the image size. All but the
        poses are view-major, N = 2B. `raw_channels` may ask for only the first of the 84."""
        h, w = features_nchw.shape[-2:]
        K_map = K_n33.double() * K_n33.new_tensor([w, h, 1]).view(3, 1)
        disparities = disparity_candidates(near_n, far_n)
        volume = correlate(features_nchw, K_map, relative_poses(c2w_bv44), disparities)
        disparity, confidence = self.coarse(torch.cat([volume, features_nchw], dim=1), disparities)
        del volume
        return self.fine(image_n3hw, torch.cat([features_nchw, cnn_nchw], dim=1), disparity, confidence, near_n, far_n, raw_channels)

    def coarse(self, matched_nchw: Tensor, disparities_nd: Tensor) -> tuple[Tensor, Tensor]:
        """Cost volume and features [N,256,h,w] -> expected disparity and the probability of the likeliest one, both [N,1,h,w]."""
        refined = self.corr_refine_net(matched_nchw)
        refined += self.regressor_residual(matched_nchw)
        probability = self.depth_head_lowres(refined).softmax(dim=1)
        disparity = (probability * disparities_nd[..., None, None]).sum(dim=1, keepdim=True)
        return disparity, probability.amax(dim=1, keepdim=True)

    def fine(
        self, image_n3hw: Tensor, features_nchw: Tensor, disparity_n1hw: Tensor, confidence_n1hw: Tensor, near_n: Tensor, far_n: Tensor,
        raw_channels: int,
    ) -> DepthMaps:  # fmt: skip
        """From features [N,256,h,w] (transformer's, then CNN's) and the coarse result to everything that a pixel needs."""
        n, _, height, width = image_n3hw.shape
        disparity = F.interpolate(disparity_n1hw, (height, width), mode="bilinear", align_corners=True)[:, 0]
        # Columns now, rows strip by strip.
        wide = F.interpolate(self.upsampler(features_nchw), (features_nchw.shape[-2], width), mode="bilinear", align_corners=True)

        joined = _like_channels_last(image_n3hw, 3 + _FINE + 2)
        joined[:, :3] = image_n3hw
        for view, rows, inner, outer in _strips(n, height, width, halo=1):
            joined[view, 3:-2, rows] = self.proj_feature(_upsampled_rows(wide[view], outer, height))[0, :, inner]
        joined[:, -2] = disparity
        joined[:, -1] = F.interpolate(confidence_n1hw, scale_factor=DOWNSCALE, mode="nearest")[:, 0]
        refined = self.refine_unet(joined)
        del joined

        raw = _like_channels_last(image_n3hw, raw_channels)
        residual = _like_channels_last(image_n3hw, 2)
        hidden, gelu, last = self.to_gaussians
        weight, bias = last.get_parameter("weight")[:raw_channels], last.get_parameter("bias")[:raw_channels]
        for view, rows, inner, outer in _strips(n, height, width, halo=2):
            fine, image = (x[view : view + 1, :, outer] for x in (refined, image_n3hw))
            strip = torch.cat([fine, image, _upsampled_rows(wide[view], outer, height)], dim=1)
            strip = F.conv2d(gelu(hidden(strip)), weight, bias, padding=1)
            raw[view, :, rows] = strip[0, :, inner]
            residual[view, :, rows] = self.to_disparity(fine)[0, :, inner]

        nearest, farthest = (1 / near_n)[:, None, None], (1 / far_n)[:, None, None]
        disparity = torch.minimum(torch.maximum(disparity + residual[:, 0], farthest), nearest)
        return DepthMaps(1 / disparity, residual[:, 1].sigmoid(), raw)


def _like_channels_last(image: Tensor, channels: int) -> Tensor:
    n, _, height, width = image.shape
    return image.new_empty(n, height, width, channels).permute(0, 3, 1, 2)


def _strips(n: int, height: int, width: int, halo: int) -> Iterator[tuple[int, slice, slice, slice]]:
    """View, the strip's rows, where they lie in the strip with its halo, and that strip's rows.

    One row of halo a 3 x 3 convolution: what the padding falsifies at the strip's own edge stays in the halo, and at the image's edge
    there is no halo and the padding is right.
    """
    step = max(1, _STRIP_PIXELS // width)
    for view in range(n):
        for start in range(0, height, step):
            stop = min(start + step, height)
            first = max(start - halo, 0)
            yield view, slice(start, stop), slice(start - first, stop - first), slice(first, min(stop + halo, height))


def _upsampled_rows(wide_chw: Tensor, rows: slice, height: int) -> Tensor:
    """Some rows [1,C,rows,W] of the features [C,h,W] upsampled to `height` rows (bilinear, corners aligned), through the GELU that comes
    after."""
    position = torch.arange(rows.start, rows.stop, device=wide_chw.device) * ((wide_chw.shape[1] - 1) / (height - 1))
    above = position.long()
    below = (above + 1).clamp_max(wide_chw.shape[1] - 1)
    maps = wide_chw.permute(1, 2, 0)
    between = torch.lerp(maps[above], maps[below], (position - above)[:, None, None])
    return F.gelu(between)[None].permute(0, 3, 1, 2)
