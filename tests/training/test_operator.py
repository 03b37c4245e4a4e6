"""The operator against the way it replaces, its algebra, its record, and its construction by a renderer that only differentiates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import codec
from storage.records.operators import MAX_TOKENS, SparseRows, TokenOperator, bilinear_taps, content_hash, decode_operator, encode_operator
from tests.training.splat_cases import build, splats_of, targets
from tests.training.splat_reference import Projection, composite_reference, project_reference
from tests.training.test_targets import scene as wavy_wall
from training.splat import (
    Lift,
    Views,
    apply_operators,
    collate_operators,
    downsample,
    flip_operator,
    gaussian_covariances,
    select_tokens,
)
from training.splat.cuda.operator import matrices_by_cotangents, tokens_apart
from training.splat.sampling import sample_target

PARTS = ("means", "quats", "scales", "opacities")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def label_map(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    if kind == "pixels":  # a label per pixel, 250 or fewer in all
        return rng.integers(0, 250, shape)
    blocks = rng.integers(0, 5, (*shape[:-2], shape[-2] // 5 + 1, shape[-1] // 5 + 1)).repeat(5, -2).repeat(5, -1)
    labels = blocks[..., : shape[-2], : shape[-1]].copy()
    strewn = rng.random(shape) < 0.1 * (kind == "strewn")  # one-pixel masks, most of them absent from the low grid
    labels[strewn] = rng.integers(-100, 150, strewn.sum())
    return labels


@st.composite
def scenes(draw: st.DrawFn, whole_patches: bool = False) -> dict:
    """Gaussians before, behind and beside the camera, from far below a pixel to wider than the image, opacity 0 to 1; or none at all."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width, views = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 2))
    grid = draw(st.integers(1, height)), draw(st.integers(1, width))
    if whole_patches:
        height, width = height // grid[0] * grid[0], width // grid[1] * grid[1]
    context = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    token_grid = draw(st.integers(1, context[0])), draw(st.integers(1, context[1]))
    masks = label_map(rng, (views, *context), draw(st.sampled_from(["blocks", "strewn", "pixels"])))
    rule = {"no_neighbour": draw(st.sampled_from(["zero", "plain_bilinear", "nearest_same_label"]))}
    rule["upsample_grid"] = draw(st.sampled_from(["align_corners", "half_pixel"]))
    lift = Lift.from_masks(torch.from_numpy(masks), token_grid, **rule)
    if draw(st.integers(0, 9)) == 0:
        lift = some_rows(lift, torch.arange(0))
    n = lift.gaussians
    opacities = np.clip(rng.uniform(-0.2, 1.2, n), 0, 1)
    if draw(st.booleans()):
        opacities = rng.choice([0, 1 / 255, 1], n)
    turn, upper = np.linalg.qr(np.eye(3) + 0.2 * rng.standard_normal((3, 3)))
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = turn * np.sign(np.diagonal(upper)), 0.3 * rng.standard_normal(3)
    K = np.diag([*(rng.uniform(0.5, 2, 2) * width), 1.0])
    K[:2, 2] = rng.uniform(-0.3, 1.3, 2) * [width, height]
    arrays = {
        "means": rng.standard_normal((n, 3)) * [1.5, 1.5, 2] + [0, 0, 3],
        "quats": rng.standard_normal((n, 4)),
        "scales": 10.0 ** rng.uniform(*draw(st.sampled_from([(-4, -2), (-2, 0), (-4, 2)])), (n, 3)),
        "opacities": opacities,
        "viewmat": viewmat,
        "K": K,
    }
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    target = torch.from_numpy(label_map(rng, (height, width), draw(st.sampled_from(["blocks", "strewn", "pixels"]))))
    options = {"rasterize_mode": draw(st.sampled_from(["classic", "antialiased"])), "near_plane": draw(st.sampled_from([0.01, 0.2, 2.0]))}
    return tensors | options | {"target_mask": target, "lift": lift, "grid": grid, "alpha_clamp": draw(st.sampled_from([0.999, 0.99]))}


