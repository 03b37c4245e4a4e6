"""Sizes, padding, colours and augmentations."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.probes.goldens import golden
from tests.training.probes.rooms import Rooms
from training.probes.data.base import IGNORED, ProbeFrame
from training.probes.preprocess import (
    as_batch,
    augment_depth,
    augment_normals,
    augment_segmentation,
    centre_cut,
    colour,
    depth_cut,
    distort,
    keep_ratio_size,
    mirror,
    normalise,
    pad,
    padded_size,
    resize,
    resize_nearest,
)
from training.probes.protocol import IMAGENET


@pytest.fixture(scope="module")
def frame() -> ProbeFrame:
    return Rooms(train=1, test=0, views_each=2, height=96, width=128).frames("train")[1]


def rays_from_depth(frame: ProbeFrame) -> np.ndarray:
    """Positions in the camera [H,W,3]."""
    y, x = np.mgrid[: frame.depth.shape[0], : frame.depth.shape[1]] + 0.5
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(frame.K).T * frame.depth[..., None]


# Goldens


def test_sizes_are_the_published_ones() -> None:
    case = golden("preprocess")
    for height, width, *rest in case["center_padding_14"].tolist():
        assert padded_size(height, width, 14) == tuple(rest)
    for height, width, *rest in golden("probe3d_padding")["padding_14"].tolist():
        assert padded_size(height, width, 14, "probe3d") == tuple(rest)
    for height, width, *rest in case["keep_ratio_2048x512"].tolist():
        assert keep_ratio_size(height, width, (2048, 512)) == tuple(rest)


def test_colours_are_the_published_ones() -> None:
    case = golden("preprocess")
    rgb = case["image_bgr_u8"][..., ::-1].copy()
    np.testing.assert_allclose(normalise(as_batch([rgb]), IMAGENET)[0].permute(1, 2, 0), case["normalized_rgb"], atol=1e-5)
    changed = colour(case["image_bgr_u8"], 1.07, 0.9, [1.05] * 3)
    np.testing.assert_allclose(changed, case["coloraug_gamma_1p07_bright_0p9_color_1p05"], rtol=1e-4, atol=1e-4)


# Geometry


@given(st.integers(14, 120), st.integers(14, 120), st.sampled_from(["centre", "probe3d", "crop"]))
def test_padding_and_cropping_put_the_image_at_its_offset(height: int, width: int, rule: str) -> None:
    image = torch.arange(1.0, height * width + 1).reshape(1, 1, height, width)
    padded, (top, left) = pad(image, 14, rule)
    assert padded.shape[-2] % 14 == padded.shape[-1] % 14 == 0
    y, x = torch.meshgrid(torch.arange(padded.shape[-2]) - top, torch.arange(padded.shape[-1]) - left, indexing="ij")
    inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
    expected = torch.where(inside, y * width + x + 1, 0).float()
    assert torch.equal(padded[0, 0], expected)
    assert int(inside.sum()) == (padded.numel() if rule == "crop" else height * width)


def test_an_unknown_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="padding=edge: choose"):
        padded_size(20, 20, 14, "edge")


def test_a_resized_frame_sees_the_same_room(frame: ProbeFrame) -> None:
    """By K and depth, its pixels are where those of the whole frame are, to a pixel."""
    small = resize(frame, 48, 64)
    whole = rays_from_depth(frame)[1::2, 1::2]
    flat = np.abs(np.diff(frame.depth, axis=0))[:-1:2, 1::2] < 0.02  # not across an edge
    distance = np.linalg.norm(rays_from_depth(small) - whole, axis=-1)[: len(flat)][flat]
    assert np.median(distance) < 0.04
    assert set(np.unique(small.labels)) <= set(np.unique(frame.labels))
    holed = replace(frame, depth=np.where(frame.labels == 0, 0, frame.depth).astype(np.float32))
    assert set(np.unique(resize(holed, 60, 77).depth)) <= set(np.unique(holed.depth))  # no hole bled


def test_a_part_of_a_frame_has_its_camera(frame: ProbeFrame) -> None:
    part = centre_cut(frame, 60, 80)
    np.testing.assert_allclose(rays_from_depth(part), rays_from_depth(frame)[18:78, 24:104], atol=1e-6)
    assert part.normals.shape == (60, 80, 3)
    assert centre_cut(frame, 1000, 1000).image.shape == frame.image.shape


def test_a_mirrored_frame_is_a_mirrored_room(frame: ProbeFrame) -> None:
    """Its normals are those of its own surface: the plane through three neighbours says so."""
    mirrored = mirror(frame)
    K = frame.K.copy()
    K[0, 2] = 128 - K[0, 2]
    positions = rays_from_depth(replace(mirrored, K=K))
    across, down = np.diff(positions, axis=1)[:-1], np.diff(positions, axis=0)[:, :-1]
    normals = np.cross(across, down)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12
    cosine = np.abs((normals * mirrored.normals[:-1, :-1]).sum(axis=-1))
    assert np.median(cosine) > 0.999
    again = mirror(mirrored)
    for name in ("image", "depth", "normals", "labels", "instances"):
        np.testing.assert_array_equal(getattr(again, name), getattr(frame, name))


def test_nearest_takes_the_pixel_in_which_the_centre_lies() -> None:
    assert resize_nearest(np.arange(8)[None], 1, 4)[0].tolist() == [1, 3, 5, 7]
    assert resize_nearest(np.arange(3)[None], 1, 6)[0].tolist() == [0, 0, 1, 1, 2, 2]


def test_depth_is_cut_as_its_source_wants() -> None:
    nyu = ProbeFrame("a", "b", np.zeros((480, 640, 3), np.uint8), depth=np.zeros((480, 640), np.float32))
    assert depth_cut(nyu, "nyuv2").image.shape == (427, 565, 3)
    kitti = replace(nyu, image=np.zeros((375, 1242, 3), np.uint8), depth=np.zeros((375, 1242), np.float32))
    assert depth_cut(kitti, "kitti").depth.shape == (352, 1216)
    assert depth_cut(nyu, "scannet") is nyu


# Augmentations


def same(a: ProbeFrame, b: ProbeFrame) -> bool:
    values = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(a)]
    return all(np.array_equal(x, y) for x, y in values if isinstance(x, np.ndarray))


AUGMENTATIONS = {
    "depth": lambda frame, rng: augment_depth(frame, rng, (64, 80)),
    "segmentation": lambda frame, rng: augment_segmentation(frame, rng, 64, (256, 96)),
    "normals": augment_normals,
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_seed_is_a_picture(frame: ProbeFrame, name: str) -> None:
    augment = AUGMENTATIONS[name]
    made = [augment(frame, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_augmented_depth_is_not_resized(frame: ProbeFrame) -> None:
    """Its values are those that were there, or 0 from outside; a depth stays with its colour."""
    painted = replace(frame, image=np.repeat((frame.depth * 30).astype(np.uint8)[..., None], 3, axis=2))
    for seed in range(12):
        made = augment_depth(painted, np.random.default_rng(seed), (64, 80))
        assert made.image.shape == (64, 80, 3)
        assert set(np.unique(made.depth)) <= {*np.unique(frame.depth), np.float32(0)}
        known = made.depth > 0
        colours, depths = made.image[known].mean(axis=1), made.depth[known]
        assert np.corrcoef(colours, depths)[0, 1] > 0.9
        assert np.abs(np.linalg.norm(made.normals[known], axis=-1) - 1).max() < 1e-4


class OnlyRotates(np.random.Generator):
    """Draws a rotation by this many degrees, and nothing else of `augment_depth`."""

    def __init__(self, degrees: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.degrees, self.asked = degrees, 0

    def random(self) -> float:  # type: ignore[override]
        self.asked += 1
        return 0.0 if self.asked == 1 else 1.0

    def uniform(self, low: float, high: float) -> float:  # type: ignore[override]
        return self.degrees


@pytest.mark.parametrize("degrees", [-20.0, 20.0])
def test_normals_turn_with_the_image(frame: ProbeFrame, degrees: float) -> None:
    """They are those of the surface that the turned depth shows: of planes through points eight pixels apart."""
    made = augment_depth(frame, OnlyRotates(degrees), None)
    middle = np.array([[96.0, 0, 64], [0, 96.0, 48], [0, 0, 1]])  # about which the image turns
    positions = rays_from_depth(replace(made, K=middle))[20:76, 25:103]
    stored = made.normals[20:76, 25:103]
    normals = np.cross(positions[8:, :-8] - positions[:-8, :-8], positions[:-8, 8:] - positions[:-8, :-8])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12
    cosine = (normals * stored[:-8, :-8]).sum(axis=-1)
    assert np.degrees(np.arccos(np.clip(np.median(cosine), -1, 1))) < 5


def test_augmented_labels_are_padded_with_ignored(frame: ProbeFrame) -> None:
    sizes = set()
    for seed in range(12):
        made = augment_segmentation(frame, np.random.default_rng(seed), 100, (256, 96))
        assert made.image.shape == (100, 100, 3)
        assert set(np.unique(made.labels)) <= {*np.unique(frame.labels), IGNORED}
        sizes.add(int((made.labels == IGNORED).sum()))
    assert len(sizes) > 3


def test_no_class_fills_a_crop_where_another_can_be_found(frame: ProbeFrame) -> None:
    """The left three quarters are one class: without drawing again, half of the crops would hold nothing else."""
    labels = np.ones_like(frame.labels)
    labels[:, 96:] = 2
    shares = []
    for seed in range(30):
        made = augment_segmentation(replace(frame, labels=labels), np.random.default_rng(seed), 40, (256, 96))
        shares.append((made.labels == 1).sum() / (made.labels != IGNORED).sum())
    assert np.mean(np.array(shares) < 0.75) > 0.8


def test_augmented_normals_keep_their_size_and_values(frame: ProbeFrame) -> None:
    for seed in range(8):
        made = augment_normals(frame, np.random.default_rng(seed))
        assert made.normals.shape == frame.normals.shape
        assert {tuple(n) for n in made.normals.reshape(-1, 3)} <= {tuple(n) for n in frame.normals.reshape(-1, 3)}


def test_colours_are_distorted_within_bounds() -> None:
    grey = np.full((4, 4, 3), 128, np.uint8)
    means = [float(distort(grey, np.random.default_rng(seed)).mean()) for seed in range(60)]
    assert min(means) < 100
    assert max(means) > 156
    assert np.std(means) > 10
