"""Backbone, LoRA, head, teacher and schedule against the published ones."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import ConfigError
from configs.schema import BackboneConfig, LoraConfig
from training.model.backbone import build_backbone, patch_tokens, preprocess, resample_position
from training.model.head import DinoHead
from training.model.lora import RowDropout, add_lora, merged_state_dict, seed_rows
from training.model.registry import find_spec
from training.model.weights import hash_weights, load_weights, read_state_dict
from training.objective.ema import update_teacher
from training.objective.loss import PrototypeTargets, prototype_cross_entropy
from training.objective.schedule import one_cycle

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "snd"
DEMO = BackboneConfig("vit_small_patch14_dinov2", "random", 0)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_weights(DEMO)


@pytest.mark.parametrize("name", ["preprocess_a", "preprocess_b"])
def test_preprocess_golden(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    images = torch.from_numpy(golden["image"]).flatten(0, 1)
    np.testing.assert_allclose(preprocess(find_spec("vit_small_patch14_dinov2"), images).numpy(), golden["vit_input"], atol=1e-4)


@pytest.mark.parametrize("name", ["head_loss_a", "head_loss_b"])
def test_head_and_loss_golden(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    *sizes, layers = golden["head_dims"].tolist()
    student, teacher = (published_head(who, sizes, layers) for who in ("student", "teacher"))
    features = torch.from_numpy(golden["student_features"]).requires_grad_()
    holes = torch.from_numpy(golden["err_mask"])

    def tokens(maps: torch.Tensor) -> torch.Tensor:
        return maps.masked_fill(holes, 0).permute(0, 1, 3, 4, 2).flatten(0, 3)

    own, theirs = tokens(features), tokens(torch.from_numpy(golden["teacher_features"]))
    with torch.no_grad():
        targets = PrototypeTargets(teacher.points(theirs), teacher.last_layer.rows())
    for who, head, given in (("student", student, own), ("teacher", teacher, theirs)):
        np.testing.assert_allclose(head(given).detach(), golden[f"{who}_logits"], atol=1e-6)
    losses = [prototype_cross_entropy(*one_token(student, own, n), of_token(targets, n)).loss.item() for n in range(len(own))]
    np.testing.assert_allclose(losses, golden["per_token_ce"], atol=1e-5)
    found = prototype_cross_entropy(student.points(own), student.last_layer.rows(), targets)
    np.testing.assert_allclose(float(found.loss) / len(own), golden["loss"], atol=1e-5)
    (found.loss / len(own)).backward()
    np.testing.assert_allclose(features.grad.numpy(), golden["grad_student_features"], rtol=1e-3, atol=1e-7)
    for key, parameter in student.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), golden[f"grad.{key}"], rtol=1e-3, atol=1e-7)


def one_token(head: DinoHead, tokens: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return head.points(tokens[n : n + 1]).detach(), head.last_layer.rows().detach()


def of_token(targets: PrototypeTargets, n: int) -> PrototypeTargets:
    return replace(targets, points=targets.points[n : n + 1])


def published_head(who: str, sizes: list[int], layers: int) -> DinoHead:
    head = DinoHead(*sizes, layers=layers)
    for key, parameter in head.named_parameters():
        stream = np.random.Generator(np.random.PCG64(zlib.crc32(f"{who}.dino_head.{key}".encode())))
        values = stream.standard_normal(tuple(parameter.shape)) * 0.02 + (1.0 if key == "last_layer.weight_g" else 0.0)
        parameter.data = torch.from_numpy(values.astype(np.float32))
    return head


@pytest.mark.parametrize("name", ["ema_a", "ema_b"])
def test_teacher_golden(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    momentum = min(1.0, max(0.0, float(golden["momentum"])))
    teacher = as_module(golden, "teacher0.")
    for update in range(int(golden["n_updates"])):
        update_teacher(teacher, as_module(golden, f"student{update}."), momentum)
    wanted = as_module(golden, f"teacher{int(golden['n_updates'])}.")
    for got, expected in zip(teacher.parameters(), wanted.parameters(), strict=True):
        np.testing.assert_allclose(got.detach().numpy(), expected.detach().numpy(), atol=1e-6)


def as_module(golden: np.lib.npyio.NpzFile, prefix: str) -> torch.nn.Module:
    module = torch.nn.Module()
    for key in sorted(k for k in golden.files if k.startswith(prefix)):
        module.register_parameter(key.removeprefix(prefix).replace(".", "_"), torch.nn.Parameter(torch.from_numpy(golden[key].copy())))
    return module


def test_the_teacher_leaves_frozen_weights_alone() -> None:
    teacher, student = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    student.bias.requires_grad_(False)
    bias = teacher.bias.detach().clone()
    update_teacher(teacher, student, 0.5)
    assert torch.equal(teacher.bias, bias)


def test_schedule_golden() -> None:
    golden = np.load(GOLDEN / "lr_schedule.npz")
    got = [one_cycle(int(step), 300_001, 2e-5, 0.01) for step in golden["step"]]
    np.testing.assert_allclose(got, golden["lr"], rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 40, 90])
def test_schedule_of_short_runs_is_finite_and_below_the_peak(steps: int) -> None:
    rates = [one_cycle(step, steps, 1.0, 0.01) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)


def test_lora_is_the_published_one(weights: dict[str, torch.Tensor]) -> None:
    model = build_backbone(DEMO.architecture, weights, 28, 28)
    add_lora(model, LoraConfig(8, 8, 0.1, True), seed=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert (len(trained), sum(p.numel() for p in trained.values())) == (50, 228_960)
    assert all("lora_" in name for name in trained)
    without = add_lora(build_backbone(DEMO.architecture, weights, 28, 28), LoraConfig(8, 8, 0.1, False), seed=0)
    assert not any("patch_embed" in name for name, p in without.named_parameters() if p.requires_grad)


def test_lora_starts_as_the_backbone_and_merges_into_it(weights: dict[str, torch.Tensor]) -> None:
    image = torch.rand(2, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    model = build_backbone(DEMO.architecture, weights, 42, 56).eval()
    before = patch_tokens(model, image)
    add_lora(model, LoraConfig(8, 8, 0.1, True), seed=0).eval()
    assert torch.equal(patch_tokens(model, image), before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    trained = patch_tokens(model, image)
    assert (trained - before).abs().max() > 0.1
    merged = {**merged_state_dict(model), "pos_embed": weights["pos_embed"]}
    assert set(merged) == set(weights)
    torch.testing.assert_close(patch_tokens(build_backbone(DEMO.architecture, merged, 42, 56).eval(), image), trained, atol=2e-5, rtol=0)
    torch.testing.assert_close(patch_tokens(model, image), trained, atol=0, rtol=0)


def test_dropout_depends_on_the_row_and_not_on_its_neighbours() -> None:
    dropout = RowDropout(0.3, layer=2).train()
    rows = torch.ones(3, 4, 50)
    seed_rows(dropout, [7, 8, 7])
    together = dropout(rows)
    seed_rows(dropout, [8])
    assert torch.equal(dropout(rows[:1])[0], together[1])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    assert abs((together == 0).float().mean() - 0.3) < 0.08
    assert torch.allclose(together[together > 0], torch.tensor(1 / 0.7))
    seed_rows(dropout, [1, 2])
    with pytest.raises(RuntimeError, match="3 rows but 2 seeds"):
        dropout(rows)


def test_random_weights_are_a_function_of_the_seed(weights: dict[str, torch.Tensor]) -> None:
    assert hash_weights(load_weights(DEMO)) == hash_weights(weights)
    assert hash_weights(load_weights(BackboneConfig(DEMO.architecture, "random", 1))) != hash_weights(weights)


def test_position_rule_is_dinov2s(weights: dict[str, torch.Tensor]) -> None:
    position = weights["pos_embed"]
    assert resample_position(position, 37, 37) is position
    for h, w in [(22, 32), (41, 62), (1, 1), (16, 24)]:
        assert resample_position(position, h, w).shape == (1, 1 + h * w, position.shape[-1])
    ramp = torch.arange(37.0).view(1, 37, 1, 1).expand(1, 37, 37, 1).reshape(1, -1, 1)
    resampled = resample_position(torch.cat([torch.zeros(1, 1, 1), ramp], 1), 22, 32)[0, 1:, 0].reshape(22, 32)
    expected = (torch.arange(22) + 0.5) * 37 / 22.1 - 0.5  # the published factor's +0.1 shifts the grid
    torch.testing.assert_close(resampled[3:-3, 5], expected[3:-3], atol=0.06, rtol=0)  # bicubic is not exact on a ramp


def test_weights_files(tmp_path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "hub.pth"
    torch.save({**weights, "mask_token": torch.zeros(1, 384)}, path)
    assert set(read_state_dict(str(path))) == set(weights)
    path.write_bytes(b"not a state dict")
    with pytest.raises(ConfigError, match=r"hub\.pth: not a state dict"):
        read_state_dict(str(path))

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"bomb": Bomb()}, path)
    with pytest.raises(ConfigError, match="not a state dict"):
        read_state_dict(str(path))
    assert not (tmp_path / "exploded").exists()


def test_an_image_without_a_patch_is_refused(weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match="13 x 400 pixels"):
        build_backbone(DEMO.architecture, weights, 13, 400)
