"""Where the student's supervision comes from: sources that carry the teacher's context tokens into the target view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from configs.schema import SupervisionConfig, SupervisionMode
from training.data.batch import Batch
from training.splat import Lift, Splats, render_token_targets
from training.splat.apply import apply_operators


@dataclass(frozen=True)
class Supervision:
    """What the student is to match in a step. tokens: [B,h,w,C]; keep: [B,h,w] bool, the tokens that have supervision."""

    tokens: torch.Tensor
    keep: torch.Tensor


class Source(Protocol):
    """Carries context tokens [B,V,h,w,C] into the target views of a batch.

    A token is kept where the splat's accumulated alpha reaches `supervision.min_coverage` and no pixel of its patch is invalid.
    """

    def supervise(self, batch: Batch, context: torch.Tensor) -> Supervision: ...


@dataclass(frozen=True)
class Operators:
    """Applies the operators of the batch, whether the dataset holds them or the loader builds them from the Gaussians."""

    config: SupervisionConfig

    def supervise(self, batch: Batch, context: torch.Tensor) -> Supervision:
        assert batch.operators is not None
        rows, _, h, w, _ = context.shape
        tokens = apply_operators(batch.operators, context.flatten(1, 3), self.config.blend).unflatten(1, (h, w))
        return Supervision(tokens, _keep(batch, batch.operators.alpha.view(rows, h, w), self.config.min_coverage))


@dataclass(frozen=True)
class LiveSplat:
    """Splats every channel at full resolution: the reference."""

    config: SupervisionConfig

    def supervise(self, batch: Batch, context: torch.Tensor) -> Supervision:
        tokens, alpha = _splat_live(batch, context, self.config.blend)
        return Supervision(tokens, _keep(batch, alpha, self.config.min_coverage))


_SOURCES: dict[SupervisionMode, Callable[[SupervisionConfig], Source]] = {
    SupervisionMode.operators: Operators, SupervisionMode.on_the_fly: Operators, SupervisionMode.live: LiveSplat,
}  # fmt: skip


def source_of(config: SupervisionConfig) -> Source:
    """The source that a configuration asks for."""
    return _SOURCES[config.mode](config)


def _keep(batch: Batch, alpha_bhw: torch.Tensor, min_coverage: float) -> torch.Tensor:
    return (alpha_bhw >= min_coverage) & patches_all_valid(batch.target_valid, *alpha_bhw.shape[1:])


def _splat_live(batch: Batch, context: torch.Tensor, blend: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Every channel of the context tokens [B,V,h,w,C], splatted at full resolution: targets [B,h,w,C] and accumulated alpha [B,h,w]."""
    assert batch.context_labels is not None
    assert batch.target_labels is not None
    assert batch.viewmats is not None
    assert batch.Ks is not None
    grid = (context.shape[2], context.shape[3])
    lifts = [Lift.from_masks(batch.context_labels[b], grid) if lift is None else lift for b, lift in enumerate(batch.lifts)]
    rendered = [
        render_token_targets(
            Splats(batch.means[b], batch.opacities[b], quats=batch.quats[b], scales=batch.scales[b]),
            lift=lifts[b],
            tokens=context[b],
            target_mask=batch.target_labels[b],
            viewmat=batch.viewmats[b],
            K=batch.Ks[b],
            blend=blend,
        )
        for b in range(len(batch.keys))
    ]
    return torch.stack([r.features for r in rendered]), torch.stack([r.alpha for r in rendered])


def patches_all_valid(valid_bhw: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """[B,H,W] bool -> [B,h,w] bool: whether every pixel of the token's patch is valid. A pixel that two patches share counts in both."""
    return F.interpolate(valid_bhw[:, None].float(), (h, w), mode="area")[:, 0] > 1 - 1e-6


def shuffled(supervision: Supervision, seeds: Sequence[int]) -> Supervision:
    """A control: the kept tokens of each row in another order, so that nothing can be learnt from where they stand."""
    tokens_bhwc = supervision.tokens.clone()
    for tokens, keep, seed in zip(tokens_bhwc, supervision.keep, seeds, strict=True):
        kept = tokens[keep]
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
        tokens[keep] = kept[order.to(kept.device)]
    return Supervision(tokens_bhwc, supervision.keep)
