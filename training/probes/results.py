"""A result as JSON, and as a table.

Every figure is kept by room as [sum, count], a confusion matrix as its cells that are not 0, so that any set of rooms can be pooled again:
intervals are taken over rooms.
"""

from __future__ import annotations

import hashlib
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from storage import codec, location
from storage.location import StorageError
from training.probes.segmentation import segmentation_scores

SCHEMA = 1
KIND = "splat-and-distill/evaluation"
CONFUSION = "confusion"
POOLED = ("mIoU", "mAcc", "aAcc")  # of a confusion matrix

Rooms = Mapping[str, Mapping[str, Any]]


class Metric(NamedTuple):
    """How a figure is printed. higher: whether more is better; scale: what it is multiplied by; digits: after the point."""

    title: str
    higher: bool
    scale: float = 1.0
    digits: int = 3


METRICS: dict[str, dict[str, Metric]] = {
    "depth": {
        "rmse": Metric("RMSE m", False),
        "abs_rel": Metric("AbsRel", False),
        "d1": Metric("d1 %", True, 100, 1),
        "scaled_rmse": Metric("RMSE scale-free", False),
    },
    "normals": {
        "mean": Metric("mean deg", False, 1, 2),
        "median": Metric("median", False, 1, 2),
        "rmse": Metric("RMSE", False, 1, 2),
        "d1": Metric("<11.25 %", True, 100, 1),
        "d2": Metric("<22.5 %", True, 100, 1),
        "d3": Metric("<30 %", True, 100, 1),
    },
    "segmentation": {"mIoU": Metric("mIoU %", True, 100, 1), "aAcc": Metric("pixels %", True, 100, 1)},
    "correspondence": {
        "recall_1": Metric("<=1 patch %", True, 100, 1),
        "recall_2": Metric("<=2 patches %", True, 100, 1),
        "error_median": Metric("median error", False, 1, 2),
        "recall_1@0-15": Metric("0-15 deg", True, 100, 1),
        "recall_1@15-30": Metric("15-30", True, 100, 1),
        "recall_1@30-60": Metric("30-60", True, 100, 1),
        "recall_1@60-180": Metric(">60", True, 100, 1),
        **{f"recall@{limit}px": Metric(f"{limit} px %", True, 100, 1) for limit in (5, 10, 20, 25, 40, 50, 80)},
        **{
            f"headline@{bin}": Metric(f"{bin} deg", True, 100, 1) for bin in ("0-15", "15-30", "0-30", "30-60", "60-180", "60-90", "90-120")
        },
        **{f"recall@{limit}cm": Metric(f"{limit} cm %", True, 100, 1) for limit in (1, 2, 5)},
        "pck@0.1": Metric("PCK .1 %", True, 100, 1),
    },
    "consistency": {
        "rank": Metric("rank of truth %", False, 100, 1),
        "margin": Metric("cosine margin", True),
        "effective_rank": Metric("effective rank", True, 1, 1),
        "inside_variance": Metric("inside variance", True),
        "head_entropy": Metric("head entropy", True),
    },
}


class Tally:
    """Figures of one task, by room. records: of each image or pair, for those who want to look."""

    def __init__(self) -> None:
        self.rooms: dict[str, dict[str, Any]] = {}
        self.records: list[dict[str, Any]] = []

    def add(self, room: str, metric: str, total: float, count: float = 1) -> None:
        """More of a figure; one that is no number counts for nothing."""
        sums = self.rooms.setdefault(room, {}).setdefault(metric, [0.0, 0])
        if math.isfinite(total):
            sums[0] += float(total)
            sums[1] += count

    def add_confusion(self, room: str, matrix: torch.Tensor) -> None:
        here = self.rooms.setdefault(room, {})
        if CONFUSION in here:
            matrix = matrix + read_confusion(here[CONFUSION])
        cells = [[*cell, int(matrix[tuple(cell)])] for cell in matrix.nonzero().tolist()]
        here[CONFUSION] = {"classes": len(matrix), "cells": cells}

    def to_json(self) -> dict[str, Any]:
        """metrics: of all rooms; rooms: [sum, count] of each; records."""
        names = sorted({name for room in self.rooms.values() for name in room} - {CONFUSION})
        if any(CONFUSION in room for room in self.rooms.values()):
            names += POOLED
        metrics = {name: pooled(self.rooms.values(), name) for name in names}
        return {"metrics": metrics, "rooms": dict(sorted(self.rooms.items())), "records": self.records}


def read_confusion(stored: Mapping[str, Any]) -> torch.Tensor:
    """A confusion matrix [classes, classes] int64 of its stored cells: true class, given class, pixels."""
    matrix = torch.zeros(stored["classes"], stored["classes"], dtype=torch.int64)
    if stored["cells"]:
        true, given, pixels = torch.tensor(stored["cells"]).unbind(1)
        matrix[true, given] = pixels
    return matrix


def pooled(rooms: Iterable[Mapping[str, Any]], metric: str) -> float | None:
    """A figure over some rooms, each as often as it comes; None where there is nothing to count."""
    rooms = list(rooms)
    if metric in POOLED:
        matrices = [read_confusion(room[CONFUSION]) for room in rooms if CONFUSION in room]
        value = segmentation_scores(torch.stack(matrices).sum(0))[metric] if matrices else math.nan
        return value if math.isfinite(value) else None
    sums = [room[metric] for room in rooms if metric in room]
    count = sum(number for _, number in sums)
    return sum(total for total, _ in sums) / count if count else None


def machine() -> dict[str, Any]:
    """Where and with what a result was made."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def commit() -> str | None:
    """Of this code, with a plus where files differ from it; None outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    try:
        git = [
            subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=20).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return git[0][:12] + ("+" if git[1] else "")


def digest(value: Any) -> str:
    """16 hex digits over a plain JSON value."""
    return hashlib.sha256(codec.encode_json(value)).hexdigest()[:16]


def read(url: str) -> dict[str, Any]:
    """A result that training/evaluate.py wrote. Raises StorageError that names the file and the remedy."""
    try:
        found = codec.decode_json(location.read_bytes(url))
        kind, schema = found["kind"], found["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{url}: not a result of training/evaluate.py; give the .json that it wrote") from error
    if kind != KIND or schema != SCHEMA:
        raise StorageError(f"{url}: {kind} of schema {schema}, this release reads {KIND} of schema {SCHEMA}; evaluate again")
    return found


def cell(task: str, name: str, value: float | None) -> str:
    """A figure as a table shows it; `-` where there is none."""
    metric = METRICS[task][name]
    return "-" if value is None else f"{value * metric.scale:.{metric.digits}f}"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A table a task: rows by name, each its tasks' JSON."""
    parts = []
    for task, metrics in METRICS.items():
        present = {name: row[task]["metrics"] for name, row in rows.items() if task in row}
        columns = [name for name in metrics if any(found.get(name) is not None for found in present.values())]
        if columns:
            body = [[name, *(cell(task, column, found.get(column)) for column in columns)] for name, found in present.items()]
            parts.append(layout([[task, *(metrics[column].title for column in columns)], *body]))
    return "\n\n".join(parts)


def layout(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [text.ljust(widths[0]) if i == 0 else text.rjust(widths[i]) for i, text in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
