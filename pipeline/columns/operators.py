"""`operators`: for targets of every window the splat into that target, as a sparse matrix over the context's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from configs.fields import Choice, plain
from configs.schema import SplatConfig
from pipeline.columns.gaussians import GaussiansMaker
from pipeline.columns.job import Content
from storage.provenance import Provenance
from storage.records import SKIPPED
from storage.records.gaussians import MEMBERS, decode_gaussians
from storage.records.operators import FORMAT_VERSION, encode_operator, operator_member, operator_source
from storage.shard import Row
from storage.table import Table

AS_EVER = (("footprint", "covariance"), ("mask_aware", True))  # what columns do not name: those of release 0.1.0 had no such choice


def operators_provenance(
    sources: Mapping[str, str], masks: str, note: Provenance, reconstructor: Mapping[str, Any], grid: tuple[int, int], targets: str,
    values: str, splat: SplatConfig, recorded: Mapping,
) -> Provenance:  # fmt: skip
    """Of `operators`. sources: fingerprints of the columns that it is made from, by name, `masks` among them; note: that of `frames`;
    grid: (h,w) tokens of an image."""
    settings = {
        "kind": "operators", "reconstructor": dict(reconstructor), "grid": list(grid), "targets": targets, "values": values, "masks": masks,
        "lift": {name: value for name, value in plain(splat).items() if (name, value) not in AS_EVER},
        **{name: note.settings[name] for name in ("source", "licence")},
    }  # fmt: skip
    return Provenance(sources, settings, FORMAT_VERSION, recorded)


class OperatorsMaker:
    """The operators of the windows of a shard.

    From the column `gaussians` where one is given, else straight from the reconstructor, whose Gaussians are then not kept (they take
    the way through their record all the same, so that both ways give the same operators). patch: pixels of a token's side.
    """

    def __init__(
        self, dataset: str, windows: str, masks: str, gaussians: str | None, reconstructor: Choice, column: str, provenance: str,
        targets: str, values: str, pins: Mapping[str, str], patch: int, splat: SplatConfig,
    ) -> None:  # fmt: skip
        self.column, self.provenance, self.targets, self.values = column, provenance, targets, values
        self.patch, self.splat = patch, splat
        self.table = Table.open(dataset, [windows, masks, *([gaussians] if gaussians else [])], pins)
        self.reconstructed = None if gaussians else GaussiansMaker(dataset, windows, reconstructor, column, pins)

    def make(self, number: int) -> dict[str, Content]:
        return {self.column: Content(list(self._rows(number)))}

    def _rows(self, number: int) -> Iterator[Row]:
        from training.splat.window import WindowSplat

        made = dict(self.reconstructed.rows(number)) if self.reconstructed else None
        for row in self.table.rows_of_shard(number):
            context, targets = row.context(labels=True), row.targets(labels=True)
            cloud = made[row.key] if made else self._stored(row.number)
            gaussians = decode_gaussians(cloud, [view.camera for view in context])
            splat, members = WindowSplat(gaussians, context, self.patch, self.splat), {}
            for index in target_indices(self.targets, len(targets)):
                source = operator_source(self.provenance, row.key, self.table.frames.key(row.window().targets[index]))
                operator = splat.operator(targets[index], source_hash=source)
                members[operator_member(index)] = next(iter(encode_operator(operator, self.values).values()))
            yield row.key, {**members, **{name: data for name, data in cloud.items() if name == SKIPPED}}

    def _stored(self, window: int) -> dict[str, bytes]:
        index = self.table.by_kind["gaussians"]
        names = [*MEMBERS, *(name for name in (SKIPPED,) if index.has(self.table.row_in("gaussians", window), name))]
        parts = self.table.reader.read([self.table.locate("gaussians", window, name) for name in names])
        return dict(zip(names, parts, strict=True))


def target_indices(targets: str, frames: int) -> list[int]:
    """The indices among a window's targets that get an operator: all, or so many spread evenly from the first to the last."""
    count = frames if targets == "all" else min(int(targets), frames)
    return sorted({int(index) for index in np.linspace(0, frames - 1, count).round()}) if count > 1 else [frames // 2]
