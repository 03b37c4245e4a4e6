"""From the teacher's tokens to what the student's head should say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Targets:
    """What a step's M kept tokens should be. tokens: [M,C], the supervision; probabilities: [M,K] float32, over the prototypes."""

    tokens: torch.Tensor
    probabilities: torch.Tensor


@dataclass(frozen=True)
class SoftmaxTargets:
    """The teacher's logits through a softmax. temperature: below 1 sharpens; 1 as published."""

    temperature: float = 1.0

    def probabilities(self, logits_mk: torch.Tensor) -> torch.Tensor:
        """[M,K] logits -> [M,K] float32, each row's sum 1, without gradient."""
        return F.softmax(logits_mk.detach().float() / self.temperature, dim=-1)
