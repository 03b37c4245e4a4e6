"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math

_START = 1 / 25  # of the peak
_END = 1e-4 / 25


def one_cycle(step: int, steps: int, peak: float, warmup: float) -> float:
    """One cosine cycle: from peak/25 up over `warmup` of the steps, then down to peak/250000. As published: 10 steps longer than the
    run."""
    total = steps + 10
    top = warmup * total - 1
    if step < top:
        return _cosine(_START * peak, peak, step / top)
    return _cosine(peak, _END * peak, min(1.0, (step - top) / (total - 1 - top)))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
