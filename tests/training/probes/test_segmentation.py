"""Segmentation: the published numbers, exact truth, and metrics that are broken on purpose."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.training.probes.goldens import golden, tensor
from tests.training.probes.rooms import CLASSES, Rooms
from training.probes.data.base import IGNORED
from training.probes.data.files import decode_labels
from training.probes.segmentation import (
    class_accuracy,
    class_iou,
    confusion_matrix,
    cross_entropy,
    segmentation_scores,
    slide_inference,
)


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    frames = Rooms(train=3, test=0, views_each=3, height=56, width=70).frames("train")
    return torch.from_numpy(np.stack([frame.labels for frame in frames]))


def reduced(stored: np.ndarray, classes: int) -> np.ndarray:
    """Labels as a reader finds them in a file whose ids begin at 1."""
    file = io.BytesIO()
    Image.fromarray(np.atleast_2d(stored).astype(np.uint8)).save(file, "png")
    return decode_labels("labels.png", file.getvalue(), classes, zero_is_ignored=True)


@pytest.mark.parametrize("style", ["plain", "reduce_zero"])
def test_metrics_are_the_published_ones(style: str) -> None:
    """With a class in neither, one never predicted and one predicted but never labelled."""
    case = golden(f"seg_miou_{style}")
    classes = int(case["num_classes"])
    stored = [reduced(one, classes) for one in case["raw_label"]] if style == "reduce_zero" else case["raw_label"]
    each = torch.stack(
        [confusion_matrix(tensor(p), torch.from_numpy(np.asarray(t)), classes) for p, t in zip(case["pred"], stored, strict=True)]
    )
    assert each.diagonal(dim1=1, dim2=2).tolist() == case["area_intersect"].tolist()
    assert each.sum(dim=1).tolist() == case["area_pred"].tolist()
    assert each.sum(dim=2).tolist() == case["area_label"].tolist()
    confusion = each.sum(dim=0)
    np.testing.assert_allclose(class_iou(confusion), case["IoU"], rtol=1e-6)
    np.testing.assert_allclose(class_accuracy(confusion), case["Acc"], rtol=1e-6)
    for name, value in segmentation_scores(confusion).items():
        np.testing.assert_allclose(value, case[name], rtol=1e-6)
    # Averaging over images instead gives another number: a test that pooling is pooling.
    assert abs(np.mean([segmentation_scores(one)["mIoU"] for one in each]) - float(case["mIoU"])) > 1e-3


def test_label_reduction_is_the_published_one() -> None:
    case = golden("preprocess")
    assert reduced(case["label_raw"], 254).ravel().tolist() == case["label_reduced"].tolist()


def test_cross_entropy_is_the_published_one() -> None:
    case = golden("heads")
    labels = tensor(case["seg_label"])[:, 0]
    logits = F.interpolate(tensor(case["seg_logits"]), size=labels.shape[-2:], mode="bilinear")
    np.testing.assert_allclose(cross_entropy(logits, labels), case["seg_ce_snd"], rtol=1e-4)
    share = float((labels != IGNORED).double().mean())
    assert share < 1
    np.testing.assert_allclose(cross_entropy(logits, labels, over_all=False) * share, case["seg_ce_snd"], rtol=1e-4)


def test_windows_are_the_published_ones() -> None:
    case = golden("slide_inference")
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        h, w = x.shape[-2:]
        return torch.stack([x[:, 0] * torch.linspace(0, 1, w), x[:, 1] * torch.linspace(1, 0, h)[:, None], x[:, 2]], dim=1)

    crop, stride = (tuple(case[name].tolist()) for name in ("crop", "stride"))
    slid = slide_inference(network, tensor(case["image"]), crop, stride)
    assert len(seen) == int(case["n_windows"])
    np.testing.assert_allclose(slid, case["logits_avg"], atol=1e-4)
    resized = F.interpolate(slid, size=tuple(case["ori_shape"].tolist()), mode="bilinear")
    np.testing.assert_allclose(resized, case["logits_rescaled"], atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (51, 51), (52, 51), (120, 200)])
def test_windows_cover_an_image_of_any_size(height: int, width: int) -> None:
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slide_inference(lambda x: x, image, (51, 51), (34, 34)), image)


def test_truth_scores_perfectly_and_what_is_off_by_one_hardly(labels: torch.Tensor) -> None:
    scores = segmentation_scores(confusion_matrix(labels, labels, len(CLASSES)))
    assert scores == {"mIoU": 1, "mAcc": 1, "aAcc": 1}
    off = (labels + 1) % len(CLASSES)
    assert segmentation_scores(confusion_matrix(off, labels, len(CLASSES)))["mIoU"] < 0.02


def test_forgotten_label_reduction_is_seen(labels: torch.Tensor) -> None:
    """Stored ids start with 1; who takes them for classes has a class too many, and is told, or is off by one."""
    stored = labels + 1
    assert [reduced(one, len(CLASSES)).tolist() for one in stored.numpy()] == labels.tolist()
    with pytest.raises(ValueError, match="check label reduction"):
        confusion_matrix(labels, stored, len(CLASSES))
    assert segmentation_scores(confusion_matrix(labels, stored, len(CLASSES) + 1))["mIoU"] < 0.02


def test_ignored_pixels_do_not_count(labels: torch.Tensor) -> None:
    ignored = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    known = torch.where(ignored, IGNORED, labels)
    pred = torch.where(ignored, (labels + 3) % len(CLASSES), labels)
    assert segmentation_scores(confusion_matrix(pred, known, len(CLASSES)))["mIoU"] == 1
    logits = torch.randn(len(labels), len(CLASSES), *labels.shape[1:], generator=torch.Generator().manual_seed(0))
    changed = torch.where(ignored[:, None], 9.0, logits)
    torch.testing.assert_close(cross_entropy(logits, known), cross_entropy(changed, known))


def test_one_class_for_all_scores_its_share_over_the_classes(labels: torch.Tensor) -> None:
    wall = segmentation_scores(confusion_matrix(torch.zeros_like(labels), labels, len(CLASSES)))
    present = len(labels.unique())
    np.testing.assert_allclose(wall["mIoU"], float((labels == 0).double().mean()) / present)


def test_matrices_of_images_add_up_in_any_order(labels: torch.Tensor) -> None:
    pred = torch.roll(labels, 3, dims=-1)
    each = [confusion_matrix(p, t, len(CLASSES)) for p, t in zip(pred, labels, strict=True)]
    assert torch.equal(torch.stack(each[::-1]).sum(dim=0), confusion_matrix(pred, labels, len(CLASSES)))
