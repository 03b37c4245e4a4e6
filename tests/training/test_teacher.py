"""The moving teacher, in a run: when it follows the student, and which state of it."""

from __future__ import annotations

from pathlib import Path

import torch

from configs import load
from configs.schema import TrainConfig
from training import checkpoint
from training.train import run


def test_the_teacher_follows_the_student_of_before_the_step_every_so_many_steps(tiny: str, tmp_path: Path) -> None:
    """Steps 0 and 2 move it, of the four: at step 0 the two are equal, at step 2 it meets what step 1 made of the student."""
    run(load(TrainConfig, [f"dataset={tiny}", f"output={tmp_path}", "backbone=demo", "device=cpu", "batch=2", "steps=50", "until=4",
                           "loader.workers=0", "head.hidden=16", "head.bottleneck=8", "head.prototypes=32", "optimizer.lr=0.01",
                           "teacher.every=2", "teacher.momentum=0.75", "checkpoint_every=1"]))  # fmt: skip
    student, teacher = ({step: checkpoint.load(str(tmp_path), step)[0][who] for step in range(1, 5)} for who in ("student", "teacher"))

    def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
        return max((one[name] - other[name]).abs().max().item() for name in one)

    assert min(apart(student[step], student[step + 1]) for step in (1, 2, 3)) > 1e-4
    assert apart(teacher[1], student[1]) > 1e-4
    assert apart(teacher[1], teacher[2]) == 0
    mixed = {name: 0.75 * teacher[2][name] + 0.25 * student[2][name] for name in teacher[2]}
    assert apart(teacher[3], mixed) < 1e-6
    assert apart(teacher[3], teacher[4]) == 0
