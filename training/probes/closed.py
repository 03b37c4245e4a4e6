"""Heads in closed or convex form on tokens: seconds on a CPU, and the same numbers every time.

Depth and normals: ridge regression on the tokens' mean log depth and mean normal. Classes: multinomial logistic regression on the tokens'
commonest class. Predictions are brought to pixels bilinearly and judged there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # of the ridge, times the features' mean variance
LOGISTIC_L2 = 1e-3
LOGISTIC_STEPS = 150


class Group(NamedTuple):
    """Training tokens of one room: [N,C], and what is wanted of them, [N,K] or class numbers [N]."""

    tokens: torch.Tensor
    wanted: torch.Tensor


@dataclass(frozen=True)
class Linear:
    """A linear head on standardised tokens. mean, scale: [C]; weight: [C+1,K], the bias last; strength: of its ridge."""

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    strength: float

    def __call__(self, tokens_nc: torch.Tensor) -> torch.Tensor:
        """[N,C] -> [N,K]."""
        standard = (tokens_nc.to(self.weight.dtype) - self.mean) / self.scale
        return standard @ self.weight[:-1] + self.weight[-1]


def fit_ridge(rooms: Sequence[Group], strength: float | None = None) -> Linear:
    """The linear head with the least squared error plus ridge; the bias is not shrunk.

    Args:
        rooms: the training tokens, a group a room.
        strength: of the ridge, as a share of the features' mean variance; None: of STRENGTHS the one that predicts each room best from all
            others, over all of them. Of one room alone, the smallest that is not below 1e-2.

    Returns:
        In float64.
    """
    mean, scale = _statistics(rooms)
    grams, rights, squares, counts = [], [], [], []
    for tokens, wanted in rooms:
        standard = torch.cat([(tokens.double() - mean) / scale, torch.ones(len(tokens), 1, dtype=torch.float64)], 1)
        y = wanted.double()
        grams.append(standard.T @ standard)
        rights.append(standard.T @ y)
        squares.append((y * y).sum())
        counts.append(len(tokens))
    gram, right, count = torch.stack(grams).sum(0), torch.stack(rights).sum(0), sum(counts)
    if strength is None and len(rooms) == 1:
        strength = 1e-2
    if strength is None:
        errors = []
        for candidate in STRENGTHS:
            error = 0.0
            for own_gram, own_right, own_squares, own_count in zip(grams, rights, squares, counts, strict=True):
                weight = _solve(gram - own_gram, right - own_right, count - own_count, candidate)
                error += float(own_squares - 2 * (weight * own_right).sum() + (weight * (own_gram @ weight)).sum())
            errors.append(error)
        strength = STRENGTHS[min(range(len(STRENGTHS)), key=lambda i: (errors[i], -i))]
    return Linear(mean, scale, _solve(gram, right, count, strength), strength)


def fit_logistic(rooms: Sequence[Group], classes: int) -> Linear:
    """The linear head with the least cross-entropy plus a squared penalty, by a fixed number of L-BFGS steps from zero: convex, no chance.

    rooms: the training tokens with class numbers below `classes`. Returns float32 weights of logits.
    """
    mean, scale = (value.float() for value in _statistics(rooms))
    x = torch.cat([(room.tokens.float() - mean) / scale for room in rooms])
    y = torch.cat([room.wanted.long() for room in rooms])
    weight = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=LOGISTIC_STEPS, max_eval=2 * LOGISTIC_STEPS, history_size=20, tolerance_grad=0, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(torch.addmm(weight[-1], x, weight[:-1]), y)
        value = value + LOGISTIC_L2 / 2 * (weight[:-1] ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return Linear(mean, scale, weight.detach(), LOGISTIC_L2)


def _statistics(rooms: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [C] over all tokens, float64; a channel that never changes is divided by 1."""
    count = sum(len(room.tokens) for room in rooms)
    mean = torch.stack([room.tokens.double().sum(0) for room in rooms]).sum(0) / count
    variance = torch.stack([((room.tokens.double() - mean) ** 2).sum(0) for room in rooms]).sum(0) / count
    scale = variance.sqrt()
    return mean, torch.where(scale > 1e-6 * (1 + mean.abs()), scale, 1.0)


def _solve(gram: torch.Tensor, right: torch.Tensor, count: int, strength: float) -> torch.Tensor:
    """[C+1,K]: the bias, the last, has no ridge but one that keeps an empty problem solvable."""
    size = len(gram) - 1
    trace = float(gram.diagonal()[:-1].sum()) / max(count * size, 1)
    ridge = torch.full((size + 1,), strength * max(trace, 1e-6), dtype=gram.dtype)
    ridge[-1] = 1e-12
    return torch.linalg.solve(gram / count + ridge.diag(), right / count)
