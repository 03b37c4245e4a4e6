"""Every pair of a data set, matched by a protocol.

judged = judge_pairs(PROTOCOLS["clean"].correspondence, data, features)
judged.metrics["recall@40px"]       # of each pair
judged.by_rotation                  # the headline recall in bins of rotation, with counts
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from configs import ConfigError
from training.probes.correspondence import (
    ROTATION_BINS,
    PairErrors,
    TokenErrors,
    bin_means,
    match_frames,
    match_tokens,
    pck,
    recall,
    transfer_points,
)
from training.probes.data.base import Pair, ProbeData, ProbeFrame
from training.probes.features import FeatureMap, Features
from training.probes.preprocess import as_batch, resize
from training.probes.protocol import CorrespondenceProtocol

PCK_ALPHAS = (0.05, 0.1, 0.15)
RELATIVE = (24, 12, 6)  # parts of the image's height, as thresholds that do not depend on its size
_KEPT_MAPS = 32


@dataclass(frozen=True)
class JudgedPairs:
    """Scores of pairs.

    keys: of both frames. groups: of the first. metrics: [N] for each name, NaN where a pair has nothing to judge. by_rotation: mean recall
    at the protocol's headline threshold, and how many pairs, in each of ROTATION_BINS; empty for pairs of known points.
    """

    keys: tuple[tuple[str, str], ...]
    groups: tuple[str, ...]
    metrics: dict[str, np.ndarray]
    by_rotation: tuple[np.ndarray, np.ndarray]

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
        else:
            errors = match_frames((map0, map1), first, second, choices.step, choices.matches, choices.inputs.stretch)
            scores = surface_scores(errors, choices, second.image.shape[0])
            rows.append(scores | token_scores(match_tokens((map0, map1), first, second)))
        if (n + 1) % 100 == 0:
            say(f"correspondence: {n + 1} of {len(pairs)} pairs")
    metrics = {name: np.array([row.get(name, math.nan) for row in rows]) for name in dict.fromkeys(name for row in rows for name in row)}
    return JudgedPairs(
        tuple((frames[pair.first].key, frames[pair.second].key) for pair in pairs),
        tuple(frames[pair.first].group for pair in pairs),
        metrics,
        rotation_bins(metrics, choices),
    )


def surface_scores(errors: PairErrors, choices: CorrespondenceProtocol, height: int) -> dict[str, float]:
    """One pair's recalls, in the protocol's pixels and in parts of the image's height; errors are in pixels of the image."""
    found = {"angle": errors.angle, "matches": float(len(errors.pixels))}
    found |= {f"recall@{limit:g}px": recall(errors.pixels * choices.unit, limit) for limit in choices.thresholds}
    found |= {f"recall@height/{part}": recall(errors.pixels, height / part) for part in RELATIVE}
    return found | {"median_px": float(errors.pixels.median() * choices.unit) if len(errors.pixels) else math.nan}


def token_scores(errors: TokenErrors) -> dict[str, float]:
    """One pair's share of tokens that were found within one and two patches, of those that both views see."""
    return {
        "tokens": float(len(errors.patches)),
        **{f"tokens@{limit}": float((errors.patches <= limit).double().mean()) if len(errors.patches) else math.nan for limit in (1, 2)},
        "token_angle": float(errors.angle.mean()) if len(errors.angle) else math.nan,
    }


def rotation_bins(metrics: dict[str, np.ndarray], choices: CorrespondenceProtocol) -> tuple[np.ndarray, np.ndarray]:
    """The headline recall by rotation, NaN for an empty bin, and the number of pairs in each."""
    if "angle" not in metrics:
        return np.zeros(0), np.zeros(0, int)
    values = metrics[f"recall@{choices.headline:g}px"]
    known = np.isfinite(values)
    return bin_means(values[known], metrics["angle"][known], ROTATION_BINS)


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
