"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math

from configs.schema import TrainConfig

_START = 1 / 25  # of the peak
_END = 1e-4 / 25


def peak_rate(config: TrainConfig) -> float:
    """The peak of the cycle: as given, or by `optimizer.reach`, so that runs of any length and batch move the weights about equally far.

    Adam's steps are of the size of the rate, whatever the gradients; where these are noise they add up as a random walk, to
    rate * sqrt(steps). A larger batch allows a rate larger by its root (Malladi et al. 2022).
    """
    optimizer = config.optimizer
    return optimizer.reach * math.sqrt(config.batch / config.steps) if optimizer.lr is None else optimizer.lr


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
