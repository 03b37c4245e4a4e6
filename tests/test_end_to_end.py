"""The commands of the README, as a user types them: two submitted Ray jobs and two torchrun ranks, raw rooms to weights, all on S3."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from storage import location
from storage.table import Table
from tests.conftest import REPOSITORY
from tests.readme import code_blocks, shell_commands
from tests.servers import ray_head
from training.metrics import read_metrics

BIN = Path(sys.executable).parent
SMALL = {
    "pipeline/build_shards.py": ["backbone=demo", "width=168", "height=112", "frames_per_shard=8"],
    "training/train.py": ["device=cpu", "teacher.every=1", "backbone=demo", "steps=3", "batch=2", "head.hidden=32", "head.prototypes=64",
                          "loader.workers=1", "picture_every=3", "checkpoint_every=3"],
}  # fmt: skip
"""Appended to a command, so that it takes seconds."""


def shell(environment: dict[str, str], arguments: Sequence[str], folder: Path = REPOSITORY) -> str:
    for _ in range(10):
        result = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
        output = result.stdout + result.stderr
        if "No available agent to submit job" not in output:  # Ray's job server answers before it can take one
            break
        time.sleep(2)
    assert result.returncode == 0, f"{' '.join(arguments)} ended with {result.returncode}:\n{output[-5000:]}"
    return output


def as_here(words: Sequence[str], urls: dict[str, str]) -> list[str]:
    """A command of the README with the URLs of this test, and small."""
    here = []
    for word in words:
        for there, url in urls.items():
            word = word.replace(there, url)
        here.append(word)
    return here + [setting for script, settings in SMALL.items() if script in words for setting in settings]


@pytest.mark.timeout(600)
def test_the_commands_of_the_readme(s3: str, rooms: str, s3_environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, **s3_environment, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment["PET_STANDALONE"] = "1"  # torchrun takes a free port
    _install, prepare, train, load = code_blocks(REPOSITORY / "README.md", "Use it")
    urls = {"s3://bucket": s3, "output=weights": f"output={tmp_path}/weights"}
    fs, _ = location.filesystem(s3)
    fs.put(rooms.rstrip("/") + "/", f"{s3}/scannetpp/".removeprefix("s3://"), recursive=True)

    (_, exported), (*start, _), *jobs = shell_commands(prepare)
    assert start == ["ray", "start", "--head"]
    environment |= dict([exported.split("=")])
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
    try:
        with ray_head(folder / "t", environment) as address:  # on free ports, so not by the README's own line
            urls["http://127.0.0.1:8265"] = address
            build, cache = (as_here(job, urls) for job in jobs)
            assert "building" in shell(environment, build)
            shell(environment, cache)
            again = shell(environment, build)
            assert "are committed, nothing to do" in again
            assert "building" not in again
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert len(Table.open(f"{s3}/rooms", ["windows", "masks", "features", "gaussians", "operators"])) >= 4

    distil, _without_blending, export, _ = (as_here(words, urls) for words in shell_commands(train))
    shell(environment, distil)
    run = f"{s3}/runs/with-blending"
    assert [m["step"] for m in read_metrics(run)] == [0, 1, 2]
    assert location.exists(f"{run}/curves.png")
    assert location.exists(f"{run}/pictures/pca-000000003.png")
    assert any(name.startswith("events.out") for name in location.list_sizes(f"{run}/tensorboard"))

    shell(environment, export)
    assert {path.name for path in (tmp_path / "weights").iterdir()} == {"dinov2_small_snd.pth", "dinov2_small_snd.json"}
    shell(environment, [sys.executable, "-c", load], folder=tmp_path)  # timm alone, in an interpreter that imports nothing of ours

    (tools,) = (block for block in code_blocks(REPOSITORY / "README.md", "A dataset is two tables") if "describe.py" in block)
    for words in shell_commands(tools):
        if words[1].startswith("storage/"):
            shell(environment, as_here(words, {"dataset=...": f"dataset={s3}/rooms"}))
