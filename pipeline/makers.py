"""What makes the rows of each column: one class a column, built once in each Ray actor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from configs.schema import BackboneConfig, BuildShardsConfig
from pipeline.reconstruct.reconstructor import BadPair, make_reconstructor
from pipeline.scan import report_url
from pipeline.scannetpp import BadFrame, SceneReader
from pipeline.windows import PlannedWindow
from storage import codec
from storage.column import Column
from storage.domain import Camera, Frame, Gaussians
from storage.gaussians import decode_gaussians, encode_gaussians, transparent_gaussians
from storage.location import StorageError
from storage.operator import encode_operator
from storage.rows import decode_frame, decode_window, encode_tokens, encode_window, operator_source
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
            try:
                frames = {place: frames.get(place) or reader.frame(entries[place[1]], with_depth=True) for place in wanted}
            except (BadFrame, KeyError) as error:
                report = report_url(self.config.dataset, window.scene)
                raise StorageError(f"{error}; it was sound when {report} was written: restore it, or build another dataset") from error
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
    """`gaussians`: a reconstructor's output for the context pair. A pair that it refuses is transparent, with
    the reason as `skipped.json`."""

    def __init__(self, dataset: str, reconstructor: dict[str, Any]) -> None:
        self.frames = Column(dataset, "frames")
        self.reconstructor = make_reconstructor(reconstructor)

    def rows(self, number: int) -> Iterator[Row]:
        rows = iter(context_pairs(self.frames, number))
        while part := list(islice(rows, self.reconstructor.batch)):
            made = self.reconstructor.reconstruct_batch([pair for _, pair in part])
            for (key, pair), cloud in zip(part, made, strict=True):
                yield key, self._members(cloud, [view.camera for view in pair])

    def _members(self, cloud: Gaussians | BadPair, cameras: Sequence[Camera]) -> dict[str, bytes]:
        try:
            if isinstance(cloud, BadPair):
                raise cloud
            return encode_gaussians(cloud, cameras)
        except ValueError as error:  # BadPair, or Gaussians that the record cannot hold
            skipped = codec.encode_json({"reason": str(error)})
            return {**encode_gaussians(transparent_gaussians(cameras), cameras), "skipped.json": skipped}


class OperatorsMaker:
    """`operators`: for frames of each window the splat into that frame, as a sparse matrix over the context's tokens.

    From the column `gaussians` where one is given, else straight from the reconstructor, whose Gaussians are then not kept (they take
    the way through their record all the same, so that both ways give the same operators).
    """

    def __init__(self, dataset: str, column: str, gaussians: str | None, reconstructor: dict[str, Any], targets: str, values: str) -> None:
        self.frames, self.made_by = Column(dataset, "frames"), Column(dataset, column).made_by()
        self.gaussians = Column(dataset, gaussians).read_shard if gaussians else GaussiansMaker(dataset, reconstructor).rows
        self.targets, self.values = targets, values

    def rows(self, number: int) -> Iterator[Row]:
        for (key, members), (cloud_key, cloud) in zip(self.frames.read_shard(number), self.gaussians(number), strict=True):
            if key != cloud_key:
                raise StorageError(f"shard {number}: row {key!r} of frames stands beside {cloud_key!r} of the Gaussians; build those again")
            yield key, self._operators(key, members, cloud)

    def _operators(self, key: str, members: Mapping[str, bytes], cloud: Mapping[str, bytes]) -> dict[str, bytes]:
        from training.splat.window import WindowSplat

        window = decode_window(members["window.json"])
        views = {place: decode_frame(window, place, members) for place in range(len(window.names))}
        gaussians = decode_gaussians(cloud, [window.cameras[place] for place in window.context])
        splat = WindowSplat(gaussians, [views[place] for place in window.context])
        encoded = {}
        for place in target_places(self.targets, len(window.names)):
            operator = splat.operator(views[place], source_hash=operator_source(self.made_by, key, place))
            for name, data in encode_operator(operator, self.values).items():
                encoded[f"{place:02d}.{name}"] = data
        return {**encoded, **{name: data for name, data in cloud.items() if name == "skipped.json"}}


def target_places(targets: str, frames: int) -> list[int]:
    """The places in a window of `frames` that get an operator: all, or so many spread evenly from the first to the last."""
    count = frames if targets == "all" else min(int(targets), frames)
    return sorted({int(place) for place in np.linspace(0, frames - 1, count).round()}) if count > 1 else [frames // 2]


def context_pairs(frames: Column, number: int) -> Iterable[tuple[str, tuple[Frame, Frame]]]:
    """The rows of one `frames` shard: key and context pair."""
    for key, members in frames.read_shard(number):
        window = decode_window(members["window.json"])
        first, last = window.context
        yield key, (decode_frame(window, first, members), decode_frame(window, last, members))
