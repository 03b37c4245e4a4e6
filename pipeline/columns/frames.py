"""`frames`, and the masks that need the raw scene, made together: one decode of the image and one cast of rays give the row of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from configs.fields import binding
from configs.schema import BuildShardsConfig
from pipeline.columns.job import Content
from pipeline.columns.masks import encode_labels
from pipeline.masks import make_mask_source, masks_column
from pipeline.plan.scan import blocks
from pipeline.readers import BadFrame, BadScene, Scene, make_reader
from storage.column import FORMAT_VERSION
from storage.location import StorageError
from storage.plan import FramesPlan
from storage.provenance import Provenance
from storage.records.frames import encode_frame, frame_key

_BINDING = ("width", "height", "keep_bad", "frames_per_shard", "held_out", "layout", "source", "licence")


def frames_provenance(config: BuildShardsConfig, recorded: Mapping[str, str]) -> Provenance:
    """Of `frames`. Which scenes there are does not bind: a split can grow."""
    settings = {name: value for name, value in binding(config).items() if name in _BINDING}
    return Provenance({}, {"kind": "frames", **settings}, FORMAT_VERSION, {**recorded, "root": config.root, "split": config.split})


class FramesMaker:
    """The frames of planned shards, and their masks where the source of these needs the raw scene.

    Keeps the last scene open: its mesh is loaded once for shards that come in a row.
    """

    def __init__(self, config: BuildShardsConfig, fingerprint: str) -> None:
        self.config, self.fingerprint = config, fingerprint
        self.planned = {shard.number: shard for shard in FramesPlan.read(config.dataset).shards}
        self.reader, self.source = make_reader(config.layout), make_mask_source(config.masks)
        self._scene: Scene | None = None

    def make(self, number: int) -> dict[str, Content]:
        planned = self.planned.get(number)
        if planned is None:
            raise StorageError(f"{self.config.dataset}: shard {number} of frames is no longer planned; its scene was withdrawn meanwhile")
        scene = self._open(planned.scene)
        block = next((b for b in blocks(self.config, scene.index, self.fingerprint) if b.source == planned.source), None)
        if block is None:
            raise StorageError(
                f"{self.config.root}: raw files of scene {planned.scene} changed while its shard {number} was planned; run again"
            )
        frames, masks = Content([], {"scene": [], "number": [], "c2w": [], "held_out": []}), Content([])
        frames.notes = {"kept": [], "skipped": [], "quarantined": None}
        try:
            frames.notes["figures"] = scene.report()
            for entry, held_out in zip(block.entries, block.held_out, strict=True):
                try:
                    frame = scene.read(entry)
                except BadFrame as error:
                    frames.notes["skipped"].append(asdict(error.skip))
                    continue
                key = frame_key(planned.scene, frame.name)
                if self.source.needs_scene:
                    masks.rows.append((key, encode_labels(self.config.masks.name, frame, self.source.labels(frame, scene))))
                frames.rows.append((key, encode_frame(planned.scene, frame, held_out)))
                frames.notes["kept"].append(frame.name)
                row = {"scene": planned.scene, "number": entry.number, "c2w": frame.camera.c2w.ravel().tolist(), "held_out": held_out}
                for name, value in row.items():
                    frames.attributes[name].append(value)
        except BadScene as error:
            frames.rows, masks.rows, frames.attributes = [], [], {name: [] for name in frames.attributes}
            frames.notes |= {"kept": [], "skipped": [], "quarantined": {"reason": error.reason, "detail": error.detail}}
        return {"frames": frames, **({masks_column(self.config.masks.name): masks} if self.source.needs_scene else {})}

    def _open(self, scene_id: str) -> Scene:
        config = self.config
        if self._scene is None or self._scene.index.scene_id != scene_id:
            self._scene = self.reader.open(config.root, scene_id, config.width, config.height, config.keep_bad)
        return self._scene
