"""Which tokens have supervision, and what the controls make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import ConfigError, load
from configs.schema import TrainConfig
from pipeline.plan.windows import PlannedWindow
from pipeline.reconstruct.depth import DepthReconstructor
from tests.datasets import Scene, write_dataset
from tests.training.conftest import CONTEXT, TARGETS, tiny_frames
from training.data.rows import open_rows
from training.model.network import build_networks
from training.model.weights import load_weights
from training.objective.distill import distill, supervise
from training.objective.supervision import Supervision, patches_all_valid, supervision_from
from training.train import run as train


@pytest.mark.parametrize(("size", "grid"), [((28, 42), (2, 3)), ((31, 44), (2, 3)), ((17, 20), (3, 1))])
def test_one_invalid_pixel_is_enough_for_each_patch_that_has_a_part_of_it(size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Every pixel in turn. Where a side is no multiple of the grid's, patches meet within a pixel, which then counts in both."""
    pixels = size[0] * size[1]
    valid = ~torch.eye(pixels, dtype=torch.bool).view(pixels, *size)
    meets = [
        torch.tensor([[token * side < (pixel + 1) * tokens and pixel * tokens < (token + 1) * side for token in range(tokens)]
                      for pixel in range(side)])
        for side, tokens in zip(size, grid, strict=True)
    ]  # fmt: skip
    expected = ~(meets[0][:, None, :, None] & meets[1][None, :, None, :]).view(pixels, *grid)
    assert torch.equal(patches_all_valid(valid, *grid), expected)


def test_a_patch_without_an_invalid_pixel_is_valid() -> None:
    valid = torch.ones(2, 336, 448, dtype=torch.bool)
    valid[1] = False
    assert patches_all_valid(valid, 24, 32).flatten(1).float().mean(1).tolist() == [1, 0]


