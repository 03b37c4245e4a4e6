"""Both trainers: the same seed gives the same numbers, every protocol runs, validation is apart from the test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from configs import ConfigError
from tests.training.probes.oracles import patch_colours, small_task
from tests.training.probes.rooms import Rooms
from training.probes.data.base import ProbeFrame
from training.probes.features import FeatureMap
from training.probes.protocol import PROTOCOLS
from training.probes.tasks import DepthTask, make_task
from training.probes.trained import CachedCourse, TrainedResult, train_probe


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


@pytest.mark.parametrize("tier", ["cached", "reference"])
@pytest.mark.parametrize("preset", PROTOCOLS)
def test_every_protocol_trains_what_it_has(few: Rooms, preset: str, tier: str) -> None:
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
        small = {"head": replace(task.head, width=8), "optimisation": replace(task.optimisation, batch=2)}
        task = replace(task, choices=replace(task.choices, **small))
        result = train_probe(task, features, tier, course=CachedCourse(steps=3), steps=3, keep=[1])
        assert set(result.last.metrics) == set(task.scores)
        assert all(np.isfinite(values).all() for values in result.last.metrics.values())
        assert result.last.predictions[1].shape[-2:] == (84, 112)
        assert (result.best is None) == (preset != "clean")


def test_the_best_state_is_that_of_the_validation_rooms(few: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    """One room of three is held out: no frame of it is learnt from, and the choice looks at no test frame."""
    seen: list[str] = []
    truth = DepthTask.truth

    def spy(task: DepthTask, frames: list[ProbeFrame]) -> tuple[torch.Tensor, ...]:
        seen.extend(frame.group for frame in frames)
        return truth(task, frames)

    monkeypatch.setattr(DepthTask, "truth", spy)
    task, lines = make_task("depth", PROTOCOLS["clean"], few), []
    result = train_probe(task, patch_colours, course=CachedCourse(steps=20, lr=0.1), say=lines.append)
    assert len(lines) == 10
    assert all("on validation" in line for line in lines)
    assert result.best is not None
    learnt, judged = seen[: 2 * 4], seen[2 * 4 : -2 * 4]
    assert set(learnt) == {"room-0", "room-1"}
    assert judged == ["room-2"] * 2 * 10
    assert set(seen[-2 * 4 :]) == {"room-1000", "room-1001"}  # of the last state, and of the best


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
