"""Which windows a dataset has: a pure function of what its `frames` holds, written as an index that names frames and copies none.

A window is a context of V frames and the frames that can be its target. Rules say where the context's ends stand:

    gap         `gap` file numbers apart. Numbers, not positions in a list: where frames were dropped, list neighbours may be metres apart
    baseline    at the first frame that stands `min_baseline` metres away, at most `gap` file numbers on

Further context views stand evenly between the ends. Every frame from end to end can be the target, the context's own too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from configs.fields import binding
from configs.schema import WindowsConfig
from storage.column import Column, source_digest
from storage.index import Index, IndexRows, read_current
from storage.provenance import Provenance

FORMAT_VERSION = 1


@dataclass(frozen=True)
class PlannedWindow:
    """A row to be: positions in its scene's list of frames."""

    context: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class WindowShard:
    """Windows whose context begins in one shard of `frames`: what a shard of a derived column is made for.

    source: digest of the windows and of the tars that hold their frames; inputs: the sums of those tars, by column and number.
    """

    number: int
    source: str
    inputs: Mapping[str, Mapping[str, str]]


def plan_scene(numbers: np.ndarray, c2w_n44: np.ndarray, rule: WindowsConfig) -> tuple[list[PlannedWindow], dict[str, int]]:
    """The windows of one scene, and how many candidates were passed over for which reason.

    numbers: [n] file numbers of its frames, ascending. c2w_n44: [n,4,4] their poses, metres.
    """
    count = len(numbers)
    if not count:
        return [], {}
    end, passed = _ends(numbers, c2w_n44, rule)
    windows: list[PlannedWindow] = []
    reasons: Counter[str] = Counter()
    next_start = None
    for left in range(count):
        if next_start is not None and numbers[left] < next_start:
            continue
        if passed[left]:
            reasons[passed[left]] += 1
            continue
        right = int(end[left])
        # Rounded as offsets: a frame that comes or goes before a window must not move its middle views.
        context = left + np.linspace(0, right - left, rule.views).round().astype(int)
        if len(set(context)) < rule.views:
            reasons["too_few_frames"] += 1
            continue
        windows.append(PlannedWindow(tuple(context.tolist()), tuple(range(left, right + 1))))
        next_start = numbers[left] + rule.stride
    return windows, dict(sorted(reasons.items()))


def _ends(numbers: np.ndarray, c2w_n44: np.ndarray, rule: WindowsConfig) -> tuple[np.ndarray, list[str]]:
    """For each frame the position of its window's last frame, and why it has none ("" where it has)."""
    count = len(numbers)
    if rule.rule == "gap":
        end = np.searchsorted(numbers, numbers + rule.gap)
        found = (end < count) & (numbers[np.minimum(end, count - 1)] == numbers + rule.gap)
        missing = "no_frame_at_gap"
    else:
        end, found = np.arange(count), np.zeros(count, bool)
        last = np.searchsorted(numbers, numbers + rule.gap, side="right") - 1
        for step in range(1, int((last - np.arange(count)).max(initial=0)) + 1):
            other = np.minimum(np.arange(count) + step, last)
            far = np.linalg.norm(c2w_n44[other, :3, 3] - c2w_n44[:, :3, 3], axis=1) >= rule.min_baseline
            far &= other > np.arange(count)  # with min_baseline=0 a frame without a later one is no end of its own window
            end = np.where(far & ~found, other, end)
            found |= far
        missing = "no_frame_at_baseline"
    end = np.minimum(end, count - 1)
    baseline = np.linalg.norm(c2w_n44[end, :3, 3] - c2w_n44[:, :3, 3], axis=1)
    trace = np.einsum("nij,nij->n", c2w_n44[:, :3, :3], c2w_n44[end, :3, :3])
    degrees = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
    reasons = np.select(
        [~found, baseline < rule.min_baseline, baseline > rule.max_baseline, degrees > rule.max_rotation],
        [missing, "baseline_too_short", "baseline_too_long", "rotation_too_large"],
        default="",
    )
    return end, reasons.tolist()


def windows_provenance(rule: WindowsConfig, frames: str) -> Provenance:
    """Of a windows table. frames: the fingerprint of `frames`."""
    return Provenance({"frames": frames}, {"kind": "windows", **binding(rule)}, FORMAT_VERSION)


