"""A frozen vision transformer of the registry, by way of timm, at a fixed image size, with its family's position rule.

model = build_backbone("vit_small_patch14_dinov2", load_weights(...), height=336, width=448)
tokens = patch_tokens(model, images)      # [B,3,H,W] in [0,1] -> [B,h,w,C]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from configs import ConfigError
from training.model.registry import BackboneSpec, find_spec

StateDict = dict[str, torch.Tensor]


def build_backbone(
    architecture: str, state: Mapping[str, torch.Tensor], height: int, width: int, blocks: int | None = None
) -> torch.nn.Module:
    """A frozen timm model for images of `height` x `width` pixels (from one patch up), loaded strictly. It shares the memory of `state`.

    blocks: the model has the first so many blocks alone, and its final norm; None for all.
    """
    spec = find_spec(architecture, blocks)
    h, w = spec.grid(height, width)
    if not h or not w:
        raise ConfigError(f"an image of {height} x {width} pixels has no {spec.patch} x {spec.patch} patch")
    model: Any = create_model(spec, h * spec.patch, w * spec.patch, memory=spec.position == "rope")
    model.spec = spec
    for block in model.blocks:
        if getattr(block.attn, "q_bias", None) is not None:
            block.attn.qkv_bias_separate = True  # else timm passes the layer `qkv` by, and with it LoRA
    fitted = dict(state)
    try:
        if spec.position != "rope":
            fitted["pos_embed"] = resample_position(fitted["pos_embed"], h, w, spec.position)
        model.load_state_dict(fitted, strict=True, assign=True)
    except (KeyError, RuntimeError) as error:
        raise ConfigError(
            f"backbone.weights do not fit backbone.architecture={architecture}: {' '.join(str(error).split())[:300]}"
        ) from error
    frozen: torch.nn.Module = model.requires_grad_(False)
    return frozen


def create_model(spec: BackboneSpec, height: int, width: int, memory: bool = False) -> torch.nn.Module:
    """The model, without memory for its weights, which are to be assigned; with it where timm computes rotations as it builds the model."""
    import timm

    try:
        with torch.device("cpu" if memory else "meta"), torch.random.fork_rng(devices=[]):
            return timm.create_model(spec.name, img_size=(height, width), **spec.timm_options)
    except RuntimeError as error:
        raise ConfigError(f"backbone.architecture={spec.name}: {error}") from error


def resample_position(pos_embed_1nc: torch.Tensor, h: int, w: int, rule: str = "dinov2") -> torch.Tensor:
    """The position embedding [1,n*n,C], after prefix tokens where they have positions, for a grid of h x w.

    `dinov2` is DINOv2's published rule: bicubic by the factors (h+.1)/n, (w+.1)/n, no antialias. `timm` is timm's own.

    timm resamples to the exact size with antialias instead; at 308 x 448 that moves tokens by up to 0.09.
    """
    n = math.isqrt(pos_embed_1nc.shape[1])
    prefix = pos_embed_1nc.shape[1] - n * n
    if (h, w) == (n, n):
        return pos_embed_1nc
    if rule == "timm":
        from timm.layers import resample_abs_pos_embed

        resampled: torch.Tensor = resample_abs_pos_embed(pos_embed_1nc, [h, w], num_prefix_tokens=prefix)
        return resampled
    first, grid = pos_embed_1nc[:, :prefix], pos_embed_1nc[:, prefix:]
    grid = grid.reshape(1, n, n, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((h + 0.1) / n, (w + 0.1) / n), mode="bicubic", antialias=False)
    if grid.shape[-2:] != (h, w):
        raise ValueError(f"position embedding came out as {tuple(grid.shape[-2:])}, expected {(h, w)}")
    return torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, h * w, -1)], dim=1)


def preprocess(spec: BackboneSpec, images_b3hw: torch.Tensor) -> torch.Tensor:
    """[B,3,H,W] in [0,1] -> the transformer's input [B,3,H',W'] with H' = H - H mod patch: resized (bilinear, no antialias), then
    normalised."""
    h, w = spec.grid(*images_b3hw.shape[-2:])
    resized = F.interpolate(images_b3hw, (h * spec.patch, w * spec.patch), mode="bilinear", align_corners=False, antialias=False)
    mean, std = (torch.tensor(c, dtype=resized.dtype, device=resized.device).view(1, 3, 1, 1) for c in (spec.mean, spec.std))
    return (resized - mean) / std


def patch_tokens(model: Any, images_b3hw: torch.Tensor) -> torch.Tensor:
    """Patch tokens after the final LayerNorm, [B,h,w,C]; no class token and no registers."""
    h, w = model.spec.grid(*images_b3hw.shape[-2:])
    tokens = model.forward_features(preprocess(model.spec, images_b3hw))[:, model.num_prefix_tokens :]
    return tokens.unflatten(1, (h, w))
