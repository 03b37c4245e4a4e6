"""The distillation step: the teacher's tokens of the context views, splatted into a third view, supervise a student that sees only that
view.

    supervision = supervise(config, teacher, batch)       # lift, splat, blend, down-sample: no gradient
    sums = distill(config, student, teacher, batch, supervision)

Source: Splat and Distill (ICLR 2026), section 3, with the published code's slips mended where they are slips; the configuration names each
switch.
"""

from __future__ import annotations

import torch

from configs.schema import Control, TrainConfig
from training.data.batch import Batch
from training.data.order import mix
from training.model.network import LossSums, Network
from training.objective.supervision import Supervision, shuffled, source_of
from training.objective.teacher_targets import SoftmaxTargets, Targets


@torch.no_grad()
def supervise(config: TrainConfig, teacher: Network, batch: Batch) -> Supervision:
    """The teacher's context tokens (made here, or read where the teacher is frozen), carried into the target view; or a control's."""
    context = batch.context_tokens
    if context is None:
        assert batch.context_images is not None
        images = batch.context_images.flatten(0, 1).float() / 255
        seeds = [int(mix(seed, view)) >> 1 for seed in batch.seeds for view in range(batch.views)]
        context = teacher.tokens(images, seeds).unflatten(0, (len(batch.keys), batch.views))
    supervision = source_of(config.supervision).supervise(batch, context)
    if config.supervision.control is Control.shuffle:
        return shuffled(supervision, batch.seeds)
    if config.supervision.control is Control.no_geometry:
        own = teacher.tokens(batch.target_images.float() / 255, batch.seeds)
        return Supervision(own.to(supervision.tokens.dtype), supervision.keep)
    return supervision


def distill(config: TrainConfig, student: torch.nn.Module, teacher: Network, batch: Batch, supervision: Supervision) -> LossSums:
    """The student's loss sums over this rank's kept tokens; divide by those of all ranks. student: a `Student`, or DDP around one."""
    tokens = supervision.tokens[supervision.keep]
    with torch.no_grad():
        probabilities = SoftmaxTargets(config.head.teacher_temperature).probabilities(teacher.head(tokens))
    return student(batch.target_images.float() / 255, batch.seeds, Targets(tokens, probabilities), supervision.keep)
