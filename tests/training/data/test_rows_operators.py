"""Operators that were made from something else than the row's Gaussians and target must not train anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import load
from configs.schema import TrainConfig
from pipeline.plan.windows import PlannedWindow
from pipeline.reconstruct.depth import DepthReconstructor
from storage.location import StorageError
from storage.table import Table
from tests.datasets import Scene, write_dataset
from tests.training.test_window import before_a_wall
from training.data.rows import open_rows


def test_an_operator_of_another_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.datasets.operator_source", lambda provenance, window, target: f"not {window} to {target}")
    scene = Scene("wall", before_a_wall(), [PlannedWindow((0, 2), (0, 1, 2))])
    write_dataset(str(tmp_path), [scene], DepthReconstructor(0.5).reconstruct, operators=True)
    rows = open_rows(load(TrainConfig, [f"dataset={tmp_path}", "output=x", "backbone=demo"]))
    with pytest.raises(StorageError, match=r"row wall-0: operator: source hash 'not wall-0.*build the operators again"):
        rows.decode(rows.fetch([(0, 0)]))
    with pytest.raises(ValueError, match=r"source hash 'not wall-0.*build the operators again"):
        Table.open(str(tmp_path), ["masks", "windows", "gaussians", "operators"]).row(0).operator(1)
