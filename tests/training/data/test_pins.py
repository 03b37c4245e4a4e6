"""What a run trains from is decided when it has something to go on from, and then stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import load
from configs.schema import TrainConfig
from storage import codec, location
from storage.index import Damaged
from storage.location import NotFound
from training.data.pins import pinned_rows

CHECKPOINT = "checkpoints/step-000000002.pt"


def config(dataset: str, output: Path, *more: str) -> TrainConfig:
    return load(TrainConfig, [f"dataset={dataset}", f"output={output}", "backbone=demo", "loader.workers=0", *more])


def test_a_launch_that_came_to_no_checkpoint_pins_nothing(dataset: str, tmp_path: Path) -> None:
    stale = {"indexes": {"frames": "0" * 64, "windows": "0" * 64, "operators": "0" * 64}, "withdrawn": []}
    location.write_bytes(f"{tmp_path}/dataset.json", codec.seal(stale))
    rows = pinned_rows(config(dataset, tmp_path))
    assert len(rows) == 6
    assert codec.unseal((tmp_path / "dataset.json").read_bytes()) == {"indexes": rows.pins, "withdrawn": []}
    assert {"frames", "windows", "operators", "masks", "gaussians"} == set(rows.pins or {})

    location.write_bytes(f"{tmp_path}/dataset.json", codec.seal(stale))
    location.write_bytes(f"{tmp_path}/{CHECKPOINT}", b"")
    with pytest.raises(NotFound, match="this index is gone; start a new run"):
        pinned_rows(config(dataset, tmp_path))


def test_a_column_that_the_run_did_not_begin_with_is_refused_by_name(dataset: str, tmp_path: Path) -> None:
    pinned_rows(config(dataset, tmp_path))
    location.write_bytes(f"{tmp_path}/{CHECKPOINT}", b"")
    with pytest.raises(NotFound, match=r"column 'features' is none of those that were pinned \(frames, gaussians, .*\); start anew"):
        pinned_rows(config(dataset, tmp_path, "teacher.mode=frozen"))


def test_damaged_pins_are_one_line(dataset: str, tmp_path: Path) -> None:
    location.write_bytes(f"{tmp_path}/{CHECKPOINT}", b"")
    location.write_bytes(f"{tmp_path}/dataset.json", b"{}")
    with pytest.raises(Damaged, match=r"dataset\.json: damaged .* start the run anew with another output"):
        pinned_rows(config(dataset, tmp_path))
