"""What the splat adds to a training step: CPU time beside that of a plain step without geometry.

    python tests/bench/bench_step.py [--out file.json] [--rounds 7] [--device cuda]

Both have the same two teacher views, student, head, loss and optimiser; the plain one takes the teacher's tokens of the first view as they
are. `operators` reads the splat as a matrix, `on_the_fly` builds that from the Gaussians, `live` splats all channels; what rows cost to
decode counts, once for a batch. 2 rows of 224x336, a ViT-S/14 with random weights and a head of 65,536 prototypes; one thread. Rounds are
interleaved; the ratio is the median of theirs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from configs import load  # noqa: E402
from configs.schema import TrainConfig  # noqa: E402
from pipeline.plan.windows import PlannedWindow  # noqa: E402
from pipeline.reconstruct.depth import DepthReconstructor  # noqa: E402
from storage.domain import Camera, Frame  # noqa: E402
from tests.datasets import Scene, write_dataset  # noqa: E402
from tests.training.probes.rooms import make_room, orbit_views  # noqa: E402
from training.data.batch import Batch  # noqa: E402
from training.data.rows import WindowRows, open_rows  # noqa: E402
from training.model.network import build_networks  # noqa: E402
from training.model.weights import load_weights  # noqa: E402
from training.objective.distill import distill, supervise  # noqa: E402
from training.objective.supervision import Supervision  # noqa: E402

HEIGHT, WIDTH = 224, 336
MODES = ("operators", "on_the_fly", "live")


def dataset(folder: str) -> str:
    """Two windows of two rooms, with Gaussians and operators."""
    scenes = []
    for seed in (0, 1):
        frames = []
        for number, view in enumerate(orbit_views(make_room(seed), HEIGHT, WIDTH, (6.0, 12.0))):
            one = view.frame
            assert one.K is not None
            assert one.c2w is not None
            assert one.instances is not None
            camera = Camera(one.c2w, one.K, WIDTH, HEIGHT)
            labels = one.instances.astype("uint16")
            frames.append(Frame(f"{number}.jpg", camera, one.image, labels, labels < labels.max() + 1, one.depth))
        scenes.append(Scene(f"room{seed}", frames, [PlannedWindow((0, len(frames) - 1), tuple(range(len(frames))))]))
    write_dataset(folder, scenes, DepthReconstructor(0.4).reconstruct, operators=True)
    return folder


class Steps:
    """One network, trained in turn by every kind of step."""

    def __init__(self, folder: str, device: str) -> None:
        words = [f"dataset={folder}", "output=x", "backbone=demo", "batch=2", "loader.workers=0"]
        self.configs = {mode: load(TrainConfig, [*words, f"supervision.mode={mode}"]) for mode in MODES}
        self.rows: dict[str, WindowRows] = {mode: open_rows(config) for mode, config in self.configs.items()}
        self.device = torch.device(device)
        config = self.configs["operators"]
        self.student, self.teacher = build_networks(config, load_weights(config.backbone), HEIGHT, WIDTH)
        self.student.to(self.device)
        self.teacher.to(self.device)
        self.optimizer = torch.optim.Adam(self.student.trained().values(), lr=1e-5, fused=device == "cuda")

    def batch(self, mode: str) -> Batch:
        rows = self.rows[mode]
        return rows.decode(rows.fetch([(0, 5), (1, 9)])).to(self.device)

    def run(self, mode: str) -> None:
        """One step: decoding, supervision, loss, gradients, optimiser."""
        config, batch = self.configs["operators" if mode == "plain" else mode], self.batch("operators" if mode == "plain" else mode)
        if mode == "plain":
            with torch.no_grad():
                assert batch.context_images is not None
                context = self.teacher.tokens(batch.context_images.flatten(0, 1).float() / 255, batch.seeds * 2).unflatten(0, (2, 2))
            keep = torch.ones(context.shape[:1] + context.shape[2:4], dtype=torch.bool, device=self.device)
            supervision = Supervision(context[:, 0], keep)
        else:
            supervision = supervise(config, self.teacher, batch)
            supervision = Supervision(supervision.tokens, torch.ones_like(supervision.keep))  # as many tokens as the plain step
        self.optimizer.zero_grad(set_to_none=True)
        own = distill(config, self.student, self.teacher, batch, supervision, None)
        (own.loss / own.kept).backward()
        self.optimizer.step()

    def timed(self, mode: str) -> float:
        """Seconds of one step: of CPU time on the CPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        clock: Callable[[], float] = time.perf_counter if self.device.type == "cuda" else time.process_time
        began = clock()
        self.run(mode)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - began


def measure(rounds: int, device: str) -> dict[str, Any]:
    """Every kind of step, in turn, after one of each to warm up."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(dataset(folder), device)
        kinds = ("plain", *MODES)
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(rounds + 1):
            for kind in kinds if number % 2 else kinds[::-1]:
                spent = steps.timed(kind)
                if number:
                    seconds[kind].append(round(spent, 4))
    ratios = {mode: statistics.median(a / b for a, b in zip(seconds[mode], seconds["plain"], strict=True)) for mode in MODES}
    return {"seconds": seconds, "over_plain": {mode: round(value, 4) for mode, value in ratios.items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    figures = measure(asked.rounds, asked.device)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    card = torch.cuda.get_device_name() if asked.device == "cuda" else None
    figures |= {"command": "python tests/bench/bench_step.py", "commit": commit, "machine": platform.platform(), "gpu": card}
    print("over a plain step: " + ", ".join(f"{mode} {value:.3f}" for mode, value in figures["over_plain"].items()))
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")
