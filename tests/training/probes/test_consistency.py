"""Matches between views, and what tokens are like."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.probes.rooms import Rooms, View, make_room, orbit_views, world_code
from training.probes.consistency import effective_rank, entropy_share, inside_variance, match
from training.probes.data.base import ProbeFrame
from training.probes.extractor import Tokens
from training.probes.features import FeatureMap
from training.probes.geometry import normals_from_depth, reproject


@pytest.fixture(scope="module")
def views() -> list[View]:
    return orbit_views(make_room(7), 126, 168, (10.0, 40.0))


def dense(view: View) -> Tokens:
    """The world code of every pixel."""
    return Tokens(
        FeatureMap(torch.from_numpy(world_code(view.xyz)).permute(2, 0, 1)[None], None, (0, 0), 1), torch.ones(126, 168, dtype=torch.bool)
    )


def found(first: View, second: View, a: ProbeFrame | None = None, b: ProbeFrame | None = None, step: int = 3) -> np.ndarray:
    """Errors, in pixels, of every `step`-th pixel's match."""
    tokens = dense(first)
    keep = torch.zeros(126, 168, dtype=torch.bool)
    keep[::step, ::step] = True
    return match(replace(tokens, keep=keep), dense(second), (a or first.frame, b or second.frame))["error"]


@pytest.mark.parametrize("other", [1, 2])
def test_the_code_of_the_world_is_found_to_the_pixel(views: list[View], other: int) -> None:
    error = found(views[0], views[other])
    assert len(error) > 300
    assert (error <= 1).mean() >= 0.98
    assert np.median(error) <= 0.5  # half a pixel's diagonal: matches are pixels


def test_a_view_matches_itself_exactly(views: list[View]) -> None:
    assert found(views[0], views[0]).max() < 1e-6


def spoilt(frame: ProbeFrame, how: str) -> ProbeFrame:
    assert frame.K is not None
    assert frame.c2w is not None
    assert frame.depth is not None
    if how == "pose inverted":
        return replace(frame, c2w=np.linalg.inv(frame.c2w))
    if how == "K transposed":
        return replace(frame, K=frame.K.T)
    if how == "K at another size":
        return replace(frame, K=frame.K * [[4], [4], [1]])
    if how == "principal point off by 2 px":
        return replace(frame, K=frame.K + np.array([[0, 0, 2], [0, 0, 2], [0, 0, 0]]))
    return replace(frame, depth=frame.depth * np.float32(1.1))


@pytest.mark.parametrize("how", ["pose inverted", "K transposed", "K at another size", "principal point off by 2 px", "depth x 1.1"])
def test_a_wrong_camera_or_depth_is_seen(views: list[View], how: str) -> None:
    """Whatever is wrong, points vanish (they seem occluded) or matches seem to be elsewhere."""
    healthy = (found(views[0], views[2]) <= 1).sum()
    assert (found(views[0], views[2], a=spoilt(views[0].frame, how)) <= 1).sum() < 0.7 * healthy


def test_points_that_another_surface_hides_do_not_count(views: list[View]) -> None:
    first, second = views[0], views[2]
    assert first.frame.depth is not None
    x, y = np.meshgrid(np.arange(168) + 0.5, np.arange(126) + 0.5)
    pixels = np.stack([x.ravel(), y.ravel()], 1)
    seen = reproject(first.frame, second.frame, pixels)
    column, row = np.floor(seen.pixels[seen.visible]).astype(int).T
    apart = np.linalg.norm(second.xyz[row, column] - first.xyz.reshape(-1, 3)[seen.visible], axis=1)
    assert np.quantile(apart, 0.99) < 0.12
    holed = replace(first.frame, depth=np.where(np.arange(168) < 80, first.frame.depth, 0).astype(np.float32))
    assert not reproject(holed, second.frame, pixels).visible.reshape(126, 168)[:, 80:].any()
    assert not reproject(second.frame, holed, pixels).visible[reproject(second.frame, holed, pixels).pixels[:, 0] >= 80].any()


def test_the_angle_is_that_between_the_rays(views: list[View]) -> None:
    point = views[0].xyz[63, 84]
    for view in views[1:]:
        a, b = (one.frame.c2w[:3, 3] - point for one in (views[0], view) if one.frame.c2w is not None)
        angle = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        assert reproject(views[0].frame, view.frame, np.array([[84.5, 63.5]])).angle[0] == pytest.approx(angle, rel=1e-4)


