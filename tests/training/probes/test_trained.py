"""Trained heads: oracles must win in their own task, what knows nothing must not, and the same seed gives the same numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from configs import ConfigError
from tests.training.probes.oracles import (
    class_code,
    constant_code,
    depth_code,
    normal_code,
    oracle,
    patch_colours,
    position_code,
    random_code,
    small_rooms,
)
from tests.training.probes.rooms import Rooms
from training.probes.features import FeatureMap
from training.probes.protocol import PROTOCOLS
from training.probes.tasks import ProbeTask, make_task
from training.probes.trained import CachedCourse, TrainedResult, train_probe

COURSE = CachedCourse(steps=120, batch=6, lr=3e-2, every=4)
CODES = {
    "depth": depth_code, "normals": normal_code, "segmentation": class_code,
    "constant": constant_code, "random": random_code, "position": position_code,
}  # fmt: skip
HEADLINE = {"depth": "rmse", "normals": "rmse", "segmentation": "mIoU"}


def small_task(name: str, data: Rooms) -> ProbeTask:
    """`clean`, with a head that costs less: a test of the evaluation, not of a network."""
    task = make_task(name, PROTOCOLS["clean"], data)
    head = replace(task.head, class_token=False, bins=32, upsample=1)
    return replace(task, choices=replace(task.choices, head=head, optimisation=replace(task.optimisation, validation=0.0)))


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
    assert trained("depth", "depth") < 0.35 * always_the_mean()
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


# The trainers


@pytest.fixture(scope="module")
def few() -> Rooms:
    return Rooms(train=3, test=2, views_each=2, height=84, width=112, orbit=())


def numbers(result: TrainedResult) -> list[float]:
    return [*result.losses, *(value for values in result.last.metrics.values() for value in values)]


@pytest.mark.parametrize("tier", ["cached", "reference"])
@pytest.mark.parametrize("name", ["depth", "normals", "segmentation"])
def test_a_seed_gives_the_same_numbers(few: Rooms, name: str, tier: str) -> None:
    """In both tiers, with the published protocol, images augmented in one of them."""
    task = make_task(name, PROTOCOLS["snd"], few)
    runs = [train_probe(task, patch_colours, tier, seed, course=CachedCourse(steps=4), steps=4) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(numbers(runs[0]), numbers(runs[1]))
    assert runs[0].losses != runs[2].losses
    assert np.isfinite(numbers(runs[0])).all()
    assert runs[0].keys == tuple(frame.key for frame in few.frames("test"))
    assert len(set(runs[0].groups)) == 2
    assert runs[0].best is None


@pytest.mark.parametrize("preset", PROTOCOLS)
def test_every_protocol_trains_what_it_has(few: Rooms, preset: str) -> None:
    def features(images: torch.Tensor) -> FeatureMap:
        """Four layers, for DPT heads."""
        found = patch_colours(images)
        return replace(found, patch=found.patch.repeat(1, 4, 1, 1), cls=found.cls.repeat(1, 4))

    for name in ("depth", "normals", "segmentation"):
        if getattr(PROTOCOLS[preset], name) is None:
            with pytest.raises(ConfigError, match=f"the protocol {preset} has no {name}"):
                make_task(name, PROTOCOLS[preset], few)
            continue
        task = make_task(name, PROTOCOLS[preset], few)
        task = replace(task, choices=replace(task.choices, head=replace(task.head, width=8)))
        result = train_probe(task, features, course=CachedCourse(steps=3), keep=[1])
        assert set(result.last.metrics) == set(task.scores)
        assert all(np.isfinite(values).all() for values in result.last.metrics.values())
        assert result.last.predictions[1].shape[-2:] == (84, 112)
        assert (result.best is None) == (preset != "clean")


def test_the_best_state_is_that_of_the_validation_rooms(few: Rooms) -> None:
    """One room of three is held out: no frame of it is learnt from, and the choice looks at no test frame."""
    task = make_task("depth", PROTOCOLS["clean"], few)
    learnt: list[str] = []
    watched = replace(task)
    object.__setattr__(watched, "truth", lambda frames: learnt.extend(frame.group for frame in frames) or task.truth(frames))
    lines: list[str] = []
    result = train_probe(watched, patch_colours, course=CachedCourse(steps=20, lr=0.1), say=lines.append)
    assert len(lines) == 10
    assert all("on validation" in line for line in lines)
    assert result.best is not None
    assert set(learnt[: 2 * 4]) == {"room-0", "room-1"}


def test_doubled_channels_change_little(few: Rooms) -> None:
    doubled = lambda images: replace(patch_colours(images), patch=patch_colours(images).patch.repeat(1, 2, 1, 1))  # noqa: E731
    course = CachedCourse(steps=150, batch=6, lr=3e-2, every=4)
    scores = [train_probe(small_task("depth", few), f, course=course).last.summary["rmse"] for f in (patch_colours, doubled)]
    assert abs(scores[0] / scores[1] - 1) < 0.1


def test_what_cannot_be_trained_is_said(few: Rooms) -> None:
    task = make_task("depth", PROTOCOLS["snd"], few)
    with pytest.raises(ConfigError, match="tier=closed: choose cached or reference"):
        train_probe(task, patch_colours, "closed")
    blind = replace(few, tasks=frozenset({"depth"}))
    with pytest.raises(ConfigError, match="cannot judge normals"):
        make_task("normals", PROTOCOLS["snd"], blind)
    frame = few.frames("test")[0]
    with pytest.raises(ConfigError, match=f"{frame.key} has no depth"):
        task.prepare(replace(frame, depth=None), train=True)
    with pytest.raises(ConfigError, match="label 9, of 8 classes"):
        make_task("segmentation", PROTOCOLS["snd"], few).prepare(replace(frame, labels=frame.labels * 0 + np.uint8(9)), train=True)
