"""Every pair of a data set, matched by a protocol.

judged = judge_pairs(PROTOCOLS["clean"].correspondence, data, features)
judged.metrics["recall@40px"]       # of each pair
judged.metrics["headline@15-30"]    # of each pair whose cameras are turned by as much
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from configs import ConfigError
from training.probes import consistency
from training.probes.correspondence import PairErrors, by_angle, match_frames, match_objects, pck, recall, transfer_points
from training.probes.data.base import Pair, ProbeData, ProbeFrame
from training.probes.extractor import Tokens
from training.probes.features import FeatureMap, Features
from training.probes.geometry import ANGLES
from training.probes.matching import token_centres
from training.probes.preprocess import as_batch, resize
from training.probes.protocol import CorrespondenceProtocol

PCK_ALPHAS = (0.05, 0.1, 0.15)
OBJECT_ANGLES = (0, 30, 60, 90, 120)  # degrees between the cameras of a pair of NAVI
RELATIVE = (24, 12, 6)  # parts of the image's height, as thresholds that do not depend on its size
_KEPT_MAPS = 32


@dataclass(frozen=True)
class JudgedPairs:
    """Scores of pairs.

    keys: of both frames. groups: of the first. metrics: [N] for each name, NaN where a pair has nothing to judge; `headline` is recall at
    the protocol's headline threshold, by rotation.
    """

    keys: tuple[tuple[str, str], ...]
    groups: tuple[str, ...]
    metrics: dict[str, np.ndarray]

    @property
    def summary(self) -> dict[str, float]:
        """The mean of each metric over the pairs that have it."""
        return {name: float(np.nanmean(v)) if np.isfinite(v).any() else math.nan for name, v in self.metrics.items()}


@torch.no_grad()
def judge_pairs(
    choices: CorrespondenceProtocol,
    data: ProbeData,
    features: Features,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> JudgedPairs:
    """Matches every pair of the test split: by known points where pairs have them, else by depth and cameras.

    Args: features: of images on `device`, with the inputs that the protocol asks for.
    Raises: ConfigError for data without pairs; ValueError that names a frame without depth or camera.
    """
    frames, pairs = data.frames("test"), data.pairs()
    if not pairs:
        raise ConfigError(f"{data.name} has no pairs of views: leave correspondence out")
    seen = _Views(frames, features, choices, device)
    rows = []
    for n, pair in enumerate(pairs):
        (first, map0), (second, map1) = seen.view(pair.first), seen.view(pair.second)
        if pair.points is not None:
            rows.append(_by_points(map0, map1, first, second, pair, frames))
        elif data.name == "navi" and choices.inputs.stretch:  # Probe3D judges objects by a protocol of their own
            rows.append(object_scores(match_objects((map0, map1), first, second, choices.step, choices.matches)))
        else:
            errors = match_frames((map0, map1), first, second, choices.step, choices.matches, choices.inputs.stretch)
            rows.append(surface_scores(errors, choices, second.image.shape[0]) | token_scores((map0, map1), first, second))
        if (n + 1) % 100 == 0:
            say(f"correspondence: {n + 1} of {len(pairs)} pairs")
    metrics = {name: np.array([row.get(name, math.nan) for row in rows]) for name in dict.fromkeys(name for row in rows for name in row)}
    for headline, edges in ((f"recall@{choices.headline:g}px", ANGLES), ("recall@2cm", OBJECT_ANGLES)):
        if headline in metrics:
            bins = by_angle(metrics[headline], metrics["angle"], edges)
            metrics |= {f"headline@{degrees}": values for degrees, values in bins.items()}
    return JudgedPairs(
        tuple((frames[pair.first].key, frames[pair.second].key) for pair in pairs),
        tuple(frames[pair.first].group for pair in pairs),
        metrics,
    )


def surface_scores(errors: PairErrors, choices: CorrespondenceProtocol, height: int) -> dict[str, float]:
    """One pair's recalls, in the protocol's pixels and in parts of the image's height; errors are in pixels of the image."""
    found = {"angle": errors.angle, "matches": float(len(errors.pixels))}
    found |= {f"recall@{limit:g}px": recall(errors.pixels * choices.unit, limit) for limit in choices.thresholds}
    found |= {f"recall@height/{part}": recall(errors.pixels, height / part) for part in RELATIVE}
    return found | {"median_px": float(errors.pixels.median() * choices.unit) if len(errors.pixels) else math.nan}


