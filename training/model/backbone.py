"""The DINOv2 vision transformer, by way of timm, at a fixed image size, with the position rule that DINOv2 was published with.

model = build_backbone("vit_small_patch14_dinov2", load_weights(...), height=336, width=448)
tokens = patch_tokens(model, images)      # [B,3,H,W] in [0,1] -> [B,h,w,C]
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from configs import ConfigError
from configs.schema import BackboneConfig
from storage import location
from training.model import torchvision_ops  # noqa: F401  (before timm)

PATCH = 14
PRETRAINED_SIZE = 518  # DINOv2's position embedding is a 37 x 37 grid

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

StateDict = dict[str, torch.Tensor]


def grid_size(height: int, width: int) -> tuple[int, int]:
    """Tokens (h, w) of an image of that size: whole patches, the rest is resized away."""
    return height // PATCH, width // PATCH


def load_weights(config: BackboneConfig) -> StateDict:
    """The state dict of the frozen backbone, timm's names, position embedding as published (37 x 37).

    `weights`: `pretrained` (timm's hub checkpoint `{architecture}.lvd142m`), `random` (a substitute: seeded, LayerScale 1 so that every
    block counts), or the URL of a state dict with timm's or torch.hub's names, which are the same but for hub's `mask_token`.
    """
    import timm

    if config.weights == "random":
        generator = torch.Generator().manual_seed(config.seed)
        shapes = _create(config.architecture, PRETRAINED_SIZE, PRETRAINED_SIZE).state_dict()
        return {name: _random(name, tensor.shape, generator) for name, tensor in shapes.items()}
    if config.weights == "pretrained":
        try:
            model = timm.create_model(f"{config.architecture}.lvd142m", pretrained=True, num_classes=0)
        except Exception as error:  # the hub client raises many unrelated types
            raise ConfigError(
                f"backbone.weights=pretrained: {config.architecture} could not be fetched ({type(error).__name__}); "
                "give the URL of a state dict, or backbone=demo for random substitute weights"
            ) from error
        return {k: v.detach().clone() for k, v in model.state_dict().items()}
    return read_state_dict(config.weights)


def read_state_dict(url: str) -> StateDict:
    """A `.safetensors` or `.pth` state dict of plain tensors; hub's `mask_token` is left out, timm has none."""
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
    return {k: v for k, v in state.items() if k != "mask_token"}


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
    h, w = grid_size(height, width)
    if not h or not w:
        raise ConfigError(f"an image of {height} x {width} pixels has no {PATCH} x {PATCH} patch")
    model = _create(architecture, h * PATCH, w * PATCH)
    fitted = dict(state)
    try:
        fitted["pos_embed"] = resample_position(fitted["pos_embed"], h, w)
        model.load_state_dict(fitted, strict=True, assign=True)
    except (KeyError, RuntimeError) as error:
        raise ConfigError(
            f"backbone.weights do not fit backbone.architecture={architecture}: {' '.join(str(error).split())[:300]}"
        ) from error
    return model.requires_grad_(False)


def _create(architecture: str, height: int, width: int) -> torch.nn.Module:
    """The model without memory for its weights: they are to be assigned."""
    import timm

    try:
        with torch.device("meta"):
            return timm.create_model(architecture, pretrained=False, num_classes=0, img_size=(height, width))
    except RuntimeError as error:
        raise ConfigError(f"backbone.architecture={architecture}: {error}") from error


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Normal with deviation 0.02, biases 0, norms and LayerScale 1: so that, other than at DINOv2's own start, every block counts."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if name.endswith(("gamma", "norm.weight", "norm1.weight", "norm2.weight")):
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) * 0.02


def resample_position(pos_embed_1nc: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """The position embedding [1,1+n*n,C] for a grid of h x w, by DINOv2's published rule: bicubic by the factors (h+.1)/n, (w+.1)/n, no
    antialias.

    timm resamples to the exact size with antialias instead; at 308 x 448 that moves tokens by up to 0.09.
    """
    n = int((pos_embed_1nc.shape[1] - 1) ** 0.5)
    if (h, w) == (n, n):
        return pos_embed_1nc
    cls, grid = pos_embed_1nc[:, :1], pos_embed_1nc[:, 1:]
    grid = grid.reshape(1, n, n, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((h + 0.1) / n, (w + 0.1) / n), mode="bicubic", antialias=False)
    if grid.shape[-2:] != (h, w):
        raise ValueError(f"position embedding came out as {tuple(grid.shape[-2:])}, expected {(h, w)}")
    return torch.cat([cls, grid.permute(0, 2, 3, 1).reshape(1, h * w, -1)], dim=1)


def preprocess(images_b3hw: torch.Tensor) -> torch.Tensor:
    """[B,3,H,W] in [0,1] -> the transformer's input [B,3,H',W'] with H' = H - H mod 14: resized (bilinear, no antialias), then
    ImageNet-normalised."""
    h, w = grid_size(*images_b3hw.shape[-2:])
    resized = F.interpolate(images_b3hw, (h * PATCH, w * PATCH), mode="bilinear", align_corners=False, antialias=False)
    mean, std = (torch.tensor(c, dtype=resized.dtype, device=resized.device).view(1, 3, 1, 1) for c in (_MEAN, _STD))
    return (resized - mean) / std


def patch_tokens(model: Any, images_b3hw: torch.Tensor) -> torch.Tensor:
    """Patch tokens after the final LayerNorm, [B,h,w,C]; no class token."""
    h, w = grid_size(*images_b3hw.shape[-2:])
    tokens = model.forward_features(preprocess(images_b3hw))[:, model.num_prefix_tokens :]
    return tokens.unflatten(1, (h, w))
