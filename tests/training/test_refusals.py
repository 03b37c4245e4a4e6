"""What a run of several ranks cannot do is said once, and ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs import ConfigError, load
from configs.schema import TrainConfig
from tests.conftest import REPOSITORY
from training.distributed import Ranks
from training.train import run


@pytest.mark.parametrize("name", ["steps", "until"])
def test_ranks_that_would_end_apart_are_refused(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nodes that were started with different commands: one would wait for the other for ever."""

    def of_another_start(_: Ranks, value: Any) -> Any:
        if isinstance(value, tuple) and isinstance(value[1], dict) and "config" in value[1]:
            return value[0], {**value[1], "config": {**value[1]["config"], name: 3}}
        return value

    monkeypatch.setattr(Ranks, "from_rank_0", of_another_start)
    keys = ["backbone=demo", "device=cpu", "batch=2", "loader.workers=0", "steps=4"]
    with pytest.raises(ConfigError, match=rf"rank 0: {name}=(4|None), but rank 0 has {name}=3; start all ranks with the same keys"):
        run(load(TrainConfig, [f"dataset={tiny}", f"output={tmp_path}/run", *keys]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("backbone.weights=/nowhere/weights.pth", "/nowhere/weights.pth"),
        ("supervision.operators=lost", "no finished column 'lost' here"),
        ("batch=3", "batch=3 rows a step cannot be shared equally by 2 ranks; choose a multiple of 2"),
        ("optimiser.lr=1", "unknown key 'optimiser.lr'"),
    ],
)
def test_two_ranks_refuse_with_one_line(tiny: str, tmp_path: Path, override: str, said: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "training/train.py"]
    overrides = [f"dataset={tiny}", f"output={tmp_path}/run", "backbone=demo", "device=cpu", "batch=2", "loader.workers=0", override]
    process = subprocess.run([*torchrun, *overrides], cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, timeout=60)
    lines = process.stderr.splitlines()
    errors = [line for line in lines if "error: " in line]
    assert process.returncode != 0
    assert len(errors) == 1, process.stderr
    assert errors[0].startswith("error: ")
    assert said in errors[0]
    ours = tuple(f'File "{REPOSITORY / folder}' for folder in ("training", "storage", "configs"))
    assert not [line for line in lines if line.strip().startswith(ours)]
    assert not (tmp_path / "run" / "checkpoints").exists()
