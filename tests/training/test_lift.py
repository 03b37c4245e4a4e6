"""The lift from tokens to pixels: goldens, a plain reference, and the properties that follow from its definition."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.splat import Lift

GOLDEN = Path(__file__).parents[1] / "golden" / "snd"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def positions(pixels: int, tokens: int, upsample_grid: str) -> np.ndarray:
    """Where each pixel lies between the tokens, rounded to float32; on the published grid by float32 steps, as published."""
    if upsample_grid == "align_corners":
        return torch.linspace(0, tokens - 1, pixels).numpy().astype(float)
    exact = [Fraction((2 * i + 1) * tokens, 2 * pixels) - Fraction(1, 2) for i in range(pixels)]
    return np.array([float(np.float32(min(max(float(p), 0.0), tokens - 1.0))) for p in exact])


def centre(token: int, pixels: int, tokens: int, upsample_grid: str) -> int:
    """The pixel whose label is the token's."""
    if upsample_grid == "align_corners":
        return round(Fraction(token * (pixels - 1), tokens - 1)) if tokens > 1 else 0
    return round(Fraction((2 * token + 1) * pixels, 2 * tokens) - Fraction(1, 2))


def reference_lift(masks: np.ndarray, grid: tuple[int, int], no_neighbour: str, upsample_grid: str) -> np.ndarray:
    """The lift as a dense matrix [V*H*W, V*h*w], pixel by pixel."""
    _, height, width = masks.shape
    h, w = grid
    matrix = np.zeros((masks.size, len(masks) * h * w))
    rows, columns = positions(height, h, upsample_grid), positions(width, w, upsample_grid)
    nodes = [(centre(i, height, h, upsample_grid), centre(j, width, w, upsample_grid)) for i in range(h) for j in range(w)]
    for row, (v, y, x) in enumerate(np.ndindex(masks.shape)):
        bilinear = np.array([max(0.0, 1 - abs(rows[y] - i)) * max(0.0, 1 - abs(columns[x] - j)) for i in range(h) for j in range(w)])
        same = np.array([masks[v, ny, nx] == masks[v, y, x] for ny, nx in nodes])
        weights = bilinear * same
        if weights.sum() == 0 and no_neighbour != "zero":
            weights = bilinear
            if no_neighbour == "nearest_same_label" and same.any():
                distance = np.array([(ny - y) ** 2 + (nx - x) ** 2 for ny, nx in nodes], float)
                weights = np.eye(h * w)[np.argmin(np.where(same, distance, np.inf))]
        matrix[row, v * h * w : (v + 1) * h * w] = weights / (weights.sum() or 1.0)
    return matrix


def dense(lift: Lift) -> np.ndarray:
    return lift.apply(torch.eye(lift.tokens, dtype=torch.float64)).numpy()


@pytest.mark.parametrize("case", ["upsample_a", "upsample_b"])
def test_matches_golden(case: str) -> None:
    golden = np.load(GOLDEN / f"{case}.npz")
    tokens = torch.from_numpy(golden["feats_lr"])
    masks = torch.from_numpy(golden["mask_hr"])[None]
    lifted = Lift.from_masks(masks, tuple(tokens.shape[1:])).apply(tokens.flatten(1).T.contiguous())
    image = lifted.T.reshape(golden["out_hr"].shape).numpy()
    np.testing.assert_allclose(image, golden["out_hr"], atol=1e-6, rtol=0)
    assert (image == 0).all(axis=0).sum() == golden["n_all_zero_pixels"]


