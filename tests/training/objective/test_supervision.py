"""Which tokens have supervision."""

from __future__ import annotations

import pytest
import torch

from training.objective.supervision import patches_all_valid


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
