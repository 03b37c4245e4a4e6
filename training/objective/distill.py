"""The distillation step: the teacher's tokens of the context views, splatted into a third view, supervise a student that sees only that
view.

    supervision = supervise(config, teacher, batch)       # lift, splat, blend, down-sample: no gradient
    sums = distill(config, student, teacher, batch, supervision)

Source: Splat and Distill (ICLR 2026), section 3, with the published code's slips mended where they are slips; the configuration names each
switch.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from configs.schema import Control, LossKind, TrainConfig
from training.data.batch import Batch
from training.data.order import mix
from training.model.network import LossSums, Network, Targets
from training.objective.centring import Centring
from training.objective.loss import PrototypeTargets
from training.objective.supervision import Supervision, carry_over, shuffled, supervision_from


@torch.no_grad()
def supervise(config: TrainConfig, teacher: Network, batch: Batch) -> Supervision:
    """The teacher's context tokens (made here, or read where the teacher is frozen), carried into the target view; or a control's."""
    if config.supervision.direct:
        own = teacher.tokens(batch.target_images.float() / 255, batch.seeds)
        ones = own.new_ones(len(own), batch.views, *own.shape[1:3], 1)
        return replace(supervision_from(config.supervision, batch, ones), tokens=own)
    context = batch.context_tokens
    if context is None:
        context = teacher.tokens(*_context(batch)).unflatten(0, (len(batch.keys), batch.views))
    supervision = supervision_from(config.supervision, batch, context)
    if config.supervision.control is Control.shuffle:
        return shuffled(supervision, batch.seeds)
    if config.supervision.control is Control.no_geometry:
        own = teacher.tokens(batch.target_images.float() / 255, batch.seeds)
        return replace(supervision, tokens=own.to(supervision.tokens.dtype))
    return supervision


def distill(
    config: TrainConfig,
    student: torch.nn.Module,
    teacher: Network,
    batch: Batch,
    supervision: Supervision,
    centring: Centring | None = None,
) -> LossSums:
    """The student's loss sums over this rank's kept tokens; divide by those of all ranks.

    Args:
        student: a `Student`, or DDP around one.
        centring: of the teacher's distributions; None for none.
    """
    tokens = supervision.tokens if supervision.holes is None else supervision.tokens.masked_fill(supervision.holes[..., None], 0)
    tokens = tokens[supervision.keep]
    targets = Targets(tokens, None)
    if config.loss.kind is LossKind.cross_entropy:
        with torch.no_grad():
            points, prototypes = teacher.head.points(tokens), teacher.head.last_layer.rows()
            bias = None if centring is None else centring.bias(points, prototypes, config.head.teacher_temperature)
        targets = Targets(tokens, PrototypeTargets(points, prototypes, config.head.teacher_temperature, bias))
    if not config.supervision.direct:
        return student(batch.target_images.float() / 255, batch.seeds, targets, supervision.keep, supervision.holes)

    def carry(tokens: torch.Tensor) -> torch.Tensor:
        return carry_over(config.supervision, batch, tokens.unflatten(0, (len(batch.keys), batch.views))).tokens

    return student(*_context(batch), targets, supervision.keep, supervision.holes, carry)


def _context(batch: Batch) -> tuple[torch.Tensor, list[int]]:
    """The images of all context views, and a seed for each."""
    assert batch.context_images is not None
    seeds = [int(mix(seed, view)) >> 1 for seed in batch.seeds for view in range(batch.views)]
    return batch.context_images.flatten(0, 1).float() / 255, seeds
