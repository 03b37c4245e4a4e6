"""Which tokens have supervision, and what the controls make of it."""

from __future__ import annotations

import pytest
import torch

from configs import load
from configs.schema import TrainConfig
from training.data.rows import open_rows
from training.objective.distill import supervise
from training.objective.supervision import Supervision, patches_all_valid


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


def supervision_of(dataset: str, *words: str) -> tuple[torch.Tensor, Supervision]:
    """The target images [B,3,H,W] of two rows whose target is no context frame, and their supervision."""
    config = load(TrainConfig, [f"dataset={dataset}", "output=x", "backbone=demo", "supervision.context_as_target=false", *words])
    rows = open_rows(config)
    batch = rows.decode(rows.fetch([(0, 1), (1, 2)]))
    return batch.target_images, supervise(config, BrightnessTeacher(), batch)  # type: ignore[arg-type]


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
