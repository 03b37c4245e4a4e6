"""`features`: the frozen backbone's patch tokens, a row a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from configs.fields import plain
from configs.schema import BackboneConfig
from pipeline.columns.job import Content
from storage.column import FORMAT_VERSION, ShardPlan, source_digest
from storage.index import Index
from storage.provenance import Provenance
from storage.records.frames import encode_tokens
from storage.table import Table

_TOGETHER = 4  # frames in one pass


def features_provenance(
    config: BackboneConfig, weights_sha256: str, which: str, frames: Index, note: Provenance, recorded: Mapping
) -> Provenance:
    """Of `features`. The weights bind by their hash, wherever they came from, and the blocks where not all are used; note: that of
    `frames`."""
    settings = {
        "kind": "features", "architecture": config.architecture, "weights_sha256": weights_sha256, "frames": which,
        **({} if config.blocks is None else {"blocks": config.blocks}),
        **{name: note.settings[name] for name in ("source", "licence")},
    }  # fmt: skip
    return Provenance({"frames": frames.provenance}, settings, FORMAT_VERSION, {**recorded, "backbone": plain(config)})


def features_plan(frames: Index, provenance: Provenance, wanted: np.ndarray | None) -> list[ShardPlan]:
    """A shard beside each of `frames`. wanted: [frames] bool, which frames have a row; None for all."""
    plan = []
    for number, _, _, sha256 in frames.metadata["shards"]:
        rows = frames.rows_of_shard(number)
        keys = None if wanted is None else [frames.key(row) for row in rows if wanted[row]]
        group = frames.scene(rows[0]) if len(rows) else ""
        plan.append(ShardPlan(number, source_digest(provenance.fingerprint, sha256, keys), {"frames": {str(number): sha256}}, group))
    return plan


def context_frames(frames: Index, windows: Index) -> np.ndarray:
    """[frames] bool: which frames are in the context of a window."""
    wanted = np.zeros(len(frames), bool)
    wanted[windows.lists("context")[1]] = True
    return wanted


class FeaturesMaker:
    """The tokens of the frames of a shard. windows: the table whose context frames alone are wanted; None for all frames.
    pins: the sums of the indexes that the shard was planned from."""

    def __init__(
        self, dataset: str, backbone: BackboneConfig, height: int, width: int, windows: str | None, pins: Mapping[str, str]
    ) -> None:
        import torch

        from training.model.backbone import build_backbone
        from training.model.weights import load_weights

        self.table = Table.open(dataset, [windows] if windows else [], pins)
        self.wanted = context_frames(self.table.frames, self.table.windows) if windows else None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = build_backbone(backbone.architecture, load_weights(backbone), height, width, backbone.blocks)
        self.model = model.to(self.device).eval()

    def make(self, number: int) -> dict[str, Content]:
        rows = [row for row in self.table.frames.rows_of_shard(number) if self.wanted is None or self.wanted[row]]
        parts = [rows[i : i + _TOGETHER] for i in range(0, len(rows), _TOGETHER)]
        return {"features": Content([row for part in parts for row in self._rows(part)])}

    def _rows(self, frames: Sequence[int]) -> list[tuple[str, dict[str, bytes]]]:
        import torch

        from training.model.backbone import patch_tokens

        images = np.stack([frame.image for frame in self.table.read_frames(frames)])
        with torch.inference_mode():
            tokens = patch_tokens(self.model, torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device).float() / 255)
        return [(self.table.frames.key(row), encode_tokens(t)) for row, t in zip(frames, tokens.cpu().numpy(), strict=True)]
