"""The weights of a backbone, strictly: what is missing, surplus, misshapen or not a number is refused by name.

weights = load_weights(BackboneConfig("vit_small_patch14_dinov2", "s3://bucket/dinov2_vits14_pretrain.pth", 0))
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from configs import ConfigError
from configs.schema import BackboneConfig
from storage import location
from training.model.backbone import StateDict, create_model
from training.model.registry import BackboneSpec, find_spec

_CONTAINERS = ("teacher", "state_dict", "model")  # of a file that holds both, DINO's teacher is what its authors publish
_WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # DDP, torch.compile, FSDP
_HOLDERS = re.compile(r"^(?:(?:model|backbone|teacher|dinov2|dinov2_with_registers)\.)+")  # attributes that hold the backbone
_SURPLUS = re.compile(
    r"mask_token|(?:(?:dino_|ibot_)?head|classifier|attn_pool)\..+|decoder_.+"  # pre-training, classifiers, SigLIP's pooling, MAE
    r"|rope_embed\.periods|.+\.attn\.qkv\.bias_mask"  # DINOv3's constants
)
_HUGGING_FACE = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("encoder.layer.", "blocks."),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.attention.", ".attn."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
    (".mlp.weights_in.", ".mlp.fc1."),
    (".mlp.weights_out.", ".mlp.fc2."),
    ("layernorm.", "norm."),
)


def load_weights(config: BackboneConfig) -> StateDict:
    """The weights of the frozen backbone.

    Args:
        config: `weights` is `pretrained` (timm's hub checkpoint of that name and tag), `random` (a substitute: seeded, LayerScale 1 so that
            every block counts), or the URL of a file (see `read_state_dict`). `blocks`: the first so many blocks alone.

    Returns:
        By timm's names, float32; the position embedding as published (DINOv2's is 37 x 37).

    Raises:
        ConfigError: the weights are not to be had, or do not fit `architecture`.
    """
    spec = find_spec(config.architecture, config.blocks)
    shapes = {name: tensor.shape for name, tensor in create_model(spec, *spec.pretrained_size).state_dict().items()}
    if config.weights == "random":
        generator = torch.Generator().manual_seed(config.seed)
        return {name: _random(name, shape, generator) for name, shape in shapes.items()}
    state = _fetch(spec) if config.weights == "pretrained" else read_state_dict(config.weights)
    state = _in_form_of(spec, state, shapes)
    wrong = _misfits(state, shapes)
    if wrong:
        raise ConfigError(
            f"backbone.weights={config.weights} does not fit backbone.architecture={spec.name}: {'; '.join(wrong)} "
            f"(containers tried: {', '.join(_CONTAINERS)}); give the architecture that the weights were made for"
        )
    return {name: state[name] for name in shapes}


def _fetch(spec: BackboneSpec) -> StateDict:
    import timm

    try:
        model = timm.create_model(spec.name, pretrained=True, **replace(spec, blocks=None).timm_options)  # the hub has them whole
    except Exception as error:  # the hub client raises many unrelated types
        raise ConfigError(
            f"backbone.weights=pretrained: {spec.name} could not be fetched ({type(error).__name__}); "
            "give the URL of a state dict, or backbone=demo for random substitute weights"
        ) from error
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def read_state_dict(url: str) -> StateDict:
    """The backbone in a file of `.safetensors`, or of torch's format (.pth, .pt, .bin), with timm's, torch.hub's or Hugging Face's names.

    Containers (a checkpoint's `teacher`, `state_dict`, `model`) are opened, prefixes of wrappers (`module.`, `_orig_mod.`, Lightning's
    `model.`, ...) are taken off, and what is known to be surplus (heads, mask token, decoders) is left out. Nothing is unpickled but
    tensors and plain values.

    Returns:
        float32, names as near to timm's as can be told without the architecture.

    Raises:
        ConfigError: the file holds no state dict, or NaN, infinity or anything but floating-point numbers.
    """
    tensors = _unwrapped(url, _read(url))
    has_teacher = any(name.removeprefix("model.").startswith("teacher.") for name in tensors)
    named: StateDict = {}
    for name, tensor in tensors.items():
        plain = _HOLDERS.sub("", _WRAPPERS.sub("", name))
        if _SURPLUS.fullmatch(plain) or (has_teacher and plain.startswith("student.")):
            continue
        if plain in named:
            raise ConfigError(f"{url}: two tensors are called {plain} without the names of wrappers; keep one network in the file")
        named[plain] = tensor
    if any(name.startswith("embeddings.") for name in named):
        named = _from_hugging_face(named)
    _refuse(url, "no floating-point numbers", [name for name, tensor in named.items() if not tensor.is_floating_point()], len(named))
    state = {name: tensor.float() for name, tensor in named.items()}
    _refuse(url, "NaN or infinity", [name for name, tensor in state.items() if not tensor.isfinite().all()], len(named))
    return state


def hash_weights(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, shapes and values: two backbones with one hash give the same tokens."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Normal with deviation 0.02, biases 0, norms and LayerScale 1: so that, other than at DINOv2's own start, every block counts."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if name.endswith(("gamma", "gamma_1", "gamma_2", "norm.weight", "norm1.weight", "norm2.weight")):
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) * 0.02


def _read(url: str) -> Any:
    data = location.read_bytes(url)
    if url.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(data)
        except SafetensorError as error:
            raise ConfigError(f"{url}: not a safetensors file ({error})") from error
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors alike
        raise ConfigError(
            f"{url}: not a state dict of plain tensors ({type(error).__name__}); save the model's state_dict() alone"
        ) from error


def _unwrapped(url: str, found: Any) -> StateDict:
    """The state dict within the containers."""
    while isinstance(found, dict) and (inner := [found[name] for name in _CONTAINERS if isinstance(found.get(name), dict)]):
        found = inner[0]
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{url}: not a state dict of plain tensors but {'empty' if found == {} else f'a {type(found).__name__}'}")
    other = [f"{name} ({type(value).__name__})" for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise ConfigError(
            f"{url}: not a state dict of plain tensors: it holds {_listed(other)}; containers tried: {', '.join(_CONTAINERS)}"
        )
    return found


def _refuse(url: str, what: str, names: Sequence[str], of: int) -> None:
    if names:
        raise ConfigError(f"{url}: {what} in {', '.join(names[:3])} ({len(names)} of {of} tensors); fetch the file again")


def _from_hugging_face(state: StateDict) -> StateDict:
    """timm's names for those of `Dinov2Model` and `Dinov2WithRegistersModel`; query, key and value as one."""
    named = {}
    for name, tensor in state.items():
        for theirs, ours in _HUGGING_FACE:
            name = name.replace(theirs, ours)
        if not _SURPLUS.fullmatch(name):
            named[name] = tensor
    for query in [name for name in named if ".attn.query." in name]:
        parts = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in named and named[part].shape == named[query].shape for part in parts):
            named[query.replace(".query.", ".qkv.")] = torch.cat([named.pop(part) for part in parts])
    return named


