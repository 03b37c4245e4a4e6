"""A frozen vision transformer of the registry, by way of timm, at a fixed image size, with its family's position rule.

model = build_backbone("vit_small_patch14_dinov2", load_weights(...), height=336, width=448)
tokens = patch_tokens(model, images)      # [B,3,H,W] in [0,1] -> [B,h,w,C]
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from configs import ConfigError
from configs.schema import BackboneConfig
from storage import location
from training.model.registry import BackboneSpec, find_spec

StateDict = dict[str, torch.Tensor]


def load_weights(config: BackboneConfig) -> StateDict:
    """The state dict of the frozen backbone, timm's names, position embedding as published (DINOv2's is 37 x 37).

    `weights`: `pretrained` (timm's hub checkpoint of that name and tag), `random` (a substitute: seeded, LayerScale 1 so that every
    block counts), or the URL of a state dict with timm's or torch.hub's names, which are the same but for hub's `mask_token`.
    """
    import timm

    spec = find_spec(config.architecture)
    if config.weights == "random":
        generator = torch.Generator().manual_seed(config.seed)
        shapes = _create(spec, *spec.pretrained_size).state_dict()
        return {name: _random(name, tensor.shape, generator) for name, tensor in shapes.items()}
    if config.weights == "pretrained":
        try:
            model = timm.create_model(spec.name, pretrained=True, num_classes=0, **spec.timm_options)
        except Exception as error:  # the hub client raises many unrelated types
            raise ConfigError(
                f"backbone.weights=pretrained: {config.architecture} could not be fetched ({type(error).__name__}); "
                "give the URL of a state dict, or backbone=demo for random substitute weights"
            ) from error
        return {k: v.detach().clone() for k, v in model.state_dict().items()}
    return read_state_dict(config.weights)


def read_state_dict(url: str) -> StateDict:
    """A `.safetensors` or `.pth` state dict of plain tensors; in float32; hub's `mask_token` is left out, timm has none."""
    data = location.read_bytes(url)
    if url.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            state = load(data)
        except SafetensorError as error:
            raise ConfigError(f"{url}: not a safetensors file ({error})") from error
    else:
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch errors alike
            raise ConfigError(f"{url}: not a state dict of plain tensors ({type(error).__name__})") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ConfigError(f"{url}: not a state dict of plain tensors")
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise ConfigError(
            f"{url}: NaN or infinity in {', '.join(broken[:3])} ({len(broken)} of {len(state)} tensors); fetch the file again"
        )
    return {k: v.float() for k, v in state.items() if k != "mask_token"}


def hash_weights(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, shapes and values: two backbones with one hash give the same tokens."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()


def build_backbone(architecture: str, state: Mapping[str, torch.Tensor], height: int, width: int) -> torch.nn.Module:
    """A frozen timm model for images of `height` x `width` pixels (from one patch up), loaded strictly. It shares the memory of `state`."""
    spec = find_spec(architecture)
    h, w = spec.grid(height, width)
    if not h or not w:
        raise ConfigError(f"an image of {height} x {width} pixels has no {spec.patch} x {spec.patch} patch")
    model: Any = _create(spec, h * spec.patch, w * spec.patch, memory=spec.position == "rope")
    model.spec = spec
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


def _create(spec: BackboneSpec, height: int, width: int, memory: bool = False) -> torch.nn.Module:
    """The model, without memory for its weights, which are to be assigned; with it where timm computes rotations as it builds the model."""
    import timm

    try:
        with torch.device("cpu" if memory else "meta"), torch.random.fork_rng(devices=[]):
            return timm.create_model(spec.name, pretrained=False, num_classes=0, img_size=(height, width), **spec.timm_options)
    except RuntimeError as error:
        raise ConfigError(f"backbone.architecture={spec.name}: {error}") from error


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Normal with deviation 0.02, biases 0, norms and LayerScale 1: so that, other than at DINOv2's own start, every block counts."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if name.endswith(("gamma", "gamma_1", "gamma_2", "norm.weight", "norm1.weight", "norm2.weight")):
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) * 0.02


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
