"""What makes the rows of each column: one class a column, built once in each Ray actor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from configs.schema import BackboneConfig, BuildShardsConfig
from pipeline.reconstruct.reconstructor import BadPair, make_reconstructor
from pipeline.scannetpp import SceneReader
from pipeline.windows import PlannedWindow
from storage import codec
from storage.column import Column
from storage.domain import Frame, Gaussians
from storage.gaussians import encode_gaussians
from storage.rows import decode_frame, decode_window, encode_tokens, encode_window
from storage.shard import Row


class FramesMaker:
    """`frames`: the windows of a shard, cut from their scenes. Depth is kept for the context pair."""

    def __init__(self, config: BuildShardsConfig, shards: Sequence[Sequence[PlannedWindow]]) -> None:
        self.config, self.shards = config, shards
        self._scene: SceneReader | None = None  # the last one: neighbouring shards often share it

    def rows(self, number: int) -> Iterator[Row]:
        frames: dict[tuple[str, str], Frame] = {}  # neighbouring windows share frames
        for window in self.shards[number]:
            reader = self._reader(window.scene)
            entries = {entry.name: entry for entry in reader.index.frames}
            wanted = [(window.scene, name) for name in window.names]
            frames = {place: frames.get(place) or reader.frame(entries[place[1]], with_depth=True) for place in wanted}
            between = [replace(frame, depth=None) for frame in list(frames.values())[1:-1]]
            yield window.key, encode_window(window.scene, [frames[wanted[0]], *between, frames[wanted[-1]]])

    def _reader(self, scene: str) -> SceneReader:
        if self._scene is None or self._scene.index.scene_id != scene:
            self._scene = SceneReader(self.config.root, scene, self.config.width, self.config.height, keep_bad=self.config.keep_bad)
        return self._scene


class FeaturesMaker:
    """`features`: the frozen backbone's patch tokens of the context pair."""

    def __init__(self, dataset: str, backbone: BackboneConfig, height: int, width: int) -> None:
        import torch

        from training.backbone import build_backbone, load_weights

        self.frames = Column(dataset, "frames")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = build_backbone(backbone.architecture, load_weights(backbone), height, width).to(self.device).eval()

    def rows(self, number: int) -> Iterator[Row]:
        import torch

        from training.backbone import patch_tokens

        for key, pair in context_pairs(self.frames, number):
            images = torch.from_numpy(np.stack([view.image for view in pair])).permute(0, 3, 1, 2).to(self.device).float() / 255
            with torch.inference_mode():
                tokens = patch_tokens(self.model, images)
            yield key, encode_tokens(tokens.cpu().numpy())


class GaussiansMaker:
    """`gaussians`: a reconstructor's output for the context pair. A pair that it refuses gets no Gaussian, and the reason as
    `skipped.json`."""

    def __init__(self, dataset: str, reconstructor: dict[str, Any]) -> None:
        self.frames = Column(dataset, "frames")
        self.reconstructor = make_reconstructor(reconstructor)

    def rows(self, number: int) -> Iterator[Row]:
        for key, pair in context_pairs(self.frames, number):
            cameras = [view.camera for view in pair]
            try:
                yield key, encode_gaussians(self.reconstructor.reconstruct(pair), cameras)
            except BadPair as error:
                none = Gaussians(*(np.zeros((0, *width), np.float32) for width in ((3,), (4,), (3,), ())))
                yield key, {**encode_gaussians(none, cameras), "skipped.json": codec.encode_json({"reason": str(error)})}


def context_pairs(frames: Column, number: int) -> Iterable[tuple[str, tuple[Frame, Frame]]]:
    """The rows of one `frames` shard: key and context pair."""
    for key, members in frames.read_shard(number):
        window = decode_window(members["window.json"])
        first, last = window.context
        yield key, (decode_frame(window, first, members), decode_frame(window, last, members))
