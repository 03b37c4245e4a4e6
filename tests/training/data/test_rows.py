"""What a batch holds is of the row and the target that were drawn, and of no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs import ConfigError, load
from configs.schema import TrainConfig
from pipeline.plan.windows import PlannedWindow
from pipeline.reconstruct.depth import DepthReconstructor
from storage.location import StorageError
from tests.datasets import Scene, write_dataset
from tests.training.conftest import CONTEXT, TARGETS, tiny_frames
from training.data.batch import Batch
from training.data.loader import StepSampler
from training.data.rows import WindowRows, open_rows

MODES = ["operators", "on_the_fly", "live"]
DRAWS = [i * 2**64 // len(TARGETS) + 2**50 for i in range(len(TARGETS))]  # each chooses the target with its index


def rows_of(dataset: str, *more: str) -> WindowRows:
    return open_rows(load(TrainConfig, [f"dataset={dataset}", "output=x", "backbone=demo", "loader.workers=0", *more]))


def shown(batch: Batch) -> list[int]:
    """Which frame each target image is: frame n is grey 40 n."""
    return [round(image.float().mean().item() / 40) for image in batch.target_images]


@pytest.mark.parametrize("mode", MODES)
def test_a_target_comes_with_the_valid_pixels_of_its_own_frame(tiny: str, mode: str) -> None:
    rows = rows_of(tiny, f"supervision.mode={mode}")
    batch = rows.decode(rows.fetch([(i % 2, draw) for i, draw in enumerate(DRAWS)]))
    assert shown(batch) == list(TARGETS)
    frames = tiny_frames()
    assert [frame.valid.all() for frame in frames] == [False, False, False, True, False]
    for valid, frame in zip(batch.target_valid, frames, strict=True):
        np.testing.assert_array_equal(valid.numpy(), frame.valid)


@pytest.mark.parametrize("mode", MODES)
def test_the_context_gives_no_target_where_it_must_not(tiny: str, mode: str) -> None:
    choices = [(row, draw) for row in range(2) for draw in range(2**57, 2**64, 2**59)]  # 32 draws, evenly spread
    for allowed, expected in (("all", set(TARGETS)), ("between", set(TARGETS) - set(CONTEXT)), ("context", set(CONTEXT))):
        rows = rows_of(tiny, f"supervision.mode={mode}", f"supervision.targets={allowed}")
        assert set(shown(rows.decode(rows.fetch(choices)))) == expected


def test_a_window_whose_context_is_all_that_could_be_its_target_is_refused(tmp_path: Path) -> None:
    write_dataset(
        str(tmp_path), [Scene("hall", tiny_frames(), [PlannedWindow((0, 4), (0, 4))])], DepthReconstructor(0.4).reconstruct, operators=True
    )
    rows = rows_of(str(tmp_path), "supervision.targets=between")
    with pytest.raises(ConfigError, match=r"row hall-0: no frame can be its target; set supervision\.targets=all"):
        rows.fetch([(0, 0)])


@pytest.mark.parametrize(("row", "draw"), [(1, DRAWS[1]), (0, DRAWS[3])], ids=["another row's", "another target's"])
def test_an_operator_of_something_else_is_refused_by_the_name_of_its_row(tiny: str, row: int, draw: int) -> None:
    rows = rows_of(tiny)
    wanted, other = rows.fetch([(0, DRAWS[1])]), rows.fetch([(row, draw)])

    def operator(fetched) -> object:
        return next(member for member in fetched.data if member.name.endswith("operator.safetensors"))

    mixed = wanted._replace(data={**wanted.data, operator(wanted): other.data[operator(other)]})
    assert rows.decode(wanted).keys == ["hall-0"]
    with pytest.raises(StorageError, match=r"row hall-0: operator: source hash .*build the operators again"):
        rows.decode(mixed)


def test_a_row_has_another_seed_whenever_it_is_used(tiny: str) -> None:
    rows = rows_of(tiny)
    steps = StepSampler(len(rows), seed=0, batch=4, steps=range(20), rank=0, world=1)
    batches = [rows.decode(rows.fetch(choices)) for choices in steps]
    seeds = [seed for batch in batches for seed in batch.seeds]
    assert {key for batch in batches for key in batch.keys} == {"hall-0", "loft-0"}
    assert len(set(seeds)) == len(seeds) == 80
