"""The teacher follows the student by an exponential moving average of the trained parameters."""

from __future__ import annotations

import torch

from configs.schema import TrainConfig


def update_momentum(config: TrainConfig) -> float:
    """The share of the teacher that an update keeps."""
    teacher = config.teacher
    return teacher.momentum if teacher.half_lives is None else 0.5 ** (teacher.half_lives * teacher.every / config.steps)


@torch.no_grad()
def update_teacher(teacher: torch.nn.Module, student: torch.nn.Module, momentum: float) -> None:
    """teacher <- m * teacher + (1 - m) * student, for each parameter that the student trains. Frozen weights are the same in both and are
    left alone."""
    teachers = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            teachers[name].mul_(momentum).add_(parameter, alpha=1 - momentum)
