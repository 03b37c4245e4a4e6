"""The `ffgs` reconstructor, with stub models registered through ffgs's own API: pixel-aligned or not, each by its own lift.

Where the extra `ffgs` is not installed, `tests/stubs` has a package that stands in for it, so that the adapter's side is always tested.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs import ConfigError, load
from configs.fields import Choice
from configs.schema import CacheGaussiansConfig, SplatConfig
from pipeline.columns.gaussians import GaussiansMaker
from pipeline.columns.operators import OperatorsMaker
from pipeline.plan.windows import PlannedWindow
from pipeline.reconstruct.base import BadContext, make_reconstructor
from pipeline.reconstruct.ffgs import Config, FfgsReconstructor
from storage.domain import Camera, Frame
from storage.records.gaussians import decode_gaussians, encode_gaussians
from storage.records.operators import decode_operator, operator_source
from storage.table import Table
from tests.datasets import Scene, write_dataset
from tests.stubs import FFGS_INSTALLED
from training.splat import Splats, apply_operators, collate_operators, render_token_targets
from training.splat.window import window_lift

import ffgs  # isort: skip  (its stand-in is on the path by then)
from huggingface_hub import PyTorchModelHubMixin  # isort: skip

WIDTH, HEIGHT = 32, 24
ROTATED_5_DEGREES = torch.tensor([[0.99619, -0.08716, 0], [0.08716, 0.99619, 0], [0, 0, 1]])
FRAME_SCALE = 0.25  # the stub's own frame: relative to the first camera, shrunk


class Plane(torch.nn.Module, PyTorchModelHubMixin):
    """A Gaussian on the ray of every pixel, the deeper the brighter; `stray` moves them off their rays, `count` keeps the first few."""

    def __init__(self, stray: float = 0.0, count: int | None = None) -> None:
        super().__init__()
        self.stray, self.count = stray, count
        self.nearest = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, given: dict[str, torch.Tensor]) -> ffgs.Gaussians:
        images, c2w, K = given["images"], given["c2w"], given["K"]
        height, width = images.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        pixels = torch.stack([x + self.stray, y, torch.ones_like(x)], dim=-1)
        rays = torch.einsum("bvij,hwj->bvhwi", K.inverse(), pixels)
        depth = self.nearest + images.mean(dim=2)
        means = torch.einsum("bvij,bvhwj->bvhwi", c2w[..., :3, :3], rays * depth[..., None]) + c2w[:, :, None, None, :3, 3]
        n = images.shape[1] * height * width
        quats = torch.tensor([1.0, 0, 0, 0]).expand(1, n, 4)
        colours = images.permute(0, 1, 3, 4, 2).reshape(1, n, 3)
        scales = (depth / K[0, 0, 0, 0]).reshape(1, n, 1).expand(1, n, 3)
        cut = slice(0, self.count)
        return ffgs.Gaussians(means.reshape(1, n, 3)[:, cut], scales[:, cut], quats[:, cut], torch.full((1, n), 0.8)[:, cut],
                              colours[:, cut], None)  # fmt: skip


@dataclass
class PlaneConfig(ffgs.ImageFitConfig):
    image_shape: list[int] = None  # type: ignore[assignment]
    background: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def __post_init__(self) -> None:
        self.image_shape = self.image_shape or [HEIGHT, WIDTH]
        super().__post_init__()


class PlaneProcessor(ffgs.Processor):
    config_cls = PlaneConfig

    def preprocess(self, views: ffgs.Views, device: torch.device, **options: Any) -> ffgs.Prepared:
        if views.images.mean() > 0.9:
            raise ValueError("too bright for this model")
        frame = ffgs.ModelFrame(anchor_c2w=views.c2w[:, 0], scale=FRAME_SCALE)
        if views.images.mean() < 0.1:  # too dark to tell where the second camera looked
            tilted = views.c2w.clone()
            tilted[:, 1, :3, :3] = tilted[:, 1, :3, :3] @ ROTATED_5_DEGREES
            frame = ffgs.ModelFrame.fit(tilted, views.c2w)
        c2w = frame.c2w_to_model(views.c2w)
        return ffgs.Prepared({"images": views.images, "c2w": c2w, "K": views.intrinsics}, frame)

    def postprocess(self, model_output: ffgs.Gaussians) -> ffgs.Gaussians:
        return model_output


ffgs.register_model(ffgs.ModelSpec("stub-plane", Plane, PlaneProcessor))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    """Saves a stub with the given settings as ffgs saves models, and says where."""

    def save(**settings: Any) -> str:
        return str(ffgs.GSPipeline(Plane(**settings), PlaneProcessor(), model_type="stub-plane").save_pretrained(tmp_path / "weights"))

    return save


def pair(height: int = HEIGHT, width: int = WIDTH, count: int = 2) -> list[Frame]:
    random = np.random.default_rng(3)
    K = np.array([[30.0, 0, width / 2 + 1], [0, 28, height / 2], [0, 0, 1]])
    views = []
    for i in range(count):
        angle = 0.3 * i
        c2w = np.eye(4)
        c2w[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        c2w[:3, 3] = [1 + 0.4 * i, 2, 3]
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        valid = np.ones((height, width), bool)
        valid[:2] = False
        views.append(Frame(f"{i}.jpg", Camera(c2w, K, width, height), image, np.zeros((height, width), np.uint16), valid))
    return views


def expected_means(views: Sequence[Frame]) -> np.ndarray:
    means = []
    for view in views:
        depth = (0.5 + view.image.mean(axis=2) / 255) / FRAME_SCALE
        means.append((view.camera.rays() * depth[..., None]) @ view.camera.c2w[:3, :3].T + view.camera.c2w[:3, 3])
    return np.concatenate(means).reshape(-1, 3)


def test_a_pixel_aligned_model_stands_behind_the_seam(saved: Callable[..., str]) -> None:
    weights = saved()
    config = load(CacheGaussiansConfig,
                  ["dataset=x", "reconstructor=ffgs", "reconstructor.model=stub-plane", f"reconstructor.weights={weights}",
                   "reconstructor.pixel_aligned=true"])  # fmt: skip
    reconstructor = make_reconstructor(config.reconstructor)
    reconstructor.check_size(HEIGHT, WIDTH)
    views = pair()
    made = reconstructor.reconstruct(views)
    np.testing.assert_allclose(made.means, expected_means(views), atol=1e-4)
    valid = np.concatenate([view.valid.ravel() for view in views])
    np.testing.assert_allclose(made.opacities, np.where(valid, 0.8, 0), atol=1e-6)
    depth = np.concatenate([0.5 + view.image.mean(axis=2).ravel() / 255 for view in views]) / FRAME_SCALE
    np.testing.assert_allclose(made.scales, np.repeat(depth[:, None] / 30, 3, axis=1), rtol=1e-4)
    cameras = [view.camera for view in views]
    stored = decode_gaussians(encode_gaussians(made, cameras), cameras)
    np.testing.assert_allclose(stored.means[valid], made.means[valid], atol=5e-3)
    note = reconstructor.describe()
    assert json.loads(json.dumps(note)) == note
    assert (note["model"], note["ffgs_version"], len(note["weights_sha256"])) == ("stub-plane", ffgs.__version__, 64)


def test_a_context_may_have_three_views(saved: Callable[..., str]) -> None:
    views = pair(count=3)
    made = FfgsReconstructor("stub-plane", saved(), pixel_aligned=True, device="cpu").reconstruct(views)
    assert len(made) == 3 * WIDTH * HEIGHT
    np.testing.assert_allclose(made.means, expected_means(views), atol=1e-4)
    with pytest.raises(BadContext, match=r"frames 0\.jpg, 0\.jpg, 0\.jpg: the cameras stand 0 m apart"):
        FfgsReconstructor("stub-plane", saved(), pixel_aligned=True, device="cpu").reconstruct([views[0]] * 3)


def stub_plane(**settings: Any) -> Choice:
    return Choice("ffgs", Config(model="stub-plane", **settings))


@pytest.mark.parametrize("settings", [{"count": 900}, {"stray": 2.0}])
def test_gaussians_of_no_pixel_reach_the_operators(settings: dict[str, Any], saved: Callable[..., str], tmp_path: Path) -> None:
    """The whole way of a row: stored free, lifted by transposed weights, and what is then read is what the model said."""
    config = stub_plane(weights=saved(**settings))
    make_reconstructor(config).check_size(HEIGHT, WIDTH)
    url = str(tmp_path / "dataset")
    write_dataset(url, [Scene("scene", pair(), [PlannedWindow((0, 1), (0, 1))])])
    table = Table.open(url, ["windows", "masks"])
    views, pins = table.row(0).context(labels=True), table.pins()  # through a JPEG
    ((_, members),) = GaussiansMaker(url, "windows", config, "gaussians", pins).rows(0)
    got = decode_gaussians(members, [view.camera for view in views])
    made = make_reconstructor(config).reconstruct(views)
    assert not got.pixel_aligned
    assert len(got) == settings.get("count", 2 * WIDTH * HEIGHT)
    np.testing.assert_allclose(got.means, made.means, atol=1e-3)
    maker = OperatorsMaker(url, "windows", "masks", None, config, "operators", "made", "all", "f16", pins, 14, SplatConfig())
    ((key, rows),) = maker.make(0)["operators"].rows
    source = operator_source("made", key, "scene-1")
    operator = decode_operator({"operator.safetensors": rows["01.operator.safetensors"]}, source)
    assert operator.options["lift"] == "transposed_weights"
    tokens = torch.randn(2 * 1 * 2, 5, generator=torch.Generator().manual_seed(0))
    applied = apply_operators(collate_operators([operator]), tokens[None])[0]
    camera = views[1].camera
    live = render_token_targets(
        Splats.from_record(got), tokens=tokens.view(2, 1, 2, 5), lift=window_lift(got, views, (1, 2)),
        target_mask=torch.from_numpy(views[1].labels.astype(int)), viewmat=torch.from_numpy(camera.w2c).float(),
        K=torch.from_numpy(camera.K).float(),
    )  # fmt: skip
    assert live.alpha.max() > 0.1
    torch.testing.assert_close(applied, live.features.flatten(0, 1), atol=2e-3, rtol=2e-3)


def test_settings_of_the_processor_are_passed_on(saved: Callable[..., str]) -> None:
    asked = ["dataset=x", "reconstructor=ffgs", "reconstructor.model=stub-plane", f"reconstructor.weights={saved()}"]
    config = load(CacheGaussiansConfig, [*asked, "reconstructor.processor={image_shape: [48, 64], background: [1, 1, 0]}"])
    note = make_reconstructor(config.reconstructor).describe()
    assert json.loads(json.dumps(note)) == note
    assert (note["processor"]["image_shape"], note["processor"]["background"]) == ([48, 64], [1, 1, 0])
    with pytest.raises(ConfigError, match="image_shap"):
        make_reconstructor(stub_plane(weights=saved(), processor={"image_shap": [48, 64]}))


def test_what_only_claims_to_be_pixel_aligned_is_refused_at_configuration_time(saved: Callable[..., str]) -> None:
    tokens = FfgsReconstructor("stub-plane", saved(count=100), pixel_aligned=True)
    with pytest.raises(
        ConfigError, match=r"model=stub-plane: .*100 Gaussians for 1536 context pixels; set reconstructor\.pixel_aligned=false"
    ):
        tokens.check_size(HEIGHT, WIDTH)
    strays = FfgsReconstructor("stub-plane", saved(stray=2.0), pixel_aligned=True)
    with pytest.raises(ConfigError, match=r"lies off its pixel's ray"):
        strays.check_size(HEIGHT, WIDTH)
    with pytest.raises(BadContext, match=r"frames 0\.jpg, 1\.jpg: Gaussian \d+ lies off its pixel's ray"):
        strays.reconstruct(pair())


@pytest.mark.skipif(not FFGS_INSTALLED, reason="the extra `ffgs` is not installed; this file ran against its stand-in, tests/stubs/ffgs")
def test_the_package_brings_the_models_that_the_adapter_names() -> None:
    assert [ffgs.get_model_spec(model).model_type for model in ("anysplat", "c3g", "tokengs")] == ["anysplat", "c3g", "tokengs"]


@pytest.mark.parametrize("model", ["anysplat", "c3g", "tokengs"])
def test_models_known_as_unaligned_are_refused_before_their_weights_are_fetched(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffgs.GSPipeline, "from_pretrained", lambda *_, **__: pytest.fail("weights were asked for"))
    with pytest.raises(ConfigError, match=rf"model={model}: its Gaussians are not one per context pixel; set .*pixel_aligned=false"):
        FfgsReconstructor(model, f"{model}/default", pixel_aligned=True)


def test_other_sizes_and_models_are_refused_by_name(saved: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"48 x 64 pixels, which it would resize or crop to 24 x 32.*build the frames at 24 x 32"):
        FfgsReconstructor("stub-plane", saved(), pixel_aligned=True).check_size(48, 64)
    with pytest.raises(ConfigError, match=r"model=stub-plain: unknown model_type 'stub-plain'; known: .*stub-plane"):
        FfgsReconstructor("stub-plain", "nowhere", pixel_aligned=False)
    with pytest.raises(ConfigError, match=r"config\.json|nowhere"):
        make_reconstructor(stub_plane(weights="/nowhere"))


def test_bad_pairs_are_refused_by_name(saved: Callable[..., str]) -> None:
    reconstructor = FfgsReconstructor("stub-plane", saved(), pixel_aligned=False, device="cpu")
    first, second = pair()
    with pytest.raises(BadContext, match="the cameras stand 0 m apart"):
        reconstructor.reconstruct([first, first])
    white = [replace(view, image=np.full_like(view.image, 255)) for view in (first, second)]
    with pytest.raises(BadContext, match=r"frames 0\.jpg, 1\.jpg: too bright for this model"):
        reconstructor.reconstruct(white)
    dark = [replace(view, image=view.image // 20) for view in (first, second)]
    with pytest.raises(
        BadContext, match=r"frames 0\.jpg, 1\.jpg: the model's own cameras are 2\.5 degrees and 4% .* off the given ones; at most 2"
    ):
        reconstructor.reconstruct(dark)


def test_what_a_free_model_crops_is_said(saved: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    reconstructor = FfgsReconstructor("stub-plane", saved(), pixel_aligned=False)
    capsys.readouterr()
    reconstructor.check_size(48, 64)
    assert capsys.readouterr().out == ""
    reconstructor.check_size(48, 48)
    assert "images of 48 x 48 pixels are cropped to 24 x 32, and 25% of them get no Gaussians" in capsys.readouterr().out


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "ffgs":
            raise ModuleNotFoundError("No module named 'ffgs'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"No module named 'ffgs'; install the extra: .*\[ffgs\]"):
        FfgsReconstructor("stub-plane", "nowhere", pixel_aligned=False)
