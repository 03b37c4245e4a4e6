"""Where the student's supervision comes from: sources that carry the teacher's context tokens into the target view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from configs.schema import SupervisionConfig, SupervisionMode
from training.data.batch import Batch
from training.splat import Lift, Splats, render_token_targets
from training.splat.apply import OperatorBatch, apply_operators, collate_operators
from training.splat.operator import build_token_operator
from training.splat.parity import published_holes
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


class Carried(NamedTuple):
    """Tokens in the target views [B,h,w,C], and where enough came of them, [B,h,w] bool."""

    tokens: torch.Tensor
    there: torch.Tensor


def supervision_from(config: SupervisionConfig, batch: Batch, context: torch.Tensor) -> Supervision:
    """The context's tokens [B,V,h,w,C], carried into the target views, and which of them count: those whose patch has no invalid pixel, and
    to which enough came."""
    tokens, there = carry_over(config, batch, context)
    valid = patches_all_valid(batch.target_valid, *there.shape[1:])
    if config.holes == "exclude":
        return Supervision(tokens, there & valid)
    return Supervision(tokens, valid, ~there)


def carry_over(config: SupervisionConfig, batch: Batch, context: torch.Tensor) -> Carried:
    """Context tokens [B,V,h,w,C] in the target views, in the way that the configuration says."""
    carrier = _live if config.mode is SupervisionMode.live else _by_operators
    if not config.normalise:
        return carrier(config, batch, context)
    tokens, there = carrier(config, batch, torch.cat([context, torch.ones_like(context[..., :1])], -1))
    return Carried(tokens[..., :-1] / tokens[..., -1:].clamp_min(1e-6), there)


def _by_operators(config: SupervisionConfig, batch: Batch, context: torch.Tensor) -> Carried:
    """By the operators of the batch, which the dataset holds or the loader built; else by those built here, on the Gaussians' device."""
    rows, _, h, w, _ = context.shape
    if batch.operators is None:
        batch.operators = _build_operators(config, batch, (h, w))
    tokens = apply_operators(batch.operators, context.flatten(1, 3), config.blend).unflatten(1, (h, w))
    amount = batch.operators.alpha if config.keep_by == "alpha" else batch.operators.coverage
    return Carried(tokens, amount.view(rows, h, w) >= config.min_coverage)


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
    grid = context.shape[2], context.shape[3]
    found = []
    for one, tokens in zip(_scenes(config, batch, grid), context, strict=True):
        made = render_token_targets(
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
        if config.keep_by == "published":
            there = published_holes(one.gaussians, one.viewmat, one.K, one.labels.shape, grid).logical_not()
        else:
            there = (made.alpha if config.keep_by == "alpha" else made.coverage) >= config.min_coverage
        found.append((made.features, there))
    return Carried(*(torch.stack(parts) for parts in zip(*found, strict=True)))


class _Scene(NamedTuple):
    """One row of a batch, to be splatted. splats: `gaussians` as they are drawn; labels: [H,W] of the target; viewmat, K: its camera."""

    gaussians: Splats
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
        scenes.append(_Scene(splats, drawn_as(splats, rule), lift, batch.target_labels[b], batch.viewmats[b], batch.Ks[b]))
    return scenes


def patches_all_valid(valid_bhw: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """[B,H,W] bool -> [B,h,w] bool: whether every pixel of the token's patch is valid. A pixel that two patches share counts in both."""
    return F.interpolate(valid_bhw[:, None].float(), (h, w), mode="area")[:, 0] > 1 - 1e-6


def shuffled(supervision: Supervision, seeds: Sequence[int]) -> Supervision:
    """A control: the kept tokens of each row in another order, so that nothing can be learnt from where they stand."""
    tokens_bhwc = supervision.tokens.clone()
    supervised = supervision.keep if supervision.holes is None else supervision.keep & ~supervision.holes
    for tokens, keep, seed in zip(tokens_bhwc, supervised, seeds, strict=True):
        kept = tokens[keep]
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
        tokens[keep] = kept[order.to(kept.device)]
    return replace(supervision, tokens=tokens_bhwc)
