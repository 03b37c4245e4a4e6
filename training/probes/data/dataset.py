"""Scenes of any dataset of ours: rooms, scans, posed captures. Classes are the labels of the objects in their masks.

Depth comes from `frames`, normals from a plane fitted to it around each pixel; pairs are chosen by how much of one view is visible in
the other. Nothing is drawn at random: the same dataset gives the same frames and pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from configs.errors import ConfigError
from configs.fields import REQUIRED, check_above, key, plain
from storage.dataset import scene_objects
from storage.location import StorageError
from storage.records.frames import DEPTH, MASK
from storage.table import Table
from training.probes.data.base import IGNORED, Pair, ProbeFrame
from training.probes.geometry import ANGLES, normals_from_depth, reproject

TASKS = ("depth", "normals", "segmentation", "correspondence")
_OVERLAP = (0.2, 0.95)
_GRID = 8  # pixels from one point to the next that overlap is counted at


@dataclass
class Config:
    """Which scenes."""

    train: str = REQUIRED
    """URL of the dataset whose scenes the probes are fitted on."""

    test: str | None = None
    """URL of the dataset whose scenes they are judged on, none of them among those of `train`; null: `test_scenes` of `train`."""

    test_scenes: list[str] = key([])
    """The scenes to judge on; empty: all of `test`."""

    masks: str | None = "masks"
    """The column whose ids are the objects of the scenes' reports; null: without classes and objects."""

    frames_per_scene: int = 24
    """Evenly spaced; fewer where a scene has fewer."""

    pairs_per_scene: int = 48
    """At most, spread over the angles between the views; each shows 20 to 95 % of one view in the other."""

    plane_tolerance: float = 0.0005
    """A pixel has a normal where its surroundings are a plane but for this share of their depth, and a millimetre; more for sensors."""

    min_depth: float = 0.1
    """Metres; what is nearer is not judged."""

    max_depth: float = 10.0
    """Metres; what is farther is not judged."""

    def __post_init__(self) -> None:
        check_above(self, 0, "frames_per_scene", "plane_tolerance", "min_depth", "max_depth")
        check_above(self, -1, "pairs_per_scene")
        if self.test in (None, self.train) and not self.test_scenes and self.train is not REQUIRED:
            raise ConfigError(f"test={self.test}: give data.test=URL of another dataset, or data.test_scenes=[...] of this one")


@dataclass(frozen=True)
class FrameRow:
    """Where a probe frame lies: its dataset, and its row of `frames`."""

    table: Table
    row: int

    @property
    def key(self) -> str:
        return self.table.frames.key(self.row)

    @property
    def scene(self) -> str:
        return self.table.frames.scene(self.row)


class Frames(Sequence[ProbeFrame]):
    """The frames of a split, decoded as they are asked for."""

    def __init__(self, data: DatasetProbes, rows: Sequence[FrameRow]) -> None:
        self.data, self.rows = data, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Frames(self.data, self.rows[index])
        return self.data.decode(self.rows[index])


class DatasetProbes:
    """A `ProbeData` over the tables of one or two datasets."""

    name = "dataset"
    depth_crop = None

    def __init__(self, config: Config) -> None:
        self.config = config
        self.depth_range = (config.min_depth, config.max_depth)
        columns = [] if config.masks is None else [config.masks]
        train = Table.open(config.train, columns)
        test = train if config.test in (None, config.train) else Table.open(str(config.test), columns)
        self.rows = _split(config, train, test)
        self._objects: dict[tuple[str, str], dict[int, str]] = {}
        for row in [*self.rows["train"], *self.rows["test"]]:
            if config.masks is not None and (row.table.root, row.scene) not in self._objects:
                self._objects[row.table.root, row.scene] = scene_objects(row.table.root, row.scene)
        self.tasks = self._judged()

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The labels that occur in train frames, sorted."""
        if self.config.masks is None:
            return ()
        found: set[str] = set()
        for row in self.rows["train"]:
            names = self._objects[row.table.root, row.scene]
            if names:
                found |= {names[number] for number in np.unique(self._ids(row)).tolist() if number in names}
        if len(found) > IGNORED:
            raise StorageError(f"{self.config.train}/{self.config.masks}: {len(found)} labels, at most {IGNORED} can be told apart")
        return tuple(sorted(found))

    def frames(self, split: str) -> Frames:
        return Frames(self, self.rows[split])

    @cached_property
    def _pairs(self) -> list[Pair]:
        if "correspondence" not in self.tasks:
            return []
        scenes: defaultdict[str, list[int]] = defaultdict(list)
        for index, row in enumerate(self.rows["test"]):
            scenes[row.scene].append(index)
        test = self.frames("test")
        pairs = []
        for indices in scenes.values():
            views = [test[index] for index in indices]
            pairs += [Pair(indices[a], indices[b]) for a, b in choose_pairs(views, self.config.pairs_per_scene)]
        return pairs

    def pairs(self) -> Sequence[Pair]:
        return self._pairs

    def test_pins(self) -> dict[str, str]:
        """The sums of the indexes that test frames come from."""
        return self.rows["test"][0].table.pins()

    def describe(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "config": plain(self.config),
            "indexes": {table.root: table.pins() for table in {id(p.table): p.table for s in self.rows.values() for p in s}.values()},
            "classes": list(self.classes),
            "tasks": sorted(self.tasks),
            "depth_range": list(self.depth_range),
            "frames": {split: [row.key for row in found] for split, found in self.rows.items()},
            "pairs": [[self.rows["test"][pair.first].key, self.rows["test"][pair.second].key] for pair in self.pairs()],
        }

    def decode(self, row: FrameRow) -> ProbeFrame:
        """The frame, with all that is known of it. What is anonymised or lies outside the source image is unknown."""
        (frame,) = row.table.read_frames([row.row], labels=self.config.masks is not None, depth=True)
        depth = normals = labels = None
        if frame.depth is not None:
            depth = np.where(frame.valid, frame.depth, np.float32(0))
            normals = normals_from_depth(depth, frame.camera.K, tolerance=self.config.plane_tolerance)
        if frame.labels is not None and self.classes:
            labels = np.where(frame.valid, self._numbers(row)[frame.labels], np.uint8(IGNORED))
        instances = None if frame.labels is None else np.where(frame.valid, frame.labels, np.uint16(0))
        return ProbeFrame(row.key, row.scene, frame.image, depth, normals, labels, instances, frame.camera.K, frame.camera.c2w)

    def _numbers(self, row: FrameRow) -> np.ndarray:
        """[65536] uint8: the class of each id of a scene's masks."""
        numbers = np.full(1 << 16, IGNORED, np.uint8)
        for number, label in self._objects[row.table.root, row.scene].items():
            if label in self.classes and 0 < number < len(numbers):
                numbers[number] = self.classes.index(label)
        return numbers

    def _ids(self, row: FrameRow) -> np.ndarray:
        (frame,) = row.table.read_frames([row.row], labels=True)
        assert frame.labels is not None
        return frame.labels

    def _judged(self) -> frozenset[str]:
        has_depth = all(row.table.frames.has(row.row, DEPTH) for found in self.rows.values() for row in found)
        tasks = {"depth", "normals"} if has_depth else set()
        if has_depth and self.config.pairs_per_scene:
            tasks.add("correspondence")
        if self.classes:
            tasks.add("segmentation")
        if not tasks:
            raise StorageError(f"{self.config.train}/frames: no {DEPTH} in every frame, and no labelled {MASK}: nothing can be judged here")
        return frozenset(tasks)


def make(config: Config) -> DatasetProbes:
    """Opens the tables and chooses the frames. Raises ConfigError where a scene is in both splits."""
    return DatasetProbes(config)


def evenly(n: int, count: int) -> list[int]:
    """At most `count` of n positions, evenly spaced, in order."""
    if count >= n:
        return list(range(n))
    return [int((i + 0.5) * n / count) for i in range(count)]


def choose_pairs(views: Sequence[ProbeFrame], count: int) -> list[tuple[int, int]]:
    """At most `count` ordered pairs of views, each angle bin of `ANGLES` giving as many as it can, evenly over its angles.

    A pair counts where 20 to 95 % of the first view's pixels are visible in the second.
    """
    bins: list[list[tuple[float, int, int]]] = [[] for _ in ANGLES[1:]]
    for a, first in enumerate(views):
        assert first.depth is not None
        height, width = first.depth.shape
        x, y = np.meshgrid(np.arange(_GRID // 2, width, _GRID) + 0.5, np.arange(_GRID // 2, height, _GRID) + 0.5)
        points = np.stack([x.ravel(), y.ravel()], 1)
        for b, second in enumerate(views):
            if a == b:
                continue
            seen = reproject(first, second, points)
            if _OVERLAP[0] <= seen.visible.mean() <= _OVERLAP[1]:
                angle = float(np.median(seen.angle[seen.visible]))
                bins[int(np.searchsorted(ANGLES[1:-1], angle, side="right"))].append((angle, a, b))
    shares = [0] * len(bins)
    while sum(shares) < count and any(share < len(found) for share, found in zip(shares, bins, strict=True)):
        for i, found in enumerate(bins):
            if shares[i] < len(found) and sum(shares) < count:
                shares[i] += 1
    return [(a, b) for found, share in zip(bins, shares, strict=True) for _, a, b in (sorted(found)[i] for i in evenly(len(found), share))]


def _split(config: Config, train: Table, test: Table) -> dict[str, list[FrameRow]]:
    """The frames of both splits. Raises ConfigError where a scene would be in both, or one that is asked for is missing."""
    missing = sorted(set(config.test_scenes) - test.frames.scenes())
    if missing:
        raise ConfigError(f"data.test_scenes: {test.root} has no scene {missing[0]}; it has {', '.join(sorted(test.frames.scenes())[:5])}")
    of_test = set(config.test_scenes) or test.frames.scenes()
    of_train = train.frames.scenes()
    if test is train:
        of_train -= of_test
    common = sorted(of_train & of_test)
    if common:
        raise ConfigError(
            f"data.test={test.root}: scene {common[0]} is in data.train={train.root} too ({len(common)} are); judge on other scenes, or "
            "list them in data.test_scenes"
        )
    if not of_train:
        raise ConfigError(f"data.test_scenes: names every scene of data.train={train.root}; leave some to fit the probes on")
    return {"train": _frame_rows(train, of_train, config.frames_per_scene), "test": _frame_rows(test, of_test, config.frames_per_scene)}


def _frame_rows(table: Table, scenes: set[str], count: int) -> list[FrameRow]:
    names = [table.frames.scene(row) for row in range(len(table.frames))]
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        if name in scenes:
            rows[name].append(row)
    found = []
    for name in sorted(rows):
        ordered = sorted(rows[name], key=lambda row: (int(table.numbers[row]), table.frames.key(row)))
        found += [FrameRow(table, ordered[i]) for i in evenly(len(ordered), count)]
    return found
