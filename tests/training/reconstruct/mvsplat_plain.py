"""The encoder's fast parts as anyone would write them first: whole score matrices, a whole warped feature volume, whole heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from training.reconstruct.mvsplat import depth_predictor, plane_sweep, transformer, unet


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (scores if mask is None else scores + mask).softmax(-1) @ v


def plain_attend(q: Tensor, k: Tensor, v: Tensor, labels: Tensor | None) -> Tensor:
    mask = None if labels is None else transformer.MASK * (1 - labels @ labels.mT)
    return plain_attention(q, k, v, mask)


def plain_correlate(features: Tensor, K: Tensor, poses: Tensor, disparities: Tensor) -> Tensor:
    n, c, h, w = features.shape
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    pixels = torch.stack([x, y], dim=-1).view(-1, 2).float().to(features.device)
    points = torch.stack([plane_sweep.sweep_points(K[i], poses[i], 1 / disparities[i], pixels, h, w) for i in range(n)])
    warped = F.grid_sample(features.roll(n // 2, 0), points.transpose(1, 2), "bilinear", "zeros", align_corners=True)
    return (features.flatten(2)[:, :, None] * warped).sum(1).unflatten(-1, (h, w)) / c**0.5


@contextmanager
def plain() -> Iterator[None]:
    """Inside, the encoder computes the plain way."""
    with ExitStack() as stack:
        for module, name, reference in (
            (transformer, "attend", plain_attend),
            (depth_predictor, "correlate", plain_correlate),
            (unet.F, "scaled_dot_product_attention", plain_attention),
            (transformer, "_FFN_TOKENS", 1 << 40),
            (depth_predictor, "_STRIP_PIXELS", 1 << 40),
        ):
            stack.enter_context(patch.object(module, name, reference))
        yield
