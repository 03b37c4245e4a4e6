"""Turns a run into weights that timm loads strictly, with `timm.create_model(**note["timm"])` of the note beside them: LoRA folded in, no
trace of training.

    python training/export.py run=s3://bucket/runs/with-blending output=weights

The file is named as the model card names it: `dinov2_small_snd.pth` with blending, `dinov2_small_snd_no_blending.pth` without. Before
anything is written, the weights are loaded strictly into a fresh model, whose tokens must equal those of the trained network.
"""

from __future__ import annotations

import io
from typing import Any

import torch

from configs import ConfigError, command
from configs.schema import ExportConfig, TrainConfig
from configs.stored import restore
from storage import codec, location
from storage.location import NotFound, join
from training import checkpoint
from training.model.backbone import StateDict, build_backbone, patch_tokens
from training.model.lora import merged_state_dict, seed_rows
from training.model.network import Network
from training.model.registry import find_spec
from training.model.weights import hash_weights, load_weights

_SIZES = {"vit_small": "small", "vit_base": "base", "vit_large": "large", "vit_giant": "giant"}
_PARITY = 1e-5  # of the tokens' largest value; folding LoRA in rounds differently


def run(config: ExportConfig) -> None:
    """Exports one checkpoint of one run."""
    trained, base, state, who, step = read_run(config.run, config.step, config.weights)
    if not _moved(base, state[config.network.value]):
        raise ConfigError(f"network={config.network.value}: at step {step} of {config.run} it is still the backbone that it started from; "
                          "choose network=student, or train longer")  # fmt: skip
    spec = find_spec(trained.backbone.architecture, trained.backbone.blocks)
    exported = export_state_dict(trained, base, state[config.network.value])
    url = join(config.output, file_name(trained))
    stream = io.BytesIO()
    torch.save(exported, stream)
    location.write_bytes(url, stream.getvalue())
    note = {"run": config.run, "step": step, "network": config.network.value, "sha256": hash_weights(exported), "trained_with": who,
            "timm": {"model_name": spec.name, **spec.timm_options}}  # fmt: skip
    location.write_bytes(url.removesuffix(".pth") + ".json", codec.encode_json(note))
    substitute = "; from random substitute weights, not published ones" if trained.backbone.weights == "random" else ""
    print(f"{url}: {trained.backbone.architecture}, {config.network.value} at step {step}{substitute}", flush=True)


def _moved(base: StateDict, trained: StateDict) -> bool:
    """Whether a network's trained parameters make it another backbone than the one that it started from."""
    own = {name.removeprefix("backbone."): tensor for name, tensor in trained.items() if name.startswith("backbone.")}
    return any(tensor.any() if "lora_B" in name else name in base and not torch.equal(tensor, base[name]) for name, tensor in own.items())


def read_run(run: str, step: int | None, weights: str | None = None) -> tuple[TrainConfig, StateDict, dict[str, Any], dict[str, Any], int]:
    """A checkpoint and what it started from.

    Args:
        run: URL of a run of training/train.py.
        step: of the checkpoint; None: the last.
        weights: URL of the weights that the run started from, where they lie elsewhere by now.

    Returns:
        Configuration, weights of the frozen backbone, state of the checkpoint, its identity and its step.

    Raises:
        NotFound: there is no checkpoint. ConfigError: none of that step, or the weights are others by now.
    """
    present = checkpoint.steps(run)
    if not present:
        raise NotFound(f"{run}: no checkpoint of training/train.py here; check the URL, or train first")
    step = present[-1] if step is None else step
    if step not in present:
        raise ConfigError(f"step={step}: {run} has checkpoints of steps {', '.join(map(str, present))}")
    state, who = checkpoint.load(run, step)
    trained = trained_config(who, run)
    if weights is not None:
        trained.backbone.weights = weights
    base = load_weights(trained.backbone)
    if hash_weights(base) != who["weights_sha256"]:
        raise ConfigError(
            f"{run}: was trained from other weights than {trained.backbone.weights} gives now; say where they are: weights=..."
        )
    return trained, base, state, who, step


def trained_config(who: dict[str, Any], run: str) -> TrainConfig:
    """The configuration that a checkpoint's identity holds. run: for messages."""
    return restore(TrainConfig, who["config"], run)


def file_name(config: TrainConfig) -> str:
    """As the model card names the file; backbones that it does not know keep timm's name."""
    ending = f"snd{'' if config.supervision.blend < 1 else '_no_blending'}.pth"
    spec = find_spec(config.backbone.architecture)
    if spec.family != "dinov2" or "_reg4_" in spec.name:
        return f"{spec.name}_{ending}"
    size = next((name for prefix, name in _SIZES.items() if config.backbone.architecture.startswith(prefix)), config.backbone.architecture)
    return f"dinov2_{size}_{ending}"


def export_state_dict(config: TrainConfig, base: StateDict, trained: StateDict) -> StateDict:
    """The plain backbone's state dict with the trained LoRA folded in and the position embedding as published, checked for parity."""
    size = 8 * find_spec(config.backbone.architecture).patch
    network = Network(config, base, size, size).eval()
    network.load_trained(trained)
    exported = merged_state_dict(network.backbone)
    if "pos_embed" in base:
        exported["pos_embed"] = base["pos_embed"].clone()
    plain = build_backbone(config.backbone.architecture, exported, size, size, config.backbone.blocks).eval()
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        seed_rows(network.backbone, [0])
        wanted, got = patch_tokens(network.backbone, image), patch_tokens(plain, image)
    error = ((wanted - got).abs().max() / wanted.abs().max()).item()
    if not error < _PARITY:
        raise ConfigError(
            f"the exported weights give other tokens than the trained network (relative error {error:.1e}): a bug; nothing was written"
        )
    return exported


if __name__ == "__main__":
    command(ExportConfig, run)
