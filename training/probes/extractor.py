"""The features that are judged: of a backbone, of an export, of a run's checkpoint, or the supervision itself as if it were features.

    model = open_model(config, "cpu")
    model.tokens(frame)        # Tokens of one frame
    model.features(images)     # a FeatureMap of a batch, for heads that are trained
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from configs import ConfigError
from configs.fields import plain
from configs.schema import BackboneConfig, EvaluateConfig, FeaturesConfig, HeadConfig, TrainConfig
from configs.stored import restore
from storage import codec, location
from storage.location import NotFound
from training.export import export_state_dict, read_run
from training.model.backbone import StateDict, build_backbone
from training.model.head import DinoHead
from training.model.registry import BackboneSpec, find_spec
from training.model.weights import hash_weights, load_weights
from training.probes.data.base import ProbeFrame
from training.probes.features import FeatureMap


@dataclass(frozen=True)
class Tokens:
    """One frame's features. map: a `FeatureMap` of a batch of one, without class token; keep: [h,w] bool, the tokens that count."""

    map: FeatureMap
    keep: torch.Tensor


class TokenSource(Protocol):
    """What is judged. description: decides about the tokens, as plain JSON values."""

    description: Mapping[str, Any]

    def tokens(self, frame: ProbeFrame) -> Tokens: ...


@dataclass
class Backbone:
    """Weights that a transformer of the registry is built of, at whatever size its images have."""

    architecture: str
    blocks: int | None
    state: StateDict
    _built: dict[tuple[int, int], torch.nn.Module] = field(default_factory=dict)

    @property
    def spec(self) -> BackboneSpec:
        return find_spec(self.architecture, self.blocks)

    def at(self, height: int, width: int, device: str) -> Any:
        """The model for images of that size. All sizes share one memory."""
        if (height, width) not in self._built:
            model = build_backbone(self.architecture, self.state, height, width, self.blocks).eval()
            self._built[height, width] = model.to(device)
        return self._built[height, width]