def object_scores(errors: PairErrors) -> dict[str, float]:
    """One pair's recalls as Probe3D's of NAVI: by metres between the match and the truth, and by pixels of the image."""
    found = {"angle": errors.angle, "matches": float(len(errors.pixels))}
    found |= {f"recall@{limit}cm": recall(errors.metres, limit / 100) for limit in (1, 2, 5)}
    return found | {f"recall@{limit}px": recall(errors.pixels, limit) for limit in (5, 25, 50)}


def token_scores(maps: tuple[FeatureMap, FeatureMap], first: ProbeFrame, second: ProbeFrame) -> dict[str, float]:
    """One pair's share of tokens that were found within one and two patches, of those that both views see."""
    kept = [_inside(features, frame) for features, frame in zip(maps, (first, second), strict=True)]
    found = consistency.match(kept[0], kept[1], (first, second))
    errors, angle = found["error"], found["angle"]
    return {
        "tokens": float(len(errors)),
        **{f"tokens@{limit}": float((errors <= limit).mean()) if len(errors) else math.nan for limit in consistency.PATCHES},
        "token_angle": float(angle.mean()) if len(angle) else math.nan,
    }


def _inside(features: FeatureMap, frame: ProbeFrame) -> Tokens:
    """A map with those of its tokens whose middle lies in the image."""
    height, width = frame.image.shape[:2]
    x, y = token_centres(features).cpu().unbind(1)
    keep = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return Tokens(replace(features, patch=features.patch.cpu()), keep.unflatten(0, features.patch.shape[-2:]))


class _Views:
    """Frames at the protocol's size with their maps; the latest are kept, since neighbours in the list of pairs share frames."""

    def __init__(self, frames: Sequence[ProbeFrame], features: Features, choices: CorrespondenceProtocol, device: str) -> None:
        self.frames, self.features, self.choices, self.device = frames, features, choices, device
        self.kept: dict[int, tuple[ProbeFrame, FeatureMap]] = {}

    def view(self, n: int) -> tuple[ProbeFrame, FeatureMap]:
        if n not in self.kept:
            frame = resize(self.frames[n], *self.choices.size) if self.choices.size else self.frames[n]
            if len(self.kept) == _KEPT_MAPS:
                del self.kept[next(iter(self.kept))]
            self.kept[n] = frame, self.features(as_batch([frame.image]).to(self.device))
        return self.kept[n]


def _by_points(
    map0: FeatureMap, map1: FeatureMap, first: ProbeFrame, second: ProbeFrame, pair: Pair, frames: Sequence[ProbeFrame]
) -> dict[str, float]:
    """PCK of a pair with known points; their pixels are those of the frames as they are, the maps' of the frames as resized."""
    assert pair.points is not None
    points = torch.from_numpy(np.asarray(pair.points, np.float32))
    sizes = [(frame.image.shape[0], frame.image.shape[1]) for frame in (first, second)]
    scales = [
        torch.tensor([size[1] / frames[n].image.shape[1], size[0] / frames[n].image.shape[0]])
        for size, n in zip(sizes, (pair.first, pair.second), strict=True)
    ]
    xy, truth = points[:, :2] * scales[0], points[:, 2:] * scales[1]
    found = transfer_points((map0, map1), xy.to(map0.patch.device), sizes).cpu()
    longer = float(max(sizes[1]))
    return {"points": float(len(points)), **{f"pck@{alpha:g}": pck(found, truth, longer, alpha) for alpha in PCK_ALPHAS}}
