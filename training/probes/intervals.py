"""How sure a difference is: a paired bootstrap over rooms, and over the seeds of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from training.probes.results import CONFUSION, POOLED, pooled, read_confusion

Seeds = Sequence[Mapping[str, Mapping[str, Any]]]  # the rooms of each seed's result
LEAST_ROOMS = 6  # of fewer, a bootstrap would call every fifth difference of nothing sure
_CHUNK = 512


@dataclass(frozen=True)
class Interval:
    """value: a figure or a difference; low, high: its interval, None of a single room; up, rooms: in how many rooms it is above 0."""

    value: float | None
    low: float | None
    high: float | None
    up: int
    rooms: int

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def interval(seeds: Seeds, metric: str, samples: int = 10000, confidence: float = 0.95) -> Interval:
    """A figure's own interval."""
    return difference(None, seeds, metric, samples, confidence)


def difference(first: Seeds | None, second: Seeds, metric: str, samples: int = 10000, confidence: float = 0.95) -> Interval:
    """Second less first, both over the same rooms: the rooms of a sample are drawn once for both, the seeds of each for itself.

    Args:
        first, second: of each seed the rooms of one task, as a result holds them; first None: the figure of the second alone.
        metric: which figure. A figure of several seeds is the mean of theirs.
        samples, confidence: of the bootstrap, whose random numbers are the same at every call.

    Raises:
        ValueError: the rooms are not the same.
    """
    groups = [second] if first is None else [first, second]
    names = sorted(groups[0][0])
    for seeds in groups:
        for rooms in seeds:
            if sorted(rooms) != names:
                raise ValueError(f"rooms {names[:3]} and {sorted(rooms)[:3]}: not the same")
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(names), (samples, len(names)))
    times = np.stack([(drawn == room).sum(1) for room in range(len(names))], 1).astype(np.float64)  # [samples, rooms]
    every = np.ones((1, len(names)))
    sampled, exact, by_room = [], [], []
    for seeds in groups:
        figures = np.stack([_figures([rooms[name] for name in names], metric, times) for rooms in seeds], 1)  # [samples, seeds]
        choice = rng.integers(0, len(seeds), (samples, len(seeds)))
        sampled.append(np.take_along_axis(figures, choice, 1).mean(1))
        exact.append(np.mean([_figures([rooms[name] for name in names], metric, every)[0] for rooms in seeds]))
        by_room.append(np.mean([[_number(pooled([rooms[name]], metric)) for name in names] for rooms in seeds], 0))
    values, value, rooms = (part[-1] - (part[0] if first is not None else 0) for part in (sampled, exact, by_room))
    values = values[np.isfinite(values)]
    if not np.isfinite(value) or not len(values):
        return Interval(None, None, None, 0, 0)
    if len(names) < LEAST_ROOMS:
        return Interval(float(value), None, None, int((rooms > 0).sum()), int(np.isfinite(rooms).sum()))
    wider = _of_few(len(names), confidence)
    low, high = value + wider * (np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2]) - value)
    return Interval(float(value), float(low), float(high), int((rooms > 0).sum()), int(np.isfinite(rooms).sum()))


def _of_few(rooms: int, confidence: float) -> float:
    """By how much a bootstrap of so many rooms is too narrow: its variance by (n - 1) / n, its tails by those of Student's t.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap (2015), section 3.5; the quantile of t by Cornish and Fisher's series.
    """
    z, free = NormalDist().inv_cdf((1 + confidence) / 2), rooms - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return float(t / z * (rooms / free) ** 0.5)


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _figures(rooms: Sequence[Mapping[str, Any]], metric: str, times: np.ndarray) -> np.ndarray:
    """[samples]: the figure over the rooms, each as often as `times` [samples, rooms] says; NaN where nothing counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if metric not in POOLED:
            sums = np.array([room.get(metric, (0.0, 0)) for room in rooms], np.float64)
            return (times @ sums[:, 0]) / (times @ sums[:, 1])
        classes = next((room[CONFUSION]["classes"] for room in rooms if CONFUSION in room), 1)
        none: dict[str, Any] = {"classes": classes, "cells": []}
        matrices = np.stack([read_confusion(room.get(CONFUSION, none)).double().numpy() for room in rooms])
        parts = [times[i : i + _CHUNK] for i in range(0, len(times), _CHUNK)]
        return np.concatenate([_of_confusion(np.tensordot(part, matrices, 1), metric) for part in parts])


def _of_confusion(matrices: np.ndarray, metric: str) -> np.ndarray:
    """mIoU, mAcc or aAcc of matrices [samples,C,C]; classes in neither labels nor predictions count for nothing."""
    both, labelled, predicted = np.einsum("ncc->nc", matrices), matrices.sum(2), matrices.sum(1)
    if metric == "aAcc":
        return both.sum(1) / labelled.sum(1)
    shares = both / (labelled + predicted - both if metric == "mIoU" else labelled)
    known = np.isfinite(shares)
    return np.where(known, shares, 0).sum(1) / known.sum(1)
