"""What a result is read beside: features that know nothing, features that cheat, and features that know all.

constant; position (cameras stand upright, so the position in the image says much); colour; the same transformer with random weights; the
network that a training started from; and an oracle, which is told the truth of each patch and shows what patches cost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.schema import EvaluateConfig
from storage import codec, location
from storage.location import NotFound, join
from training.probes import results
from training.probes.data.base import IGNORED, ProbeData, ProbeFrame
from training.probes.extractor import NetworkModel, Tokens, TokenSource, base_model, random_model
from training.probes.features import FeatureMap
from training.probes.grid import token_depth, token_normals, token_pixels
from training.probes.judge import judge
from training.probes.matching import token_centres
from training.probes.outcome import Outcome
from training.probes.protocol import Inputs
from training.probes.tiers import judge_trained

_FREQUENCIES = (0.4, 0.9, 2.1, 4.7)  # radians a metre: what tells the points of a room apart
Describe = Callable[[FeatureMap, ProbeFrame], np.ndarray]


@dataclass(frozen=True)
class Handmade:
    """Features of a patch by a formula, on the token grid of a network. formula: -> [h,w,C]."""

    description: Mapping[str, Any]
    like: NetworkModel
    formula: Describe

    def tokens(self, frame: ProbeFrame) -> Tokens:
        where = self.like.grid(*frame.image.shape[:2])
        made = torch.from_numpy(np.ascontiguousarray(self.formula(where, frame))).float().permute(2, 0, 1)[None]
        return Tokens(FeatureMap(made, None, where.offset, where.stride), torch.ones(made.shape[-2:], dtype=torch.bool))

    def with_inputs(self, inputs: Inputs) -> Handmade:
        plain = replace(inputs, with_base=False, layers=1)
        return replace(self, like=self.like.with_inputs(plain))

    def features(self, images: torch.Tensor) -> FeatureMap:
        """Of a formula that asks for nothing but the image. The class token says nothing; a DPT's four layers are the same."""
        pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        maps = [self.tokens(ProbeFrame("", "", picture)).map for picture in pictures]
        patch = torch.cat([one.patch for one in maps]).to(images.device)
        return FeatureMap(patch, patch.new_zeros(len(patch), 1), maps[0].offset, maps[0].stride)


@dataclass(frozen=True)
class Within:
    """A source, of whose tokens those alone count that count in another."""

    source: TokenSource
    other: TokenSource

    @property
    def description(self) -> Mapping[str, Any]:
        return {**self.source.description, "within": self.other.description}

    def tokens(self, frame: ProbeFrame) -> Tokens:
        own, other = self.source.tokens(frame), self.other.tokens(frame)
        return Tokens(own.map, own.keep & other.keep)


def judge_baselines(
    source: TokenSource, network: NetworkModel, data: ProbeData, tasks: Collection[str], config: EvaluateConfig, device: str
) -> dict[str, Any]:
    """The JSON of each baseline, by its name; an oracle in tier `closed` alone.

    Args:
        source: what is judged. Where some of its tokens do not count (of a supervision), they count in no baseline either.
        network: for the grid, the random weights and what it started from.
        tasks: to judge. config: how; its output keeps the baselines: each is judged once for the same data, code and settings.
    """
    supervised = source is not network
    sources: dict[str, Any] = {
        "constant": Handmade({"baseline": "constant"}, network, lambda where, _: np.ones((*where.patch.shape[-2:], 4))),
        "position": Handmade({"baseline": "position"}, network, _position),
        "colour": Handmade({"baseline": "colour"}, network, _colour),
        "random network": random_model(network),
        "started from": network if supervised else base_model(network),
    }
    if config.tier != "closed":
        return {
            name: _kept(
                one, partial(judge_trained, one, data, tasks, config, device),
                tasks, data, config, network,
            )
            for name, one in sources.items()
            if one is not None
        }  # fmt: skip

    def closed(one: TokenSource, some: Collection[str]) -> dict[str, Any]:
        return _kept(one, partial(judge, one, data, some, config.ridge), some, data, config, network)

    found = {name: closed(Within(one, source) if supervised else one, tasks) for name, one in sources.items() if one is not None}
    parts = [closed(Within(one, source) if supervised else one, [task]) for task, one in oracles(network, data, tasks).items()]
    found["oracle"] = {task: result for part in parts for task, result in part.items() if task != "consistency"}
    return found


