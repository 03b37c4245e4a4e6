"""Tiers `cached` and `reference`: heads that are trained, and pairs matched by a protocol, with results in the form of tier `closed`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from configs import ConfigError
from configs.schema import EvaluateConfig
from training.probes.data.base import ProbeData
from training.probes.features import FeatureMap
from training.probes.outcome import Outcome
from training.probes.pairs import judge_pairs
from training.probes.protocol import PROTOCOLS, Inputs
from training.probes.results import Tally
from training.probes.tasks import make_task
from training.probes.trained import train_probe


class Provider(Protocol):
    """Features under whatever inputs a protocol asks for."""

    def with_inputs(self, inputs: Inputs) -> Provider: ...

    def features(self, images: torch.Tensor) -> FeatureMap: ...


def judge_trained(
    network: Provider,
    data: ProbeData,
    tasks: Collection[str],
    config: EvaluateConfig,
    device: str = "cpu",
    draw: Collection[int] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Trains and judges a head for each task that the protocol has; the last state counts, the best one on validation is noted.

    Args: config: says how. draw: test frames whose predictions are kept. say: is told how it goes on.
    Raises: ConfigError where the protocol has none of the tasks.
    """
    choices = PROTOCOLS[config.protocol]
    wanted = [task for task in tasks if task in data.tasks and getattr(choices, task) is not None]
    if not wanted:
        raise ConfigError(
            f"tasks: protocol={config.protocol} has none of {', '.join(sorted(set(tasks) & data.tasks))}; choose another protocol"
        )
    outcome = Outcome({task: Tally() for task in wanted})
    for task in (task for task in wanted if task != "correspondence"):
        made = make_task(task, choices, data)
        features = network.with_inputs(made.inputs).features
        result = train_probe(made, features, config.tier, config.seed, device, steps=config.steps, keep=draw, say=say)
        tally = outcome.tasks[task]
        _add(tally, [{"key": key, "room": room} for key, room in zip(result.keys, result.groups, strict=True)], result.last.metrics)
        for room, matrix in zip(result.groups, result.last.confusions if result.last.confusions is not None else (), strict=False):
            tally.add_confusion(room, torch.from_numpy(matrix))
        best = result.best and {name: value for name, value in result.best.summary.items() if math.isfinite(value)}
        outcome.notes[task] = {"best_on_validation": best, "last_loss": result.losses[-1]}
        for number, prediction in result.last.predictions.items():
            if task == "normals":
                prediction = np.moveaxis(prediction / np.maximum(np.linalg.norm(prediction, axis=0), 1e-12), 0, -1)
            outcome.predictions.setdefault(number, {})[task] = prediction
    if "correspondence" in wanted and choices.correspondence is not None:
        found = judge_pairs(choices.correspondence, data, network.with_inputs(choices.correspondence.inputs).features, device, say)
        names = [{"first": a, "second": b, "room": room} for (a, b), room in zip(found.keys, found.groups, strict=True)]
        _add(outcome.tasks["correspondence"], names, found.metrics)
    return outcome


def _add(tally: Tally, records: Iterable[dict[str, Any]], metrics: Mapping[str, np.ndarray]) -> None:
    """Figures [N] of N images or pairs."""
    for n, record in enumerate(records):
        values = {name: float(array[n]) for name, array in metrics.items()}
        for name, value in values.items():
            tally.add(record["room"], name, value)
        tally.records.append({**record, **{name: value if math.isfinite(value) else None for name, value in values.items()}})
