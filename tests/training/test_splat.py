"""The splat: goldens, the kernel against its reference, its invariants, its refusals, and the contract with gsplat."""

from __future__ import annotations

import inspect
import multiprocessing
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.splat_cases import options_of, splats_of
from tests.training.splat_reference import composite_reference, project_reference
from training.splat import Views, gaussian_covariances, rasterize
from training.splat.cpu.kernels import SPLAT, covariances, project
from training.splat.parity import published_footprints

GOLDEN = Path(__file__).parents[1] / "golden" / "splat"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(case: str) -> dict[str, np.ndarray]:
    golden = dict(np.load(GOLDEN / f"{case}.npz"))
    if "covars" not in golden:
        golden["covars_f64"] = covariances(golden["quats"].astype(np.float64), golden["scales"].astype(np.float64))
    else:
        golden["covars_f64"] = golden["covars"].astype(np.float64)
    return golden


def arguments(golden: dict[str, np.ndarray], dtype: torch.dtype) -> dict:
    """What `rasterize` takes, from a golden's or a scene's arrays."""
    names = ("means", "covars", "quats", "scales", "opacities", "viewmats", "Ks", "backgrounds")
    tensors = {name: torch.from_numpy(golden[name]).to(dtype) for name in names if name in golden}
    return tensors | {
        "colors": torch.from_numpy(golden["features"]).to(dtype),
        "width": int(golden["width"]),
        "height": int(golden["height"]),
        "near_plane": float(golden["near_plane"]),
        "far_plane": float(golden["far_plane"]),
        "eps2d": float(golden["eps2d"]),
        "rasterize_mode": "antialiased" if golden["antialiased"] else "classic",
    }


def reference_render(golden: dict[str, np.ndarray], view: int, alpha_clamp: float = 0.999):
    size = int(golden["width"]), int(golden["height"])
    limits = float(golden["near_plane"]), float(golden["far_plane"]), float(golden["eps2d"]), bool(golden["antialiased"])
    camera = golden["viewmats"][view], golden["Ks"][view]
    projection = project_reference(golden["means"], golden["covars_f64"], golden["opacities"], *camera, *size, *limits)
    background = golden["backgrounds"][view] if "backgrounds" in golden else None
    return projection, composite_reference(projection, golden["features"].astype(np.float64), *size, background, alpha_clamp)


