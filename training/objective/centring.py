"""What keeps a head from collapsing while its teacher moves: the targets are centred, so that no prototype takes all tokens.

Both ways are a number for each prototype, which is added to the teacher's logits (`PrototypeTargets.bias`). Sources: DINO, Caron et al.
2021 (mean); SwAV, Caron et al. 2020, as in DINOv2, Oquab et al. 2023 (Sinkhorn-Knopp).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from configs.schema import CentringKind, HeadConfig
from training.objective.loss import CHUNK, prototype_logits

Total = Callable[[torch.Tensor], object]  # sums a tensor over all ranks, in place


class Centring(Protocol):
    """The bias [K] of a step's targets, from points [M,D], prototypes [K,D] and the temperature of the teacher's head."""

    def bias(self, points: torch.Tensor, prototypes: torch.Tensor, temperature: float) -> torch.Tensor: ...

    def update(self, prototypes: torch.Tensor) -> None:
        """A step is over."""
        ...


class MeanCentring(torch.nn.Module):
    """A moving mean of the teacher's logits, [K], which is taken off them. total: sums over ranks."""

    mean: torch.Tensor

    def __init__(self, config: HeadConfig, total: Total) -> None:
        super().__init__()
        self.momentum, self.total = config.centre_momentum, total
        self.register_buffer("mean", torch.zeros(config.prototypes))
        # Logits are linear in the points: their mean is that of the points, which are smaller by a factor of hundreds.
        self.sums = torch.zeros(config.bottleneck + 1, dtype=torch.float64)

    def bias(self, points: torch.Tensor, prototypes: torch.Tensor, temperature: float) -> torch.Tensor:
        """Also takes the points into account for the next `update`."""
        self.sums = self.sums.to(points.device)
        self.sums[:-1] += points.sum(0, dtype=torch.float64)
        self.sums[-1] += len(points)
        return -self.mean / temperature

    @torch.no_grad()
    def update(self, prototypes: torch.Tensor) -> None:
        """Moves the mean by the step's tokens on all ranks; it stays where there were none."""
        self.total(self.sums)
        if self.sums[-1] > 0:
            self.mean.lerp_(prototypes.float() @ (self.sums[:-1] / self.sums[-1]).float(), 1 - self.momentum)
        self.sums.zero_()


class SinkhornCentring:
    """Sinkhorn-Knopp: the weights of prototypes and tokens by which all prototypes are used alike. total: sums over ranks."""

    def __init__(self, config: HeadConfig, total: Total) -> None:
        self.iterations, self.total = config.sinkhorn_iterations, total

    @torch.no_grad()
    def bias(self, points: torch.Tensor, prototypes: torch.Tensor, temperature: float) -> torch.Tensor:
        """The M x K logits are made anew for each chunk of tokens and iteration."""
        # No logit is larger; without it their exponentials could overflow.
        most = torch.linalg.vector_norm(prototypes.float(), dim=1).max() / temperature
        of_token = most.neg().expand(len(points), 1)
        bias = torch.zeros(len(prototypes), device=points.device)
        parts = [slice(begin, begin + CHUNK) for begin in range(0, len(points), CHUNK)]
        for iteration in range(self.iterations):
            use = torch.zeros_like(bias, dtype=torch.float64)
            for part in parts:
                logits = prototype_logits(points[part], prototypes, temperature)
                weight = of_token[part] if iteration == 0 else -torch.logsumexp(logits + bias, 1, keepdim=True)
                use += (logits + weight).exp().sum(0, dtype=torch.float64)
            self.total(use)
            bias = -use.clamp_min(torch.finfo(torch.float32).tiny).log().float()
        return bias

    def update(self, prototypes: torch.Tensor) -> None:
        """Every step's weights are its own."""


def make_centring(config: HeadConfig, total: Total) -> MeanCentring | SinkhornCentring | None:
    """What a configuration asks for."""
    if config.centring is CentringKind.mean:
        return MeanCentring(config, total)
    return SinkhornCentring(config, total) if config.centring is CentringKind.sinkhorn else None
