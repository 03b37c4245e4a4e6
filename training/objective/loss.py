"""The cross-entropy of DINO between distributions over prototypes, a chunk of tokens at a time.

With 65,536 prototypes the logits of a step's tokens are gigabytes, several times over. Here they exist for one chunk: its loss and its
gradients are made together, as in Liger's fused linear cross-entropy, so that nothing is computed twice and only the gradients are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

CHUNK = 256  # tokens: 64 MB of float32 logits with 65,536 prototypes


@dataclass(frozen=True)
class PrototypeTargets:
    """A distribution over K prototypes for each of M tokens: softmax(points @ prototypes.T / temperature + bias).

    points: [M,D] of the teacher's head. prototypes: [K,D] of the same. bias: [K], what centres the distributions; None for nothing.
    """

    points: torch.Tensor
    prototypes: torch.Tensor
    temperature: float = 1.0
    bias: torch.Tensor | None = None


class CrossEntropy(NamedTuple):
    """Sums over M tokens. loss: with gradient. target_entropy: of the targets, in nats. usage: [K], of the student's distributions."""

    loss: torch.Tensor
    target_entropy: torch.Tensor
    usage: torch.Tensor


def prototype_cross_entropy(
    points_md: torch.Tensor, prototypes_kd: torch.Tensor, targets: PrototypeTargets, temperature: float = 1.0, chunk: int = CHUNK
) -> CrossEntropy:
    """Cross-entropy of the student's distributions, softmax(points @ prototypes.T / temperature), under the targets.

    Args:
        points_md, prototypes_kd: of the student's head; the gradient goes to both.
        targets: of the same M tokens; no gradient goes there.
        temperature: of the student's softmax. The published one is 1 (its configured one is never read): with K prototypes a token's value
            then lies near ln K, so watch the loss less ln K.
        chunk: tokens at a time; the result is that of all at once, but for rounding.

    Matrix products follow autocast; softmax, logarithm and all sums are float32. Source: DINO, Caron et al. 2021.
    """
    return CrossEntropy(*_CrossEntropy.apply(points_md, prototypes_kd, targets, temperature, chunk))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, points: torch.Tensor, prototypes: torch.Tensor, targets: PrototypeTargets, temperature: float, chunk: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        kind = points.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):
            x, w, xt, wt = (part.to(dtype) for part in (points, prototypes, targets.points, targets.prototypes))
            loss, entropy = (torch.zeros((), dtype=torch.float64, device=x.device) for _ in range(2))
            usage = torch.zeros(len(w), device=x.device)
            grad_x, grad_w = torch.zeros_like(points, dtype=torch.float32), torch.zeros_like(prototypes, dtype=torch.float32)
            for begin in range(0, len(x), chunk):
                part = slice(begin, begin + chunk)
                target = F.log_softmax(prototype_logits(xt[part], wt, targets.temperature, targets.bias), -1)
                own = F.log_softmax(prototype_logits(x[part], w, temperature), -1)
                probabilities = target.exp()
                entropy -= target.mul_(probabilities).sum(-1).sum(dtype=torch.float64)
                loss -= torch.mul(probabilities, own, out=target).sum(-1).sum(dtype=torch.float64)
                usage += own.exp_().sum(0)
                if any(ctx.needs_input_grad):
                    error = own.sub_(probabilities).div_(temperature).to(dtype)
                    grad_x[part] = error @ w
                    grad_w += error.T @ x[part]
        ctx.save_for_backward(grad_x.to(points.dtype), grad_w.to(prototypes.dtype))
        ctx.mark_non_differentiable(entropy, usage)
        return loss, entropy, usage

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(part * grad for part in ctx.saved_tensors), None, None, None


def prototype_logits(
    points_md: torch.Tensor, prototypes_kd: torch.Tensor, temperature: float, bias_k: torch.Tensor | None = None
) -> torch.Tensor:
    """points @ prototypes.T / temperature + bias, [M,K] float32; the product is of the points' dtype."""
    logits = F.linear(points_md, prototypes_kd).float().div_(temperature)
    return logits if bias_k is None else logits.add_(bias_k)


def koleo(tokens_mc: torch.Tensor) -> torch.Tensor:
    """Minus the logarithms of each token's distance to the nearest other, of unit length, summed: small where tokens spread evenly.

    Source: Sablayrolles et al. 2019, as in DINOv2 (there of class tokens, over a batch; here of one image's tokens).
    """
    if len(tokens_mc) < 2:
        return tokens_mc.sum() * 0
    with torch.autocast(tokens_mc.device.type, enabled=False):  # in bf16 many neighbours are equally near
        unit = F.normalize(tokens_mc.float(), dim=1, eps=1e-8)
        with torch.no_grad():
            nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
        return -(F.pairwise_distance(unit, unit[nearest], eps=1e-8) + 1e-8).log().sum()
