"""`frames` and `masks`, made together: one decode of the image and one cast of rays give the row of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from configs.schema import BuildShardsConfig
from pipeline.columns.job import Content
from pipeline.plan.scan import blocks
from pipeline.scannetpp import BadFrame, BadScene, SceneReader
from storage.column import FORMAT_VERSION, ShardPlan, source_digest
from storage.location import StorageError
from storage.plan import FramesPlan
from storage.provenance import Provenance
from storage.records.frames import encode_frame, encode_mask, frame_key

_BINDING = ("width", "height", "keep_bad", "frames_per_shard", "held_out", "source", "licence")


def frames_provenance(config: BuildShardsConfig, recorded: Mapping[str, str]) -> Provenance:
    """Of `frames`. Which scenes there are does not bind: a split can grow."""
    settings = {name: value for name, value in asdict(config).items() if name in _BINDING}
    return Provenance({}, {"kind": "frames", **settings}, FORMAT_VERSION, {**recorded, "root": config.root, "split": config.split})


def masks_provenance(frames: Provenance, recorded: Mapping[str, str]) -> Provenance:
    """Of `masks`: object ids, cast from the annotated mesh."""
    settings = {"kind": "masks", "masks": "mesh", **{name: frames.settings[name] for name in ("source", "licence")}}
    return Provenance({"frames": frames.fingerprint}, settings, FORMAT_VERSION, recorded)


def masks_plan(frames: list[ShardPlan], provenance: Provenance) -> list[ShardPlan]:
    """A shard of masks beside each of frames."""
    return [ShardPlan(p.number, source_digest(provenance.fingerprint, p.source), group=p.group) for p in frames]


class FramesMaker:
    """The frames of planned shards, and their masks. Keeps the last scene open: its mesh is loaded once for shards that come in a row."""

    def __init__(self, config: BuildShardsConfig, fingerprint: str) -> None:
        self.config, self.fingerprint = config, fingerprint
        self.planned = {shard.number: shard for shard in FramesPlan.read(config.dataset).shards}
        self._scene: SceneReader | None = None

    def make(self, number: int) -> dict[str, Content]:
        planned = self.planned.get(number)
        if planned is None:
            raise StorageError(f"{self.config.dataset}: shard {number} of frames is no longer planned; its scene was withdrawn meanwhile")
        reader = self._reader(planned.scene)
        block = next((b for b in blocks(self.config, reader.index, self.fingerprint) if b.source == planned.source), None)
        if block is None:
            raise StorageError(
                f"{self.config.root}: raw files of scene {planned.scene} changed while its shard {number} was planned; run again"
            )
        frames, masks = Content([], {"scene": [], "number": [], "c2w": [], "held_out": []}), Content([])
        frames.notes = {"kept": [], "skipped": [], "quarantined": None}
        try:
            frames.notes["figures"] = reader.report()
            for entry, held_out in zip(block.entries, block.held_out, strict=True):
                try:
                    frame = reader.read(entry)
                except BadFrame as error:
                    frames.notes["skipped"].append(asdict(error.skip))
                    continue
                assert frame.labels is not None
                key = frame_key(planned.scene, frame.name)
                frames.rows.append((key, encode_frame(planned.scene, frame, held_out)))
                masks.rows.append((key, encode_mask(frame.labels)))
                frames.notes["kept"].append(frame.name)
                row = {"scene": planned.scene, "number": entry.number, "c2w": frame.camera.c2w.ravel().tolist(), "held_out": held_out}
                for name, value in row.items():
                    frames.attributes[name].append(value)
        except BadScene as error:
            frames.rows, masks.rows, frames.attributes = [], [], {name: [] for name in frames.attributes}
            frames.notes |= {"kept": [], "skipped": [], "quarantined": {"reason": error.reason, "detail": error.detail}}
        return {"frames": frames, "masks": masks}

    def _reader(self, scene: str) -> SceneReader:
        if self._scene is None or self._scene.index.scene_id != scene:
            self._scene = SceneReader(self.config.root, scene, self.config.width, self.config.height, keep_bad=self.config.keep_bad)
        return self._scene