def applied(operator: TokenOperator, tokens: torch.Tensor, blend: float = 0.5) -> torch.Tensor:
    """[Nt,C] of tokens [Nctx,C]."""
    return apply_operators(collate_operators([operator]), tokens[None], blend)[0]


def assert_same_targets(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest expected value."""
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def some_rows(lift: Lift, rows: torch.Tensor) -> Lift:
    """The lift of some of the pixels; each has four entries."""
    entries = (lift.indices.view(-1, 4)[rows].flatten(), lift.weights.view(-1, 4)[rows].flatten())
    return Lift(torch.arange(0, 4 * len(rows) + 1, 4, dtype=torch.int32, device=rows.device), *entries, lift.grid, lift.options)


def small_case(seed: int = 0, **changes) -> dict:
    """A wavy wall that two views see: what `build_token_operator` takes."""
    given_ = wavy_wall(seed, dtype=torch.float32)
    lift = Lift.from_masks(given_["context_masks"], (3, 4))
    return {name: given_[name] for name in (*PARTS, "target_mask", "viewmat", "K")} | {"lift": lift, "grid": (3, 4)} | changes


# ---- the way it replaces


def check_against_the_whole_way(scene: dict, blend: float, dtype: torch.dtype) -> None:
    """The operator in float32 against `render_token_targets` in `dtype`, for three seeds of tokens; and what holds of any operator."""
    operator = build(**scene)
    inputs = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and name != "target_mask" else value for name, value in scene.items()
    }
    for seed in range(3):
        tokens = torch.randn(scene["lift"].tokens, 7, generator=torch.Generator().manual_seed(seed))
        whole = targets(**inputs, tokens=tokens.view(*scene["lift"].grid, 7), blend=blend)
        assert_same_targets(applied(operator, tokens, blend), whole.features.flatten(0, 1).float())
    np.testing.assert_allclose(operator.alpha, whole.alpha.flatten(), atol=1e-6)
    assert operator.alpha.min() >= 0
    assert operator.alpha.max() <= 1
    assert (operator.coverage <= operator.alpha + 1e-6).all()
    assert (operator.S.values > 0).all()
    assert (operator.R.values > 0).all()


@settings(max_examples=40, deadline=None)
@given(scenes(), st.sampled_from([0.0, 0.5, 1.0]))
def test_equals_the_whole_way(scene: dict, blend: float) -> None:
    check_against_the_whole_way(scene, blend, torch.float64)


@settings(max_examples=40, deadline=None)
@given(scenes(whole_patches=True), st.sampled_from([0.0, 0.5, 1.0]))
def test_equals_the_whole_way_in_float32(scene: dict, blend: float) -> None:
    """In other grids torch's interpolation of float32 images rounds the positions that it reads at."""
    check_against_the_whole_way(scene, blend, torch.float32)


@settings(max_examples=25, deadline=None)
@given(scenes())
def test_without_blending_only_the_masks_are_missing(scene: dict) -> None:
    """Then only the pixels that are read are composited: in other boxes, to the same bits."""
    operator, bare = build(**scene), build(**scene, with_blend=False)
    for name in ("offsets", "columns", "values"):
        np.testing.assert_array_equal(getattr(bare.S, name), getattr(operator.S, name))
    np.testing.assert_array_equal(bare.alpha, operator.alpha)
    assert len(bare.R) == bare.tap_mask.size == 0
    tokens = torch.randn(scene["lift"].tokens, 3)
    assert torch.equal(applied(bare, tokens, 1.0), applied(operator, tokens, 1.0))
    with pytest.raises(ValueError, match="blend"):
        applied(bare, tokens, 0.5)


def test_many_masks_and_a_grid_that_does_not_divide() -> None:
    rng = np.random.default_rng(1)
    target = torch.from_numpy(rng.permutation(21 * 28).reshape(21, 28) % 250)
    case = small_case(target_mask=target, grid=(8, 11))
    operator = build(**case)
    assert len(operator.R) > 200
    tokens = torch.randn(24, 5)
    assert_same_targets(applied(operator, tokens), targets(**case, tokens=tokens.view(2, 3, 4, 5)).features.flatten(0, 1))


@pytest.mark.parametrize(
    ("size", "grid"), [((28, 42), (2, 3)), ((576, 880), (41, 62)), ((5, 7), (5, 7)), ((9, 4), (2, 4)), ((3, 5), (1, 1))]
)
def test_taps_are_those_of_the_downsampling(size: tuple[int, int], grid: tuple[int, int]) -> None:
    image = torch.randn(*size, 2, dtype=torch.float64)
    pixels, weights = bilinear_taps(size, grid)
    sampled = (image.flatten(0, 1).numpy()[pixels] * weights[..., None]).sum(axis=1)
    np.testing.assert_allclose(sampled, downsample(image, grid).flatten(0, 1), atol=1e-10)


def test_only_masks_that_tokens_meet_have_rows() -> None:
    target = torch.zeros(28, 28, dtype=torch.int64)
    target[0, 0], target[6, 6] = 7, 9  # between the tokens' pixels; read by the first token
    sampling = sample_target(target, (2, 2), True)
    assert sampling.pixels.tolist() == [28 * 28 - 2, 1]
    assert sampling.masks_hw[0, 0] == -1
    assert sampling.tap_mask[0].tolist() == [1, 0, 0, 0]


# ---- algebra


def test_linear_and_of_any_dtype() -> None:
    operator = build(**small_case())
    a, b = torch.randn(2, 24, 5)
    torch.testing.assert_close(applied(operator, 2 * a - 3 * b), 2 * applied(operator, a) - 3 * applied(operator, b), atol=1e-5, rtol=0)
    half = applied(operator, a.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, applied(operator, a.bfloat16().float()))
    mixed = applied(operator, a, 0.3)
    torch.testing.assert_close(mixed, 0.3 * applied(operator, a, 1.0) + 0.7 * applied(operator, a, 0.0), atol=1e-6, rtol=0)


def test_threads_change_no_bit() -> None:
    operators = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        operators.append(encode_operator(build(**small_case(2))))
    assert operators[0] == operators[1] == operators[2]


def test_flip_is_the_operator_of_the_mirrored_world() -> None:
    given_ = wavy_wall(
        3, height=21, width=29, dtype=torch.float32
    )  # no token's label falls between two pixels, where ties are not mirrored
    # On the published grid a pixel may lie a hair beside a token, on a side that is not mirrored.
    masks, rule = given_["context_masks"], {"upsample_grid": "half_pixel"}
    mirror = torch.diag(torch.tensor([-1.0, 1, 1]))
    covars = gaussian_covariances(given_["quats"], given_["scales"])
    K = given_["K"].clone()
    K[0, 2] = 29 - K[0, 2]
    pose = torch.eye(4)
    pose[:3, :3] = mirror
    order = torch.arange(2 * 21 * 29).view(2, 21, 29)
    for context, target in ((True, True), (True, False)):
        flipped = order.flip(2).flatten() if context else order.flatten()
        lift = Lift.from_masks(masks.flip(2) if context else masks, (3, 5), **rule)
        world, camera, intrinsics = (
            (mirror, pose @ given_["viewmat"] @ pose, K) if target else (torch.eye(3), given_["viewmat"], given_["K"])
        )
        original = build(
            **{name: given_[name] for name in (*PARTS, "target_mask", "viewmat", "K")},
            lift=Lift.from_masks(masks, (3, 5), **rule),
            grid=(4, 6),
        )
        mirrored = build(
            means=given_["means"][flipped] @ world,
            covars=world @ covars[flipped] @ world,
            opacities=given_["opacities"][flipped],
            lift=lift,
            target_mask=given_["target_mask"].flip(1) if target else given_["target_mask"],
            viewmat=camera,
            K=intrinsics,
            grid=(4, 6),
        )
        tokens = torch.randn(lift.tokens, 6)
        ours = flip_operator(original, context=context, target=target)
        assert_same_targets(applied(ours, tokens), applied(mirrored, tokens), 2e-5)
        np.testing.assert_allclose(ours.alpha, mirrored.alpha, atol=1e-6)
        assert encode_operator(flip_operator(ours, context=context, target=target)) == encode_operator(original)


def test_flips_permute_tokens() -> None:
    operator = build(**small_case(4))
    tokens = torch.randn(24, 5)
    image = tokens.view(2, 3, 4, 5)
    torch.testing.assert_close(applied(flip_operator(operator, target=False), image.flip(2).flatten(0, 2)), applied(operator, tokens))
    seen = applied(flip_operator(operator, context=False), tokens).view(3, 4, 5)
    torch.testing.assert_close(seen.flip(1), applied(operator, tokens).view(3, 4, 5), atol=1e-6, rtol=0)


def test_selected_tokens() -> None:
    operator = build(**small_case(5, grid=(5, 7)))
    tokens = torch.randn(24, 5)
    whole = applied(operator, tokens)
    for rows in (np.array([7, 3, 30]), np.arange(35) % 3 == 0, np.array([], np.int64)):
        part = select_tokens(operator, rows)
        assert torch.equal(applied(part, tokens), whole[torch.from_numpy(rows)])
        stored = decode_operator(encode_operator(part))
        np.testing.assert_array_equal(stored.rows, part.rows)
        twice = flip_operator(flip_operator(part))
        torch.testing.assert_close(applied(twice, tokens), applied(part, tokens))


def test_collated_operators_do_not_mix() -> None:
    operators = [build(**small_case(seed)) for seed in range(3)]
    tokens = torch.randn(3, 24, 6)
    batch = collate_operators(operators)
    together = apply_operators(batch, tokens, 0.3)
    for b, operator in enumerate(operators):
        torch.testing.assert_close(together[b], applied(operator, tokens[b], 0.3), atol=1e-6, rtol=0)
        np.testing.assert_array_equal(batch.coverage[b], operator.coverage)
    assert torch.equal(apply_operators(batch.to("cpu"), tokens, 0.3), together)


def test_coverage_counts_only_what_carries_a_feature() -> None:
    case = small_case()
    case["opacities"] = case["opacities"] * (case["means"][:, 0] < 0)  # nothing on the right
    case["lift"] = replace(case["lift"], weights=torch.zeros_like(case["lift"].weights))  # no Gaussian carries a feature
    operator = build(**case)
    assert not operator.coverage.any()
    alpha = operator.alpha.reshape(3, 4)
    assert (alpha[:, 0] > 0.5).all()
    assert (alpha[:, 3] < 0.5).all()


# ---- the record


def test_record_keeps_everything_but_digits() -> None:
    operator = build(**small_case(6, grid=(7, 9)), source_hash="abc")
    tokens = torch.randn(24, 8)
    exact = applied(operator, tokens)
    for dtype, tolerance in (("f16", 5e-4), ("u8", 5e-3)):
        members = encode_operator(operator, dtype)
        stored = decode_operator(members, expect_hash="abc")
        error = (applied(stored, tokens) - exact).norm() / exact.norm()
        assert 0 < error < tolerance
        np.testing.assert_allclose(stored.alpha, operator.alpha, atol=5e-4)
        np.testing.assert_array_equal(stored.tap_mask, operator.tap_mask)
        for name in ("size", "grid", "context_grid", "options", "source_hash"):
            assert getattr(stored, name) == getattr(operator, name)
        assert encode_operator(operator, dtype) == members
    again = decode_operator(encode_operator(stored, "f16"))
    assert stored.options == {
        "lift": "masks", "no_neighbour": "zero", "upsample_grid": "align_corners",
        "near_plane": 0.2, "eps2d": 0.3, "rasterize_mode": "classic", "alpha_clamp": 0.999,
    }  # fmt: skip
    np.testing.assert_array_equal(again.S.columns, stored.S.columns)


@settings(max_examples=25, deadline=None)
@given(scenes(), st.booleans(), st.sampled_from(["f16", "u8"]))
def test_any_operator_can_be_stored(scene: dict, with_blend: bool, dtype: str) -> None:
    operator = build(**scene, with_blend=with_blend)
    stored = decode_operator(encode_operator(operator, dtype))
    for ours, exact in ((stored.S, operator.S), (stored.R, operator.R)):
        ours_dense, exact_dense = ours.dense(operator.n_context), exact.dense(operator.n_context)
        largest = exact_dense.max(axis=1, initial=0, keepdims=True)
        rounding = exact_dense * 2.0**-11 + largest * 2.0**-13 + 1e-7 if dtype == "f16" else largest / 509
        assert (np.abs(ours_dense - exact_dense) <= rounding).all()


def test_stale_records_are_refused_by_name() -> None:
    operator = build(**small_case(), source_hash="abc")
    members = encode_operator(operator)
    with pytest.raises(ValueError, match=r"source hash 'abc', expected 'xyz'.*build the operators again"):
        decode_operator(members, expect_hash="xyz")
    (name, data), *_ = members.items()
    arrays, header = codec.decode_arrays(data)
    with pytest.raises(ValueError, match=r"format version 99, this code reads 1.*build the operators again"):
        decode_operator({name: codec.encode_arrays(arrays, header | {"format_version": 99})})
    for change in ({"S.lengths": arrays["S.lengths"][:-1]}, {"S.columns": arrays["S.columns"] + 24}, {"tap_mask": arrays["tap_mask"] + 50}):
        with pytest.raises(ValueError, match="operator: "):
            decode_operator({name: codec.encode_arrays(arrays | change, header)})
    for damaged in (data[:-3], data[:40], b""):
        with pytest.raises(ValueError, match="intact"):
            decode_operator({name: damaged})
    with pytest.raises(ValueError, match="value_dtype"):
        encode_operator(operator, "f32")


def test_content_hash_sees_every_part() -> None:
    parts = {"means": np.arange(6.0).reshape(2, 3), "options": {"near": 0.2}, "name": "a"}
    changes = ({"means": np.arange(6.0).reshape(3, 2)}, {"means": np.arange(6)}, {"options": {"near": 0.3}}, {"name": "b"}, {"more": 1})
    hashes = {content_hash(**parts | change) for change in changes}
    assert len(hashes | {content_hash(**parts)}) == 6
    assert content_hash(**dict(reversed(parts.items()))) == content_hash(**parts)


# ---- refusals


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("means", {"means": torch.full((1176, 3), torch.nan)}),
        ("opacities", {"opacities": torch.full((1176,), 2.0)}),
        ("viewmats", {"viewmat": torch.full((4, 4), torch.inf)}),
        ("Ks", {"K": torch.zeros(3, 3)}),
        ("quats", {"quats": torch.zeros(1176, 4)}),
        ("lift", {"lift": Lift.from_masks(torch.zeros(1, 21, 28, dtype=torch.int32), (3, 4))}),
        ("target_mask", {"target_mask": torch.zeros(21, 28)}),
        ("target_mask", {"target_mask": torch.zeros(1, 21, 28, dtype=torch.int32)}),
        ("grid", {"grid": (22, 4)}),
        ("grid", {"grid": (0, 4)}),
        ("65535", {"target_mask": torch.zeros(300, 300, dtype=torch.int32), "grid": (300, 300)}),
        ("alpha_clamp", {"alpha_clamp": 1.0}),
        ("rasterize_mode", {"rasterize_mode": "best"}),
        ("near_plane", {"near_plane": -1.0}),
    ],
)
def test_bad_scenes_are_refused_by_name(match: str, change: dict) -> None:
    with pytest.raises(ValueError, match=match):
        build(**small_case() | change)


