"""`gaussians`: a frozen reconstructor's output for the context of every window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from configs.fields import Choice
from pipeline.columns.job import Content
from pipeline.reconstruct.base import BadContext, make_reconstructor
from storage import codec
from storage.column import ShardPlan, source_digest
from storage.domain import Camera, Gaussians
from storage.index import Index
from storage.provenance import Provenance
from storage.records import SKIPPED
from storage.records.gaussians import FORMAT_VERSION, encode_gaussians, transparent_gaussians
from storage.shard import Row
from storage.table import Table


def gaussians_provenance(
    windows: Index, frames: Index, note: Provenance, reconstructor: Mapping[str, Any], recorded: Mapping
) -> Provenance:
    """Of `gaussians`; note: that of `frames`. reconstructor: its name, and what it says of itself."""
    settings = {"kind": "gaussians", "reconstructor": dict(reconstructor), **{n: note.settings[n] for n in ("source", "licence")}}
    return Provenance({"frames": frames.provenance, "windows": windows.provenance}, settings, FORMAT_VERSION, recorded)


def windows_plan(
    windows: Index, provenance: Provenance, of_frames: Iterable[Index] = (), of_windows: Iterable[Index] = ()
) -> list[ShardPlan]:
    """A shard for each of the windows table. of_frames, of_windows: further columns that it is made from, keyed by frame or by window."""
    frame_sums, window_sums = ({index.column: index.tar_sums() for index in indexes} for indexes in (of_frames, of_windows))
    plan = []
    for number, source, inputs in windows.metadata["shards"]:
        sums = {name: {n: tars[n] for n in inputs["frames"]} for name, tars in frame_sums.items()}
        sums |= {name: {str(number): tars[str(number)]} for name, tars in window_sums.items()}
        scene = windows.scene(windows.rows_of_shard(number)[0])
        plan.append(ShardPlan(number, source_digest(provenance.fingerprint, source, sums), {**inputs, **sums}, scene))
    return plan


class GaussiansMaker:
    """A reconstructor's output for each window of a shard. A context that it refuses is transparent, with the reason as `skipped.json`.

    pins: the sums of the indexes that the shard was planned from.
    """

    def __init__(self, dataset: str, windows: str, reconstructor: Choice, column: str, pins: Mapping[str, str]) -> None:
        self.table, self.column = Table.open(dataset, [windows], pins), column
        self.reconstructor = make_reconstructor(reconstructor)

    def make(self, number: int) -> dict[str, Content]:
        return {self.column: Content(self.rows(number))}

    def rows(self, number: int) -> list[Row]:
        windows = iter(self.table.rows_of_shard(number))
        made: list[Row] = []
        while part := list(islice(windows, self.reconstructor.batch)):
            contexts = [row.context(depth=self.reconstructor.needs_depth) for row in part]
            for row, views, cloud in zip(part, contexts, self.reconstructor.reconstruct_batch(contexts), strict=True):
                made.append((row.key, gaussian_members(cloud, [view.camera for view in views])))
        return made


def gaussian_members(cloud: Gaussians | BadContext, cameras: Sequence[Camera]) -> dict[str, bytes]:
    """The members of a row, whether there are Gaussians or a reason why not."""
    try:
        if isinstance(cloud, BadContext):
            raise cloud
        return encode_gaussians(cloud, cameras)
    except ValueError as error:  # BadContext, or Gaussians that the record cannot hold
        skipped = codec.encode_json({"reason": str(error)})
        return {**encode_gaussians(transparent_gaussians(cameras), cameras), SKIPPED: skipped}
