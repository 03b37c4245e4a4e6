"""From splatted pixels to the student's targets: goldens, plain references of each stage, and the whole way against those."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.splat_cases import targets as render_targets
from tests.training.splat_reference import composite_reference, project_reference
from training.splat import Lift, blend_with_mask, downsample, rasterize, resize_nearest
from training.splat.cpu.kernels import covariances
from training.splat.parity import holes_by_colour, published_K

GOLDEN = Path(__file__).parents[1] / "golden" / "snd"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def load(case: str) -> dict[str, torch.Tensor]:
    """Goldens are channel-first (b,v,C,H,W); the functions are channel-last."""
    return {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / f"{case}.npz").items()}


def reference_blend(features: np.ndarray, mask: np.ndarray, alpha: float) -> np.ndarray:
    blended = alpha * features.astype(np.float64)
    for label in np.unique(mask):
        blended[mask == label] += (1 - alpha) * features[mask == label].astype(np.float64).mean(axis=0)
    return blended


def reference_downsample(features: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    sampled = features.astype(np.float64)
    for axis, tokens in enumerate(grid):
        pixels = features.shape[axis]
        position = np.maximum((np.arange(tokens) + 0.5) * pixels / tokens - 0.5, 0)
        low = np.floor(position).astype(int)
        high, fraction = np.minimum(low + 1, pixels - 1), (position - low).reshape(-1, *[1] * (features.ndim - 1))
        moved = np.moveaxis(sampled, axis, 0)
        sampled = np.moveaxis(moved[low] * (1 - fraction) + moved[high] * fraction, 0, axis)
    return sampled


@pytest.mark.parametrize("case", ["blend_a", "blend_b"])
def test_blend_matches_golden(case: str) -> None:
    golden = load(case)
    blended = blend_with_mask(golden["features"].movedim(2, -1), golden["masks"], float(golden["alpha"]))
    torch.testing.assert_close(blended.movedim(-1, 2), golden["out"], atol=2e-6, rtol=0)


def test_assembly_matches_golden() -> None:
    golden = load("assemble_a")
    blended = blend_with_mask(golden["render"].movedim(2, -1), golden["masks"], float(golden["alpha"]))
    torch.testing.assert_close(blended.movedim(-1, 2), golden["blended"], atol=2e-6, rtol=0)
    grid = tuple(golden["supervision"].shape[-2:])
    holes = holes_by_colour(golden["color"].movedim(2, -1), grid)
    assert torch.equal(holes, golden["err_mask"][:, :, 0])
    supervision = downsample(blended, grid).masked_fill(holes[..., None], 0)
    torch.testing.assert_close(supervision.movedim(-1, 2), golden["supervision"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", ["fov_a", "fov_b"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_intrinsics_match_golden(case: str, dtype: torch.dtype) -> None:
    golden = load(case)
    size = torch.tensor([640.0, 480.0])
    K = torch.diag(torch.cat([size, torch.ones(1)])).to(dtype) @ golden["K_normalised"].to(dtype)
    effective = published_K(K, 640, 480)
    assert effective.dtype == dtype
    focal = effective[:, [0, 1], [0, 1]] / size
    torch.testing.assert_close(focal, golden["effective_focal_normalised"].to(dtype), atol=2e-6, rtol=0)
    torch.testing.assert_close(effective[:, :2, 2], (size / 2).to(dtype).expand(len(K), 2))
    assert torch.equal(effective[:, 2], torch.tensor([0, 0, 1], dtype=dtype).expand(len(K), 3))


def test_published_intrinsics_keep_a_centred_camera() -> None:
    K = torch.tensor([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(published_K(K, 640, 480), K)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.floats(0, 1))
def test_blend_equals_reference(seed: int, height: int, width: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((2, 3, height, width, 4)).astype(np.float32)
    masks = rng.integers(-3, 3, (2, 3, height, width)) * 10**9
    blended = blend_with_mask(torch.from_numpy(features), torch.from_numpy(masks), alpha)
    for image in np.ndindex(2, 3):
        np.testing.assert_allclose(blended[image], reference_blend(features[image], masks[image], alpha), atol=2e-6)


def test_blend_resizes_masks_to_the_top_left_neighbour() -> None:
    features = torch.randn(6, 8, 3)
    mask = torch.randint(4, (13, 17))
    small = mask[(torch.arange(6) * 13 // 6)[:, None], torch.arange(8) * 17 // 8]
    assert torch.equal(resize_nearest(mask, (6, 8)), small)
    assert torch.equal(blend_with_mask(features, mask), blend_with_mask(features, small))


def test_blend_sums_a_large_region_without_losing_digits() -> None:
    features = torch.randn(308, 448, 8) + 100
    mask = torch.zeros(308, 448, dtype=torch.uint8)
    blended = blend_with_mask(features, mask, 0.0)
    exact = features.double().mean(dim=(0, 1))
    assert ((blended.double() - exact) / exact).abs().max() < 2e-6


def test_blend_of_one_leaves_the_features_alone() -> None:
    features = torch.randn(5, 6, 3)
    assert blend_with_mask(features, torch.zeros(5, 6, dtype=torch.int32), 1.0) is features


def test_blend_with_a_label_per_pixel_changes_nothing() -> None:
    features = torch.randn(17, 16, 3)
    blended = blend_with_mask(features, torch.randperm(17 * 16).view(17, 16), 0.3)
    torch.testing.assert_close(blended, features, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("match", "features", "masks", "alpha"),
    [
        ("masks", torch.zeros(2, 5, 6, 3), torch.zeros(1, 5, 6, dtype=torch.int32), 0.5),
        ("masks", torch.zeros(5, 6, 3), torch.zeros(1, 5, 6, dtype=torch.int32), 0.5),
        ("masks", torch.zeros(5, 6, 3), torch.zeros(5, 6), 0.5),
        ("masks", torch.zeros(5, 6, 3), torch.zeros(5, 6, dtype=torch.bool), 0.5),
        ("alpha", torch.zeros(5, 6, 3), torch.zeros(5, 6, dtype=torch.int32), 1.5),
        ("alpha", torch.zeros(5, 6, 3), torch.zeros(5, 6, dtype=torch.int32), float("nan")),
    ],
)
def test_blend_refuses(match: str, features: torch.Tensor, masks: torch.Tensor, alpha: float) -> None:
    with pytest.raises(ValueError, match=match):
        blend_with_mask(features, masks, alpha)


@pytest.mark.parametrize(("size", "grid"), [((28, 42), (2, 3)), ((576, 880), (41, 62)), ((5, 7), (5, 7)), ((9, 4), (2, 4))])
def test_downsample_equals_reference(size: tuple[int, int], grid: tuple[int, int]) -> None:
    features = torch.randn(*size, 3, dtype=torch.float64)
    np.testing.assert_allclose(downsample(features, grid), reference_downsample(features.numpy(), grid), atol=1e-10)
    batch = torch.stack([features, 2 * features]).float()
    sampled = downsample(batch, grid)
    assert sampled.shape == (2, *grid, 3)
    torch.testing.assert_close(sampled[1], 2 * sampled[0])


def test_downsample_reads_the_four_middle_pixels() -> None:
    features = torch.zeros(14, 28, 1)
    features[6:8, 6:8] = torch.tensor([[1.0, 2], [3, 4]])[..., None]
    assert downsample(features, (1, 2)).flatten().tolist() == [2.5, 0]


def test_published_rule_for_holes() -> None:
    colour = torch.ones(28, 28, 3)
    colour[0, 0], colour[14, 14, :2], colour[20, 20] = 0, 0, 0  # black, not black, black but no cell's first pixel
    assert holes_by_colour(colour, (2, 2)).tolist() == [[True, False], [False, False]]


# ---- the whole way


def scene(seed: int = 0, height: int = 21, width: int = 28, channels: int = 5, dtype: torch.dtype = torch.float64) -> dict:
    """Two context views of a wavy wall, and a target between them with an off-centre principal point."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    means = []
    for view in range(2):
        depth = 2 + 0.2 * np.sin(x / 5 + view) + 0.1 * np.cos(y / 3)
        means.append(np.stack([(x - width / 2) / width * depth + 0.1 * view, (y - height / 2) / width * depth, depth], -1).reshape(-1, 3))
    n = 2 * height * width
    arrays = {
        "means": np.concatenate(means),
        "quats": rng.standard_normal((n, 4)),
        "scales": rng.uniform(0.005, 0.08, (n, 3)),
        "opacities": rng.uniform(0, 1, n),
        "tokens": rng.standard_normal((2, 3, 4, channels)),
        "viewmat": np.array([[1, 0, 0, -0.05], [0, 1, 0, 0.02], [0, 0, 1, 0.1], [0, 0, 0, 1.0]]),
        "K": np.array([[width, 0, width * 0.45], [0, width, height * 0.6], [0, 0, 1.0]]),
    }
    blocks = rng.integers(0, 6, (3, height // 5 + 1, width // 5 + 1)).repeat(5, 1).repeat(5, 2)[:, :height, :width]
    masks = torch.from_numpy(blocks.copy())
    tensors = {name: torch.from_numpy(array.astype(np.float32)).to(dtype) for name, array in arrays.items()}
    return tensors | {"context_masks": masks[:2], "target_mask": masks[2]}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("blend", [0.5, 1.0])
def test_targets_equal_the_stages_references(dtype: torch.dtype, tolerance: float, blend: float) -> None:
    given_ = scene(dtype=dtype)
    targets = render_targets(**given_, blend=blend)
    arrays = {name: tensor.double().numpy() for name, tensor in given_.items()}
    lifted = Lift.from_masks(given_["context_masks"], (3, 4)).apply(given_["tokens"].double().flatten(0, 2)).numpy()
    footprints = covariances(arrays["quats"], arrays["scales"])
    projection = project_reference(arrays["means"], footprints, arrays["opacities"], arrays["viewmat"], arrays["K"], 28, 21)
    render = composite_reference(projection, lifted, 28, 21)
    blended = reference_blend(render.features, arrays["target_mask"], blend)
    assert targets.features.shape == (3, 4, 5)
    assert targets.features.dtype == dtype
    np.testing.assert_allclose(targets.features, reference_downsample(blended, (3, 4)), atol=tolerance)
    np.testing.assert_allclose(targets.alpha, reference_downsample(render.alpha, (3, 4)), atol=tolerance)


def test_targets_are_the_stages_in_order() -> None:
    given_ = scene(1)
    drawn = {"near_plane": 1.9, "rasterize_mode": "antialiased", "alpha_clamp": 0.99, "eps2d": 0.1}
    lift = Lift.from_masks(given_["context_masks"], (3, 4), no_neighbour="nearest_same_label", upsample_grid="half_pixel")
    targets = render_targets(**given_, **drawn, lift=lift, grid=(5, 7))
    features, alpha = rasterize(
        **{name: given_[name] for name in ("means", "quats", "scales", "opacities")},
        colors=lift.apply(given_["tokens"].flatten(0, 2)),
        viewmats=given_["viewmat"][None],
        Ks=given_["K"][None],
        width=28,
        height=21,
        **drawn,
    )
    torch.testing.assert_close(targets.features, downsample(blend_with_mask(features[0], given_["target_mask"]), (5, 7)))
    torch.testing.assert_close(targets.alpha, downsample(alpha[0], (5, 7))[..., 0])


def test_targets_are_linear_in_the_tokens() -> None:
    given_ = scene(2)
    other = torch.randn_like(given_["tokens"])
    mixed = render_targets(**given_ | {"tokens": 2 * given_["tokens"] - 3 * other}).features
    parts = 2 * render_targets(**given_).features - 3 * render_targets(**given_ | {"tokens": other}).features
    torch.testing.assert_close(mixed, parts, atol=1e-6, rtol=0)


def test_tokens_of_another_dtype_are_splatted_in_that_of_the_means() -> None:
    given_ = scene(3, dtype=torch.float32)
    half = render_targets(**given_ | {"tokens": given_["tokens"].bfloat16()})
    assert half.features.dtype == torch.float32
    rounded = given_["tokens"].bfloat16().float()
    torch.testing.assert_close(half.features, render_targets(**given_ | {"tokens": rounded}).features)


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("tokens", {"lift": Lift.from_masks(torch.zeros(1, 42, 28, dtype=torch.int32), (3, 4))}),
        ("lift", {"context_masks": torch.zeros(2, 20, 28, dtype=torch.int32)}),  # not one Gaussian per pixel
        ("tokens", {"tokens": torch.zeros(24, 5), "lift": Lift.from_masks(torch.zeros(2, 21, 28, dtype=torch.int32), (3, 4))}),
        ("target_mask", {"target_mask": torch.zeros(1, 21, 28, dtype=torch.int32)}),
        ("means", {"means": torch.zeros(7, 3)}),
        ("opacities", {"opacities": torch.ones(7)}),
        ("blend", {"blend": 2.0}),
    ],
)
def test_targets_refuse(match: str, change: dict) -> None:
    with pytest.raises(ValueError, match=match):
        render_targets(**scene(dtype=torch.float32) | change)
