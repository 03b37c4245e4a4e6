"""Stands in for the `ffgs` package where the extra is not installed: what our adapter uses of its interface, and no model.

Written from what the adapter and its tests ask for. With the extra installed, the same tests run against the package itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

__version__ = "0+stub"


class Gaussians(NamedTuple):
    """A batch of clouds: means, scales [B,N,3], quats [B,N,4] as (w,x,y,z), opacities [B,N], colours [B,N,3]."""

    means: torch.Tensor
    scales: torch.Tensor
    quats: torch.Tensor
    opacities: torch.Tensor
    colours: torch.Tensor
    harmonics: torch.Tensor | None


class Views:
    """Context views as a batch of one. images [1,V,3,H,W] in 0..1; intrinsics [1,V,3,3] in pixels; c2w [1,V,4,4], OpenCV."""

    def __init__(self, images: torch.Tensor, intrinsics: torch.Tensor, c2w: torch.Tensor) -> None:
        self.images, self.intrinsics, self.c2w = (x if x.ndim == n else x[None] for x, n in ((images, 5), (intrinsics, 4), (c2w, 4)))


class Residuals(NamedTuple):
    """How far fitted cameras are off the given ones. rotation_deg, relative_center_error: [V]."""

    rotation_deg: torch.Tensor
    relative_center_error: torch.Tensor


@dataclass
class ModelFrame:
    """The frame in which a model works: that of `anchor_c2w` [1,4,4], shrunk by `scale`. residuals: where it was fitted to cameras."""

    anchor_c2w: torch.Tensor
    scale: float
    residuals: Residuals | None = None

    @classmethod
    def fit(cls, model_c2w: torch.Tensor, world_c2w: torch.Tensor) -> ModelFrame:
        """The similarity that takes a model's own cameras [1,V,4,4] to the given ones, from the mean of the rotations between them."""
        model, world = model_c2w[0].double(), world_c2w[0].double()
        left, _, right = torch.linalg.svd((world[:, :3, :3] @ model[:, :3, :3].mT).sum(0))
        turn = left @ torch.diag(torch.tensor([1.0, 1.0, torch.det(left @ right)], dtype=torch.float64)) @ right
        centres, given = (c[:, :3, 3] - c[:, :3, 3].mean(0) for c in (model, world))
        extent = given.norm(dim=1).mean()
        scale = float(centres.norm(dim=1).mean() / extent)
        off = turn @ model[:, :3, :3] @ world[:, :3, :3].mT
        cosine = (off.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
        error = (centres @ turn.T / scale - given).norm(dim=1) / extent
        anchor = torch.eye(4, dtype=torch.float64)
        anchor[:3, :3] = turn
        anchor[:3, 3] = world[:, :3, 3].mean(0) - turn @ model[:, :3, 3].mean(0) / scale
        return cls(anchor[None].float(), scale, Residuals(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))), error))

    def c2w_to_model(self, c2w: torch.Tensor) -> torch.Tensor:
        moved = self.anchor_c2w[:, None].inverse() @ c2w
        moved[..., :3, 3] *= self.scale
        return moved


class Prepared(NamedTuple):
    """What a processor makes of views: the model's inputs, and the frame in which its output will be."""

    inputs: dict[str, torch.Tensor]
    frame: ModelFrame | None


@dataclass
class Output:
    """What a pipeline gives: Gaussians in the model's frame, until `to_world`."""

    gaussians: Gaussians
    frame: ModelFrame | None

    def to_world(self) -> Output:
        if self.frame is None:
            return self
        turn, shift = self.frame.anchor_c2w[0, :3, :3], self.frame.anchor_c2w[0, :3, 3]
        means = self.gaussians.means / self.frame.scale @ turn.T + shift
        return Output(self.gaussians._replace(means=means, scales=self.gaussians.scales / self.frame.scale), self.frame)


@dataclass
class ImageFitConfig:
    """Settings of a processor that brings images to one size [height, width]."""

    image_shape: list[int] = field(default_factory=lambda: [256, 256])
    crop_mode: str = "crop"

    def __post_init__(self) -> None:
        self.image_shape = list(self.image_shape)


class Processor:
    config_cls: type = ImageFitConfig

    def __init__(self, **settings: Any) -> None:
        known = {f.name for f in fields(self.config_cls)}
        for name in settings.keys() - known:
            raise ValueError(f"unknown setting of the processor: {name}")
        self.config = self.config_cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self.config)

    def preprocess(self, views: Views, device: torch.device, **options: Any) -> Prepared:
        raise NotImplementedError

    def postprocess(self, model_output: Any) -> Gaussians:
        raise NotImplementedError


class ModelSpec(NamedTuple):
    model_type: str
    model_cls: type
    processor_cls: type


_MODELS: dict[str, ModelSpec] = {}


def register_model(spec: ModelSpec) -> None:
    _MODELS[spec.model_type] = spec


def get_model_spec(model_type: str) -> ModelSpec:
    if model_type not in _MODELS:
        raise KeyError(f"unknown model_type {model_type!r}; known: {', '.join(sorted(_MODELS))}")
    return _MODELS[model_type]


class GSPipeline:
    """Processor, model, processor."""

    def __init__(self, model: torch.nn.Module, processor: Processor, model_type: str) -> None:
        self.model, self.processor, self.model_type = model.eval(), processor, model_type

    def save_pretrained(self, folder: str | Path) -> Path:
        self.model.save_pretrained(folder)
        Path(folder, "processor.json").write_text(json.dumps(self.processor.to_dict()))
        return Path(folder)

    @classmethod
    def from_pretrained(cls, weights: str, model_type: str, device: Any, processor_overrides: Mapping[str, Any]) -> GSPipeline:
        spec = get_model_spec(model_type)
        stored = Path(weights, "processor.json")
        if not stored.exists():
            raise FileNotFoundError(f"{stored}: no such weights")
        processor = spec.processor_cls(**{**json.loads(stored.read_text()), **processor_overrides})
        return cls(spec.model_cls.from_pretrained(weights).to(device), processor, model_type)

    @torch.no_grad()
    def __call__(self, views: Views) -> Output:
        prepared = self.processor.preprocess(views, views.images.device)
        return Output(self.processor.postprocess(self.model(prepared.inputs)), prepared.frame)
