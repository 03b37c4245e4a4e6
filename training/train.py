"""Distils a 3D-aware backbone from the shards of a dataset.

    torchrun --nproc-per-node=2 training/train.py dataset=s3://bucket/rooms output=s3://bucket/runs/with-blending
    torchrun --nproc-per-node=2 training/train.py dataset=s3://bucket/rooms output=s3://bucket/runs/no-blending supervision.blend=1

Stopped by a signal or by `until`, it writes a checkpoint; the same command goes on from the newest one, with the same losses as if
undisturbed.
"""

from __future__ import annotations

from configs import ConfigError, command
from configs.schema import TrainConfig
from training.distributed import process_group
from training.trainer import Trainer


def run(config: TrainConfig) -> None:
    """Trains until `steps` (or `until`), from the newest checkpoint where there is one."""
    with process_group() as ranks:
        with ranks.together():
            _check(config)
        Trainer(config, ranks).train()


def _check(config: TrainConfig) -> None:
    positive = {
        "steps": config.steps, "batch": config.batch, "checkpoint_every": config.checkpoint_every, "picture_every": config.picture_every,
        "teacher.every": config.teacher.every, "optimizer.lr": config.optimizer.lr, "lora.rank": config.lora.rank,
        "head.student_temperature": config.head.student_temperature, "head.teacher_temperature": config.head.teacher_temperature,
        "loader.prefetch": config.loader.prefetch, "loader.cache_gb": config.loader.cache_gb,
    }  # fmt: skip
    shares = {
        "supervision.blend": config.supervision.blend, "supervision.min_coverage": config.supervision.min_coverage,
        "teacher.momentum": config.teacher.momentum, "lora.dropout": config.lora.dropout, "optimizer.warmup": config.optimizer.warmup,
    }  # fmt: skip
    for name, value in positive.items():
        if not value > 0:
            raise ConfigError(f"{name}={value}: must be above 0")
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name}={value}: must lie between 0 and 1")


if __name__ == "__main__":
    command("train", TrainConfig, run)
