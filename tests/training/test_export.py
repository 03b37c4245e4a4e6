"""Export: what timm loads strictly gives the tokens of the network that was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from configs import ConfigError, load
from configs.schema import ExportConfig, TrainConfig
from storage.location import NotFound
from training import checkpoint
from training.export import file_name, run
from training.model.backbone import build_backbone, patch_tokens, preprocess
from training.model.network import Network
from training.model.registry import find_spec
from training.model.weights import load_weights, read_state_dict
from training.train import run as train

SMALL = ("backbone=demo", "batch=2", "steps=4", "head.hidden=32", "head.prototypes=64", "head.student_temperature=0.1", "loader.workers=0",
         "optimizer.lr=0.05", "optimizer.warmup=0.5", "checkpoint_every=2", "picture_every=1000", "device=cpu")  # fmt: skip


@pytest.fixture(scope="module")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, TrainConfig]:
    """Four steps at a rate that moves LoRA far from zero."""
    output = str(tmp_path_factory.mktemp("run"))
    config = load(TrainConfig, [f"dataset={dataset}", f"output={output}", *SMALL])
    train(config)
    return output, config


def network_of(trained: tuple[str, TrainConfig], height: int, width: int) -> torch.nn.Module:
    output, config = trained
    network = Network(config, load_weights(config.backbone), height, width).eval()
    parameters = dict(network.named_parameters())
    for name, tensor in checkpoint.load(output, 4)[0]["student"].items():
        parameters[name].data.copy_(tensor)
    return network.backbone


@pytest.mark.parametrize("size", [(84, 126), (518, 518)])
def test_timm_loads_it_strictly_and_gives_the_trained_tokens(
    trained: tuple[str, TrainConfig], tmp_path: Path, size: tuple[int, int]
) -> None:
    run(load(ExportConfig, [f"run={trained[0]}", f"output={tmp_path}", "network=student"]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dinov2_small_snd.json", "dinov2_small_snd.pth"]
    exported = torch.load(tmp_path / "dinov2_small_snd.pth", weights_only=True)
    base = load_weights(trained[1].backbone)
    assert max((exported[name] - base[name]).abs().max().item() for name in base) > 1e-2

    image = torch.from_numpy(np.random.default_rng(0).random((1, 3, *size), dtype=np.float32))
    model = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=False, num_classes=0).eval()
    model.load_state_dict(exported, strict=True)
    with torch.inference_mode():
        wanted = patch_tokens(network_of(trained, *size), image)
        if size == (518, 518):  # elsewhere timm and DINOv2 resample the position embedding differently
            got = model.forward_features(preprocess(find_spec("vit_small_patch14_dinov2"), image))[:, 1:].unflatten(1, wanted.shape[1:3])
        else:
            got = patch_tokens(build_backbone(trained[1].backbone.architecture, model.state_dict(), *size).eval(), image)
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_both_variants_are_named_as_the_model_card_names_them(dataset: str) -> None:
    names = []
    for blend in ("0.5", "1.0"):
        for backbone in ("demo", "dinov2_vitb14"):
            arguments = [f"dataset={dataset}", "output=x", f"supervision.blend={blend}", f"backbone={backbone}"]
            names.append(file_name(load(TrainConfig, arguments)))
    assert names == ["dinov2_small_snd.pth", "dinov2_base_snd.pth", "dinov2_small_snd_no_blending.pth", "dinov2_base_snd_no_blending.pth"]


def test_what_is_not_there_is_named(trained: tuple[str, TrainConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"step=3: .* has checkpoints of steps 2, 4"):
        run(load(ExportConfig, [f"run={trained[0]}", f"output={tmp_path}", "step=3"]))
    with pytest.raises(NotFound, match=r"no checkpoint of training/train\.py here"):
        run(load(ExportConfig, [f"run={tmp_path}/none", f"output={tmp_path}"]))
    assert not list(tmp_path.iterdir())


def test_a_network_that_has_not_moved_is_not_exported(trained: tuple[str, TrainConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"network=teacher: .* still the backbone that it started from"):
        run(load(ExportConfig, [f"run={trained[0]}", f"output={tmp_path}"]))


def test_the_export_can_be_trained_from(trained: tuple[str, TrainConfig], tmp_path: Path) -> None:
    run(load(ExportConfig, [f"run={trained[0]}", f"output={tmp_path}", "network=student"]))
    assert set(read_state_dict(str(tmp_path / "dinov2_small_snd.pth"))) == set(load_weights(trained[1].backbone))
