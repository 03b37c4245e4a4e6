"""Distils a 3D-aware backbone from the shards of a dataset.

    torchrun --nproc-per-node=2 training/train.py dataset=s3://bucket/rooms output=s3://bucket/runs/with-blending
    torchrun --nproc-per-node=2 training/train.py dataset=s3://bucket/rooms output=s3://bucket/runs/no-blending supervision.blend=1

Stopped by a signal or by `until`, it writes a checkpoint; the same command goes on from the newest one, with the same losses as if
undisturbed.
"""

from __future__ import annotations

from configs import command
from configs.schema import TrainConfig
from training.distributed import process_group
from training.trainer import Trainer


def run(config: TrainConfig) -> None:
    """Trains until `steps` (or `until`), from the newest checkpoint where there is one."""
    with process_group() as ranks:
        Trainer(config, ranks).train()


if __name__ == "__main__":
    command(TrainConfig, run)
