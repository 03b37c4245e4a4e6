"""What it costs to judge one model: tier `closed` beside tier `cached`, all four tasks, on synthetic rooms.

    python tests/bench/bench_probes.py [--out file.json]

24 frames of four rooms to fit on and 24 of four others to judge on, 336x224, a ViT-S/14 with random weights: what they know does not change
the cost. CPU-seconds and wall time of whole commands, baselines and pictures left out; `closed` runs twice on one thread, which must give
the same figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]


def spent(script: str, *words: str, threads: int = 1) -> dict[str, float]:
    """Runs a command of the project; CPU-seconds and seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, str(REPOSITORY / script), *words], check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_seconds": round(cpu, 1), "seconds": round(time.perf_counter() - began, 1)}


def rooms(folder: Path, split: str, seed: int) -> str:
    """A dataset of four rooms, 24 frames each."""
    words = ["rooms=4", "frames=24", f"seed={seed}", "val=0", "walk_step=3", "ray.workers=1"]
    spent("pipeline/make_rooms.py", f"root={folder}/{split}-rooms", *words)
    small = ["features=none", "width=336", "height=224", "windows.stride=2", "windows.max_rotation=45"]
    small += ["source=synthetic-rooms", "licence=MIT"]
    spent("pipeline/build_shards.py", f"root={folder}/{split}-rooms", f"dataset={folder}/{split}", *small, "ray.workers=1")
    return f"data.{split}={folder}/{split}"


def measure(folder: Path) -> dict[str, Any]:
    """Both tiers."""
    asked = [rooms(folder, "train", 1), rooms(folder, "test", 2), "data.frames_per_scene=6", f"output={folder}/results"]
    asked += ["backbone.architecture=vit_small_patch14_dinov2", "backbone.weights=random", "baselines=false", "pictures=0"]
    tiers = {}
    for name, tier in (("closed", "closed"), ("again", "closed"), ("cached", "cached")):
        tiers[name] = spent("training/evaluate.py", *asked, f"tier={tier}", f"name={name}", threads=2 if tier == "cached" else 1)
        print(f"{name}: {tiers[name]}", flush=True)
    results = {name: json.loads((folder / "results" / f"{name}.json").read_text()) for name in tiers}
    data = results["closed"]["data"]
    counts = {split: len(frames) for split, frames in data["frames"].items()} | {"pairs": len(data["pairs"])}
    return {**tiers, "same_figures": results["closed"]["tasks"] == results["again"]["tasks"], "counts": counts,
            "cached_settings": results["cached"]["settings"], "tasks": sorted(results["cached"]["tasks"])}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=None)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    found |= {"command": "python tests/bench/bench_probes.py", "commit": commit, "machine": platform.platform(), "torch": torch.__version__}
    ratio = found["cached"]["cpu_seconds"] / found["closed"]["cpu_seconds"]
    print(f"cached / closed: {ratio:.2f} in CPU-seconds; the same figures twice: {found['same_figures']}")
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")