def _kept(
    source: Any, make: Callable[[], Outcome], tasks: Collection[str], data: ProbeData, config: EvaluateConfig, network: NetworkModel
) -> dict[str, Any]:
    """A baseline's JSON, from the output's folder where it is there already."""
    decides = {
        "source": source.description, "grid": network.grid_rule, "tasks": sorted(tasks), "data": data.describe(), "code": _code(),
        **{name: getattr(config, name) for name in ("protocol", "tier", "seed", "steps", "ridge")},
    }  # fmt: skip
    url = join(config.output, "baselines", f"{results.digest(decides)}.json")
    try:
        found: dict[str, Any] = codec.decode_json(location.read_bytes(url))
        return found
    except NotFound:
        found = make().to_json()
    for result in found.values():
        del result["records"]
    location.write_bytes(url, codec.encode_json(found))
    return found


def _code() -> str:
    """A digest of the code that judges."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return results.digest([[file.name, file.read_text()] for file in files])


def _position(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
    """Sines and cosines of the position in the image, from half a wave across it to four."""
    height, width = frame.image.shape[:2]
    position = _centres(where) / (width, height) * np.pi
    return _waves(position, (1.0, 2.0, 4.0, 8.0))


def _colour(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
    tiles = token_pixels(where, frame.image).astype(np.float64) / 255
    return np.concatenate([tiles.mean(2), tiles.std(2)], -1)


def oracles(network: NetworkModel, data: ProbeData, tasks: Collection[str]) -> dict[str, Handmade]:
    """For each task that data can judge, the truth of each patch as far as a linear head, or a match, can use it."""

    def depth(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
        logs, known = token_depth(where, frame, data.depth_range)
        return np.concatenate([logs, known[..., None]], -1)

    def normals(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
        return token_normals(where, frame)[0]

    def segmentation(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
        assert frame.labels is not None
        tiles = token_pixels(where, frame.labels, IGNORED)
        return np.stack([(tiles == number).mean(2) for number in range(len(data.classes))], -1)

    made: dict[str, Describe] = {"depth": depth, "normals": normals, "segmentation": segmentation}
    if data.pairs() and all(pair.points is None for pair in data.pairs()):
        made["correspondence"] = world_code
    return {
        task: Handmade({"baseline": f"oracle of {task}"}, network, one)
        for task, one in made.items()
        if task in tasks and task in data.tasks
    }


def world_code(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
    """Sines and cosines of the world position at the middle of each token, [h,w,C]; 0 where its depth is unknown."""
    assert frame.depth is not None
    assert frame.K is not None
    assert frame.c2w is not None
    centres = _centres(where)
    height, width = frame.depth.shape
    x, y = np.floor(centres).astype(np.int64).reshape(-1, 2).T
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height)).reshape(centres.shape[:2])
    depth = frame.depth[y.clip(0, height - 1), x.clip(0, width - 1)].reshape(centres.shape[:2])
    rays = np.concatenate([(centres - frame.K[:2, 2]) / frame.K[[0, 1], [0, 1]], np.ones((*centres.shape[:2], 1))], -1)
    points = (rays * depth[..., None]) @ frame.c2w[:3, :3].T + frame.c2w[:3, 3]
    return _waves(points, _FREQUENCIES) * (inside & (depth > 0))[..., None]


def _centres(where: FeatureMap) -> np.ndarray:
    """Pixels (x, y) of the middle of each token, [h,w,2]."""
    return token_centres(where).double().numpy().reshape(*where.patch.shape[-2:], 2)


def _waves(values: np.ndarray, frequencies: tuple[float, ...]) -> np.ndarray:
    """[...,D] -> [...,2*D*len(frequencies)]."""
    angles = values[..., None] * np.asarray(frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], -1).reshape(*values.shape[:-1], -1)
