"""What a person looks at: predictions beside the truth, matches between two views, recall against the angle between them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from training.figures import label_colours
from training.probes.data.base import IGNORED, ProbeData
from training.probes.geometry import ANGLES

_LINES = 30  # matches drawn a pair


def predictions(data: ProbeData, found: Mapping[int, Mapping[str, np.ndarray]], title: str) -> Figure:
    """A row a test frame: the image, and for each task the truth and beside it the prediction. found: by frame and task."""
    tasks = list(next(iter(found.values())))
    names = ["image", *(f"{task}: {what}" for task in tasks for what in ("truth", "prediction"))]
    frames = data.frames("test")
    figure = Figure(figsize=(2.6 * len(names), 2.0 * len(found) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for number, axes in zip(found, figure.subplots(len(found), len(names), squeeze=False), strict=True):
        frame = frames[number]
        cells: list[tuple[np.ndarray, dict[str, Any]]] = [(frame.image, {})]
        for task in tasks:
            prediction = found[number][task]
            if task == "depth":
                assert frame.depth is not None
                known = frame.depth[frame.depth > 0]
                scale = {"cmap": "turbo", "vmin": 0, "vmax": float(known.max()) if known.size else 1.0}
                cells += [(np.where(frame.depth > 0, frame.depth, np.nan), scale), (prediction, scale)]
            elif task == "normals":
                assert frame.normals is not None
                known = np.abs(frame.normals).sum(-1, keepdims=True) > 0
                cells += [(np.where(known, 0.5 - frame.normals / 2, 0), {}), ((0.5 - prediction / 2).clip(0, 1), {})]
            else:
                assert frame.labels is not None
                cells += [(_classes(frame.labels), {}), (_classes(prediction), {})]
        for axis, (picture, options), name in zip(axes, cells, names, strict=True):
            axis.imshow(picture, interpolation="nearest", **options)
            axis.set_axis_off()
            if number == next(iter(found)):
                axis.set_title(name, fontsize=9)
    return figure


def matches(data: ProbeData, found: Mapping[int, Mapping[str, Any]], title: str) -> Figure:
    """A row a pair: lines from tokens of the first view to their matches in the second; green within a patch of the truth, else red."""
    frames, pairs = data.frames("test"), data.pairs()
    figure = Figure(figsize=(9, 3.2 * len(found) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for number, axis in zip(found, figure.subplots(len(found), 1, squeeze=False)[:, 0], strict=True):
        first, second = frames[pairs[number].first].image, frames[pairs[number].second].image
        height = max(len(first), len(second))
        both = np.full((height, first.shape[1] + second.shape[1], 3), 255, np.uint8)
        both[: len(first), : first.shape[1]], both[: len(second), first.shape[1] :] = first, second
        axis.imshow(both)
        axis.set_axis_off()
        one = found[number]
        right = one["error"] <= 1
        angle = one["angle"][np.isfinite(one["angle"])]
        between = f", {np.median(angle):.0f} degrees between the views" if len(angle) else ""
        axis.set_title(f"{right.mean():.0%} within one patch{between}", fontsize=9)
        for i in np.linspace(0, len(right) - 1, min(_LINES, len(right))).astype(int):
            (x, y), (u, v) = one["from"][i], one["matched"][i]
            axis.add_line(Line2D([x, u + first.shape[1]], [y, v], color="lime" if right[i] else "red", linewidth=0.7, alpha=0.8))
    return figure


def recall_by_angle(rows: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Share of matches within a patch against the angle between the rays, a line a row; None where no row has matches."""
    bins = [f"{low}-{high}" for low, high in itertools.pairwise(ANGLES)]
    found = {name: row["correspondence"]["metrics"] for name, row in rows.items() if "correspondence" in row}
    lines = {name: [metrics.get(f"recall_1@{b}") for b in bins] for name, metrics in found.items()}
    if not any(value is not None for line in lines.values() for value in line):
        return None
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, line in lines.items():
        axis.plot(range(len(bins)), [np.nan if value is None else 100 * value for value in line], marker="o", label=name)
    axis.set_xticks(range(len(bins)), [*bins[:-1], f">{ANGLES[-2]}"])
    axis.set_xlabel("degrees between the rays to the point")
    axis.set_ylabel("matches within a patch, %")
    axis.set_ylim(0, 100)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _classes(labels_hw: np.ndarray) -> np.ndarray:
    """A colour a class, black where there is none."""
    return label_colours(np.where(labels_hw == IGNORED, 0, labels_hw.astype(np.int64) + 1))
