"""The U-Net that refines the cost volume, and in a narrower form the full-size depth (MVSplat, ECCV 2024, sections 3.1 and 3.2).

Convolution, norm, SiLU in that order; equally wide on every level; attention on the coarsest, over the pixels of both views at once.
Parameter names are those of the latent-diffusion U-Net that it descends from: `middle_block.1` is what is left of a removed attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.reconstruct.mvsplat.norm import GroupNorm

VIEWS = 2
HEAD_WIDTH = 32

_GROUPS = 8


def _layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1), GroupNorm(_GROUPS, outputs), nn.SiLU(inplace=True))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_layers = _layers(inputs, outputs)
        self.out_layers = _layers(outputs, outputs)
        self.skip_connection = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.out_layers(self.in_layers(x))
        y += self.skip_connection(x)
        return y


class CrossViewAttention(nn.Module):
    """Every pixel of both views attends to every pixel of both, without positions. [2B,C,h,w], view-major."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Kept as 1-d convolutions for the shape of their weights, [out,in,1].
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        self.norm = GroupNorm(_GROUPS, channels)

    def forward(self, x_nchw: Tensor) -> Tensor:
        n, c, h, w = x_nchw.shape
        tokens = x_nchw.permute(0, 2, 3, 1).reshape(VIEWS, n // VIEWS, h * w, c).transpose(0, 1).reshape(n // VIEWS, -1, c)
        # Per head: q, k, v, 32 channels each.
        qkv = F.linear(tokens, self.qkv.weight[..., 0], self.qkv.bias).unflatten(-1, (-1, 3, HEAD_WIDTH))
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        heard = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = F.linear(heard, self.proj_out.weight[..., 0], self.proj_out.bias)
        out = out.view(n // VIEWS, VIEWS, h, w, c).transpose(0, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)
        return x_nchw + self.norm(out)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class UNet(nn.Module):
    """[2B,channels,H,W] -> the same, view-major; H and W are multiples of 2^(levels-1). Attention on the last level."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        last = levels - 1
        self.input_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1))])
        for level in range(levels):
            block: list[nn.Module] = [ResidualBlock(channels, channels)]
            if level == last:
                block.append(CrossViewAttention(channels))
            self.input_blocks.append(nn.Sequential(*block))
            if level != last:
                self.input_blocks.append(nn.Sequential(Downsample(channels)))
        self.middle_block = nn.Sequential(ResidualBlock(channels, channels), nn.Identity(), ResidualBlock(channels, channels))
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(levels)):
            for upward in (False, True):
                block = [ResidualBlock(2 * channels, channels)]
                if level == last:
                    block.append(CrossViewAttention(channels))
                if upward and level:
                    block.append(Upsample(channels))
                self.output_blocks.append(nn.Sequential(*block))
        self.out = _layers(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for block in self.input_blocks:
            x = block(x)
            skips.append(x)
        x = self.middle_block(x)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            x = block(x)
        return self.out(x)
