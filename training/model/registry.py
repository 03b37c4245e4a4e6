"""Which vision transformers can be the backbone, and what each family needs to know. Found by timm's name, with or without a tag.

find_spec("vit_small_patch14_dinov2").patch      # 14
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from configs import ConfigError


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone.

    name: timm's, with its tag where one was given; family: of `_FAMILIES`; patch: pixels of a token's side; mean, std: of the images,
    for RGB in [0,1]; pretrained_size: (height, width) in pixels of the published weights; position: `dinov2` (its published bicubic
    rule), `timm` (timm's resampling) or `rope` (nothing to resample); lora: the names of the layers that take LoRA; options: of timm;
    blocks: how many of the first blocks it has, None for all.
    """

    name: str
    family: str
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pretrained_size: tuple[int, int]
    position: str
    lora: tuple[str, ...] = ("qkv", "proj")
    options: tuple[tuple[str, str], ...] = ()
    blocks: int | None = None

    @property
    def timm_options(self) -> dict[str, Any]:
        """What `timm.create_model` is given beside the name, for a model without a classifier."""
        depth = {} if self.blocks is None else {"depth": self.blocks}
        return {"num_classes": 0, **dict(self.options), **depth}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens (h, w) of an image of `height` x `width` pixels: whole patches, the rest is resized away."""
        return height // self.patch, width // self.patch


@dataclass(frozen=True)
class _Family:
    pattern: str
    position: str
    options: tuple[tuple[str, str], ...] = ()


_FAMILIES = {
    "dinov2": _Family(r"vit_(small|base|large|giant)_patch14_(reg4_)?dinov2", "dinov2"),
    "dinov3": _Family(r"vit_(small|base|large)_patch16_dinov3(_qkvb)?", "rope"),
    "siglip": _Family(r"vit_\w+_patch\d+_siglip_(gap_)?\d+", "timm", (("global_pool", ""),)),  # without its map-pooling head
    "vit": _Family(r"vit_(tiny|small|base|large|huge)_patch\d+_\d+", "timm"),  # MAE's too: vit_base_patch16_224.mae
}


def find_spec(name: str, blocks: int | None = None) -> BackboneSpec:
    """The spec of a backbone.

    Args:
        name: timm's name, such as `vit_base_patch16_224.mae`; without a tag, timm's default weights of that name are meant.
        blocks: how many of the first blocks it is to have; None for all.

    Raises:
        ConfigError: timm has no such model or tag, its family is not known here, or it has not so many blocks.
    """
    import timm

    architecture = name.partition(".")[0]
    family = next((key for key, rules in _FAMILIES.items() if re.fullmatch(rules.pattern, architecture)), None)
    if family is None:
        raise ConfigError(f"backbone.architecture={name}: no rule for its tokens; the families with one are {', '.join(_FAMILIES)}")
    try:
        published = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        published = None
    if published is None:
        raise ConfigError(f"backbone.architecture={name}: timm {timm.__version__} has no such model; see timm.list_models('vit_*')")
    rules = _FAMILIES[family]
    spec = BackboneSpec(
        name=name,
        family=family,
        patch=int(re.search(r"_patch(\d+)", architecture).group(1)),  # type: ignore[union-attr]
        mean=tuple(published.mean),  # type: ignore[arg-type]
        std=tuple(published.std),  # type: ignore[arg-type]
        pretrained_size=(published.input_size[1], published.input_size[2]),
        position=rules.position,
        options=rules.options,
    )
    if blocks is None:
        return spec
    with torch.device("meta"):
        whole: Any = timm.create_model(name, **spec.timm_options)
    depth = len(whole.blocks)
    if not 1 <= blocks <= depth:
        raise ConfigError(f"backbone.blocks={blocks}: {name} has 1 to {depth}")
    return replace(spec, blocks=blocks)