def test_too_many_context_tokens() -> None:
    case = small_case()
    with pytest.raises(ValueError, match="65535"):
        build(**case | {"lift": replace(case["lift"], grid=(1, 256, 256))})
    empty = SparseRows(np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    no_masks = SparseRows(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    fields = {"tap_mask": np.zeros((1, 0), np.int32), "alpha": np.zeros(1, np.float32), "rows": np.zeros(1, np.int32)}
    sizes = {"size": (9, 9), "grid": (1, 1)}
    TokenOperator(empty, no_masks, **fields, **sizes, context_grid=(1, 1, MAX_TOKENS))
    with pytest.raises(ValueError, match="65535"):
        TokenOperator(empty, no_masks, **fields, **sizes, context_grid=(1, 1, MAX_TOKENS + 1))


@pytest.mark.parametrize(
    ("match", "tokens", "blend"),
    [
        ("tokens", torch.zeros(1, 23, 5), 0.5),
        ("tokens", torch.zeros(24, 5), 0.5),
        ("tokens", torch.zeros(1, 24, 5, dtype=torch.int32), 0.5),
        ("blend", torch.zeros(1, 24, 5), float("nan")),
    ],
)
def test_apply_refuses(match: str, tokens: torch.Tensor, blend: float) -> None:
    batch = collate_operators([build(**small_case())])
    with pytest.raises(ValueError, match=match):
        apply_operators(batch, tokens, blend)


def test_collate_refuses_what_does_not_fit() -> None:
    operator, other = build(**small_case()), build(**small_case(grid=(2, 4)))
    for batch in ([], [operator, other], [operator, build(**small_case(), with_blend=False)]):
        with pytest.raises(ValueError, match="operators"):
            collate_operators(batch)


# ---- lifting by transposed weights


def reference_view(scene: dict, viewmat: torch.Tensor, K: torch.Tensor, width: int, height: int) -> tuple[Projection, np.ndarray]:
    """The projection, and the weights [pixels,N] of every Gaussian in every pixel, float64."""
    covars = gaussian_covariances(scene["quats"].double(), scene["scales"].double()).numpy()
    projection = project_reference(scene["means"], covars, scene["opacities"], viewmat, K, width, height)
    n = len(scene["means"])
    return projection, composite_reference(projection, np.eye(n), width, height).features.reshape(-1, n)


@pytest.mark.parametrize("all_valid", [True, False])
def test_transposed_weights_equal_a_dense_reference(all_valid: bool) -> None:
    given_ = wavy_wall(7, dtype=torch.float32)
    some = torch.randperm(1176)[:300]  # of no pixel any more
    geometry = {name: given_[name][some] for name in PARTS}
    geometry["means"][:20, 2] = -1.0  # seen by nobody
    masks, viewmats = given_["context_masks"], torch.eye(4).repeat(2, 1, 1)
    viewmats[1, 0, 3] = -0.1
    Ks = given_["K"].repeat(2, 1, 1)
    valid = torch.rand(masks.shape) < 0.7 if not all_valid else torch.ones(masks.shape, dtype=torch.bool)
    context: dict = {"context_masks": masks, "context_valid": None if all_valid else valid, "grid": (3, 4)}
    lifts, splats = [], splats_of(geometry)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        lifts.append(Lift.from_visibility(splats, Views(viewmats, Ks, 28, 21), **context))
    lift = lifts[0]
    assert all(torch.equal(getattr(lift, name), getattr(lifts[1], name)) for name in ("offsets", "indices", "weights"))

    upsampled = Lift.from_masks(masks, (3, 4)).apply(torch.eye(24, dtype=torch.float64)).numpy()
    weights = np.concatenate([reference_view(geometry, viewmats[v], Ks[v], 28, 21)[1] for v in range(2)])
    weights *= valid.numpy().reshape(-1, 1)
    total = weights.sum(axis=0)
    expected = (weights.T @ upsampled) / np.where(total > 0, total, 1)[:, None]
    np.testing.assert_allclose(lift.apply(torch.eye(24, dtype=torch.float64)), expected, atol=1e-6)
    assert not expected[:20].any()
    assert lift.options["lift"] == "transposed_weights"

    case = geometry | {name: given_[name] for name in ("target_mask", "viewmat", "K")} | {"lift": lift, "grid": (3, 4)}
    tokens = torch.randn(24, 5)
    expected = targets(**case, tokens=tokens.view(2, 3, 4, 5)).features.flatten(0, 1)
    assert_same_targets(applied(build(**case), tokens), expected)
    with pytest.raises(ValueError, match="viewmats"):
        Lift.from_visibility(splats, Views(viewmats[:1], Ks[:1], 28, 21), **context)
    with pytest.raises(ValueError, match="context_valid"):
        Lift.from_visibility(splats, Views(viewmats, Ks, 28, 21), **{**context, "context_valid": valid[:1]})
    with pytest.raises(ValueError, match="tokens"):
        lift.apply(tokens[:-1])


def test_what_is_nearer_than_20_cm_is_not_drawn_by_default() -> None:
    """Neither by operators nor by targets, and no Gaussian gathers features from so near."""
    case = small_case()
    for depth, drawn in ((0.19, False), (0.21, True)):
        near = case | {"means": torch.tensor([[0.0, 0.0, depth]]).repeat(1176, 1), "viewmat": torch.eye(4), "opacities": torch.ones(1176)}
        assert (build(**near).alpha.max() > 0) == drawn
        assert (targets(**near, tokens=torch.ones(2, 3, 4, 1)).alpha.max() > 0) == drawn
        views = Views(torch.eye(4).repeat(2, 1, 1), case["K"].repeat(2, 1, 1), 28, 21)
        lift = Lift.from_visibility(splats_of(near), views, torch.zeros(2, 21, 28, dtype=torch.int32), (3, 4))
        assert (len(lift.indices) > 0) == drawn


def test_options_are_those_that_the_operator_names() -> None:
    """Each option changes what is drawn, and is recorded; a far plane only where it is not the one that all have."""
    plain = build(**small_case())
    for change in ({"near_plane": 2.0}, {"far_plane": 2.0}, {"eps2d": 2.0}, {"rasterize_mode": "antialiased"}, {"alpha_clamp": 0.2}):
        other = build(**small_case(**change))
        assert other.options == {**plain.options, **change}
        assert not np.array_equal(other.alpha, plain.alpha)


# ---- by differentiating a renderer


class DenseRenderer:
    """Stands in for gsplat: a matrix of weights [pixels,N], which autograd transposes."""

    def __init__(self, case: dict) -> None:
        self.height, self.width = case["target_mask"].shape
        projection, weights = reference_view(case, case["viewmat"], case["K"], self.width, self.height)
        self.weights = torch.from_numpy(weights).float()
        reach = np.sqrt(2 * np.log(np.maximum(projection.opacity * 255, 1)))[:, None]
        a, b, c = projection.conic.T
        self.radii = reach * np.sqrt(np.stack([c, a], -1) / (a * c - b * b)[:, None])
        self.radii = torch.from_numpy(np.where(projection.valid[:, None], self.radii, 0))
        self.centres = torch.from_numpy(projection.uv)
        self.channels: list[int] = []

    def footprints(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.centres, self.radii

    def render(self, colors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.channels.append(colors.shape[1])
        return (self.weights @ colors).view(self.height, self.width, -1), self.weights.sum(dim=1).view(self.height, self.width)


@pytest.mark.parametrize(
    ("height", "width", "grid", "size", "masks"),
    [
        (56, 70, (4, 5), (0.002, 0.02), 6),  # 14-pixel cells and small Gaussians: four channels
        (56, 70, (4, 5), (0.02, 0.25), 6),  # wide ones: tokens further apart
        (56, 70, (4, 5), (0.5, 3.0), 6),  # wider than the image: every token a channel of its own
        (40, 57, (7, 9), (0.002, 0.02), 250),  # cells of uneven size, more masks than channels in one render
        (20, 28, (20, 28), (0.002, 0.01), 3),  # a token per pixel
    ],
)
def test_coloured_cotangents_give_the_same_matrices(height, width, grid, size, masks) -> None:
    given_ = wavy_wall(8, height=height, width=width, dtype=torch.float32)
    rng = np.random.default_rng(0)
    some = torch.from_numpy(rng.permutation(2 * height * width)[:400])
    case = {name: given_[name][some] for name in PARTS} | {name: given_[name] for name in ("viewmat", "K")}
    case["scales"] = torch.from_numpy(rng.uniform(*size, (400, 3)).astype(np.float32))
    case["target_mask"] = torch.from_numpy(rng.integers(0, masks, (height, width)))
    lift = Lift.from_masks(given_["context_masks"], (4, 5))
    lift = some_rows(lift, some)
    built = build(**case, lift=lift, grid=grid)
    renderer, sampling = DenseRenderer(case), sample_target(case["target_mask"], grid, True)
    matrices = matrices_by_cotangents(renderer, lift, sampling, (height, width), grid)
    for ours, theirs in ((matrices.S, built.S), (matrices.R, built.R)):
        assert (np.diff(ours.offsets) >= 0).all()
        np.testing.assert_allclose(ours.dense(lift.tokens), theirs.dense(lift.tokens), atol=2e-6)
    np.testing.assert_allclose(matrices.alpha, built.alpha, atol=2e-6)
    operator = replace(built, S=matrices.S, R=matrices.R, alpha=matrices.alpha)
    tokens = torch.randn(lift.tokens, 5)
    assert_same_targets(applied(operator, tokens), applied(built, tokens))
    channels = sum(renderer.channels) - len(built.R)
    apart = [tokens_apart(p / g, g, float(renderer.radii[:, axis].max())) for axis, p, g in ((1, height, grid[0]), (0, width, grid[1]))]
    assert channels == apart[0] * apart[1]
    assert all(count <= 128 for count in renderer.channels)
    bare = matrices_by_cotangents(DenseRenderer(case), lift, sample_target(case["target_mask"], grid, False), (height, width), grid)
    np.testing.assert_allclose(bare.S.values, matrices.S.values, rtol=1e-6)
    assert len(bare.R) == 0


def test_how_far_tokens_of_a_channel_are_apart() -> None:
    assert [tokens_apart(14, 32, reach) for reach in (0.0, 12.9, 13.0, 19.9, 20.0, 26.9)] == [2, 2, 3, 3, 4, 4]
    assert tokens_apart(14, 32, 1e9) == 32
    assert tokens_apart(14, 1, 5.0) == 1
    assert tokens_apart(1.0, 400, 3.0) == 9


@pytest.mark.gpu
@pytest.mark.parametrize("size", [0.02, 0.3])
def test_gsplat_builds_the_operator(size: float) -> None:
    given_ = wavy_wall(9, height=112, width=140, channels=384, dtype=torch.float32)
    given_["scales"] = given_["scales"] / given_["scales"].max() * size
    case = {name: tensor.cuda() for name, tensor in given_.items() if name not in ("tokens", "context_masks")} | {"grid": (8, 10)}
    tokens = torch.randn(2, 8, 10, 384)
    case["lift"] = Lift.from_masks(given_["context_masks"], (8, 10)).to("cuda")
    operator = build(**case)
    batch = collate_operators([operator]).to("cuda")
    direct = targets(**case, tokens=tokens.cuda()).features.flatten(0, 1)
    ours = apply_operators(batch, tokens.cuda().flatten(0, 2)[None])[0]
    assert (ours - direct).norm() / direct.norm() < 1e-3
    on_cpu = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in case.items()}
    reference = build(**on_cpu | {"lift": case["lift"].to("cpu")})
    np.testing.assert_allclose(operator.alpha, reference.alpha, atol=1e-3)
    assert_same_targets(applied(operator, tokens.flatten(0, 2)), applied(reference, tokens.flatten(0, 2)), 2e-3)
    none = build(**case | {name: case[name][:0] for name in PARTS} | {"lift": some_rows(case["lift"], torch.arange(0).cuda())})
    assert len(none.S.values) == len(none.R.values) == 0
