"""What the published probes do with the learning rate, as functions of the step alone.

Sources: DINOv2's, FiT3D's and SnD's configurations (cosine, poly), Probe3D's code (quarter cosine).
"""

from __future__ import annotations

import math

DEPTH_WARM_UP = 12_800  # steps
SEGMENTATION_WARM_UP = 1500


def cosine_rate(step: int, steps: int, peak: float = 1e-4, warm_up: int = DEPTH_WARM_UP) -> float:
    """The rate of depth: half a cosine from peak to 1e-12, times a linear warm-up from a thousandth."""
    rate = _cosine(peak, 1e-12, step / steps)
    return rate * (1 - (1 - step / warm_up) * (1 - 0.001)) if step < warm_up else rate


def cycled_beta1(step: int, steps: int) -> float:
    """Adam's beta1 of depth: 0.95, to 0.85 after 30 % of the steps, and back."""
    turn = 0.3 * steps - 1
    if step < turn:
        return _cosine(0.95, 0.85, step / turn)
    return _cosine(0.85, 0.95, min(1.0, (step - turn) / (steps - 1 - turn)))


def poly_rate(step: int, steps: int, peak: float = 1e-3, warm_up: int = SEGMENTATION_WARM_UP) -> float:
    """The rate of segmentation: a line from peak to 0, times a linear warm-up from a millionth."""
    rate = peak * (1 - step / steps)
    return rate * (1 - (1 - step / warm_up) * (1 - 1e-6)) if step < warm_up else rate


def quarter_cosine_factor(step: int, steps: int, warm_up: int) -> float:
    """Probe3D's factor: a line from 0.01 to 1, then a quarter of a cosine to 0.01, steepest at the end."""
    if step < warm_up:
        return 0.01 + 0.99 * step / warm_up
    return 0.01 + 0.99 * math.cos(math.pi / 2 * (step - warm_up) / max(1, steps - warm_up))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
