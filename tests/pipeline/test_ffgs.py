"""The `ffgs` reconstructor, with stub models registered through ffgs's own API: what is pixel-aligned passes, the rest is refused early."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import training.torchvision_ops  # noqa: F401  (before ffgs)

pytest.importorskip("ffgs", reason="the extra `ffgs` is not installed")

from configs import ConfigError, load
from configs.schema import CacheGaussiansConfig
from pipeline.reconstruct.ffgs import FfgsReconstructor
from pipeline.reconstruct.reconstructor import BadPair, make_reconstructor
from storage.domain import Camera, Frame
from storage.gaussians import decode_gaussians, encode_gaussians

import ffgs  # isort: skip  (torchvision's operators are declared by then)
from huggingface_hub import PyTorchModelHubMixin  # isort: skip

WIDTH, HEIGHT = 32, 24
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
        n = 2 * height * width
        quats = torch.tensor([1.0, 0, 0, 0]).expand(1, n, 4)
        colours = images.permute(0, 1, 3, 4, 2).reshape(1, n, 3)
        scales = (depth / K[0, 0, 0, 0]).reshape(1, n, 1).expand(1, n, 3)
        cut = slice(0, self.count)
        return ffgs.Gaussians(means.reshape(1, n, 3)[:, cut], scales[:, cut], quats[:, cut], torch.full((1, n), 0.8)[:, cut],
                              colours[:, cut], None)  # fmt: skip


@dataclass
class PlaneConfig(ffgs.ImageFitConfig):
    image_shape: list[int] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.image_shape = self.image_shape or [HEIGHT, WIDTH]
        super().__post_init__()


class PlaneProcessor(ffgs.Processor):
    config_cls = PlaneConfig

    def preprocess(self, views: ffgs.Views, device: torch.device, **options: Any) -> ffgs.Prepared:
        if views.images.mean() > 0.9:
            raise ValueError("too bright for this model")
        frame = ffgs.ModelFrame(anchor_c2w=views.c2w[:, 0], scale=FRAME_SCALE)
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


def pair(height: int = HEIGHT, width: int = WIDTH) -> list[Frame]:
    random = np.random.default_rng(3)
    K = np.array([[30.0, 0, width / 2 + 1], [0, 28, height / 2], [0, 0, 1]])
    views = []
    for place in range(2):
        angle = 0.3 * place
        c2w = np.eye(4)
        c2w[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        c2w[:3, 3] = [1 + 0.4 * place, 2, 3]
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        valid = np.ones((height, width), bool)
        valid[:2] = False
        views.append(Frame(f"{place}.jpg", Camera(c2w, K, width, height), image, np.zeros((height, width), np.uint16), valid))
    return views


def expected_means(views: Sequence[Frame]) -> np.ndarray:
    means = []
    for view in views:
        depth = (0.5 + view.image.mean(axis=2) / 255) / FRAME_SCALE
        means.append((view.camera.rays() * depth[..., None]) @ view.camera.c2w[:3, :3].T + view.camera.c2w[:3, 3])
    return np.concatenate(means).reshape(-1, 3)


def test_a_pixel_aligned_model_stands_behind_the_seam(saved: Callable[..., str]) -> None:
    weights = saved()
    config = load("cache_gaussians", CacheGaussiansConfig,
                  ["dataset=x", "reconstructor=ffgs", "reconstructor.model=stub-plane", f"reconstructor.weights={weights}"])  # fmt: skip
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


def test_what_is_not_pixel_aligned_is_refused_at_configuration_time(saved: Callable[..., str]) -> None:
    tokens = FfgsReconstructor("stub-plane", saved(count=100))
    with pytest.raises(ConfigError, match=r"model=stub-plane: .*100 Gaussians for 1536 context pixels; .* holds pixel-aligned Gaussians"):
        tokens.check_size(HEIGHT, WIDTH)
    strays = FfgsReconstructor("stub-plane", saved(stray=2.0))
    with pytest.raises(ConfigError, match=r"lies off its pixel's ray"):
        strays.check_size(HEIGHT, WIDTH)
    with pytest.raises(BadPair, match=r"frames 0\.jpg, 1\.jpg: Gaussian \d+ lies off its pixel's ray"):
        strays.reconstruct(pair())


@pytest.mark.parametrize("model", ["anysplat", "c3g", "tokengs"])
def test_models_known_as_unaligned_are_refused_before_their_weights_are_fetched(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffgs.GSPipeline, "from_pretrained", lambda *_, **__: pytest.fail("weights were asked for"))
    with pytest.raises(ConfigError, match=rf"model={model}: its Gaussians are not one per context pixel; .*not wired into the column"):
        FfgsReconstructor(model, f"{model}/default")


def test_other_sizes_and_models_are_refused_by_name(saved: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"48 x 64 pixels, which it would resize or crop to 24 x 32.*build the frames at 24 x 32"):
        FfgsReconstructor("stub-plane", saved()).check_size(48, 64)
    with pytest.raises(ConfigError, match=r"model=stub-plain: unknown model_type 'stub-plain'; known: .*stub-plane"):
        FfgsReconstructor("stub-plain", "nowhere")
    with pytest.raises(ConfigError, match=r"config\.json|nowhere"):
        make_reconstructor({"_target_": "pipeline.reconstruct.ffgs.FfgsReconstructor", "model": "stub-plane", "weights": "/nowhere"})


def test_bad_pairs_are_refused_by_name(saved: Callable[..., str]) -> None:
    reconstructor = FfgsReconstructor("stub-plane", saved(), "cpu")
    first, second = pair()
    with pytest.raises(BadPair, match="the cameras stand 0 m apart"):
        reconstructor.reconstruct([first, first])
    white = [replace(view, image=np.full_like(view.image, 255)) for view in (first, second)]
    with pytest.raises(BadPair, match=r"frames 0\.jpg, 1\.jpg: too bright for this model"):
        reconstructor.reconstruct(white)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "ffgs":
            raise ModuleNotFoundError("No module named 'ffgs'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"No module named 'ffgs'; install the extra: .*\[ffgs\]"):
        FfgsReconstructor("stub-plane", "nowhere")