@st.composite
def label_maps(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int]]:
    """Blocks of a few labels with single pixels strewn in, and a grid that need not divide them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    views, height, width = draw(st.integers(1, 2)), draw(st.integers(1, 15)), draw(st.integers(1, 15))
    block = draw(st.integers(1, 6))
    coarse = rng.integers(0, draw(st.integers(1, 5)), (views, height // block + 1, width // block + 1))
    masks = coarse.repeat(block, 1).repeat(block, 2)[:, :height, :width].copy()
    strewn = rng.random(masks.shape) < draw(st.sampled_from([0.0, 0.1]))
    masks[strewn] = rng.integers(100, 200, strewn.sum())
    return masks, (draw(st.integers(1, height)), draw(st.integers(1, width)))


@settings(max_examples=80, deadline=None)
@given(label_maps(), st.sampled_from(["zero", "plain_bilinear", "nearest_same_label"]), st.sampled_from(["align_corners", "half_pixel"]))
def test_equals_the_reference(scene: tuple[np.ndarray, tuple[int, int]], no_neighbour: str, upsample_grid: str) -> None:
    masks, grid = scene
    lift = Lift.from_masks(torch.from_numpy(masks), grid, no_neighbour=no_neighbour, upsample_grid=upsample_grid)
    np.testing.assert_allclose(dense(lift), reference_lift(masks, grid, no_neighbour, upsample_grid), atol=2e-6)


@pytest.mark.parametrize(("pixels", "tokens"), [(308, 22), (576, 41), (15, 15), (9, 1), (1, 1)])
def test_positions(pixels: int, tokens: int) -> None:
    exact = np.arange(pixels) * (tokens - 1) / max(pixels - 1, 1)
    np.testing.assert_allclose(positions(pixels, tokens, "align_corners"), exact, atol=4e-6)
    exact = np.clip((np.arange(pixels) + 0.5) * tokens / pixels - 0.5, 0, tokens - 1)
    np.testing.assert_allclose(positions(pixels, tokens, "half_pixel"), exact, atol=4e-6)


@settings(max_examples=60, deadline=None)
@given(label_maps(), st.sampled_from(["zero", "plain_bilinear", "nearest_same_label"]), st.sampled_from(["align_corners", "half_pixel"]))
def test_rows_are_convex_or_zero(scene: tuple[np.ndarray, tuple[int, int]], no_neighbour: str, upsample_grid: str) -> None:
    masks, grid = scene
    lift = Lift.from_masks(torch.from_numpy(masks), grid, no_neighbour=no_neighbour, upsample_grid=upsample_grid)
    indices, weights = lift.indices.view(-1, 4), lift.weights.view(-1, 4)  # four entries per pixel
    sums = weights.sum(dim=1)
    assert (lift.weights >= 0).all()
    assert lift.indices.dtype == torch.int32
    assert lift.weights.dtype == torch.float32
    assert (((sums - 1).abs() < 1e-6) | ((sums == 0) & (no_neighbour == "zero"))).all()
    view = torch.arange(len(masks)).repeat_interleave(masks[0].size)
    assert (indices // (grid[0] * grid[1]) == view[:, None]).all()  # never a token of another view
    if no_neighbour == "zero":  # never a token of another label
        (_, height, width), (h, w) = masks.shape, grid
        sampled_rows = [centre(i, height, h, upsample_grid) for i in range(h)]
        sampled_columns = [centre(j, width, w, upsample_grid) for j in range(w)]
        labels = masks[:, sampled_rows][:, :, sampled_columns].ravel()
        assert (labels[indices.numpy()] == masks.ravel()[:, None])[weights.numpy() > 0].all()


def test_one_label_is_plain_upsampling() -> None:
    tokens = torch.randn(1, 7, 5, 9)
    for name, align in (("align_corners", True), ("half_pixel", False)):
        lift = Lift.from_masks(torch.zeros(1, 61, 83, dtype=torch.uint8), (5, 9), upsample_grid=name)
        image = lift.apply(tokens[0].flatten(1).T.contiguous()).T.reshape(1, 7, 61, 83)
        expected = torch.nn.functional.interpolate(tokens, (61, 83), mode="bilinear", align_corners=align)
        torch.testing.assert_close(image, expected, atol=3e-6, rtol=0)


def test_label_rows_round_halves_to_even() -> None:
    """576 rows to 41 tokens: positions k * 14.375, of which every eighth from k = 4 ends in .5."""
    masks = torch.zeros(1, 576, 1, dtype=torch.int32)
    masks[0, :, 0] = torch.arange(576)  # every row its own label, so only the pixels that a token samples get anything
    lift = Lift.from_masks(masks, (41, 1))
    sampled = lift.weights.view(-1, 4).sum(dim=1).nonzero()[:, 0].tolist()
    assert set(sampled) <= {round(k * 14.375) for k in range(41)}
    assert {round(k * 14.375) for k in (12, 20, 28)} <= set(sampled)
    assert 57 not in sampled


def test_one_pixel_masks() -> None:
    masks = torch.zeros(1, 28, 28, dtype=torch.int64)
    masks[0, 5, 6], masks[0, 0, 0] = 1, 2  # between the tokens; on the corner token
    tokens = torch.randn(4, 3)
    zero, nearest, plain = (
        Lift.from_masks(masks, (2, 2), no_neighbour=rule).apply(tokens).view(28, 28, 3)
        for rule in ("zero", "nearest_same_label", "plain_bilinear")
    )
    assert not zero[5, 6].any()
    torch.testing.assert_close(nearest[5, 6], plain[5, 6])  # no token carries the label
    assert plain[5, 6].any()
    torch.testing.assert_close(zero[0, 0], tokens[0])
    torch.testing.assert_close(zero[0, 1], (tokens[1] * 1 + tokens[3] * 0))
    assert torch.equal(zero[20, 20], nearest[20, 20])


def test_nearest_same_label_reaches_across() -> None:
    masks = torch.zeros(1, 40, 40, dtype=torch.int64)
    masks[0, :, 0] = 7  # carried by the tokens of the first column
    masks[0, 30, 20] = 7  # far from them
    lift = Lift.from_masks(masks, (5, 5), no_neighbour="nearest_same_label")
    tokens = torch.arange(25.0)[:, None]
    rows = torch.tensor([0, 10, 20, 29, 39])
    assert lift.apply(tokens).view(40, 40)[30, 20] == 5 * int((rows - 30).abs().argmin())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_many_masks_of_any_integer_type(dtype: torch.dtype) -> None:
    limit = min(torch.iinfo(dtype).max, 2**40)
    labels = torch.randperm(250) + limit - 249
    masks = labels[torch.randint(250, (2, 10, 14))].repeat_interleave(7, 1).repeat_interleave(7, 2)
    reference = Lift.from_masks(masks, (5, 7), no_neighbour="nearest_same_label")
    lift = Lift.from_masks(masks.to(dtype), (5, 7), no_neighbour="nearest_same_label")
    assert torch.equal(lift.weights, reference.weights)
    assert torch.equal(lift.indices, reference.indices)


def test_order_is_view_row_column() -> None:
    lift = Lift.from_masks(torch.zeros(2, 3, 4, dtype=torch.int32), (3, 4))  # a token per pixel
    tokens = torch.randn(24, 5)
    assert torch.equal(lift.apply(tokens), tokens)


def test_apply_keeps_the_dtype() -> None:
    lift = Lift.from_masks(torch.zeros(1, 9, 9, dtype=torch.int32), (3, 3))
    tokens = torch.randn(9, 4)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        lifted = lift.apply(tokens.to(dtype))
        assert lifted.dtype == dtype
        torch.testing.assert_close(lifted.float(), lift.apply(tokens), atol=3e-2, rtol=0)


def test_apply_is_differentiable() -> None:
    lift = Lift.from_masks(torch.zeros(1, 9, 9, dtype=torch.int32), (3, 3))
    tokens = torch.randn(9, 4, requires_grad=True)
    lift.apply(tokens).sum().backward()
    torch.testing.assert_close(tokens.grad.sum(), torch.tensor(81.0 * 4))


@pytest.mark.parametrize(
    ("match", "masks", "grid", "options"),
    [
        ("masks", torch.zeros(9, 9, dtype=torch.int32), (3, 3), {}),
        ("masks", torch.zeros(1, 0, 9, dtype=torch.int32), (3, 3), {}),
        ("masks", torch.zeros(1, 9, 9), (3, 3), {}),
        ("masks", torch.zeros(1, 9, 9, dtype=torch.bool), (3, 3), {}),
        ("grid", torch.zeros(1, 9, 9, dtype=torch.int32), (3, 10), {}),
        ("grid", torch.zeros(1, 9, 9, dtype=torch.int32), (0, 3), {}),
        ("grid", torch.zeros(1, 9, 9, dtype=torch.int32), (3,), {}),
        ("no_neighbour", torch.zeros(1, 9, 9, dtype=torch.int32), (3, 3), {"no_neighbour": "nearest"}),
        ("upsample_grid", torch.zeros(1, 9, 9, dtype=torch.int32), (3, 3), {"upsample_grid": "corners"}),
    ],
)
def test_bad_masks(match: str, masks: torch.Tensor, grid: tuple, options: dict) -> None:
    with pytest.raises(ValueError, match=match):
        Lift.from_masks(masks, grid, **options)


@pytest.mark.parametrize("tokens", [torch.zeros(8, 2), torch.zeros(9), torch.zeros(9, 2, dtype=torch.int64)])
def test_bad_tokens(tokens: torch.Tensor) -> None:
    lift = Lift.from_masks(torch.zeros(1, 9, 9, dtype=torch.int32), (3, 3))
    with pytest.raises(ValueError, match="tokens"):
        lift.apply(tokens)