def test_given_points_are_used_instead_of_depth() -> None:
    """Four tokens a view, each with a feature of its own; the second view has them the other way round."""
    features = torch.eye(4).reshape(1, 4, 2, 2)
    frame = ProbeFrame("a", "r", np.zeros((4, 4, 3), np.uint8))
    first = Tokens(FeatureMap(features, None, (0, 0), 2), torch.ones(2, 2, dtype=torch.bool))
    second = Tokens(FeatureMap(features.flip(-1), None, (0, 0), 2), torch.ones(2, 2, dtype=torch.bool))
    right = match(first, second, (frame, frame), np.array([[1.0, 1, 3, 1], [3, 3, 1, 3]]))
    assert right["error"].tolist() == [0, 0]
    assert right["rank"].tolist() == [0, 0]
    wrong = match(first, second, (frame, frame), np.array([[1.0, 1, 1, 1]]))
    assert wrong["error"].tolist() == [1]
    assert wrong["rank"][0] == pytest.approx((1 + 2 / 2) / 3)  # one is above, two are equal
    assert np.isnan(right["angle"]).all()


def test_effective_rank_counts_directions() -> None:
    rng = torch.Generator().manual_seed(0)
    narrow = torch.randn(4000, 3, generator=rng) @ torch.linalg.qr(torch.randn(16, 16, generator=rng))[0][:3]
    assert effective_rank(narrow) == pytest.approx(3, rel=0.02)
    assert effective_rank(torch.randn(4000, 16, generator=rng)) == pytest.approx(16, rel=0.02)
    assert effective_rank(torch.ones(10, 4)) == 1


def test_variance_inside_objects_is_0_where_objects_are_flat_and_all_where_they_are_alike() -> None:
    instances = np.repeat(np.repeat(np.array([[1, 2], [1, 3]], np.uint16), 2, 0), 2, 1)
    frame = ProbeFrame("a", "r", np.zeros((4, 4, 3), np.uint8), instances=instances)
    flat = torch.tensor([[1.0, 5], [1, -2]])[None, None]
    mixed = torch.tensor([[1.0, 0], [-1, 0]])[None, None]
    keep = torch.ones(2, 2, dtype=torch.bool)
    assert inside_variance(Tokens(FeatureMap(flat, None, (0, 0), 2), keep), frame) == (0, pytest.approx(24.75))
    assert inside_variance(Tokens(FeatureMap(mixed, None, (0, 0), 2), keep), frame) == (2, 2)


def test_entropy_tells_a_collapsed_head_from_one_that_uses_all_prototypes() -> None:
    assert entropy_share(torch.ones(64)) == pytest.approx(1)
    assert entropy_share(torch.eye(64)[3]) == 0
    assert entropy_share(torch.tensor([3.0, 3, 0, 0])) == pytest.approx(math.log(2) / math.log(4))


@pytest.mark.parametrize("rounded", [False, True])
def test_normals_of_planes_are_those_of_the_truth(rounded: bool) -> None:
    """Furnished rooms at a stored frame's size: all but a few pixels beside creases, and with millimetres as stored."""
    frame = Rooms(train=1, test=1, views_each=1, height=224, width=336, orbit=()).frames("test")[0]
    assert frame.depth is not None
    assert frame.normals is not None
    assert frame.K is not None
    depth = np.round(frame.depth * 1000) / 1000 if rounded else frame.depth
    normals = normals_from_depth(depth, frame.K)
    known = np.abs(normals).sum(-1) > 0
    np.testing.assert_allclose(np.linalg.norm(normals[known], axis=-1), 1, atol=1e-5)
    error = np.degrees(np.arccos(np.clip((normals * frame.normals).sum(-1)[known], -1, 1)))
    assert known.mean() > 0.6
    assert np.median(error) < (0.3 if rounded else 0.01)
    assert (error > 5).mean() < 0.001


def test_holes_edges_and_grazing_views_have_no_normal() -> None:
    K = np.array([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]])
    depth = np.full((48, 64), 2.0, np.float32)
    depth[:, 32:] = 3.0
    depth[10:14, 10:14] = 0
    normals = normals_from_depth(depth, K)
    known = np.abs(normals).sum(-1) > 0
    assert not known[:, 29:35].any()
    assert not known[10:14, 10:14].any()
    assert known[24, 16]
    np.testing.assert_allclose(normals[24, 16], [0, 0, -1], atol=1e-6)
    rows = np.arange(48)[:, None] + 0.5
    floor = np.where(rows > 24.6, 0.2 * 100 / np.maximum(rows - 24, 1e-3), 0) * np.ones((1, 64))
    seen = np.abs(normals_from_depth(floor.astype(np.float32), K)).sum(-1) > 0
    assert seen[46, 32] is np.True_
    assert not seen[:34].any()  # below 10 degrees to the surface
