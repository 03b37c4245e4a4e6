"""The cross-entropy of DINO, token by token."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def token_cross_entropy(student_logits_mk: torch.Tensor, probabilities_mk: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Cross-entropy of each token's student distribution under the teacher's probabilities, [M] float32.

    The published temperatures are 1 (its configured ones are never read). With K prototypes the value lies near ln K: watch the loss less
    ln K.
    """
    return -(probabilities_mk * F.log_softmax(student_logits_mk.float() / temperature, dim=-1)).sum(-1)
