"""The encoder's weights: out of the published checkpoint, or made by a rule.

`re10k.ckpt` is a PyTorch-Lightning checkpoint: under `state_dict` every key of the encoder begins with `encoder.`; beside it lie optimiser,
loop and callback state, which are not looked at.
"""

from __future__ import annotations

import io
import math
import pickle
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs import ConfigError
from storage import location
from training.reconstruct.mvsplat.encoder import MVSplatEncoder

RULE = "rule"

_PREFIX = "encoder."
_REMEDY = "give the MVSplat authors' re10k.ckpt (github.com/donydchen/mvsplat, pretrained weights), unchanged"

# Settings and bookkeeping that Lightning may have pickled beside the weights (`src`: the authors' own settings). Such an object is replaced
# by one that does nothing; anything else that is neither a tensor nor a plain value refuses the file.
_IGNORED_MODULES = {"lightning", "lightning_fabric", "numpy", "omegaconf", "pathlib", "pytorch_lightning", "src", "typing"}
_IGNORED_NAMES = {"collections.defaultdict", *(f"builtins.{t.__name__}" for t in (bool, dict, float, int, list, str, tuple))}


class _Inert:
    """Stands where the file asks for a class that is not needed: takes any arguments and any state, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def load_encoder(checkpoint: str, device: torch.device | str = "cpu") -> MVSplatEncoder:
    """The frozen encoder with the weights of `checkpoint`: a path or URL of `re10k.ckpt`, or the word `rule`.

    Raises ConfigError where the file is not that checkpoint, StorageError where it cannot be read.
    """
    with torch.device("meta"):
        encoder = MVSplatEncoder()
    wanted = encoder.state_dict()
    if checkpoint == RULE:
        state = rule_weights({name: tuple(tensor.shape) for name, tensor in wanted.items()})
    else:
        state = read_checkpoint(checkpoint, wanted)
    encoder.load_state_dict(state, strict=True, assign=True)
    return encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def read_checkpoint(url: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a Lightning checkpoint, without the prefix; exactly the names, shapes and types of `wanted`, all finite."""
    content = _unpickled(url, location.read_bytes(url))
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ConfigError(f"{url}: no state_dict in it, so not a Lightning checkpoint; {_REMEDY}")
    found = {name.removeprefix(_PREFIX): value for name, value in state.items() if isinstance(name, str) and name.startswith(_PREFIX)}
    for name in [*wanted, *found]:
        if name not in found:
            raise ConfigError(f"{url}: {_PREFIX}{name} is missing ({len(wanted.keys() - found.keys())} keys are); {_REMEDY}")
        if name not in wanted:
            raise ConfigError(f"{url}: {_PREFIX}{name} is no part of the encoder; {_REMEDY}")
        have, want = found[name], wanted[name]
        if not isinstance(have, Tensor) or have.shape != want.shape or have.dtype != want.dtype:
            there = f"{tuple(have.shape)} {have.dtype}" if isinstance(have, Tensor) else type(have).__name__
            raise ConfigError(f"{url}: {_PREFIX}{name} is {there}, expected {tuple(want.shape)} {want.dtype}; {_REMEDY}")
        if not have.isfinite().all():
            raise ConfigError(f"{url}: {_PREFIX}{name} holds values that are not finite; {_REMEDY}")
    return {name: found[name] for name in wanted}


def _unpickled(url: str, data: bytes) -> Any:
    """Only tensors and plain values come to life; nothing that the file names is imported or called."""
    broken = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AssertionError)
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
    except broken as error:
        raise ConfigError(f"{url}: not a checkpoint that torch can read ({type(error).__name__}); {_REMEDY}") from error
    refused = sorted(name for name in unknown if name.split(".")[0] not in _IGNORED_MODULES and name not in _IGNORED_NAMES)
    if refused:
        raise ConfigError(f"{url}: would run {', '.join(refused[:3])} while it is read, which weights do not need; {_REMEDY}")
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in unknown]):  # type: ignore[list-item]
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except broken as error:
        raise ConfigError(f"{url}: not a checkpoint of plain tensors ({' '.join(str(error).split())[:200]}); {_REMEDY}") from error


# Keeps the substitute network in a range where nothing saturates.
_GAINS = {
    "depth_predictor.regressor_residual.weight": 0.1,
    "depth_predictor.depth_head_lowres.2.weight": 2.0,
    "depth_predictor.to_gaussians.2.weight": 2.0,
}
_NORM_GAINS = {"self_attn.norm1.weight": 0.3, "cross_attn_ffn.norm2.weight": 0.3}


def rule_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that are the same everywhere and mean nothing: normal numbers seeded by the CRC of each name, scaled by the fan-in."""
    weights = {}
    for name, shape in shapes.items():
        values = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
        if len(shape) > 1:
            values /= math.sqrt(math.prod(shape[1:]))
        else:
            values = 0.02 * values + (1 if name.endswith(".weight") else 0)
        values *= _GAINS.get(name, 1.0)
        for ending, gain in _NORM_GAINS.items():
            values *= gain if name.endswith(ending) else 1.0
        if name == "depth_predictor.to_disparity.2.weight":
            values *= np.array([0.4, 2.0]).reshape(2, 1, 1, 1)
        if name == "depth_predictor.to_disparity.2.bias":
            values += np.array([-0.30, 0.0])
        weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights
