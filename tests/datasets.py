"""Small datasets from frames in memory, written without Ray, for tests of what reads them.

scene = Scene("room", frames, [PlannedWindow(context=(0, 4, 8), targets=tuple(range(9)))])
table = write_dataset(url, [scene], reconstruct=DepthReconstructor(0.4).reconstruct, operators=True)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.fields import plain
from configs.schema import SplatConfig
from pipeline.plan.windows import PlannedWindow
from storage.column import FORMAT_VERSION, Column, ShardPlan, source_digest
from storage.domain import Frame, Gaussians
from storage.index import Index, IndexRows
from storage.provenance import Provenance
from storage.records.frames import encode_frame, encode_mask, frame_key
from storage.records.gaussians import encode_gaussians
from storage.records.operators import encode_operator, operator_member, operator_source
from storage.shard import Row
from storage.table import Row as TableRow
from storage.table import Table
from training.splat.window import OPERATOR_PATCH, WindowSplat


@dataclass(frozen=True)
class Scene:
    """The frames of a scene, and its windows as places among them. A frame's number is its place; none is held out."""

    name: str
    frames: Sequence[Frame]
    windows: Sequence[PlannedWindow]


def write_dataset(
    root: str,
    scenes: Sequence[Scene],
    reconstruct: Callable[[list[Frame]], Gaussians] | None = None,
    operators: bool = False,
    patch: int = OPERATOR_PATCH,
) -> Table:
    """Writes `frames`, `masks` and `windows`, a shard a scene, and opens all that was written.

    reconstruct: writes `gaussians` too, made from the stored context frames, window after window. operators: and `operators` of these, into
    every target, on the grid of `patch` pixels a token.
    """
    frames = _write_frames(root, scenes)
    labelled = [[(frame_key(s.name, f.name), encode_mask(f.labels)) for f in s.frames if f.labels is not None] for s in scenes]
    _write(root, _provenance("masks", frames), labelled, [frames])
    windows = _write_windows(root, scenes, frames)
    table, shards = Table.open(root, ["masks", "windows"]), range(len(scenes))
    if reconstruct is None:
        return table
    made = _provenance("gaussians", frames, windows, reconstructor={"name": "test"})
    of = [frames, windows, table.by_kind["masks"]]
    of.append(_write(root, made, [[_gaussians(row, reconstruct) for row in table.rows_of_shard(n)] for n in shards], of[:2]))
    table = Table.open(root, ["masks", "windows", "gaussians"])
    if not operators:
        return table
    height, width = scenes[0].frames[0].image.shape[:2]
    made = _provenance("operators", *of, grid=[height // patch, width // patch], masks="masks", lift=plain(SplatConfig()))
    _write(root, made, [[_operators(row, made.fingerprint, patch) for row in table.rows_of_shard(n)] for n in shards], of)
    return Table.open(root, ["masks", "windows", "gaussians", "operators"])


def _provenance(kind: str, *of: Index, **settings: Any) -> Provenance:
    settings |= {"kind": kind, "source": "test", "licence": "MIT"}
    return Provenance({index.column: index.provenance for index in of}, settings, FORMAT_VERSION)


def _write(
    root: str,
    provenance: Provenance,
    shards: Sequence[Sequence[Row]],
    of: Sequence[Index] = (),
    attributes: Sequence[Mapping] | None = None,
) -> Index:
    """The column that is called as its kind, with these shards."""
    column = Column(root, provenance.settings["kind"])
    column.declare(provenance)
    plan = [ShardPlan(number, source_digest(provenance.fingerprint, number)) for number in range(len(shards))]
    for wanted, rows in zip(plan, shards, strict=True):
        column.commit(wanted, rows, provenance.fingerprint, attributes=attributes[wanted.number] if attributes else None)
    return column.write_index(plan, {index.column: index.sha256 for index in of})


def _write_frames(root: str, scenes: Sequence[Scene]) -> Index:
    rows = [[(frame_key(scene.name, frame.name), encode_frame(scene.name, frame, False)) for frame in scene.frames] for scene in scenes]
    attributes = [
        {
            "scene": [scene.name] * len(scene.frames),
            "number": list(range(len(scene.frames))),
            "c2w": [frame.camera.c2w.ravel().tolist() for frame in scene.frames],
            "held_out": [False] * len(scene.frames),
        }
        for scene in scenes
    ]
    return _write(root, _provenance("frames"), rows, attributes=attributes)


def _write_windows(root: str, scenes: Sequence[Scene], frames: Index) -> Index:
    first = np.cumsum([0, *(len(scene.frames) for scene in scenes)]).tolist()
    rows = [(number, window) for number, scene in enumerate(scenes) for window in scene.windows]
    context = [[first[number] + place for place in window.context] for number, window in rows]
    targets = [[first[number] + place for place in window.targets] for number, window in rows]
    sums, none = frames.tar_sums(), np.empty(0, np.uint32)
    provenance, zeros = _provenance("windows", frames), np.zeros(len(rows), np.int64)
    column = Column(root, "windows")
    column.declare(provenance)
    metadata = {
        "kind": "windows", "of": {"frames": frames.sha256}, "provenance": provenance.fingerprint, "next": len(scenes), "passed_over": {},
        "shards": [[n, source_digest(s.name, sums[str(n)]), {"frames": {str(n): sums[str(n)]}}] for n, s in enumerate(scenes)],
    }  # fmt: skip
    index_rows = IndexRows(
        layouts=[()], keys=[frames.key(places[0]) for places in context], shard=np.array([number for number, _ in rows], np.int32),
        offset=zeros, layout=zeros.astype(np.int16), lengths=zeros, sizes=none, crc32s=none,
        attributes={"scene": [scenes[number].name for number, _ in rows], "context": context, "targets": targets},
    )  # fmt: skip
    return column.publish_index(index_rows, metadata, records=frames.sha256)


def _gaussians(row: TableRow, reconstruct: Callable[[list[Frame]], Gaussians]) -> Row:
    context = row.context(depth=True)
    return row.key, encode_gaussians(reconstruct(context), [frame.camera for frame in context])


def _operators(row: TableRow, fingerprint: str, patch: int) -> Row:
    splat = WindowSplat(row.gaussians(), row.context(labels=True), patch)
    members = {}
    for place, (target, frame) in enumerate(zip(row.targets(labels=True), row.window().targets, strict=True)):
        source = operator_source(fingerprint, row.key, row.table.frames.key(frame))
        members[operator_member(place)] = next(iter(encode_operator(splat.operator(target, source_hash=source)).values()))
    return row.key, members
