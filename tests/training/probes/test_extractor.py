"""Features of a network: the tokens that training sees, wherever they are taken from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import ConfigError, load
from configs.fields import plain
from configs.schema import BackboneConfig, EvaluateConfig, TrainConfig
from storage.location import NotFound
from training import checkpoint
from training.export import file_name
from training.model.backbone import build_backbone, patch_tokens
from training.model.lora import merged_state_dict
from training.model.network import Network, build_networks
from training.model.weights import hash_weights, load_weights
from training.probes.data.base import ProbeFrame
from training.probes.extractor import NetworkModel, base_model, open_model, random_model

DEMO = ("backbone=demo", "backbone.blocks=2")


def model(*words: str) -> NetworkModel:
    return open_model(load(EvaluateConfig, ["data.train=x", "data.test=y", "output=z", "name=n", *words]), "cpu")


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 3, 56, 84, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Network]:
    """A run's checkpoint whose student was moved, and that student. Its note of an export lies beside."""
    run = str(tmp_path_factory.mktemp("run"))
    small = ["dataset=x", f"output={run}", "backbone=demo", "backbone.blocks=2", "head.hidden=16", "head.prototypes=32"]
    config = load(TrainConfig, small)
    base = load_weights(config.backbone)
    student, teacher = build_networks(config, base, 56, 84)
    for number, parameter in enumerate(student.trained().values()):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    optimizer = torch.optim.Adam(student.trained().values())
    who = checkpoint.identity(config, hash_weights(base), "none")
    checkpoint.Writer(run, who).save(checkpoint.TrainerState(student, teacher, optimizer, 7))
    state = merged_state_dict(student.backbone)
    state["pos_embed"] = base["pos_embed"]
    torch.save(state, f"{run}/{file_name(config)}")
    note = {"trained_with": who, "timm": {"model_name": config.backbone.architecture, "num_classes": 0, "depth": 2}}
    Path(f"{run}/{file_name(config)}".replace(".pth", ".json")).write_text(json.dumps(note))
    return run, student.eval()


def test_the_last_layer_after_the_norm_is_what_training_sees(image: torch.Tensor) -> None:
    config = load(EvaluateConfig, ["data.train=x", "data.test=y", "output=z", "name=n", *DEMO]).backbone
    found = model(*DEMO).features(image)
    plain_model = build_backbone(config.architecture, load_weights(config), 56, 84, 2).eval()
    torch.testing.assert_close(found.patch.permute(0, 2, 3, 1), patch_tokens(plain_model, image), rtol=1e-5, atol=1e-5)
    assert (found.patch.shape, found.offset, found.stride) == ((1, 384, 4, 6), (0, 0), 14)


def test_the_norm_can_be_left_out(image: torch.Tensor) -> None:
    plain_tokens, normed = (model(*DEMO, f"features.norm={norm}").features(image).patch for norm in ("false", "true"))
    torch.testing.assert_close(
        torch.nn.functional.layer_norm(plain_tokens.permute(0, 2, 3, 1), (384,), eps=1e-6), normed.permute(0, 2, 3, 1)
    )
    assert not torch.allclose(plain_tokens, normed, atol=1e-2)


def test_a_layer_of_the_same_pass_is_the_truncated_network_before_its_norm(image: torch.Tensor) -> None:
    early = model("backbone=demo", "features.layer=1", "features.norm=false").features(image)
    short = model("backbone=demo", "backbone.blocks=2", "features.norm=false").features(image)
    torch.testing.assert_close(early.patch, short.patch)
    assert not torch.allclose(early.patch, model("backbone=demo", "features.norm=false").features(image).patch, atol=1e-2)
    with pytest.raises(ConfigError, match=r"features\.layer=12: vit_small_patch14_dinov2 has blocks 0 to 11"):
        model("backbone=demo", "features.layer=12").features(image)


