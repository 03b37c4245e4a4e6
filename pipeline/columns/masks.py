"""Columns of masks: one label image a frame, from the source of a name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from configs.fields import Choice
from pipeline.columns.job import Content
from pipeline.masks import MaskSource, make_mask_source, masks_column
from storage.column import FORMAT_VERSION, ShardPlan, source_digest
from storage.domain import Frame
from storage.location import StorageError
from storage.provenance import Provenance
from storage.records.frames import encode_mask
from storage.table import Table


def masks_provenance(name: str, source: MaskSource, frames: Provenance, recorded: Mapping[str, str]) -> Provenance:
    """Of a column of masks.

    Args:
        name: the source's; it binds, as what the source says of itself does.
        frames: provenance of `frames`.
        recorded: code version and time.
    """
    described = dict(source.describe())
    settings = {
        "kind": "masks", "masks": name, **({"options": described} if described else {}),
        **{key: frames.settings[key] for key in ("source", "licence")},
    }  # fmt: skip
    return Provenance({"frames": frames.fingerprint}, settings, FORMAT_VERSION, recorded)


def masks_plan(frames: list[ShardPlan], provenance: Provenance) -> list[ShardPlan]:
    """A shard of masks beside each of frames, for a source that needs the raw scenes."""
    return [ShardPlan(p.number, source_digest(provenance.fingerprint, p.source), group=p.group) for p in frames]


def encode_labels(name: str, frame: Frame, labels: np.ndarray) -> dict[str, bytes]:
    """The members of a frame in a column of masks.

    Args:
        name: of the source, for messages. labels: [H,W] integers from 0 to 65535.

    Raises:
        StorageError: the source gave something else.
    """
    if labels.shape != frame.image.shape[:2] or not np.issubdtype(labels.dtype, np.integer):
        raise StorageError(
            f"masks={name}: {frame.name}: {labels.dtype} {labels.shape}, expected integers {frame.image.shape[:2]}; mend the source"
        )
    if labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.uint16).max):
        raise StorageError(f"masks={name}: {frame.name}: labels {labels.min()} to {labels.max()}, expected 0 to 65535; mend the source")
    return encode_mask(labels.astype(np.uint16))


class ImageMasksMaker:
    """The masks of the stored frames of a shard. pins: the sums of the indexes that the shard was planned from."""

    def __init__(self, dataset: str, masks: Choice, pins: Mapping[str, str]) -> None:
        self.name, self.source = masks.name, make_mask_source(masks)
        self.table = Table.open(dataset, [], pins)

    def make(self, number: int) -> dict[str, Content]:
        content = Content([])
        for row in self.table.frames.rows_of_shard(number):
            (frame,) = self.table.read_frames([row])
            content.rows.append((self.table.frames.key(row), encode_labels(self.name, frame, self.source.labels(frame, None))))
        return {masks_column(self.name): content}