def _in_form_of(spec: BackboneSpec, state: StateDict, shapes: Mapping[str, torch.Size]) -> StateDict:
    """What the authors' own files have in another form than timm: DINOv2's SwiGLU and registers, DINOv3's names and biases."""
    if spec.blocks is not None:
        numbers = {name: re.match(r"blocks\.(\d+)\.", name) for name in state}
        state = {name: state[name] for name, match in numbers.items() if match is None or int(match[1]) < spec.blocks}
    if spec.family == "dinov2":
        state = {name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): tensor for name, tensor in state.items()}
        if {"register_tokens", "cls_token", "pos_embed"} <= set(state):  # timm has no position for the class token of these
            position = state["pos_embed"]
            state |= {"cls_token": state["cls_token"] + position[:, :1], "pos_embed": position[:, 1:]}
            state["reg_token"] = state.pop("register_tokens")
    if spec.family == "dinov3":
        for name in [name for name in state if name.endswith(".attn.qkv.bias")]:
            q, k, v = state[name].chunk(3)
            own = {name.replace("qkv.bias", "q_bias"): q, name.replace("qkv.bias", "v_bias"): v}
            if not k.any() and (set(own) <= set(shapes) or not state[name].any()):  # without biases, all zero is the same
                state |= {part: tensor for part, tensor in own.items() if part in shapes}
                del state[name]
        for theirs, ours in (("storage_tokens", "reg_token"), (".ls1.gamma", ".gamma_1"), (".ls2.gamma", ".gamma_2")):
            state = {name.replace(theirs, ours): tensor for name, tensor in state.items()}
    return state


def _misfits(state: StateDict, shapes: Mapping[str, torch.Size]) -> list[str]:
    """What is missing, surplus or of another shape; empty where the weights fit."""
    wrong = {
        "missing": [name for name in shapes if name not in state],
        "unexpected": [name for name in state if name not in shapes],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(shape)}"
            for name, shape in shapes.items()
            if name in state and state[name].shape != shape and not (name == "pos_embed" and _is_position(state[name].shape, shape))
        ],
    }
    return [f"{len(names)} {what}: {_listed(names)}" for what, names in wrong.items() if names]


def _is_position(shape: torch.Size, published: torch.Size) -> bool:
    """Whether it is a position embedding for another square grid, which is resampled anyway."""
    if len(shape) != 3 or (shape[0], shape[2]) != (published[0], published[2]):
        return False
    prefix = published[1] - math.isqrt(published[1]) ** 2
    return shape[1] > prefix and math.isqrt(shape[1] - prefix) ** 2 == shape[1] - prefix


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
