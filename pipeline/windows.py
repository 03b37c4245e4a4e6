"""Which windows a scene gives: pure functions over its kept frames.

A window is a context pair `gap` file numbers apart, and the kept frames between. File numbers, not places in the list: where frames were
dropped, list neighbours may be metres apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import WindowConfig


@dataclass(frozen=True)
class PlannedWindow:
    """A row to be: scene and the file names of its frames in order."""

    scene: str
    names: tuple[str, ...]

    @property
    def key(self) -> str:
        """The row's key: scene and the first frame's stem."""
        return f"{self.scene}-{self.names[0].rsplit('.', 1)[0]}"


def plan_windows(
    scene: str, names: Sequence[str], numbers: Sequence[int], c2w_n44: np.ndarray, config: WindowConfig
) -> tuple[list[PlannedWindow], dict[str, int]]:
    """The windows of one scene, and how many candidate pairs were passed over for which reason.

    names, numbers: the kept frames, ascending by number. c2w_n44: their poses, metres.
    """
    place = {number: i for i, number in enumerate(numbers)}
    windows: list[PlannedWindow] = []
    passed: Counter[str] = Counter()
    next_start = -1
    for left, number in enumerate(numbers):
        if number < next_start:
            continue
        right = place.get(number + config.gap)
        if right is None:
            passed["no_frame_at_gap"] += 1
            continue
        reason = _pair_reason(c2w_n44[left], c2w_n44[right], config)
        if reason:
            passed[reason] += 1
            continue
        windows.append(PlannedWindow(scene, tuple(names[left : right + 1])))
        next_start = number + config.stride
    return windows, dict(sorted(passed.items()))


def _pair_reason(first: np.ndarray, second: np.ndarray, config: WindowConfig) -> str | None:
    baseline = float(np.linalg.norm(first[:3, 3] - second[:3, 3]))
    if baseline < config.min_baseline:
        return "baseline_too_short"
    if baseline > config.max_baseline:
        return "baseline_too_long"
    cosine = (np.trace(first[:3, :3].T @ second[:3, :3]) - 1) / 2
    if np.degrees(np.arccos(np.clip(cosine, -1, 1))) > config.max_rotation:
        return "rotation_too_large"
    return None