def build_windows(dataset: str, name: str, rule: WindowsConfig, frames: Index) -> tuple[Index, dict[str, int]]:
    """Writes the windows table `name` over the current `frames`, unless it is current. Windows that are there already keep their shards.

    Returns its index, and how many candidates were passed over for which reason. No shard is read or written.
    """
    column = Column(dataset, name)
    provenance = windows_provenance(rule, frames.provenance)
    column.declare(provenance)
    current = read_current(dataset, name)
    if current:
        present = Index.open(dataset, name, current["index"])
        if present.of == {"frames": frames.sha256} and present.provenance == provenance.fingerprint:
            return present, present.metadata["passed_over"]
    # Every index that is kept knows numbers: frames that were away for a while come back to the shards that were made of them.
    rows, shards, next_number, passed = plan_windows(frames, rule, [index.metadata for index in Index.kept(dataset, name)])
    metadata = {
        "kind": "windows",
        "of": {"frames": frames.sha256},
        "provenance": provenance.fingerprint,
        "shards": [[s.number, s.source, s.inputs] for s in shards],
        "next": next_number,
        "passed_over": passed,
    }
    return column.publish_index(rows, metadata, records=frames.sha256), passed


def plan_windows(
    frames: Index, rule: WindowsConfig, previous: Sequence[Mapping[str, Any]] = ()
) -> tuple[IndexRows, list[WindowShard], int, dict[str, int]]:
    """The rows of the windows table over `frames`, its shards, the first number that is not taken, and what was passed over.

    previous: metadata of tables before; shards whose windows and frames are the same keep their numbers, others get new ones.
    """
    tars = {number: sha256 for number, _, _, sha256 in frames.metadata["shards"]}
    kept = {source: number for table in previous for number, source, _ in table["shards"]}
    next_number = max((table["next"] for table in previous), default=0)
    numbers, poses = frames.attribute("number"), frames.attribute("c2w").reshape(-1, 4, 4)
    wanted = frames.attribute("held_out") == rule.held_out
    shard_of = frames.shard_of_rows()
    reasons: Counter[str] = Counter()
    shards: list[tuple[WindowShard, str, list[tuple[list[int], list[int]]]]] = []
    for scene, rows in scene_rows(frames):
        rows = rows[wanted[rows]]
        windows, passed = plan_scene(numbers[rows], poses[rows], rule)
        reasons.update(passed)
        located = [(rows[list(w.context)].tolist(), rows[list(w.targets)].tolist()) for w in windows]
        for _, block in groupby(located, key=lambda window: int(shard_of[window[0][0]])):
            part = list(block)
            touched = sorted({int(shard_of[row]) for context, targets in part for row in (*context, *targets)})
            sums = {str(n): tars[n] for n in touched}
            named = [[numbers[context].tolist(), numbers[targets].tolist()] for context, targets in part]
            source = source_digest(scene, named, sums)
            if source not in kept:
                kept[source], next_number = next_number, next_number + 1
            shards.append((WindowShard(kept[source], source, {"frames": sums}), scene, part))
    shards.sort(key=lambda shard: shard[0].number)
    flat = [(shard.number, scene, context, targets) for shard, scene, part in shards for context, targets in part]
    index_rows = IndexRows(
        layouts=[()],
        keys=[frames.key(context[0]) for _, _, context, _ in flat],
        shard=np.array([number for number, *_ in flat], np.int32),
        offset=np.zeros(len(flat), np.int64),
        layout=np.zeros(len(flat), np.int16),
        lengths=np.zeros(len(flat), np.int64),
        sizes=np.empty(0, np.uint32),
        crc32s=np.empty(0, np.uint32),
        attributes={
            "scene": [scene for _, scene, _, _ in flat],
            "context": [context for _, _, context, _ in flat],
            "targets": [targets for *_, targets in flat],
        },
    )
    return index_rows, [shard for shard, _, _ in shards], next_number, dict(sorted(reasons.items()))


def scene_rows(frames: Index) -> list[tuple[str, np.ndarray]]:
    """The rows of each scene by the camera's counter, scenes in the order in which they first appear."""
    scenes, numbers = frames.attribute("scene"), frames.attribute("number")
    _, first, code = np.unique(scenes.astype(str), return_index=True, return_inverse=True)
    order = np.lexsort((numbers, first[code]))
    ends = np.flatnonzero(np.diff(first[code][order])) + 1
    return [(str(scenes[rows[0]]), rows) for rows in np.split(order, ends) if len(rows)]