class NetworkModel:
    """The tokens of a network.

    base: the network whose tokens stand beside its own where `features.concatenate` says so. head: of the run, where it was trained on
    exactly these tokens.
    """

    def __init__(
        self,
        backbone: Backbone,
        features: FeaturesConfig,
        description: Mapping[str, Any],
        device: str = "cpu",
        base: Backbone | None = None,
        head: DinoHead | None = None,
    ) -> None:
        self.spec, self.options, self.device, self.head = backbone.spec, features, device, head
        if features.concatenate and base is None:
            raise ConfigError("features.concatenate: needs run=... or export=..., which say what the model started from")
        self.base = base
        self.parts = [base, backbone] if features.concatenate and base is not None else [backbone]
        self.description = {**description, "features": plain(features), "weights_sha256": hash_weights(backbone.state)}

    @property
    def grid_rule(self) -> list[Any]:
        """What decides about the grid of an image."""
        return [self.spec.patch, self.options.fit]

    def grid(self, height: int, width: int) -> FeatureMap:
        """Where the tokens of an image of that size lie: a map without channels. The odd pixel is added, or cut off, behind."""
        patch, pad = self.spec.patch, self.options.fit == "pad"
        sizes = [-(-size // patch) if pad else size // patch for size in (height, width)]
        offset = tuple(int((count * patch - size) / 2) for count, size in zip(sizes, (height, width), strict=True))
        return FeatureMap(torch.empty(1, 0, *sizes), None, (offset[0], offset[1]), patch)

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> FeatureMap:
        """[B,3,H,W] in [0,1], of one size. The class token is the first network's alone, as FiT3D has it."""
        mean, std = (torch.tensor(c, device=self.device).view(1, 3, 1, 1) for c in (self.spec.mean, self.spec.std))
        pixels = (images.to(self.device) - mean) / std
        where = self.grid(*images.shape[-2:])
        (top, left), (h, w), patch = where.offset, where.patch.shape[-2:], where.stride
        bottom, right = h * patch - images.shape[-2] - top, w * patch - images.shape[-1] - left
        pixels = F.pad(pixels, (left, right, top, bottom))  # with zeros after normalisation, or less than nothing
        found = [self._pass(part, pixels) for part in self.parts]
        return FeatureMap(torch.cat([tokens for tokens, _ in found], 1), found[0][1], where.offset, patch)

    def tokens(self, frame: ProbeFrame) -> Tokens:
        image = torch.from_numpy(np.ascontiguousarray(frame.image)).permute(2, 0, 1)[None].float() / 255
        found = self.features(image)
        patches = found.patch
        if self.options.class_token and found.cls is not None:
            patches = torch.cat([patches, found.cls[:, :, None, None].expand(-1, -1, *patches.shape[-2:])], 1)
        patches = patches.float().cpu()
        return Tokens(FeatureMap(patches, None, found.offset, found.stride), torch.ones(patches.shape[-2:], dtype=torch.bool))

    def _pass(self, part: Backbone, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Patch tokens [B,C,h,w] and the class token [B,C] of one network."""
        model = part.at(*pixels.shape[-2:], self.device)
        depth, layer = len(model.blocks), self.options.layer
        if layer is not None and not 0 <= layer < depth:
            raise ConfigError(f"features.layer={layer}: {part.spec.name} has blocks 0 to {depth - 1}")
        (found,) = model.forward_intermediates(
            pixels,
            indices=[depth - 1 if layer is None else layer],
            norm=self.options.norm,
            return_prefix_tokens=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        tokens, prefix = found
        has_class = getattr(model, "cls_token", None) is not None
        if self.options.class_token and not has_class:
            raise ConfigError(f"features.class_token: {part.spec.name} has none; set it to false")
        return tokens, prefix[:, 0] if has_class else None


def open_model(config: EvaluateConfig, device: str) -> NetworkModel:
    """The network that a configuration names.

    Raises ConfigError, NotFound: there is no such thing, or it does not fit.
    """
    if config.run is not None:
        return _of_run(config, device)
    if config.export is not None:
        return _of_export(config, device)
    backbone = _load(config.backbone)
    return NetworkModel(backbone, config.features, {"backbone": plain(config.backbone)}, device)


def random_model(like: NetworkModel) -> NetworkModel:
    """The same architecture and options with random weights."""
    backbone = like.parts[-1]
    config = BackboneConfig(backbone.architecture, "random", 0, backbone.blocks)
    options = replace(like.options, concatenate=False)
    return NetworkModel(_load(config), options, {"backbone": plain(config)}, like.device)


def base_model(like: NetworkModel) -> NetworkModel | None:
    """What the model was trained from, with the same options; None where it is no trained one."""
    if like.base is None:
        return None
    return NetworkModel(like.base, replace(like.options, concatenate=False), {"base": True}, like.device)


def _load(config: BackboneConfig) -> Backbone:
    return Backbone(config.architecture, config.blocks, load_weights(config))


def _of_run(config: EvaluateConfig, device: str) -> NetworkModel:
    assert config.run is not None
    trained, base, state, who, step = read_run(config.run, config.step, config.base)
    own = state[config.network.value]
    architecture, blocks = trained.backbone.architecture, trained.backbone.blocks
    description = {"run": config.run, "step": step, "network": config.network.value, "trained_with": who}
    plain_tokens = config.features == FeaturesConfig(fit=config.features.fit)
    head = _head(trained.head, own, base) if plain_tokens else None
    exported = export_state_dict(trained, base, own)
    return NetworkModel(
        Backbone(architecture, blocks, exported), config.features, description, device, Backbone(architecture, blocks, base), head
    )


def _head(config: HeadConfig, trained: StateDict, base: StateDict) -> DinoHead:
    head = DinoHead.from_config(base["norm.weight"].shape[0], config)
    head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in trained.items() if name.startswith("head.")})
    return head.eval().requires_grad_(False)


def _of_export(config: EvaluateConfig, device: str) -> NetworkModel:
    assert config.export is not None
    url = config.export.rsplit(".", 1)[0] + ".json"
    try:
        note = codec.decode_json(location.read_bytes(url))
        name, blocks = note["timm"]["model_name"], note["timm"].get("depth")
        trained_with = note["trained_with"]
    except NotFound as error:
        raise NotFound(f"{url}: no note beside the weights; give backbone.architecture=... and backbone.weights={config.export}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{url}: not a note of training/export.py; export the run again") from error
    backbone = _load(BackboneConfig(name, config.export, 0, blocks))
    base = None
    if config.baselines or config.features.concatenate:
        started = restore(TrainConfig, trained_with["config"], url).backbone
        base = _load(started if config.base is None else replace(started, weights=config.base))
        if hash_weights(base.state) != trained_with["weights_sha256"]:
            raise ConfigError(f"base: {config.export} was trained from other weights; say where they are: base=..., or baselines=false")
    return NetworkModel(backbone, config.features, {"export": config.export, **note}, device, base)


def stack(tokens: Sequence[Tokens]) -> torch.Tensor:
    """The tokens that count of several frames, [N,C]."""
    return torch.cat([one.map.patch[0][:, one.keep].T for one in tokens])
