"""What a result is read beside: features that know nothing, features that cheat, and features that know all.

constant; position (cameras stand upright, so the place on the image says much); colour; the same transformer with random weights; the
network that a training started from; and an oracle, which is told the truth of each patch and shows what patches cost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storage import codec, location
from storage.location import NotFound, join
from training.probes.data.base import IGNORED, ProbeData, ProbeFrame
from training.probes.extractor import NetworkModel, Tokens, TokenSource, base_model, random_model
from training.probes.features import FeatureMap
from training.probes.grid import token_centres, token_depth, token_normals, token_pixels
from training.probes.judge import judge
from training.probes.results import digest

_FREQUENCIES = (0.4, 0.9, 2.1, 4.7)  # radians a metre: what tells the places of a room apart
Describe = Callable[[FeatureMap, ProbeFrame], np.ndarray]


@dataclass(frozen=True)
class Handmade:
    """Features of a patch by a formula, on the token grid of a network. features: -> [h,w,C]."""

    description: Mapping[str, Any]
    like: NetworkModel
    features: Describe

    def tokens(self, frame: ProbeFrame) -> Tokens:
        where = self.like.grid(*frame.image.shape[:2])
        made = torch.from_numpy(np.ascontiguousarray(self.features(where, frame))).float().permute(2, 0, 1)[None]
        return Tokens(FeatureMap(made, None, where.offset, where.stride), torch.ones(made.shape[-2:], dtype=torch.bool))


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
    source: TokenSource, like: NetworkModel, data: ProbeData, tasks: Collection[str], strength: float | None, output: str
) -> dict[str, Any]:
    """The JSON of each baseline, by its name.

    Args:
        source: what is judged; where some of its tokens do not count, they count in no baseline either.
        like: the network, for the grid, the random weights and what it started from.
        tasks, strength: as of `judge`.
        output: URL of the folder that keeps them: each is judged once for the same data, code and settings.
    """
    sources: dict[str, TokenSource | None] = {
        "constant": Handmade({"baseline": "constant"}, like, lambda where, _: np.ones((*where.patch.shape[-2:], 1))),
        "position": Handmade({"baseline": "position"}, like, _position),
        "colour": Handmade({"baseline": "colour"}, like, _colour),
        "random network": random_model(like),
        "started from": like if source is not like else base_model(like),
    }
    key = {"data": data.describe(), "strength": strength, "code": _code()}
    found = {}
    for name, one in sources.items():
        if one is not None:
            found[name] = _kept(one if source is like else Within(one, source), data, sorted(tasks), strength, output, key)
    parts = [_kept(_oracle(task, like, data), data, [task], strength, output, key) for task in sorted(set(tasks) & data.tasks)]
    found["oracle"] = {task: result for part in parts for task, result in part.items() if task != "consistency"}
    return found


def _kept(
    source: TokenSource, data: ProbeData, tasks: Collection[str], strength: float | None, output: str, key: Mapping[str, Any]
) -> dict[str, Any]:
    grid = source.like.grid_rule if isinstance(source, Handmade) else None
    url = join(output, "baselines", f"{digest({**key, 'tasks': list(tasks), 'source': source.description, 'grid': grid})}.json")
    try:
        return codec.decode_json(location.read_bytes(url))
    except NotFound:
        pass
    found = judge(source, data, tasks, strength).to_json()
    for result in found.values():
        result.pop("records")
    location.write_bytes(url, codec.encode_json(found))
    return found


def _code() -> str:
    """A digest of the code that judges."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return digest([[file.name, file.read_text()] for file in files])


def _position(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
    """Sines and cosines of the place on the image, from half a wave across it to four."""
    height, width = frame.image.shape[:2]
    place = token_centres(where) / (width, height) * np.pi
    return _waves(place, (1.0, 2.0, 4.0, 8.0))


def _colour(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
    tiles = token_pixels(where, frame.image).astype(np.float64) / 255
    return np.concatenate([tiles.mean(2), tiles.std(2)], -1)


def _oracle(task: str, like: NetworkModel, data: ProbeData) -> Handmade:
    """The truth of each patch, as far as a linear head can use it."""

    def depth(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
        logs, known = token_depth(where, frame, data.depth_range)
        return np.concatenate([logs, known[..., None]], -1)

    def normals(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
        return token_normals(where, frame)[0]

    def segmentation(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
        assert frame.labels is not None
        tiles = token_pixels(where, frame.labels, IGNORED)
        return np.stack([(tiles == number).mean(2) for number in range(len(data.classes))], -1)

    made = {"depth": depth, "normals": normals, "segmentation": segmentation, "correspondence": world_code}
    return Handmade({"baseline": f"oracle of {task}"}, like, made[task])


def world_code(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
    """Sines and cosines of the world position at the middle of each token, [h,w,C]; 0 where its depth is unknown."""
    assert frame.depth is not None and frame.K is not None and frame.c2w is not None
    centres = token_centres(where)
    height, width = frame.depth.shape
    x, y = np.floor(centres).astype(np.int64).reshape(-1, 2).T
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height)).reshape(centres.shape[:2])
    depth = frame.depth[y.clip(0, height - 1), x.clip(0, width - 1)].reshape(centres.shape[:2])
    rays = np.concatenate([(centres - frame.K[:2, 2]) / frame.K[[0, 1], [0, 1]], np.ones((*centres.shape[:2], 1))], -1)
    points = (rays * depth[..., None]) @ frame.c2w[:3, :3].T + frame.c2w[:3, 3]
    return _waves(points, _FREQUENCIES) * (inside & (depth > 0))[..., None]


def _waves(values: np.ndarray, frequencies: tuple[float, ...]) -> np.ndarray:
    """[...,D] -> [...,2*D*len(frequencies)]."""
    angles = values[..., None] * np.asarray(frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], -1).reshape(*values.shape[:-1], -1)
