"""Heads: the published numbers, and heads whose weights are known to be right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.training.probes.goldens import golden, tensor
from tests.training.probes.rooms import Rooms
from training.probes.data.base import ProbeFrame
from training.probes.features import FeatureMap, stack_maps
from training.probes.heads import LinearHead, Probe, depth_from_bins, make_head, to_image
from training.probes.preprocess import as_batch
from training.probes.protocol import PROTOCOLS, Head
from training.probes.tasks import Model, ProbeTask, make_task

BINS = 256
DEEPEST = 8.0


def with_weights(head: Head, features: FeatureMap, weight: torch.Tensor, bias: torch.Tensor | None = None) -> LinearHead:
    made = make_head(head, features, len(weight))
    assert isinstance(made, LinearHead)
    with torch.no_grad():
        made.classifier.weight.copy_(weight[:, :, None, None])
        made.classifier.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return made


# Goldens


def test_depth_head_is_the_published_one() -> None:
    case = golden("heads")
    features = FeatureMap(tensor(case["patch_tokens"]), tensor(case["cls_token"]), (0, 0), 14)
    head = with_weights(Head(class_token=True), features, tensor(case["depth_weight"]), tensor(case["depth_bias"]))
    found = depth_from_bins(head(features), (float(case["min_depth"]), float(case["max_depth"])))
    np.testing.assert_allclose(found.detach(), case["depth_out"], rtol=1e-4)


def test_segmentation_head_is_the_published_one() -> None:
    case = golden("heads")
    features = FeatureMap(tensor(case["patch_tokens"]), None, (0, 0), 14)
    head = with_weights(Head(upsample=1), features, tensor(case["seg_weight"]), tensor(case["seg_bias"]))
    np.testing.assert_allclose(head(features).detach(), case["seg_logits"], rtol=1e-4, atol=1e-4)


def test_normal_head_is_the_published_one() -> None:
    case = golden("snorm_head")
    features = FeatureMap(tensor(case["feat"]), None, (0, 0), 14)
    values = with_weights(Head(), features, tensor(case["weight"]), tensor(case["bias"]))(features).detach()
    np.testing.assert_allclose(values, case["head_out"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(to_image(values, features, (56, 42), True, "bicubic", True), case["resized_56x42"], rtol=1e-4, atol=1e-4)


# Constructed heads


@pytest.fixture(scope="module")
def rooms() -> Rooms:
    return Rooms(train=1, test=1, views_each=2, height=56, width=70, orbit=())


def two_bins(frame: ProbeFrame) -> np.ndarray:
    """How far depth lies between its two bins, [H,W,BINS]."""
    position = (frame.depth - 0.001) / (DEEPEST - 0.001) * (BINS - 1)
    return np.maximum(0, 1 - np.abs(np.arange(BINS) - position[..., None])).astype(np.float32)


def one_hot(frame: ProbeFrame) -> np.ndarray:
    return np.eye(8, dtype=np.float32)[frame.labels]


def dense_model(frames: list[ProbeFrame], code: object, head: Head, weight: torch.Tensor) -> Model:
    """An extractor that looks the image up, mirrored ones too, with a head of given weights."""

    def model(images: torch.Tensor) -> tuple[FeatureMap, torch.Tensor]:
        for frame in frames:
            for flip in (False, True):
                image = as_batch([frame.image])
                if torch.equal(images, image.flip(-1) if flip else image):
                    patch = torch.from_numpy(code(frame)).permute(2, 0, 1)[None]  # type: ignore[operator]
                    features = FeatureMap(patch.flip(-1) if flip else patch, None, (0, 0), 1)
                    return features, with_weights(head, features, weight)(features).detach()
        raise AssertionError("an image that no frame has")

    return model


def task_of(name: str, data: Rooms, preset: str = "clean") -> ProbeTask:
    task = make_task(name, PROTOCOLS[preset], data)
    return replace(task, choices=replace(task.choices, head=replace(task.head, class_token=False, upsample=1)))


def rmse(data: Rooms, model: Model, name: str = "depth") -> float:
    task = task_of(name, data)
    return float(np.mean([task.score(task.predict(model, frame, True), frame)[0]["rmse"] for frame in data.frames("test")]))


def test_a_head_that_picks_the_bins_gives_their_depth(rooms: Rooms) -> None:
    """The floor below every bin pulls to the middle of the range, the less the larger the weight."""
    task = task_of("depth", rooms)
    errors = [rmse(rooms, dense_model(rooms.frames("test"), two_bins, task.head, scale * torch.eye(BINS))) for scale in (1e6, 1e4, 1e2)]
    assert errors[0] < 2e-4
    assert errors[0] < errors[1] < 0.02
    assert 0.1 < errors[2] < 1


def test_a_flip_that_is_not_undone_is_seen(rooms: Rooms) -> None:
    task = task_of("depth", rooms)
    right = dense_model(rooms.frames("test"), two_bins, task.head, 1e6 * torch.eye(BINS))

    def forgets(images: torch.Tensor) -> tuple[FeatureMap, torch.Tensor]:
        """As if the mirrored prediction were not turned back: it comes mirrored once more."""
        features, values = right(images)
        upright = any(torch.equal(images, as_batch([frame.image])) for frame in rooms.frames("test"))
        return features, values if upright else values.flip(-1)

    assert rmse(rooms, forgets) > 0.05 + rmse(rooms, right)


def test_a_head_that_passes_normals_on_is_right(rooms: Rooms) -> None:
    task = task_of("normals", rooms)
    model = dense_model(rooms.frames("test"), lambda frame: frame.normals, task.head, torch.eye(4, 3))
    assert rmse(rooms, model, "normals") < 0.05


def test_a_head_that_passes_classes_on_is_right(rooms: Rooms) -> None:
    task = task_of("segmentation", rooms)
    model = dense_model(rooms.frames("test"), one_hot, task.head, torch.eye(8))
    for frame in rooms.frames("test"):
        assert task.score(task.predict(model, frame, True), frame)[0]["mIoU"] == 1


# To the image


@pytest.mark.parametrize("offset", [(0, 0), (5, 2), (-3, -4)])
def test_values_lie_where_their_tokens_lie(offset: tuple[int, int]) -> None:
    """A ramp along the map, padded or cropped, is a ramp along the image: each pixel gets its own x and y."""
    size, stride = (42, 56), 7
    y, x = torch.meshgrid(torch.arange(8) * stride + 3.5 - offset[0], torch.arange(10) * stride + 3.5 - offset[1], indexing="ij")
    features = FeatureMap(torch.stack([x, y])[None], None, offset, stride)
    found = to_image(features.patch, features, size, stretch=False)[0]
    assert found.shape == (2, *size)
    v, u = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    inner = (slice(None), slice(4, -4), slice(4, -4)) if offset[0] >= 0 else (slice(None), slice(7, -4), slice(8, -4))
    torch.testing.assert_close(found[inner], torch.stack([u, v])[inner])


def test_a_stretched_map_is_off_by_its_padding() -> None:
    features = FeatureMap(torch.arange(8.0).expand(1, 1, 2, 8) * 7 + 3.5, None, (0, 3), 7)
    stretched = to_image(features.patch, features, (14, 50), stretch=True)[0, 0, 7]
    assert float((stretched - torch.arange(50) - 0.5)[10:40].abs().max()) > 0.5


def test_enlarging_and_classifying_commute() -> None:
    """The head classifies first: it is the same and costs less."""
    features = FeatureMap(torch.randn(2, 5, 4, 6), torch.randn(2, 3), (0, 0), 14)
    head = make_head(Head(class_token=True), features, 7)
    beside = torch.cat([features.patch, features.cls[:, :, None, None].expand(-1, -1, 4, 6)], dim=1)
    wide = F.interpolate(beside, scale_factor=4.0, mode="bilinear")
    torch.testing.assert_close(head(features), head.classifier(wide), rtol=1e-4, atol=1e-5)


def test_batch_norm_heads_start_as_published() -> None:
    features = FeatureMap(torch.randn(2, 200, 4, 6), None, (0, 0), 14)
    head = make_head(Head(batch_norm=True), features, 300)
    assert isinstance(head.norm, torch.nn.BatchNorm2d)
    assert abs(float(head.classifier.weight.detach().std()) - 0.01) < 5e-4
    assert (head.classifier.bias == 0).all()


@pytest.mark.parametrize("nearest", [True, False])
def test_a_dpt_head_uses_all_four_layers(nearest: bool) -> None:
    features = FeatureMap(torch.randn(1, 32, 5, 7, requires_grad=True), torch.randn(1, 16, requires_grad=True), (0, 0), 14)
    head = make_head(Head(kind="dpt", class_token=True, width=8, nearest=nearest), features, 3)
    out = head(features)
    assert out.shape == (1, 3, 40, 56)
    out.square().sum().backward()
    assert (features.patch.grad.abs().sum((0, 2, 3)) > 0).all()
    assert (features.cls.grad.abs() > 0).all()


def test_a_probe_standardises_what_it_was_measured_on() -> None:
    maps = [FeatureMap(torch.randn(1, 4, 3, 5) * 7 + 3, torch.randn(1, 4) - 9, (0, 0), 14) for _ in range(50)]
    seen: list[FeatureMap] = []
    probe = Probe(lambda features: seen.append(features) or features.patch, maps)  # type: ignore[arg-type, func-returns-value]
    probe(stack_maps(maps, "cpu"))
    for values in (seen[0].patch.movedim(1, -1).reshape(-1, 4), seen[0].cls):
        torch.testing.assert_close(values.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.std(0, unbiased=False), torch.ones(4), atol=1e-4, rtol=0)


def test_a_missing_class_token_is_said() -> None:
    with pytest.raises(ValueError, match="this network has none"):
        make_head(Head(class_token=True), FeatureMap(torch.zeros(1, 4, 2, 2), None, (0, 0), 14), 3)
