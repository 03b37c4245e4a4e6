"""MVSplat behind the reconstructors' interface: frames in, a Gaussians record out. Its network is tested in tests/training/reconstruct."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from configs import ConfigError, load
from configs.schema import CacheGaussiansConfig
from pipeline.reconstruct.base import BadContext, make_reconstructor
from pipeline.reconstruct.mvsplat import MVSplatReconstructor
from storage.domain import Camera, Frame, Gaussians
from storage.location import StorageError
from tests.training.reconstruct.test_mvsplat_network import CASES, GOLDEN, Arrays, assert_within
from training.splat import gaussian_covariances


@pytest.fixture(scope="module")
def golden_d() -> Arrays:
    return dict(np.load(GOLDEN / f"{CASES['d']}.npz"))


@pytest.fixture(scope="module")
def reconstructor() -> MVSplatReconstructor:
    asked = ["dataset=x", "reconstructor=mvsplat", "reconstructor.checkpoint=rule", "reconstructor.device=cpu"]
    made = make_reconstructor(load(CacheGaussiansConfig, asked).reconstructor)
    assert isinstance(made, MVSplatReconstructor)
    return made


@pytest.fixture
def pair(golden_d: Arrays) -> list[Frame]:
    """Item 0 of golden d as frames of 64 x 64 pixels."""
    frames = []
    for view in range(2):
        K = golden_d["intrinsics"][0, view].astype(np.float64) * np.array([[64], [64], [1]])
        image = np.round(golden_d["image"][0, view].transpose(1, 2, 0) * 255).astype(np.uint8)
        camera = Camera(golden_d["extrinsics"][0, view].astype(np.float64), K, 64, 64)
        frames.append(Frame(f"{view}.jpg", camera, image, np.zeros((64, 64), np.uint16), np.ones((64, 64), bool)))
    return frames


def test_frames_become_the_golden_gaussians(reconstructor: MVSplatReconstructor, pair: list[Frame], golden_d: Arrays) -> None:
    assert golden_d["near"][0].tolist() == [1, 1]
    assert golden_d["far"][0].tolist() == [100, 100]
    gaussians = reconstructor.reconstruct(pair)
    assert len(gaussians) == 2 * 64 * 64
    assert {x.dtype for x in (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)} == {np.dtype(np.float32)}
    at, depth = golden_d["gidx"], golden_d["depths"][0].reshape(-1)[golden_d["gidx"]]
    assert_within("means", torch.from_numpy(gaussians.means[at]), golden_d["means_sub"][0], (5e-5 * depth**2 + 1e-4)[:, None])
    assert_within("opacities", torch.from_numpy(gaussians.opacities[at]), golden_d["opacities_sub"][0], 5e-5)
    trace = np.trace(golden_d["covariances_sub"][0], axis1=-2, axis2=-1)
    rebuilt = gaussian_covariances(torch.from_numpy(gaussians.quats), torch.from_numpy(gaussians.scales))[at]
    assert_within("covariances", rebuilt, golden_d["covariances_sub"][0], (trace * (1e-4 * depth + 5e-4))[:, None, None])
    again = reconstructor.reconstruct(pair)
    assert np.array_equal(gaussians.means, again.means)
    assert np.array_equal(gaussians.opacities, again.opacities)


def test_gaussians_lie_on_the_rays_of_their_pixels(reconstructor: MVSplatReconstructor, pair: list[Frame]) -> None:
    """Of an image that is wider than high; the network shifts a Gaussian within its pixel."""
    views = [cropped(frame, 48) for frame in pair]
    gaussians = reconstructor.reconstruct(views)
    for frame, means in zip(views, gaussians.means.reshape(2, 48, 64, 3), strict=True):
        camera = frame.camera
        seen = (means @ camera.w2c[:3, :3].T + camera.w2c[:3, 3]) @ camera.K.T
        y, x = np.mgrid[:48, :64] + 0.5
        assert np.abs(seen[..., :2] / seen[..., 2:] - np.stack([x, y], axis=-1)).max() < 0.6


def test_what_is_not_valid_is_not_seen(reconstructor: MVSplatReconstructor, pair: list[Frame]) -> None:
    valid = np.ones((64, 64), bool)
    valid[10:20, 30:] = False
    whole, holed = reconstructor.reconstruct(pair), reconstructor.reconstruct([pair[0], replace(pair[1], valid=valid)])
    hidden = np.concatenate([np.zeros(64 * 64, bool), ~valid.reshape(-1)])
    assert (holed.opacities[hidden] == 0).all()
    assert np.array_equal(holed.opacities[~hidden], whole.opacities[~hidden])
    assert (whole.opacities > 0).all()


def test_a_batch_gives_each_pair_what_it_gets_alone(reconstructor: MVSplatReconstructor, pair: list[Frame]) -> None:
    """The limits are those of the goldens; a pair that is refused does not hold up the others."""
    pairs = [pair, [pair[0], pair[0]], pair[::-1]]
    first, refused, second = reconstructor.reconstruct_batch(pairs)
    assert isinstance(refused, BadContext)
    assert "0 m apart" in str(refused)
    for views, made in ((pairs[0], first), (pairs[2], second)):
        assert isinstance(made, Gaussians)
        alone = reconstructor.reconstruct(views)
        centres = np.repeat([view.camera.c2w[:3, 3] for view in views], 64 * 64, axis=0)
        depth = np.linalg.norm(alone.means - centres, axis=1)
        assert (np.abs(made.means - alone.means).max(axis=1) <= 5e-5 * depth**2 + 1e-4).all()
        assert (np.abs(made.scales - alone.scales) <= alone.scales * (5e-5 * depth + 1e-4)[:, None]).all()
        np.testing.assert_allclose(made.quats, alone.quats, atol=2e-4)
        np.testing.assert_allclose(made.opacities, alone.opacities, atol=5e-5)


def seen_by(frame: Frame, **changes: Any) -> Frame:
    return replace(frame, camera=replace(frame.camera, **changes))


def put(array: np.ndarray, row: int, column: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a, b: [a], "1 context views; a pair is 2"),
        (lambda a, b: [a, b, b], "3 context views"),
        (lambda a, b: [a, seen_by(b, c2w=a.camera.c2w)], r"frames 0\.jpg, 1\.jpg: the cameras stand 0 m apart"),
        (lambda a, b: [a, a], "the cameras stand 0 m apart"),
        (lambda a, b: [a, seen_by(b, c2w=b.camera.c2w * 1.01)], r"frame 1\.jpg: the pose is not rigid"),
        (lambda a, b: [seen_by(a, c2w=a.camera.c2w @ np.diag([1.0, 1, -1, 1])), b], r"frame 0\.jpg: the pose is not rigid"),
        (lambda a, b: [seen_by(a, c2w=put(a.camera.c2w, 3, 0, 0.1)), b], r"frame 0\.jpg: the pose is not rigid"),
        (lambda a, b: [a, seen_by(b, c2w=put(b.camera.c2w, 0, 3, np.nan))], r"frame 1\.jpg: the camera holds values that are not finite"),
        (lambda a, b: [a, seen_by(b, K=put(b.camera.K, 1, 2, np.inf))], r"frame 1\.jpg: the camera holds values that are not finite"),
        (lambda a, b: [seen_by(a, K=put(a.camera.K, 0, 0, 0.0)), b], r"frame 0\.jpg: focal lengths 0 and"),
        (lambda a, b: [a, seen_by(b, K=put(b.camera.K, 1, 1, -50.0))], r"frame 1\.jpg: focal lengths .* and -50 pixels"),
        (lambda a, b: [a, seen_by(b, K=put(b.camera.K, 2, 0, 1.0))], r"frame 1\.jpg: the last row of K"),
        (lambda a, b: [a, replace(b, image=b.image[:48])], r"frame 1\.jpg: image \(48, 64, 3\) uint8"),
        (lambda a, b: [replace(a, image=a.image / np.float32(255)), b], r"frame 0\.jpg: image \(64, 64, 3\) float32"),
        (lambda a, b: [a, replace(b, valid=b.valid[:, :3])], r"frame 1\.jpg: .* mask \(64, 3\)"),
        (lambda a, b: [a, cropped(b, 48)], "images of different sizes"),
        (lambda a, b: [cropped(a, 40), cropped(b, 40)], "images of 40 x 64 pixels.*multiples of 16"),
    ],
)
def test_bad_pairs_are_refused_by_name(
    spoil: Callable[[Frame, Frame], list[Frame]], message: str, reconstructor: MVSplatReconstructor, pair: list[Frame]
) -> None:
    with pytest.raises(BadContext, match=message):
        reconstructor.reconstruct(spoil(*pair))


def cropped(frame: Frame, height: int) -> Frame:
    camera = replace(frame.camera, height=height)
    return replace(frame, camera=camera, image=frame.image[:height], valid=frame.valid[:height], labels=frame.labels[:height])


def test_sizes_are_checked_before_any_work(reconstructor: MVSplatReconstructor) -> None:
    reconstructor.check_size(336, 448)
    reconstructor.check_size(576, 880)
    with pytest.raises(ConfigError, match=r"308 x 448 pixels.* multiples of 16, .*multiples of 112 .*build the frames at 336 x 448"):
        reconstructor.check_size(308, 448)
    with pytest.raises(ConfigError, match="build the frames at 112 x 112"):
        reconstructor.check_size(0, 16)


def test_the_note_says_what_made_the_column(reconstructor: MVSplatReconstructor) -> None:
    note = reconstructor.describe()
    assert json.loads(json.dumps(note)) == note
    assert (note["near"], note["far"]) == (1.0, 100.0)
    assert "mean nothing" in note["weights"]
    assert len(note["weights_sha256"]) == 64
    assert not reconstructor.needs_depth


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"near": 0.0}, r"reconstructor\.near=0\.0.* 0 < near < far"),
        ({"far": 0.5}, "0 < near < far"),
        ({"far": float("nan")}, "0 < near < far"),
        ({"batch": 0}, r"reconstructor\.batch=0: must be above 0"),
        ({"batch": 1.5}, "reconstructor.batch=1.5: must be a whole number"),
        ({"device": "tpu9"}, r"reconstructor\.device=tpu9: use auto"),
        ({"checkpoint": "memory://nothing/there.ckpt"}, "there.ckpt: not found"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    words = [f"reconstructor.{name}={value}" for name, value in {"checkpoint": "rule", **settings}.items()]

    def make() -> None:
        make_reconstructor(load(CacheGaussiansConfig, ["dataset=x", "reconstructor=mvsplat", *words]).reconstructor)

    with pytest.raises((ConfigError, StorageError), match=message):
        make()


def test_the_checkpoint_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"give reconstructor\.checkpoint=\.\.\."):
        load(CacheGaussiansConfig, ["dataset=x", "reconstructor=mvsplat"])
