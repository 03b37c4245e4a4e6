"""A training that is killed again and again, in steps and in checkpoint writes, comes to what an undisturbed one comes to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.training.test_train import SMALL, config, losses
from training import checkpoint
from training.train import run

KILLS = 20
RUN = (*SMALL, "steps=60", "checkpoint_every=3", "supervision.mode=operators")


@pytest.fixture(scope="module")
def undisturbed(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    run(config(dataset, output, *RUN[len(SMALL) :]))
    return output


def ranks_of(agent: int) -> list[int]:
    """torchrun's workers."""
    found = subprocess.run(["pgrep", "-P", str(agent)], capture_output=True, text=True, check=False).stdout.split()
    return [int(pid) for pid in found]


def start_and_kill(dataset: str, output: Path, world: int, rng: np.random.Generator) -> None:
    """Starts the training, waits for its first new step, then kills a rank, or all, at a random moment or as a checkpoint is written."""
    command = [str(Path(sys.executable).parent / "torchrun"), "--standalone", f"--nproc-per-node={world}", "training/train.py"]
    words = [f"dataset={dataset}", f"output={output}", *RUN]
    process = subprocess.Popen([*command, *words], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    printed, deadline = b"", time.monotonic() + 120
    while b"excess_loss" not in printed and process.poll() is None and time.monotonic() < deadline:
        printed += process.stdout.read() or b""
        time.sleep(0.02)
    in_a_write, until = rng.random() < 0.4, time.monotonic() + rng.uniform(0, 1.5)
    while process.poll() is None and time.monotonic() < until + (5 if in_a_write else 0):
        if in_a_write and any(not name.endswith(".pt") for name in os.listdir(output / "checkpoints")):
            break
        time.sleep(0.001)
    ranks = ranks_of(process.pid)
    if ranks and rng.random() < 0.5:
        os.kill(int(rng.choice(ranks)), signal.SIGKILL)
        process.wait(60)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    for pid in ranks:  # of an agent that is gone
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("worlds", [(1,), (1, 2, 1)])
def test_a_training_killed_twenty_times_comes_to_the_same(dataset: str, undisturbed: Path, tmp_path: Path, worlds: tuple[int, ...]) -> None:
    (tmp_path / "checkpoints").mkdir()
    rng, number = np.random.default_rng(0), cycle(worlds)
    for _ in range(KILLS):
        start_and_kill(dataset, tmp_path, next(number), rng)
    run(config(dataset, tmp_path, *RUN[len(SMALL) :]))
    if worlds == (1,):
        np.testing.assert_array_equal(losses(tmp_path), losses(undisturbed))
        final = [checkpoint.load(str(output), 60)[0]["student"] for output in (tmp_path, undisturbed)]
        assert all(np.array_equal(final[0][name], final[1][name]) for name in final[1])
    else:
        np.testing.assert_allclose(losses(tmp_path), losses(undisturbed), rtol=1e-4)
