"""Normals: the published numbers, and what must hold of exact truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training.probes.goldens import golden, tensor
from tests.training.probes.rooms import Rooms
from training.probes.normals import METRICS, angular_error, angular_loss, normal_metrics


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    frames = Rooms(train=2, test=0, views_each=2, height=56, width=70).frames("train")
    return torch.from_numpy(np.stack([frame.normals for frame in frames])).permute(0, 3, 1, 2)


def test_metrics_and_losses_are_the_published_ones() -> None:
    case = golden("normals")
    pred, gt, valid = tensor(case["pred"]), tensor(case["gt"]), tensor(case["depth"])[:, 0] > 0
    found = normal_metrics(pred, gt, valid, empty=0.0)
    for name in ("rmse", "d1", "d2", "d3"):
        np.testing.assert_allclose(found[name], case[f"{name}_per_image"], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found[name].mean(), case[f"{name}_mean"], rtol=1e-3)
    np.testing.assert_allclose(angular_loss(pred, gt, valid), case["loss_uncertainty_aware"], rtol=1e-3)
    np.testing.assert_allclose(angular_loss(pred, gt, valid, uncertainty=False), case["loss_plain"], rtol=1e-3)


def test_an_image_without_a_valid_pixel_is_missing_unless_it_shall_be_zero(truth: torch.Tensor) -> None:
    nothing = torch.zeros(truth.shape[0], *truth.shape[2:], dtype=torch.bool)
    assert all(torch.isnan(normal_metrics(truth, truth, nothing)[name]).all() for name in METRICS)
    assert all((normal_metrics(truth, truth, nothing, empty=0.0)[name] == 0).all() for name in METRICS)


def test_truth_scores_perfectly_and_its_opposite_not_at_all(truth: torch.Tensor) -> None:
    everywhere = torch.ones(truth.shape[0], *truth.shape[2:], dtype=torch.bool)
    assert float(angular_error(truth, truth).max()) < 0.05
    exact = torch.nn.functional.normalize(truth.double(), dim=1)
    assert float(normal_metrics(3 * exact, exact, everywhere)["rmse"].max()) < 1e-4
    against = normal_metrics(-truth, truth, everywhere)
    assert float((against["rmse"] - 180).abs().max()) < 0.05
    assert all((against[f"d{k}"] == 0).all() for k in (1, 2, 3))


def test_axes_in_another_order_are_seen(truth: torch.Tensor) -> None:
    everywhere = torch.ones(truth.shape[0], *truth.shape[2:], dtype=torch.bool)
    assert float(normal_metrics(truth[:, [0, 2, 1]], truth, everywhere)["rmse"].min()) > 30
    opengl = truth * torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    assert float(normal_metrics(opengl, truth, everywhere)["rmse"].min()) > 60


def test_what_has_no_length_is_a_right_angle_off(truth: torch.Tensor) -> None:
    assert (angular_error(torch.zeros_like(truth), truth) == 90).all()
    assert (angular_error(truth, torch.zeros_like(truth)) == 90).all()


def test_what_is_invalid_does_not_count(truth: torch.Tensor) -> None:
    valid = torch.rand(truth.shape[0], *truth.shape[2:], generator=torch.Generator().manual_seed(0)) < 0.5
    pred = torch.roll(truth, 5, dims=-1)
    changed = torch.where(valid[:, None], pred, -truth)
    for name in METRICS:
        torch.testing.assert_close(normal_metrics(pred, truth, valid)[name], normal_metrics(changed, truth, valid)[name])
    torch.testing.assert_close(angular_loss(pred, truth, valid, False), angular_loss(changed, truth, valid, False))


def test_noise_raises_the_error_step_by_step(truth: torch.Tensor) -> None:
    everywhere = torch.ones(truth.shape[0], *truth.shape[2:], dtype=torch.bool)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    errors = [float(normal_metrics(truth + amount * noise, truth, everywhere)["rmse"].mean()) for amount in (0, 0.1, 0.3, 1)]
    assert errors == sorted(errors)


def test_the_loss_of_the_truth_has_a_finite_gradient(truth: torch.Tensor) -> None:
    pred = torch.cat([truth, torch.zeros_like(truth[:, :1])], dim=1).requires_grad_()
    angular_loss(pred, truth, truth.norm(dim=1) > 0).backward()
    assert pred.grad is not None
    assert torch.isfinite(pred.grad).all()
    nothing = angular_loss(pred, truth, torch.zeros(truth.shape[0], *truth.shape[2:], dtype=torch.bool))
    assert nothing == 0


def test_a_prediction_that_is_no_number_has_no_score() -> None:
    gt = torch.zeros(2, 3, 4, 4)
    gt[:, 2] = -1
    pred = gt.clone()
    pred[1, 0, 0, 0] = torch.nan
    found = normal_metrics(pred, gt, torch.ones(2, 4, 4, dtype=torch.bool), empty=0)
    assert found["rmse"][0] < 0.1
    assert all(value[1].isnan() for value in found.values())
