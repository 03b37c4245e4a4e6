"""Heads trained on features made of the truth must win in their own task; those trained on what knows nothing must score as a constant."""

from __future__ import annotations

from functools import cache

import numpy as np

from tests.training.probes.oracles import (
    class_code,
    constant_code,
    depth_code,
    normal_code,
    oracle,
    position_code,
    random_code,
    small_rooms,
    small_task,
)
from training.probes.trained import CachedCourse, train_probe

COURSE = CachedCourse(steps=90, batch=6, lr=4e-2, every=6)
CODES = {
    "depth": depth_code, "normals": normal_code, "segmentation": class_code,
    "constant": constant_code, "random": random_code, "position": position_code,
}  # fmt: skip
HEADLINE = {"depth": "rmse", "normals": "rmse", "segmentation": "mIoU"}


@cache
def trained(task: str, code: str, shuffled: bool = False, size: int = 7) -> float:
    """The headline score of a head that was trained on what a code says."""
    data = small_rooms()
    result = train_probe(small_task(task, data), oracle(data, CODES[code], shuffled, size), course=COURSE)
    return result.last.summary[HEADLINE[task]]


@cache
def always_the_mean() -> float:
    """RMSE of the training images' mean depth."""
    data = small_rooms()
    mean = np.mean([frame.depth for frame in data.frames("train")])
    return float(np.mean([np.sqrt(((frame.depth - mean) ** 2).mean()) for frame in data.frames("test")]))


@cache
def always_wall() -> float:
    """mIoU of the commonest class everywhere: its share, over the number of classes."""
    labels = np.stack([frame.labels for frame in small_rooms().frames("test")])
    return float((labels == 0).mean() / len(np.unique(labels)))


# Oracles


def test_the_depth_oracle_sees_depth() -> None:
    assert trained("depth", "depth") < 0.3 * min(always_the_mean(), trained("depth", "constant"))
    assert trained("depth", "depth") < 0.5 * min(trained("depth", other) for other in ("normals", "segmentation"))


def test_the_normal_oracle_sees_normals() -> None:
    assert trained("normals", "normals") < 0.45 * trained("normals", "constant")
    assert trained("normals", "normals") < 0.6 * min(trained("normals", other) for other in ("depth", "segmentation"))


def test_the_class_oracle_sees_classes() -> None:
    assert trained("segmentation", "segmentation") > 0.7
    assert trained("segmentation", "segmentation") > 2 * max(trained("segmentation", other) for other in ("depth", "normals"))


def test_a_finer_oracle_sees_more() -> None:
    assert trained("segmentation", "segmentation", size=14) < trained("segmentation", "segmentation") - 0.05


# What knows nothing


def test_what_knows_nothing_scores_as_a_constant_does() -> None:
    for name in ("random", "constant"):
        assert abs(trained("depth", name) / always_the_mean() - 1) < 0.1
        assert abs(trained("segmentation", name) - always_wall()) < 0.015
    assert abs(trained("depth", "random") / trained("depth", "constant") - 1) < 0.05
    assert abs(trained("normals", "random") / trained("normals", "constant") - 1) < 0.05


def test_an_oracle_of_other_images_sees_nothing() -> None:
    assert trained("depth", "depth", shuffled=True) > 0.98 * trained("depth", "position")
