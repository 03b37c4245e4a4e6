"""Schedules, against those of the published code, step by step."""

from __future__ import annotations

import numpy as np

from tests.training.probes.goldens import golden
from training.probes.protocol import PROTOCOLS
from training.probes.schedules import cosine_rate, cycled_beta1, poly_rate, quarter_cosine_factor
from training.probes.trained import scheduled


def test_depth() -> None:
    case = golden("schedules")
    steps = int(case["depth_max_iters"])
    np.testing.assert_allclose([cosine_rate(int(n), steps) for n in case["depth_iters"]], case["depth_lr"], rtol=1e-6)
    np.testing.assert_allclose([cycled_beta1(int(n), steps) for n in case["depth_iters"]], case["depth_beta1"], rtol=1e-6)


def test_segmentation() -> None:
    case = golden("schedules")
    steps = int(case["seg_max_iters"])
    np.testing.assert_allclose([poly_rate(int(n), steps) for n in case["seg_iters"]], case["seg_lr"], rtol=1e-6)


def test_probe3d() -> None:
    case = golden("schedules")
    steps, warm_up = int(case["probe3d_max_step"]), int(case["probe3d_warmup"])
    found = [quarter_cosine_factor(int(n), steps, warm_up) for n in case["probe3d_step"]]
    np.testing.assert_allclose(found, case["probe3d_factor"], rtol=1e-6)


def test_protocols_take_their_schedules() -> None:
    case, snd = golden("schedules"), PROTOCOLS["snd"]
    n = int(case["depth_iters"][5])
    assert scheduled(snd.depth.optimisation, n, snd.depth.optimisation.steps) == (case["depth_lr"][5], case["depth_beta1"][5])
    n = int(case["seg_iters"][5])
    assert scheduled(snd.segmentation.optimisation, n, snd.segmentation.optimisation.steps)[0] == case["seg_lr"][5]
    rate, _ = scheduled(snd.normals.optimisation, 142, 1000)
    np.testing.assert_allclose(rate, 5e-4 * quarter_cosine_factor(142, 1000, 150))
