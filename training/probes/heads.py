"""What is trained on frozen tokens: a linear map, or a DPT, and what its channels mean.

A head gives values on the map's own grid, `upsample` times finer than tokens; `to_image` brings them to the image.

Sources: DINOv2's, FiT3D's and SnD's linear heads; Bhat et al. 2021 (depth as a mean over bins); Ranftl et al. 2021 (DPT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from training.probes.features import FeatureMap
from training.probes.protocol import Head

_FLOOR = 0.1  # below every bin's weight


class LinearHead(nn.Module):
    """One 1x1 convolution of tokens, with the class token beside each where there is one, after a batch norm where one is asked for."""

    def __init__(self, head: Head, channels: int, outputs: int) -> None:
        """channels: of a token, with the class token if the head takes it."""
        super().__init__()
        self.head = head
        self.norm = nn.BatchNorm2d(channels) if head.batch_norm else nn.Identity()
        self.classifier = nn.Conv2d(channels, outputs, 1)
        if head.batch_norm:
            nn.init.normal_(self.classifier.weight, std=0.01)
            nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, features: FeatureMap) -> torch.Tensor:
        """[B,outputs,h*upsample,w*upsample]."""
        # Enlarging and a 1x1 convolution commute: this order costs upsample^2 times less.
        outputs = self.classifier(self.norm(tokens(features, self.head.class_token)))
        return enlarge(outputs, self.head.upsample, self.head.align_corners)


class DPTHead(nn.Module):
    """DPT after its paper: four layers at four scales, fused from the coarsest, one output convolution; 8 times finer than tokens."""

    def __init__(self, head: Head, channels: int, outputs: int) -> None:
        """channels: of one layer's token, with its class token if the head takes it."""
        super().__init__()
        self.head = head
        width = head.width
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for _ in range(4))
        scales: list[nn.Module] = [nn.ConvTranspose2d(width, width, 4, 4), nn.ConvTranspose2d(width, width, 2, 2), nn.Identity()]
        self.scale = nn.ModuleList([*scales, nn.Conv2d(width, width, 3, 2, 1)])
        self.before = nn.ModuleList(_Residual(width) for _ in range(3))
        self.after = nn.ModuleList(_Residual(width) for _ in range(4))
        self.out = nn.Sequential(nn.Conv2d(width, width // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(width // 2, outputs, 1))

    def forward(self, features: FeatureMap) -> torch.Tensor:
        """[B,outputs,8h,8w]."""
        patches = features.patch.chunk(4, dim=1)
        classes = (None,) * 4 if features.cls is None else features.cls.chunk(4, dim=1)
        layers = [
            scale(project(tokens(FeatureMap(patch, cls, features.offset, features.stride), self.head.class_token)))
            for patch, cls, project, scale in zip(patches, classes, self.project, self.scale, strict=True)
        ]
        fused = self.after[3](layers[3])
        for n in (2, 1, 0):
            size = layers[n].shape[-2:]
            fused = self.after[n](self._resize(fused, (size[0], size[1])) + self.before[n](layers[n]))
        h, w = fused.shape[-2:]
        outputs: torch.Tensor = self.out(self._resize(fused, (2 * h, 2 * w)))
        return outputs

    def _resize(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if self.head.nearest:
            return F.interpolate(x, size=size, mode="nearest")
        return F.interpolate(x, size=size, mode="bilinear", align_corners=self.head.align_corners)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = x + self.layers(x)
        return summed


class Probe(nn.Module):
    """A head behind a standardisation of its tokens, channel by channel, by what was measured on maps; without maps, by none."""

    patch_mean: torch.Tensor
    patch_std: torch.Tensor
    cls_mean: torch.Tensor
    cls_std: torch.Tensor

    def __init__(self, head: nn.Module, maps: Sequence[FeatureMap] = ()) -> None:
        super().__init__()
        self.head = head
        patches = [m.patch.movedim(1, -1).flatten(0, -2) for m in maps]
        classes = [m.cls for m in maps if m.cls is not None]
        for name, values in (("patch", patches), ("cls", classes)):
            mean, std = _moments(values) if values else (torch.zeros(1), torch.ones(1))
            self.register_buffer(f"{name}_mean", mean)
            self.register_buffer(f"{name}_std", std)

    def forward(self, features: FeatureMap) -> torch.Tensor:
        patch = (features.patch.float() - self.patch_mean[:, None, None]) / self.patch_std[:, None, None]
        cls = None if features.cls is None else (features.cls.float() - self.cls_mean) / self.cls_std
        values: torch.Tensor = self.head(replace(features, patch=patch, cls=cls))
        return values


def make_head(head: Head, features: FeatureMap, outputs: int) -> LinearHead | DPTHead:
    """A head for tokens like these. Raises ValueError for a class token that is not there, or layers that do not divide."""
    if head.class_token and features.cls is None:
        raise ValueError("the head takes the class token, and this network has none: choose a protocol without it (normals, segmentation)")
    channels = features.patch.shape[1] + (features.cls.shape[1] if head.class_token and features.cls is not None else 0)
    if head.kind == "linear":
        return LinearHead(head, channels, outputs)
    if channels % 4:
        raise ValueError(f"a DPT head takes four layers on channels; {channels} channels are not four times something")
    return DPTHead(head, channels // 4, outputs)


def tokens(features: FeatureMap, class_token: bool) -> torch.Tensor:
    """[B,C,h,w] of float32, with the class token beside each token if asked."""
    patch = features.patch.float()
    if not class_token:
        return patch
    assert features.cls is not None
    return torch.cat([patch, features.cls.float()[:, :, None, None].expand(-1, -1, *patch.shape[-2:])], dim=1)


def enlarge(x: torch.Tensor, factor: int, align_corners: bool) -> torch.Tensor:
    """[B,C,h,w] enlarged bilinearly."""
    return x if factor == 1 else F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=align_corners)


def depth_from_bins(logits: torch.Tensor, depth_range: tuple[float, float]) -> torch.Tensor:
    """The mean of evenly spaced depths, weighted by what a head gives: [B,bins,h,w] -> [B,1,h,w] metres.

    Weights are ReLU + 0.1, over their sum: no softmax, and every bin pulls a little.
    """
    weights = torch.relu(logits) + _FLOOR
    depths = torch.linspace(*depth_range, logits.shape[1], device=logits.device, dtype=logits.dtype)
    return torch.einsum("bkhw,k->bhw", weights, depths)[:, None] / weights.sum(dim=1, keepdim=True)


def to_image(
    values: torch.Tensor, features: FeatureMap, size: tuple[int, int], stretch: bool, mode: str = "bilinear", align_corners: bool = False
) -> torch.Tensor:
    """A head's values on the image.

    Args:
        values: [B,K,h',w'] over the area of the map. size: (H,W) of the image.
        stretch: the map's area becomes the image, padding and all, as published. Else each pixel gets the value at its position, and what
            the map leaves out at the border its nearest.
        mode, align_corners: of the interpolation.
    Returns: [B,K,H,W].
    """
    if stretch:
        return F.interpolate(values, size=size, mode=mode, align_corners=align_corners)
    (height, width), (top, left) = size, features.offset
    rows, columns = (side * features.stride for side in features.patch.shape[-2:])
    whole = F.interpolate(values, size=(rows, columns), mode=mode, align_corners=align_corners)
    beyond = (max(-left, 0), max(left + width - columns, 0), max(-top, 0), max(top + height - rows, 0))
    top, left = max(top, 0), max(left, 0)
    return F.pad(whole, beyond, mode="replicate")[..., top : top + height, left : left + width]


def _moments(values: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of [N,C]s; 1 for a channel that never changes."""
    count = sum(len(part) for part in values)
    mean = torch.stack([part.double().sum(dim=0) for part in values]).sum(dim=0) / count
    std = (torch.stack([((part.double() - mean) ** 2).sum(dim=0) for part in values]).sum(dim=0) / count).sqrt()
    return mean.float(), torch.where(std < 1e-6, 1.0, std).float()
