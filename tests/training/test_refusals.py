"""What a run of several ranks cannot do is said once, and ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


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
