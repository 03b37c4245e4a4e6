"""LoRA on the backbone, by way of peft, with dropout that depends on the row and not on the rank.

An ordinary dropout draws from one generator a process, so a run on two ranks differs from a run on one, and a resumed run from an
undisturbed one. Here each row of the batch brings its own seed (`seed_rows`), computed from the run's seed, the step and the row.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from configs.schema import LoraConfig


class RowDropout(torch.nn.Module):
    """Dropout whose mask for row b is a function of `seeds[b]` and the layer alone."""

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.p, self.layer = p, layer
        self.seeds: Sequence[int] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        if len(self.seeds) != len(x):
            raise RuntimeError(f"{len(x)} rows but {len(self.seeds)} seeds: call seed_rows before the forward pass")
        generator = torch.Generator(device=x.device)
        keep = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for row, seed in zip(keep, self.seeds, strict=True):
            generator.manual_seed((seed * 1_000_003 + self.layer) % 2**63)
            row.bernoulli_(1 - self.p, generator=generator)
        return x * keep / (1 - self.p)


def add_lora(model: Any, config: LoraConfig, seed: int) -> torch.nn.Module:
    """Adds trainable LoRA in place to the layers that the spec of a `build_backbone` model names, the patch embedding's `proj` among them
    unless told otherwise."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    excluded = None if config.patch_embed else ["patch_embed.proj"]
    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(model.spec.lora),
        exclude_modules=excluded,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft advises on saving adapters for hub models; we export merged weights
        torch.manual_seed(seed)
        inject_adapter_in_model(peft_config, model)
    for number, (_, layer) in enumerate(_lora_layers(model)):
        if config.dropout:
            layer.lora_dropout["default"] = RowDropout(config.dropout, number)
    adapted: torch.nn.Module = model
    return adapted


def seed_rows(model: torch.nn.Module, seeds: Sequence[int]) -> None:
    """Gives every dropout below `model` one seed for each row of the next batch."""
    for module in model.modules():
        if isinstance(module, RowDropout):
            module.seeds = seeds


def merged_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the plain backbone with LoRA folded into its weights: names without any trace of peft. `model` stays as it is."""
    merged = {}
    deltas = {f"{name}.weight": layer.get_delta_weight("default") for name, layer in _lora_layers(model)}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        merged[plain] = (tensor + deltas[plain] if plain in deltas else tensor).detach().cpu().clone().contiguous()
    return merged


def _lora_layers(model: torch.nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
