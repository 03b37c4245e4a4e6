"""The convolutional features that two views are matched by: 128 channels at a quarter of the size (MVSplat, ECCV 2024, section 3.1).

Parameter names and order are those of the published checkpoint.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.reconstruct.mvsplat.norm import instance_norm_

CHANNELS = 128
DOWNSCALE = 4

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class ResidualBlock(nn.Module):
    """[N,inputs,H,W] -> [N,outputs,H/stride,W/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        # Its bias is in the checkpoint, though the norm right after takes it away again.
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride)) if (stride, inputs) != (1, outputs) else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(instance_norm_(self.conv1(x)))
        y = F.relu_(instance_norm_(self.conv2(y)))  # a ReLU before the sum as well as after it: as published
        y += x if self.downsample is None else instance_norm_(self.downsample(x))
        return F.relu_(y)


class MatchingCNN(nn.Module):
    """[N,3,H,W] RGB in [0,1] -> [N,128,H/4,W/4]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.layer1 = nn.Sequential(ResidualBlock(64, 64, 1), ResidualBlock(64, 64, 1))
        self.layer2 = nn.Sequential(ResidualBlock(64, 96, 2), ResidualBlock(96, 96, 1))
        self.layer3 = nn.Sequential(ResidualBlock(96, CHANNELS, 1), ResidualBlock(CHANNELS, CHANNELS, 1))
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, image_n3hw: Tensor) -> Tensor:
        mean, std = (image_n3hw.new_tensor(c).view(1, 3, 1, 1) for c in (_MEAN, _STD))
        x = F.relu_(instance_norm_(self.conv1((image_n3hw - mean) / std)))
        x = self.layer1(x)
        x = self.layer2(x)
        return self.conv2(self.layer3(x))