# ---- goldens


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-4)])
def test_kernel_matches_golden(case: str, dtype: torch.dtype, tolerance: float) -> None:
    golden = load(case)
    features, alpha = rasterize(**arguments(golden, dtype))
    assert features.dtype == alpha.dtype == dtype
    solid = ~golden["fragile"] if dtype == torch.float32 else np.ones_like(golden["fragile"])
    np.testing.assert_allclose(features.numpy()[solid], golden["render"][solid], atol=tolerance, rtol=0)
    np.testing.assert_allclose(alpha[..., 0].numpy()[solid], golden["alpha"][solid], atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_kernel_in_float32_decides_as_float64_does(case: str) -> None:
    golden = load(case)
    features, _ = rasterize(**arguments(golden, torch.float32))
    np.testing.assert_allclose(features, golden["render"], atol=2e-6, rtol=0)  # fragile pixels too


@pytest.mark.parametrize("case", CASES)
def test_the_reference_matches_golden(case: str) -> None:
    golden = load(case)
    for view in range(len(golden["Ks"])):
        projection, render = reference_render(golden, view)
        np.testing.assert_allclose(render.features, golden["render"][view], atol=1e-6, rtol=0)
        np.testing.assert_allclose(render.alpha, golden["alpha"][view], atol=1e-6, rtol=0)
        np.testing.assert_array_equal(render.fragile, golden["fragile"][view])
        visible = golden["proj_valid"][view]
        assert projection.valid[visible].all()
        np.testing.assert_allclose(projection.uv[visible], golden["proj_uv"][view][visible], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(projection.depth[visible], golden["proj_depth"][view][visible], rtol=1e-6)
        np.testing.assert_allclose(projection.conic[visible], golden["proj_conic"][view][visible], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_kernel_projection_matches_golden(case: str) -> None:
    golden = load(case)
    size = int(golden["width"]), int(golden["height"])
    limits = float(golden["near_plane"]), float(golden["far_plane"]), float(golden["eps2d"]), bool(golden["antialiased"])
    geometry = golden["means"].astype(np.float64), golden["covars_f64"], golden["opacities"].astype(np.float64)
    for view in range(len(golden["Ks"])):
        camera = golden["viewmats"][view].astype(np.float64), golden["Ks"][view].astype(np.float64)
        splats, ids = np.empty(len(golden["means"]), SPLAT), np.empty(len(golden["means"]), np.int32)
        count = project(*geometry, *camera, *size, *limits, splats, ids)
        splats, ids = splats[:count], ids[:count]
        visible = golden["proj_valid"][view]
        assert np.isin(np.flatnonzero(visible), ids).all()
        splats, ids = splats[visible[ids]], ids[visible[ids]]
        np.testing.assert_allclose(np.stack([splats["u"], splats["v"]], -1), golden["proj_uv"][view][ids], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(splats["depth"], golden["proj_depth"][view][ids], rtol=1e-6)
        conic = np.stack([splats["col"], -splats["col"] * splats["shear"], splats["row"] + splats["col"] * splats["shear"] ** 2], -1) * 2
        np.testing.assert_allclose(conic, golden["proj_conic"][view][ids], rtol=1e-6, atol=1e-6)
        # The outline's half axes, before gsplat rounds them up to whole pixels.
        half_x = np.sqrt(splats["reach"] * (1 / splats["col"] + splats["shear"] ** 2 / splats["row"]))
        half_y = np.sqrt(splats["reach"] / splats["row"])
        assert (np.stack([half_x, half_y], -1) <= golden["proj_radii"][view][ids] + 1e-6).all()


def published_render(scene: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """With the covariances that the published code draws."""
    return rasterize(**scene | {"quats": None, "scales": None, "covars": published_footprints(splats_of(scene)).covars})


def test_published_footprints_are_the_squared_covariances() -> None:
    true, published = load("splat_aligned_fixed"), load("splat_aligned_refvariance")
    features, alpha = published_render(arguments(true, torch.float64))
    # The golden's squared covariances were rounded to float32, which can swing a fragile pixel.
    solid = ~published["fragile"]
    np.testing.assert_allclose(features.numpy()[solid], published["render"][solid], atol=1e-5, rtol=0)
    np.testing.assert_allclose(alpha[..., 0].numpy()[solid], published["alpha"][solid], atol=1e-5, rtol=0)


def test_published_footprints_of_either_form() -> None:
    scene = arguments(load("splat_a"), torch.float64)
    covars = {"covars": gaussian_covariances(scene["quats"], scene["scales"]), "quats": None, "scales": None}
    squared = {**covars, "covars": covars["covars"] @ covars["covars"]}
    expected = rasterize(**{**scene, **squared})[0]
    torch.testing.assert_close(published_render(scene)[0], expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(published_render({**scene, **covars})[0], expected, atol=1e-9, rtol=0)


# ---- random scenes


@st.composite
def scenes(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Gaussians before, behind and beside one or two cameras, from far below a pixel to wider than the image, opacity 0 to 1."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, views = draw(st.integers(0, 40)), draw(st.integers(1, 2))
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    size = draw(st.sampled_from([(-4, -2), (-2, 0), (-4, 2)]))
    opacities = np.clip(rng.uniform(-0.2, 1.2, n), 0, 1)
    if n and draw(st.booleans()):
        opacities[:] = rng.choice([0, 1 / 255, 1], n)
    rotations, upper = np.linalg.qr(np.eye(3) + 0.2 * rng.standard_normal((views, 3, 3)))
    rotations *= np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None, :]
    viewmats = np.tile(np.eye(4), (views, 1, 1))
    viewmats[:, :3, :3], viewmats[:, :3, 3] = rotations, 0.3 * rng.standard_normal((views, 3))
    Ks = np.tile(np.eye(3), (views, 1, 1))
    Ks[:, [0, 1], [0, 1]] = rng.uniform(0.5, 2, (views, 2)) * width
    Ks[:, :2, 2] = rng.uniform(-0.3, 1.3, (views, 2)) * [width, height]
    scene = {
        "means": rng.standard_normal((n, 3)) * [1.5, 1.5, 2] + [0, 0, 3],
        "quats": rng.standard_normal((n, 4)) * 10 ** rng.uniform(-2, 2, (n, 1)),
        "scales": 10.0 ** rng.uniform(*size, (n, 3)),
        "opacities": opacities,
        "features": rng.standard_normal((n, draw(st.sampled_from([1, 3, 7, 17])))),
        "viewmats": viewmats,
        "Ks": Ks,
    }
    if draw(st.booleans()):
        scene["backgrounds"] = rng.standard_normal((views, scene["features"].shape[1]))
    scene = {name: array.astype(np.float32) for name, array in scene.items()}
    near = draw(st.sampled_from([0.01, 0.2, 2.0]))
    scene |= {"width": width, "height": height, "near_plane": near, "far_plane": draw(st.sampled_from([4.0, 1e10])), "eps2d": 0.3}
    scene["antialiased"] = draw(st.booleans())
    scene["covars_f64"] = covariances(scene["quats"].astype(np.float64), scene["scales"].astype(np.float64))
    return scene


@settings(max_examples=120, deadline=None)
@given(scenes(), st.sampled_from([0.999, 0.99]))
def test_kernel_equals_the_reference(scene: dict[str, np.ndarray], alpha_clamp: float) -> None:
    double = rasterize(**arguments(scene, torch.float64), alpha_clamp=alpha_clamp)
    single = rasterize(**arguments(scene, torch.float32), alpha_clamp=alpha_clamp)
    for view in range(len(scene["Ks"])):
        _, expected = reference_render(scene, view, alpha_clamp)
        for (features, alpha), tolerance in ((double, 1e-7), (single, 1e-5)):
            np.testing.assert_allclose(
                features[view].numpy()[~expected.fragile], expected.features[~expected.fragile], atol=tolerance, rtol=0
            )
            np.testing.assert_allclose(
                alpha[view, ..., 0].numpy()[~expected.fragile], expected.alpha[~expected.fragile], atol=tolerance, rtol=0
            )
            assert alpha.min() >= 0
            assert alpha.max() <= 1


@settings(max_examples=30, deadline=None)
@given(scenes(), st.floats(-3, 3))
def test_linear_in_colors(scene: dict[str, np.ndarray], factor: float) -> None:
    scene.pop("backgrounds", None)
    given_ = arguments(scene, torch.float64)
    other = torch.randn_like(given_["colors"])
    mixed = rasterize(**{**given_, "colors": given_["colors"] + factor * other})[0]
    parts = rasterize(**given_)[0] + factor * rasterize(**{**given_, "colors": other})[0]
    torch.testing.assert_close(mixed, parts, atol=1e-12, rtol=0)


def dense_scene(n: int = 4000, channels: int = 20) -> dict:
    rng = np.random.default_rng(3)
    scene = {
        "means": rng.uniform([-1, -1, 1], [1, 1, 3], (n, 3)),
        "quats": rng.standard_normal((n, 4)),
        "scales": rng.uniform(0.005, 0.08, (n, 3)),
        "opacities": rng.uniform(0.004, 0.9, n),
        "features": rng.standard_normal((n, channels)),
        "viewmats": np.eye(4)[None].repeat(2, 0),
        "Ks": np.array([[[60, 0, 40], [0, 60, 30], [0, 0, 1.0]], [[90, 0, 30], [0, 80, 40], [0, 0, 1.0]]]),
    }
    limits = {"width": 83, "height": 61, "near_plane": 0.2, "far_plane": 1e10, "eps2d": 0.3, "antialiased": False}
    return arguments({name: array.astype(np.float32) for name, array in scene.items()} | limits, torch.float32)


def test_threads_change_no_bit() -> None:
    scene = dense_scene()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(rasterize(**scene))
    for features, alpha in results[1:]:
        assert torch.equal(features, results[0][0])
        assert torch.equal(alpha, results[0][1])


def test_concurrent_calls() -> None:
    scene = dense_scene()
    expected = rasterize(**scene)[0]
    with ThreadPoolExecutor(3) as pool:
        assert all(torch.equal(result[0], expected) for result in pool.map(lambda _: rasterize(**scene), range(6)))


def _checksum_in_child(queue: multiprocessing.SimpleQueue) -> None:
    torch.set_num_threads(1)
    queue.put(rasterize(**dense_scene(500))[0].double().sum().item())


def test_works_after_a_fork() -> None:
    torch.set_num_threads(2)
    expected = rasterize(**dense_scene(500))[0].double().sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_checksum_in_child, args=(queue,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == pytest.approx(expected, rel=1e-9)


def test_more_contributions_than_the_first_room() -> None:
    """A thousand faint layers: each pixel's list of contributions must grow."""
    n = 1000
    layers = {
        "means": torch.stack([torch.zeros(n), torch.zeros(n), torch.linspace(1, 2, n)], -1).double(),
        "covars": torch.eye(3).double().repeat(n, 1, 1),
        "opacities": torch.full((n,), 0.005).double(),
        "colors": torch.arange(n).double()[:, None],
        "viewmats": torch.eye(4).double()[None],
        "Ks": torch.tensor([[[20.0, 0, 1], [0, 20, 1], [0, 0, 1]]]).double(),
    }
    features, alpha = rasterize(**layers, width=2, height=2)
    projection = project_reference(
        layers["means"], layers["covars"].numpy(), layers["opacities"], layers["viewmats"][0], layers["Ks"][0], 2, 2
    )
    reference = composite_reference(projection, layers["colors"].numpy(), 2, 2)
    np.testing.assert_allclose(features[0], reference.features, rtol=1e-10)
    np.testing.assert_allclose(alpha[0, ..., 0], reference.alpha, rtol=1e-10)


def test_a_crowded_scene_equals_the_reference() -> None:
    """Every pixel stops, tiles end early, and each contribution list is long."""
    scene = dense_scene(600, 3)
    scene["scales"] = scene["scales"] * 5
    scene = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in scene.items()}
    features, alpha = rasterize(**scene)
    footprints = gaussian_covariances(scene["quats"], scene["scales"]).numpy()
    for view in range(2):
        camera = scene["viewmats"][view], scene["Ks"][view]
        reference = composite_reference(
            project_reference(scene["means"], footprints, scene["opacities"].numpy(), *camera, 83, 61), scene["colors"].numpy(), 83, 61
        )
        solid = ~reference.fragile
        assert (reference.alpha > 0.999).mean() > 0.8
        np.testing.assert_allclose(features[view].numpy()[solid], reference.features[solid], atol=1e-9)
        np.testing.assert_allclose(alpha[view, ..., 0].numpy()[solid], reference.alpha[solid], atol=1e-9)


@pytest.mark.parametrize("magnitude", [1e4, 1e8, 1e15, 1e25])
def test_absurd_magnitudes_stay_finite(magnitude: float) -> None:
    """Centres and outlines far beyond what an integer can hold."""
    scene = dense_scene(300)
    for name in ("means", "scales"):
        grown = scene | {name: scene[name] * magnitude}
        features, alpha = rasterize(
            **{key: v.double() if isinstance(v, torch.Tensor) else v for key, v in grown.items()} | {"far_plane": 1e30}
        )
        assert features.isfinite().all()
        assert ((alpha >= 0) & (alpha <= 1)).all()


def test_near_and_far_are_inclusive() -> None:
    scene = dense_scene(1) | {"means": torch.tensor([[0.0, 0.0, 0.5]])}
    assert rasterize(**scene | {"near_plane": 0.5})[1].max() > 0
    assert rasterize(**scene | {"near_plane": 0.51})[1].max() == 0
    assert rasterize(**scene | {"far_plane": 0.5})[1].max() > 0
    assert rasterize(**scene | {"far_plane": 0.49})[1].max() == 0


def test_what_is_nearer_than_20_cm_is_not_drawn_by_default() -> None:
    scene = {name: value for name, value in dense_scene(1).items() if name != "near_plane"}
    assert rasterize(**scene | {"means": torch.tensor([[0.0, 0.0, 0.19]])})[1].max() == 0
    assert rasterize(**scene | {"means": torch.tensor([[0.0, 0.0, 0.21]])})[1].max() > 0


def test_no_gaussians() -> None:
    scene = dense_scene(0, 3)
    features, alpha = rasterize(**scene)
    assert features.shape == (2, 61, 83, 3)
    assert not features.any()
    assert alpha.shape == (2, 61, 83, 1)
    assert not alpha.any()
    background = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    features, _ = rasterize(**scene, backgrounds=background)
    assert torch.equal(features, background[:, None, None].expand_as(features))


def test_gradients_are_not_recorded() -> None:
    scene = dense_scene(50)
    expected = rasterize(**scene)[0]
    scene = {name: value.requires_grad_() if isinstance(value, torch.Tensor) else value for name, value in scene.items()}
    features, alpha = rasterize(**scene)
    assert torch.equal(features, expected)
    assert not features.requires_grad
    assert not alpha.requires_grad


def test_inputs_need_not_be_contiguous() -> None:
    scene = dense_scene(200)
    strided = {name: value.mT.contiguous().mT if getattr(value, "ndim", 0) > 1 else value for name, value in scene.items()}
    assert torch.equal(rasterize(**strided)[0], rasterize(**scene)[0])


# ---- refusals

NAN, INF = float("nan"), float("inf")


def with_entry(tensor: torch.Tensor, index: tuple[int, ...], value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("means", lambda t: with_entry(t, (3, 1), NAN)),
        ("means", lambda t: with_entry(t, (3, 1), INF)),
        ("means", lambda t: t[:, :2]),
        ("means", lambda t: t.half()),
        ("means", lambda t: t.long()),
        ("means", lambda t: t.numpy()),
        ("means", lambda t: t.to("meta")),
        ("colors", lambda t: t.to("meta")),
        ("quats", lambda t: t[:-1]),
        ("quats", lambda t: with_entry(t, (2,), 0.0)),
        ("quats", lambda t: with_entry(t, (2, 0), NAN)),
        ("scales", lambda t: with_entry(t, (2, 0), -0.1)),
        ("scales", lambda t: with_entry(t, (2, 0), INF)),
        ("scales", lambda t: t.double()),
        ("opacities", lambda t: with_entry(t, (0,), 1.5)),
        ("opacities", lambda t: with_entry(t, (0,), -0.1)),
        ("opacities", lambda t: with_entry(t, (0,), NAN)),
        ("opacities", lambda t: t[:, None]),
        ("colors", lambda t: t[:-1]),
        ("colors", lambda t: t[:, :0]),
        ("colors", lambda t: t.bfloat16()),
        ("viewmats", lambda t: t[0]),
        ("viewmats", lambda t: with_entry(t, (0, 0, 3), NAN)),
        ("viewmats", lambda t: with_entry(t, (0, 3, 0), 1.0)),
        ("Ks", lambda t: t[:1]),
        ("Ks", lambda t: with_entry(t, (0, 0, 0), -5.0)),
        ("Ks", lambda t: with_entry(t, (0, 0, 1), 0.1)),
        ("Ks", lambda t: with_entry(t, (0, 2, 2), 2.0)),
        ("Ks", lambda t: with_entry(t, (0, 0, 2), INF)),
        ("width", lambda _: 0),
        ("height", lambda _: 2.0),
        ("near_plane", lambda _: 0.0),
        ("near_plane", lambda _: NAN),
        ("far_plane", lambda _: 0.1),
        ("eps2d", lambda _: -0.1),
        ("rasterize_mode", lambda _: "best"),
    ],
)
def test_bad_input_is_refused_by_name(argument: str, change) -> None:
    scene = dense_scene(20)
    with pytest.raises(ValueError, match=argument):
        rasterize(**scene | {argument: change(scene[argument])})


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("indefinite", [[1, 0, 0], [0, -1, 0], [0, 0, 1]]),
        ("indefinite off the diagonal", [[1, 2, 0], [2, 1, 0], [0, 0, 1]]),
        ("indefinite in all three", [[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]]),
        ("negative", [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]),
        ("asymmetric", [[1, 0.1, 0], [0, 1, 0], [0, 0, 1]]),
        ("NaN", [[1, NAN, 0], [NAN, 1, 0], [0, 0, 1]]),
        ("inf", [[INF, 0, 0], [0, 1, 0], [0, 0, 1]]),
    ],
)
def test_bad_covariances_are_refused(name: str, matrix: list[list[float]]) -> None:
    scene = dense_scene(20) | {"quats": None, "scales": None}
    covars = torch.eye(3).repeat(20, 1, 1) * 1e-4
    rasterize(**scene, covars=covars)
    covars[7] = torch.tensor(matrix) * 1e-4
    with pytest.raises(ValueError, match="covars"):
        rasterize(**scene, covars=covars)


def test_flat_and_needle_covariances_pass() -> None:
    scene = dense_scene(200) | {"scales": torch.tensor([0.1, 1e-6, 0.0]).repeat(200, 1)}
    covars = gaussian_covariances(scene["quats"], scene["scales"])
    features = rasterize(**scene | {"quats": None, "scales": None, "covars": covars})[0]
    torch.testing.assert_close(features, rasterize(**scene)[0], atol=5e-2, rtol=0)


def test_footprint_is_given_once() -> None:
    scene = dense_scene(20)
    covars = gaussian_covariances(scene["quats"], scene["scales"])
    for change in ({"covars": covars}, {"covars": covars, "quats": None}, {"quats": None}, {"quats": None, "scales": None}):
        with pytest.raises(ValueError, match="covars"):
            rasterize(**scene | change)


@pytest.mark.parametrize("alpha_clamp", [0.0, 1.0, NAN])
def test_bad_alpha_clamp(alpha_clamp: float) -> None:
    with pytest.raises(ValueError, match="alpha_clamp"):
        rasterize(**dense_scene(5), alpha_clamp=alpha_clamp)


def test_background_shape() -> None:
    with pytest.raises(ValueError, match="backgrounds"):
        rasterize(**dense_scene(5, 4), backgrounds=torch.zeros(2, 3))


# ---- gsplat


def views_of(scene: dict) -> Views:
    return Views(scene["viewmats"], scene["Ks"], scene["width"], scene["height"])


def call_gsplat(scene: dict):
    from training.splat.cuda.gsplat import rasterize_gsplat

    return rasterize_gsplat(splats_of(scene), views_of(scene), options_of(scene), scene["colors"], scene.get("backgrounds"))


OTHER_THAN_DEFAULT = {"near_plane": 0.7, "far_plane": 44.0, "eps2d": 0.05, "rasterize_mode": "antialiased"}


def stub_gsplat(monkeypatch: pytest.MonkeyPatch, calls: list[dict], version: str = "1.5.3", compiled: object = object()) -> None:
    """Puts a module in gsplat's place that records its calls."""

    def rasterization(**kwargs):
        calls.append(kwargs)
        shape = (len(kwargs["Ks"]), kwargs["height"], kwargs["width"])
        return torch.zeros(*shape, kwargs["colors"].shape[1]), torch.zeros(*shape, 1), {}

    def fully_fused_projection(**kwargs):
        calls.append(kwargs)
        views, n = len(kwargs["Ks"]), len(kwargs["means"])
        return torch.zeros(views, n, 2, dtype=torch.int32), torch.zeros(views, n, 2), None, None, None

    backend = types.ModuleType("gsplat.cuda._backend")
    backend._C = compiled
    stub, cuda = types.ModuleType("gsplat"), types.ModuleType("gsplat.cuda")
    stub.__version__, stub.rasterization, stub.fully_fused_projection = version, rasterization, fully_fused_projection
    for name, module in {"gsplat": stub, "gsplat.cuda": cuda, "gsplat.cuda._backend": backend}.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_gsplat_is_called_as_its_signature_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    gsplat = pytest.importorskip("gsplat")
    signature = inspect.signature(gsplat.rasterization)
    calls: list[dict] = []
    stub_gsplat(monkeypatch, calls)
    scene = dense_scene(10, 384)
    features, alpha = call_gsplat(scene)
    assert features.shape == (2, 61, 83, 384)
    assert alpha.shape == (2, 61, 83, 1)
    bound = signature.bind(**calls[0])
    bound.apply_defaults()
    settings_ = bound.arguments
    assert settings_["packed"] is False  # packed projection ignores the batch in 1.5.3
    assert 384 % settings_["channel_chunk"] == 768 % settings_["channel_chunk"] == 0
    assert settings_["channel_chunk"] <= 512
    assert settings_["near_plane"] == 0.2
    assert settings_["far_plane"] == 1e10
    assert settings_["eps2d"] == 0.3
    assert settings_["camera_model"] == "pinhole"
    assert settings_["render_mode"] == "RGB"
    assert settings_["radius_clip"] == 0
    assert settings_["rasterize_mode"] == "classic"
    assert settings_["sh_degree"] is None
    assert settings_["covars"] is None
    assert settings_["means"] is scene["means"]
    assert settings_["colors"] is scene["colors"]


def test_gsplat_gets_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that differ from gsplat's defaults, for the render and for the footprints: none may be lost on the way."""
    gsplat = pytest.importorskip("gsplat")
    signatures = inspect.signature(gsplat.rasterization), inspect.signature(gsplat.fully_fused_projection)
    calls: list[dict] = []
    stub_gsplat(monkeypatch, calls)
    from training.splat.cuda.gsplat import footprints_gsplat

    background = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    scene = dense_scene(10, 3) | OTHER_THAN_DEFAULT | {"backgrounds": background}
    call_gsplat(scene)
    footprints_gsplat(splats_of(scene), views_of(scene), options_of(scene))
    rendered, projected = (signature.bind(**call).arguments for signature, call in zip(signatures, calls, strict=True))
    for name in ("width", "height", "near_plane", "far_plane", "eps2d"):
        assert rendered[name] == projected[name] == scene[name], name
    for name in ("means", "quats", "scales", "opacities", "viewmats", "Ks"):
        assert rendered[name] is projected[name] is scene[name], name
    assert rendered["rasterize_mode"] == "antialiased"
    assert rendered["backgrounds"] is background
    assert projected["packed"] is False
    covars = gaussian_covariances(scene["quats"], scene["scales"])
    call_gsplat(scene | {"covars": covars, "quats": None, "scales": None})
    assert calls[-1]["covars"] is covars


def test_gsplat_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, calls = dense_scene(10), []
    stub_gsplat(monkeypatch, calls)
    with pytest.raises(ValueError, match="alpha_clamp"):
        call_gsplat(scene | {"alpha_clamp": 0.99})
    with pytest.raises(ValueError, match="means"):
        call_gsplat({name: value.double() if isinstance(value, torch.Tensor) else value for name, value in scene.items()})
    stub_gsplat(monkeypatch, calls, version="1.6.0")
    with pytest.raises(RuntimeError, match=r"1\.6\.0"):
        call_gsplat(scene)
    stub_gsplat(monkeypatch, calls, compiled=None)
    with pytest.raises(RuntimeError, match="no compiled CUDA kernels"):
        call_gsplat(scene)
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(RuntimeError, match="install gsplat"):
        call_gsplat(scene)
    assert not calls


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_gsplat_matches_golden(case: str) -> None:
    golden = load(case)
    scene = {name: v.cuda() if isinstance(v, torch.Tensor) else v for name, v in arguments(golden, torch.float32).items()}
    features, alpha = rasterize(**scene)
    solid = ~golden["fragile"]
    np.testing.assert_allclose(features.cpu().numpy()[solid], golden["render"][solid], atol=2e-4, rtol=0)
    np.testing.assert_allclose(alpha[..., 0].cpu().numpy()[solid], golden["alpha"][solid], atol=2e-4, rtol=0)
