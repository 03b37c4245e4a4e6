"""Where the student's supervision comes from: sources that carry the teacher's context tokens into the target view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from configs.schema import SupervisionConfig, SupervisionMode
from training.data.batch import Batch
from training.splat import Lift, Splats, render_token_targets
from training.splat.apply import OperatorBatch, apply_operators, collate_operators
from training.splat.operator import build_token_operator
from training.splat.window import drawn_as


@dataclass(frozen=True)
class Supervision:
    """What the student is to match in a step.

    tokens: [B,h,w,C]. keep: [B,h,w] bool, the tokens that count. holes: [B,h,w] bool, those of them where both sides are set to 0; None
    for none.
    """

    tokens: torch.Tensor
    keep: torch.Tensor
    holes: torch.Tensor | None = None


@dataclass(frozen=True)
class Carried:
    """Tokens in the target views [B,h,w,C], and how much came there: alpha, coverage [B,h,w], see `TokenTargets`; drawn: of `live`."""

    tokens: torch.Tensor
    alpha: torch.Tensor
    coverage: torch.Tensor
    drawn: torch.Tensor | None = None


Carrier = Callable[[SupervisionConfig, Batch, torch.Tensor], Carried]  # of context tokens [B,V,h,w,C]


def supervision_from(config: SupervisionConfig, batch: Batch, context: torch.Tensor) -> Supervision:
    """The context's tokens [B,V,h,w,C], carried into the target views, and which of them count: those whose patch has no invalid pixel, and
    to which enough came."""
    if config.normalise:
        context = torch.cat([context, torch.ones_like(context[..., :1])], -1)
    found = carried(config, batch, context)
    tokens = found.tokens
    if config.normalise:
        tokens = tokens[..., :-1] / tokens[..., -1:].clamp_min(1e-6)
    if config.keep_by == "published":
        assert found.drawn is not None
        there = found.drawn
    else:
        there = (found.alpha if config.keep_by == "alpha" else found.coverage) >= config.min_coverage
    valid = patches_all_valid(batch.target_valid, *there.shape[1:])
    if config.holes == "exclude":
        return Supervision(tokens, there & valid)
    return Supervision(tokens.masked_fill(~there[..., None], 0), valid, ~there)


def carried(config: SupervisionConfig, batch: Batch, context: torch.Tensor) -> Carried:
    """Context tokens [B,V,h,w,C] in the target views, in the way that the configuration says."""
    return _CARRIERS[config.mode](config, batch, context)


def _by_operators(config: SupervisionConfig, batch: Batch, context: torch.Tensor) -> Carried:
    """By the operators of the batch, which the dataset holds or the loader built; else by those built here, on the Gaussians' device."""
    rows, _, h, w, _ = context.shape
    operators = batch.operators or _build_operators(config, batch, (h, w))
    tokens = apply_operators(operators, context.flatten(1, 3), config.blend).unflatten(1, (h, w))
    return Carried(tokens, *(part.view(rows, h, w) for part in (operators.alpha, operators.coverage)))


def _build_operators(config: SupervisionConfig, batch: Batch, grid: tuple[int, int]) -> OperatorBatch:
    built = [
        build_token_operator(
            one.splats, lift=one.lift, target_mask=one.labels, viewmat=one.viewmat, K=one.K, grid=grid, with_blend=config.blend < 1
        )
        for one in _scenes(config, batch, grid)
    ]
    return collate_operators(built).to(batch.target_images.device)


def _live(config: SupervisionConfig, batch: Batch, context: torch.Tensor) -> Carried:
    """Every channel splatted at full resolution: the reference."""
    rendered = [
        render_token_targets(
            one.splats,
            lift=one.lift,
            tokens=tokens,
            target_mask=one.labels,
            viewmat=one.viewmat,
            K=one.K,
            blend=config.blend,
            area=config.downsample == "area",
            unblended=None if config.blend_unlabelled else 0,
        )
        for one, tokens in zip(_scenes(config, batch, (context.shape[2], context.shape[3])), context, strict=True)
    ]
    return Carried(*(torch.stack([getattr(one, name) for one in rendered]) for name in ("features", "alpha", "coverage", "drawn")))


class _Scene(NamedTuple):
    """One row of a batch, to be splatted. labels: [H,W] of the target; viewmat, K: its camera."""

    splats: Splats
    lift: Lift
    labels: torch.Tensor
    viewmat: torch.Tensor
    K: torch.Tensor


def _scenes(config: SupervisionConfig, batch: Batch, grid: tuple[int, int]) -> list[_Scene]:
    """grid: (h,w) tokens of a context view."""
    assert batch.context_labels is not None
    assert batch.target_labels is not None
    assert batch.viewmats is not None
    assert batch.Ks is not None
    rule, scenes = config.splat, []
    for b, lift in enumerate(batch.lifts):
        if lift is None:
            masks = batch.context_labels[b] if rule.mask_aware else torch.zeros_like(batch.context_labels[b])
            lift = Lift.from_masks(masks, grid, no_neighbour=rule.no_neighbour, upsample_grid=rule.upsample_grid)
        splats = Splats(batch.means[b], batch.opacities[b], quats=batch.quats[b], scales=batch.scales[b])
        scenes.append(_Scene(drawn_as(splats, rule), lift, batch.target_labels[b], batch.viewmats[b], batch.Ks[b]))
    return scenes


_CARRIERS: dict[SupervisionMode, Carrier] = {
    SupervisionMode.operators: _by_operators, SupervisionMode.on_the_fly: _by_operators, SupervisionMode.live: _live,
}  # fmt: skip


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
    return replace(supervision, tokens=tokens_bhwc)
