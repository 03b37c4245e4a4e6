"""The commands of the README, as a user types them: two submitted Ray jobs and two torchrun ranks, raw rooms to weights, all on S3."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from storage import location
from storage.table import Table
from tests.conftest import REPOSITORY, command
from tests.servers import ray_head
from training.metrics import read_metrics

BIN = Path(sys.executable).parent


def shell(environment: dict[str, str], *arguments: str) -> str:
    for _ in range(10):
        result = subprocess.run(arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280)
        output = result.stdout + result.stderr
        if "No available agent to submit job" not in output:  # Ray's job server answers before it can take one
            break
        time.sleep(2)
    assert result.returncode == 0, f"{' '.join(arguments)} ended with {result.returncode}:\n{output[-5000:]}"
    return output


@pytest.mark.timeout(600)
def test_the_commands_of_the_readme(s3: str, rooms: str, s3_environment: dict[str, str]) -> None:
    environment = {**os.environ, **s3_environment, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
    root, dataset, run = f"{s3}/raw", f"{s3}/rooms", f"{s3}/runs/with-blending"
    fs, _ = location.filesystem(s3)
    fs.put(rooms.rstrip("/") + "/", root.removeprefix("s3://") + "/", recursive=True)

    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
    try:
        with ray_head(folder / "t", environment) as address:
            submit = ("ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python")
            build = (*submit, "pipeline/build_shards.py", f"root={root}", f"dataset={dataset}", "backbone=demo", "width=168", "height=112",
                     "frames_per_shard=8")  # fmt: skip
            assert "building" in shell(environment, *build)
            shell(environment, *submit, "pipeline/cache_gaussians.py", f"dataset={dataset}")
            again = shell(environment, *build)
            assert "are committed, nothing to do" in again
            assert "building" not in again
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert len(Table.open(dataset, ["windows", "masks", "features", "gaussians", "operators"])) >= 4

    shell(environment, "torchrun", "--standalone", "--nproc-per-node=2", "training/train.py", f"dataset={dataset}", f"output={run}",
          "device=cpu", "teacher.every=1", "backbone=demo", "steps=3", "batch=2", "head.hidden=32",
          "head.prototypes=64", "loader.workers=1", "picture_every=3", "checkpoint_every=3")  # fmt: skip
    assert [m["step"] for m in read_metrics(run)] == [0, 1, 2]
    assert location.exists(f"{run}/curves.png")
    assert location.exists(f"{run}/pictures/pca-000000003.png")
    assert any(name.startswith("events.out") for name in location.list_sizes(f"{run}/tensorboard"))

    command("training/export.py", f"run={run}", f"output={s3}/weights", environment=s3_environment)
    assert set(location.list_sizes(f"{s3}/weights")) == {"dinov2_small_snd.pth", "dinov2_small_snd.json"}
