"""The features that are judged: of a backbone, of an export, of a run's checkpoint, or the supervision itself as if it were features.

model = open_model(config, "cpu")
model.tokens(frame)        # Tokens of one frame
model.features(images)     # a FeatureMap of a batch, for heads that are trained
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from configs import ConfigError
from configs.fields import plain
from configs.schema import BackboneConfig, EvaluateConfig, FeaturesConfig, HeadConfig, LossKind, TrainConfig
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
from training.probes.preprocess import as_batch, normalise, pad, padded_size
from training.probes.protocol import Inputs


@dataclass(frozen=True)
class Tokens:
    """One frame's features. map: a `FeatureMap` of a batch of one, without class token; keep: [h,w] bool, the tokens that count."""

    map: FeatureMap
    keep: torch.Tensor


class TokenSource(Protocol):
    """What is judged. description: what decides about the tokens, as plain JSON values."""

    @property
    def description(self) -> Mapping[str, Any]: ...

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

    base: the network that the model started from, whose tokens stand before its own where the inputs say so. head: of the run, where it was
    trained on exactly these tokens; temperature: of its student's softmax.
    """

    def __init__(
        self,
        backbone: Backbone,
        options: FeaturesConfig,
        description: Mapping[str, Any],
        device: str = "cpu",
        base: Backbone | None = None,
        head: DinoHead | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.spec, self.options, self.device, self.head, self.backbone, self.base = backbone.spec, options, device, head, backbone, base
        self.temperature = temperature
        self.description = {**description, "features": plain(options), "weights_sha256": hash_weights(backbone.state)}
        self.inputs = Inputs(options.norm, options.concatenate, normalisation=None, padding=options.padding, stretch=False)
        self._check()

    @property
    def grid_rule(self) -> list[Any]:
        """What decides about the grid of an image."""
        return [self.spec.patch, self.inputs.padding]

    def with_inputs(self, inputs: Inputs) -> NetworkModel:
        """The same network under a protocol's inputs; its own choice of a layer stays, and so does a concatenation that was asked for."""
        other = copy.copy(self)
        other.inputs = replace(inputs, with_base=inputs.with_base or self.options.concatenate)
        other._check()
        return other

    def grid(self, height: int, width: int) -> FeatureMap:
        """Where the tokens of an image of that size lie: a map without channels."""
        patch = self.spec.patch
        rows, columns, top, left = padded_size(height, width, patch, self.inputs.padding)
        return FeatureMap(torch.empty(1, 0, rows // patch, columns // patch), None, (top, left), patch)

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> FeatureMap:
        """[B,3,H,W] in [0,1], of one size. Beside a base's tokens, the class token is the base's alone, as FiT3D has it."""
        statistics = self.inputs.normalisation or (self.spec.mean, self.spec.std)
        pixels, offset = pad(normalise(images.to(self.device), statistics), self.spec.patch, self.inputs.padding)
        parts = [self.base, self.backbone] if self.inputs.with_base and self.base is not None else [self.backbone]
        found = [self._pass(part, pixels) for part in parts]
        return FeatureMap(torch.cat([tokens for tokens, _ in found], 1), found[0][1], offset, self.spec.patch)

    def tokens(self, frame: ProbeFrame) -> Tokens:
        found = self.features(as_batch([frame.image]))
        patches = found.patch
        if self.options.class_token and found.cls is not None:
            patches = torch.cat([patches, found.cls[:, :, None, None].expand(-1, -1, *patches.shape[-2:])], 1)
        patches = patches.float().cpu()
        return Tokens(FeatureMap(patches, None, found.offset, found.stride), torch.ones(patches.shape[-2:], dtype=torch.bool))

    def _check(self) -> None:
        if self.inputs.with_base and self.base is None:
            raise ConfigError(
                "features.concatenate, or the protocol, needs the network that the model started from; run=... and export=... say it"
            )
        if self.options.layer is not None and self.inputs.layers > 1:
            raise ConfigError("features.layer: the protocol takes several layers; leave it out")

    def _pass(self, part: Backbone, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Patch tokens [B,C,h,w] and the class token [B,C] of one network; of several layers one after the other on channels."""
        height, width = pixels.shape[-2:]
        model = part.at(height, width, self.device)
        depth, layer, count = len(model.blocks), self.options.layer, self.inputs.layers
        if layer is not None and not 0 <= layer < depth:
            raise ConfigError(f"features.layer={layer}: {part.spec.name} has blocks 0 to {depth - 1}")
        found = model.forward_intermediates(
            pixels,
            indices=[depth * (n + 1) // count - 1 for n in range(count)] if layer is None else [layer],
            norm=self.inputs.final_norm,
            return_prefix_tokens=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        has_class = getattr(model, "cls_token", None) is not None
        if self.options.class_token and not has_class:
            raise ConfigError(f"features.class_token: {part.spec.name} has none; set it to false")
        classes = torch.cat([prefix[:, 0] for _, prefix in found], 1) if has_class else None
        return torch.cat([tokens for tokens, _ in found], 1), classes


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
    config = BackboneConfig(like.backbone.architecture, "random", 0, like.backbone.blocks)
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
    # Where it was trained on exactly these tokens.
    headed = config.features == FeaturesConfig(padding=config.features.padding) and trained.loss.kind is LossKind.cross_entropy
    head = _head(trained.head, own, base) if headed else None
    exported = export_state_dict(trained, base, own)
    return NetworkModel(
        Backbone(architecture, blocks, exported), config.features, description, device, Backbone(architecture, blocks, base), head,
        trained.head.student_temperature,
    )  # fmt: skip


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
