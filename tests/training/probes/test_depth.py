"""Depth: the published numbers, what must hold of exact truth, and metrics that are broken on purpose."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.probes.goldens import golden, metres, tensor
from tests.training.probes.rooms import Rooms
from training.probes.depth import (
    METRICS,
    PROBE3D_METRICS,
    crop_mask,
    depth_metrics,
    gradient_loss,
    kitti_window,
    probe3d_depth_metrics,
    scale_free_metrics,
    siglog_loss,
    valid_depth,
)
from training.probes.preprocess import resize_nearest

NAMES = {"a1": "d1", "a2": "d2", "a3": "d3", "log_10": "log10", "sq_rel": "sq_rel"}
RANGE = (0.001, 10.0)


def assert_published(found: dict[str, torch.Tensor], names: np.ndarray, per_image: np.ndarray) -> None:
    for column, name in enumerate(names):
        np.testing.assert_allclose(found[NAMES.get(str(name), str(name))], per_image[:, column], rtol=2e-4, atol=2e-5, err_msg=str(name))


def rooms_depth() -> torch.Tensor:
    frames = Rooms(train=2, test=0, views_each=2, height=56, width=70).frames("train")
    return torch.from_numpy(np.stack([frame.depth for frame in frames]))


# Goldens


def test_metrics_are_the_published_ones() -> None:
    case = golden("depth_metrics")
    gt = metres(case["gt_mm"])
    valid = valid_depth(gt, (float(case["min_depth"]), float(case["max_depth"])))
    found = depth_metrics(metres(case["pred_mm"]), gt, valid)
    assert_published(found, case["names"], case["per_image"])
    assert torch.isnan(found["rmse"][-1])  # an image without a valid pixel
    means = [np.nanmean(found[NAMES.get(str(name), str(name))]) for name in case["names"]]
    np.testing.assert_allclose(means, case["dataset_mean"], rtol=2e-4)


def test_indoor_crop_is_the_published_one() -> None:
    case = golden("depth_indoor_crop")
    gt = metres(case["gt_mm"])
    valid = valid_depth(gt, RANGE, "indoor")
    assert valid.sum((1, 2)).tolist() == case["valid_count"].tolist()
    assert_published(depth_metrics(metres(case["pred_mm"]), gt, valid), case["names"], case["per_image"])


def test_kitti_crop_is_the_published_one() -> None:
    case = golden("depth_kitti")
    scale = float(case["depth_scale"])
    gt = metres(case["gt_raw_u16"], scale)
    gt = gt[:, *kitti_window(*gt.shape[-2:])]
    valid = valid_depth(gt, (0.001, 80.0), "kitti")
    assert int(valid.sum()) == int(case["valid_count"])
    assert_published(depth_metrics(metres(case["pred_raw_u16"], scale), gt, valid), case["names"], case["per_image"])


def scannetpp(gt: torch.Tensor) -> dict[str, torch.Tensor]:
    return depth_metrics(metres(golden("depth_scannetpp")["pred_mm"]), gt, valid_depth(gt, (0.001, 20.0)))


def test_scannetpp_and_what_resizing_its_truth_does() -> None:
    """Bilinearly, as published, holes bleed into depths; by nearest pixel, as here, they do not."""
    case = golden("depth_scannetpp")
    assert_published(scannetpp(metres(case["gt_full_mm"])), case["names"], case["per_image_full"])
    half = metres(case["gt_half_mm"])
    bled = torch.nn.functional.interpolate(half[None], size=(584, 876), mode="bilinear")[0]
    assert_published(scannetpp(bled), case["names"], case["per_image_half_bilinear_gt"])
    nearest = torch.from_numpy(resize_nearest(half[0].numpy(), 584, 876))[None]
    assert_published(scannetpp(nearest), case["names"], case["per_image_half_nearest_gt"])


@pytest.mark.parametrize(("kind", "options"), [("plain", {}), ("si", {"align": True}), ("nyucrop", {"crop": True})])
def test_probe3d_metrics_are_the_published_ones(kind: str, options: dict[str, bool]) -> None:
    case = golden("depth_probe3d")
    found = probe3d_depth_metrics(metres(case["pred_mm"])[:, 0], metres(case["gt_mm"])[:, 0], **options)
    for name in PROBE3D_METRICS:
        np.testing.assert_allclose(found[name], case[f"{kind}_{name}"], rtol=2e-4, atol=2e-5)
        assert found[name][2] == 0  # an image without a valid pixel


@pytest.mark.parametrize("batch", ["b2", "b4"])
def test_losses_are_the_published_ones(batch: str) -> None:
    case = golden("depth_losses")
    pred, gt = tensor(case[f"pred_{batch}"]), tensor(case[f"gt_{batch}"])
    for call in (1, 100, 101):
        np.testing.assert_allclose(siglog_loss(pred, gt, warm_up=call <= 100), case[f"sig_call{call}_{batch}"], rtol=1e-4)
    np.testing.assert_allclose(0.5 * gradient_loss(pred, gt, (0, 1)), case[f"grad_half_weight_as_run_4d_{batch}"], rtol=1e-4)
    each = [0.5 * gradient_loss(p, d) for p, d in zip(pred, gt, strict=True)]
    np.testing.assert_allclose(np.mean(each), case[f"grad_half_weight_spatial_per_image_mean_{batch}"], rtol=1e-4)


def test_probe3d_losses_are_the_published_ones() -> None:
    case = golden("probe3d_depth_losses")
    pred, gt = tensor(case["pred"]), tensor(case["gt"])
    np.testing.assert_allclose(siglog_loss(pred, gt, bessel=False), case["sig_loss"], rtol=1e-4)
    np.testing.assert_allclose(gradient_loss(pred, gt), case["gradient_loss"], rtol=1e-4)
    np.testing.assert_allclose(
        10 * siglog_loss(pred, gt, bessel=False) + 0.5 * gradient_loss(pred, gt), case["total_depth_loss"], rtol=1e-4
    )


# Exact truth


def test_truth_scores_perfectly() -> None:
    gt = rooms_depth()
    found = depth_metrics(gt, gt, valid_depth(gt, RANGE))
    for name in METRICS:
        assert (found[name] == (1 if name in ("d1", "d2", "d3") else 0)).all(), name


@pytest.mark.parametrize(("factor", "rel", "d1", "d3"), [(2.0, 1.0, 0, 0), (1.2, 0.2, 1, 1), (10.0, 9.0, 0, 0)])
def test_a_wrong_scale_is_seen(factor: float, rel: float, d1: float, d3: float) -> None:
    """The last is a mistaken unit."""
    gt = rooms_depth()
    found = depth_metrics(factor * gt, gt, valid_depth(gt, RANGE))
    torch.testing.assert_close(found["abs_rel"], torch.full((len(gt),), rel, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert (found["d1"] == d1).all()
    assert (found["d3"] == d3).all()
    assert float(found["silog"].max()) < 1e-3
    scaled = scale_free_metrics(factor * gt, gt, valid_depth(gt, RANGE))
    assert float(scaled["scaled_rmse"].max()) < 1e-5


def test_ray_length_is_no_depth() -> None:
    frame = Rooms(train=1, test=0, views_each=1).frames("train")[0]
    K, gt = frame.K, torch.from_numpy(frame.depth)[None]
    y, x = np.mgrid[: gt.shape[1], : gt.shape[2]] + 0.5
    length = gt * torch.from_numpy(np.sqrt(((x - K[0, 2]) / K[0, 0]) ** 2 + ((y - K[1, 2]) / K[1, 1]) ** 2 + 1)).float()
    assert float(depth_metrics(length, gt, valid_depth(gt, RANGE))["rmse"]) > 0.2


def test_what_is_invalid_does_not_count() -> None:
    case = golden("depth_metrics")
    gt, pred = metres(case["gt_mm"]), metres(case["pred_mm"])
    valid = valid_depth(gt, RANGE)
    found, changed = depth_metrics(pred, gt, valid), depth_metrics(torch.where(valid, pred, torch.nan), gt, valid)
    for name in METRICS:
        torch.testing.assert_close(found[name], changed[name], equal_nan=True)
    assert not valid_depth(torch.tensor([[[RANGE[0], RANGE[1], 0.0]]]), RANGE).any()


@given(st.permutations(range(4)))
def test_images_are_judged_one_by_one(order: list[int]) -> None:
    case = golden("depth_metrics")
    gt, pred = metres(case["gt_mm"])[:4], metres(case["pred_mm"])[:4]
    valid = valid_depth(gt, RANGE)
    found = depth_metrics(pred, gt, valid)
    for i, n in enumerate(order):
        assert depth_metrics(pred[order], gt[order], valid[order])["rmse"][i] == found["rmse"][n]
        assert depth_metrics(pred[n : n + 1], gt[n : n + 1], valid[n : n + 1])["rmse"][0] == found["rmse"][n]


def test_bilinear_truth_with_holes_is_worse_than_nearest() -> None:
    gt = rooms_depth()[0].numpy()
    gt[np.random.default_rng(0).random(gt.shape) < 0.1] = 0
    size = (2 * gt.shape[1], 2 * gt.shape[0])
    full = torch.from_numpy(cv2.resize(rooms_depth()[0].numpy(), size, interpolation=cv2.INTER_NEAREST))[None]
    scores = []
    for resized in (cv2.resize(gt, size, interpolation=cv2.INTER_LINEAR), resize_nearest(gt, size[1], size[0])):
        truth = torch.from_numpy(resized)[None]
        scores.append(float(depth_metrics(full, truth, valid_depth(truth, RANGE))["rmse"]))
    assert scores[0] > 0.3
    assert scores[1] < 1e-6


def test_the_published_gradient_term_is_zero_for_two_images() -> None:
    pred, gt = torch.rand(2, 1, 30, 40) + 1, torch.rand(2, 1, 30, 40) + 1
    assert gradient_loss(pred, gt, (0, 1)) == 0
    assert gradient_loss(pred, gt) > 0


def test_losses_of_nothing_are_zero_and_have_a_gradient() -> None:
    pred = torch.ones(1, 8, 8, requires_grad=True)
    (siglog_loss(pred, torch.zeros(1, 8, 8)) + gradient_loss(pred, torch.zeros(1, 8, 8))).backward()
    assert pred.grad is not None
    assert (pred.grad == 0).all()


def test_a_crop_for_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="480 x 640"):
        crop_mask("indoor", 240, 320)
    with pytest.raises(ValueError, match="352 x 1216"):
        kitti_window(300, 1242)
    with pytest.raises(ValueError, match="choose indoor, kitti"):
        crop_mask("eigen", 480, 640)