@pytest.mark.parametrize(("padding", "grid", "offset"), [("centre", (3, 4), (6, 3)), ("crop", (2, 3), (-1, -3))])
def test_sides_that_are_no_multiple_are_padded_or_cropped(padding: str, grid: tuple[int, int], offset: tuple[int, int]) -> None:
    """30 x 49 pixels; what is odd goes behind."""
    one = model(*DEMO, f"features.padding={padding}")
    picture = torch.rand(1, 3, 30, 49, generator=torch.Generator().manual_seed(1))
    found = one.features(picture)
    assert (tuple(found.patch.shape[2:]), found.offset) == (grid, offset)
    where = one.grid(30, 49)
    assert (tuple(where.patch.shape[2:]), where.offset) == (grid, offset)
    if padding == "crop":
        inside = one.features(picture[:, :, 1:29, 3:45])
        torch.testing.assert_close(found.patch, inside.patch)


def test_the_class_token_stands_beside_every_patch_token() -> None:
    frame = ProbeFrame("a", "r", np.zeros((28, 42, 3), np.uint8))
    tokens = model(*DEMO, "features.class_token=true").tokens(frame).map.patch
    assert tokens.shape == (1, 768, 2, 3)
    assert (tokens[:, 384:] == tokens[:, 384:, :1, :1]).all()
    with pytest.raises(ConfigError, match=r"features\.class_token: .*siglip.* has none"):
        model("backbone.architecture=vit_base_patch16_siglip_224", "backbone.weights=random", "backbone.blocks=1",
              "features.class_token=true").tokens(frame)  # fmt: skip


def test_a_run_and_its_export_give_the_trained_tokens(trained: tuple[str, Network], image: torch.Tensor) -> None:
    run, student = trained
    with torch.inference_mode():
        wanted = student.tokens(image, [0]).permute(0, 3, 1, 2)
    of_run = model(f"run={run}")
    torch.testing.assert_close(of_run.features(image).patch, wanted, rtol=1e-4, atol=1e-4)
    of_export = model(f"export={run}/dinov2_small_snd.pth")
    torch.testing.assert_close(of_export.features(image).patch, wanted, rtol=1e-4, atol=1e-4)
    started = model(*DEMO).features(image).patch
    assert not torch.allclose(wanted, started, atol=1e-2)
    for one in (of_run, of_export):
        base = base_model(one)
        assert base is not None
        torch.testing.assert_close(base.features(image).patch, started)
    teacher = model(f"run={run}", "network=teacher")
    torch.testing.assert_close(teacher.features(image).patch, started, rtol=1e-4, atol=1e-4)
    assert of_run.head is not None
    assert model(f"run={run}", "features.norm=false").head is None


def test_tokens_beside_those_of_the_base(trained: tuple[str, Network], image: torch.Tensor) -> None:
    run, _ = trained
    both = model(f"run={run}", "features.concatenate=true").features(image)
    torch.testing.assert_close(both.patch[:, :384], model(*DEMO).features(image).patch)
    torch.testing.assert_close(both.patch[:, 384:], model(f"run={run}").features(image).patch)
    assert both.cls is not None
    torch.testing.assert_close(both.cls, model(*DEMO).features(image).cls)
    with pytest.raises(ConfigError, match=r"features\.concatenate"):
        model(*DEMO, "features.concatenate=true")


def test_what_is_not_there_is_named(trained: tuple[str, Network], tmp_path: Path) -> None:
    run, _ = trained
    with pytest.raises(ConfigError, match=r"step=3: .* has checkpoints of steps 7"):
        model(f"run={run}", "step=3")
    with pytest.raises(NotFound, match=r"x\.json: no note beside the weights; give backbone\.architecture=\.\.\. and backbone\.weights="):
        model(f"export={tmp_path}/x.pth")
    with pytest.raises(ConfigError, match="run and export: give one of them"):
        model(f"run={run}", "export=x.pth")


def test_the_description_tells_networks_apart(trained: tuple[str, Network]) -> None:
    run, _ = trained
    one, other = model(*DEMO), model("backbone=demo", "backbone.blocks=2", "backbone.seed=1")
    assert one.description["weights_sha256"] != other.description["weights_sha256"]
    assert one.description["weights_sha256"] == model(*DEMO).description["weights_sha256"]
    assert model(f"run={run}").description["step"] == 7
    assert random_model(other).description["backbone"] == plain(BackboneConfig("vit_small_patch14_dinov2", "random", 0, 2))