class BrightnessTeacher:
    """Two channels a token: the mean brightness of its patch, and the token's number in its image."""

    def tokens(self, images_b3hw: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        brightness = torch.nn.functional.avg_pool2d(images_b3hw.mean(1, keepdim=True), 14)[:, 0]
        number = torch.arange(brightness[0].numel(), dtype=torch.float32).view(brightness.shape[1:]).expand_as(brightness)
        return torch.stack([brightness, number], dim=-1)


class Ones:
    """One channel, 1 everywhere."""

    def tokens(self, images_b3hw: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        return torch.ones(len(images_b3hw), images_b3hw.shape[2] // 14, images_b3hw.shape[3] // 14, 1)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As `tiny`, with cameras far apart, labels that no token carries or none near, unlabelled pixels, and no depth from the middle of the
    lower patches on."""
    root, frames = str(tmp_path_factory.mktemp("free")), []
    for frame in tiny_frames(spacing=0.2):
        labels, depth = frame.labels.copy(), frame.depth.copy()
        labels[:, :9] = 0
        labels[7:13, 10:20], labels[7:13, 20:40] = 2, 3
        depth[18:] = 0
        frames.append(replace(frame, labels=labels, depth=depth))
    scenes = [Scene(name, frames, [PlannedWindow(CONTEXT, TARGETS)]) for name in ("hall", "loft")]
    write_dataset(root, scenes, DepthReconstructor(0.4).reconstruct, operators=True)
    return root


def supervision_of(dataset: str, *words: str, teacher: Any = None) -> tuple[torch.Tensor, Supervision]:
    """The target images [B,3,H,W] of two rows whose target is no context frame, and their supervision."""
    config = load(TrainConfig, [f"dataset={dataset}", "output=x", "backbone=demo", "supervision.targets=between", *words])
    rows = open_rows(config)
    batch = rows.decode(rows.fetch([(0, 1), (1, 2)]))
    return batch.target_images, supervise(config, teacher or BrightnessTeacher(), batch)


def test_without_geometry_a_token_is_to_be_what_the_teacher_makes_of_the_students_own_image(tiny: str) -> None:
    images, control = supervision_of(tiny, "supervision.control=no_geometry", "supervision.blend=1")
    _, splatted = supervision_of(tiny, "supervision.blend=1")
    assert torch.equal(control.keep, splatted.keep)
    assert torch.equal(control.tokens, BrightnessTeacher().tokens(images.float() / 255, [0, 0]))
    assert (control.tokens - splatted.tokens).abs().max() > 0.1, "the splat carries other frames' tokens"


def test_shuffled_tokens_are_the_same_in_other_positions(tiny: str) -> None:
    _, control = supervision_of(tiny, "supervision.control=shuffle")
    _, splatted = supervision_of(tiny)
    assert torch.equal(control.keep, splatted.keep)
    assert not torch.equal(control.tokens, splatted.tokens)
    for tokens, true, keep in zip(control.tokens, splatted.tokens, splatted.keep, strict=True):
        assert sorted(tokens[keep].tolist()) == sorted(true[keep].tolist())


def test_every_option_of_the_splat_is_followed_alike_in_all_modes(free: str) -> None:
    """What is built on the fly, what is splatted live and what is asked of neither are told apart by their tokens."""
    plain = supervision_of(free, "supervision.mode=live")[1]
    for word in ("upsample_grid=align_corners", "no_neighbour=zero", "no_neighbour=plain_bilinear", "footprint=published"):
        live, built = (supervision_of(free, f"supervision.mode={mode}", f"supervision.splat.{word}")[1] for mode in ("live", "on_the_fly"))
        assert torch.equal(live.keep, built.keep), word
        torch.testing.assert_close(live.tokens, built.tokens, rtol=1e-4, atol=1e-4)
        assert (live.tokens - plain.tokens).abs().max() > 1e-3, word


def test_operators_built_in_the_step_are_those_that_the_loader_builds(free: str) -> None:
    """As on a GPU: the batch holds the Gaussians."""
    config = load(TrainConfig, [f"dataset={free}", "output=x", "backbone=demo", "supervision.mode=on_the_fly"])
    rows = open_rows(config)
    of_loader = rows.decode(rows.fetch([(0, 1), (1, 2)]))
    rows.live = True
    with_gaussians = rows.decode(rows.fetch([(0, 1), (1, 2)]))
    assert with_gaussians.operators is None
    wanted, found = (supervise(config, BrightnessTeacher(), batch) for batch in (of_loader, with_gaussians))  # type: ignore[arg-type]
    assert torch.equal(found.keep, wanted.keep)
    torch.testing.assert_close(found.tokens, wanted.tokens, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["live", "on_the_fly"])
def test_tokens_that_carry_nothing_are_holes_by_coverage_and_not_by_alpha(free: str, mode: str) -> None:
    words = (f"supervision.mode={mode}", "supervision.splat.no_neighbour=zero", "supervision.min_coverage=0.9")
    by_alpha, by_coverage = (supervision_of(free, *words, f"supervision.keep_by={what}")[1] for what in ("alpha", "coverage"))
    assert torch.equal(by_alpha.tokens, by_coverage.tokens)
    assert not (by_coverage.keep & ~by_alpha.keep).any()
    assert (by_alpha.keep & ~by_coverage.keep).any()


@pytest.mark.parametrize("blend", [1, 0.5])
def test_normalised_tokens_do_not_shrink(free: str, blend: float) -> None:
    """Teachers' tokens of ones: what arrives is 1 wherever something does."""
    words = ("supervision.splat.no_neighbour=zero", f"supervision.blend={blend}")
    for mode in ("live", "on_the_fly"):
        (_, thin), (_, whole) = (supervision_of(free, f"supervision.mode={mode}", *words, f"supervision.normalise={n}", teacher=Ones())
                                 for n in ("false", "true"))  # fmt: skip
        assert float(thin.tokens[thin.keep].min()) < 0.95
        torch.testing.assert_close(whole.tokens[whole.keep], torch.ones_like(whole.tokens[whole.keep]), rtol=1e-5, atol=1e-5)


def test_holes_are_left_out_or_count_as_zero(free: str) -> None:
    words = ("supervision.mode=live", "supervision.splat.no_neighbour=zero", "supervision.min_coverage=0.9")
    (_, out), (_, zero) = (supervision_of(free, *words, f"supervision.holes={how}") for how in ("exclude", "zero"))
    assert out.holes is None
    assert zero.holes is not None
    assert torch.equal(zero.keep & ~zero.holes, out.keep)
    assert (zero.keep & zero.holes).any()
    assert torch.equal(zero.tokens[out.keep], out.tokens[out.keep])


@pytest.mark.parametrize("word", ["supervision.control=shuffle", "supervision.control=no_geometry"])
def test_holes_are_zero_on_both_sides_in_controls_too(free: str, word: str) -> None:
    words = ["supervision.mode=live", "supervision.blend=1", "supervision.min_coverage=0.9", "supervision.holes=zero", word]
    config = load(TrainConfig, [f"dataset={free}", "output=x", "backbone=demo", "loss.kind=cosine", *words])
    rows = open_rows(config)
    batch = rows.decode(rows.fetch([(0, 1), (1, 2)]))
    supervision = supervise(config, BrightnessTeacher(), batch)  # type: ignore[arg-type]
    assert supervision.holes is not None
    seen: list[torch.Tensor] = []
    distill(config, lambda _i, _s, targets, *_: seen.append(targets.tokens), BrightnessTeacher(), batch, supervision, None)  # type: ignore[arg-type]
    holes = supervision.holes[supervision.keep]
    assert holes.any()
    assert not seen[0][holes].any()
    assert seen[0][~holes].any(1).all()


def test_what_only_the_live_splat_can_do(free: str) -> None:
    _, plain = supervision_of(free, "supervision.mode=live")
    for word in ("downsample=area", "blend_unlabelled=false"):
        _, other = supervision_of(free, "supervision.mode=live", f"supervision.{word}")
        assert (other.tokens - plain.tokens).abs().max() > 1e-3, word
    _, published = supervision_of(free, "supervision.mode=live", "supervision.keep_by=published", "supervision.min_coverage=0.9")
    assert not torch.equal(published.keep, supervision_of(free, "supervision.mode=live", "supervision.min_coverage=0.9")[1].keep)
    for word in ("downsample=area", "blend_unlabelled=false", "keep_by=published"):
        with pytest.raises(ConfigError, match=f"supervision.{word}: an operator does not hold.*mode=live".replace("false", "(?i:false)")):
            supervision_of(free, f"supervision.{word}")


def test_the_other_way_round_the_students_tokens_are_splatted(free: str) -> None:
    words = ["backbone=demo", "backbone.blocks=1", "head.hidden=16", "head.prototypes=32", "lora.dropout=0", "supervision.mode=on_the_fly"]
    config = load(TrainConfig, [f"dataset={free}", "output=x", *words, "supervision.direct=true", "loss.kind=cosine"])
    rows = open_rows(config)
    batch = rows.decode(rows.fetch([(0, 1), (1, 2)]))
    student, teacher = build_networks(config, load_weights(config.backbone), *batch.target_images.shape[-2:])
    supervision = supervise(config, teacher, batch)
    with torch.no_grad():
        torch.testing.assert_close(supervision.tokens, teacher.tokens(batch.target_images.float() / 255, batch.seeds))
        context = teacher.tokens(batch.context_images.flatten(0, 1).float() / 255, batch.seeds * batch.views).unflatten(0, (2, batch.views))
    carried = supervision_from(config.supervision, batch, context)
    assert torch.equal(carried.keep, supervision.keep)
    own = distill(config, student, teacher, batch, supervision, None)
    cosine = torch.nn.functional.cosine_similarity(carried.tokens[carried.keep], supervision.tokens[supervision.keep], dim=-1)
    torch.testing.assert_close(own.loss.detach(), (1 - cosine).sum(), rtol=1e-4, atol=1e-5)
    own.loss.backward()
    assert sum(float(p.grad.abs().sum()) for name, p in student.named_parameters() if p.grad is not None and "lora_B" in name) > 0
    for word in ("supervision.mode=live", "teacher.mode=frozen", "supervision.control=shuffle"):
        with pytest.raises(ConfigError, match="direct=true"):
            load(TrainConfig, [f"dataset={free}", "output=x", "supervision.direct=true", word])


def test_operators_of_another_rule_are_refused_with_both_remedies(tiny: str, tmp_path: Path) -> None:
    asked = ["backbone=demo", "loader.workers=0", "batch=1", "supervision.splat.upsample_grid=align_corners"]
    as_it_is, another = "supervision.splat.upsample_grid=half_pixel", "operators.splat.upsample_grid=align_corners"
    with pytest.raises(ConfigError, match=rf"take it as it is \({as_it_is}\), or build one with .* {another}"):
        train(load(TrainConfig, [f"dataset={tiny}", f"output={tmp_path}", *asked]))
