"""The order: every row once an epoch, the same for every world size, from a number alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import ConfigError
from training.data.loader import StepSampler
from training.data.order import choose, epoch_permutation, mix, step_rows


@given(st.integers(1, 200), st.integers(0, 2**40), st.integers(1, 17), st.integers(0, 30))
def test_every_epoch_holds_every_row_once(rows: int, seed: int, batch: int, epoch: int) -> None:
    first, last = epoch * rows // batch, ((epoch + 1) * rows - 1) // batch
    sequence = np.concatenate([step_rows(rows, seed, step, batch).row for step in range(first, last + 1)])
    start = epoch * rows - first * batch
    assert sorted(sequence[start : start + rows]) == list(range(rows))


@given(st.integers(1, 100), st.integers(0, 2**31), st.integers(0, 50), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_ranks_share_a_step_without_overlap(rows: int, seed: int, start: int, world: int) -> None:
    steps = range(start, start + 3)
    whole = list(StepSampler(rows, seed, 12, steps, 0, 1))
    parts = [list(StepSampler(rows, seed, 12, steps, rank, world)) for rank in range(world)]
    for i, step in enumerate(whole):
        assert {len(part[i]) for part in parts} == {12 // world}
        assert sorted(choice for part in parts for choice in part[i]) == sorted(step)


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch=8 rows a step cannot be shared equally by 3 ranks"):
        StepSampler(10, 0, 8, range(1), 0, 3)


def test_the_order_does_not_depend_on_library_versions() -> None:
    assert mix(1, 2, 3).item() == mix(np.array([1]), np.array([2]), np.array([3]))[0].item() == 0xD0734750FDE362B3
    assert epoch_permutation(8, 0, 0).tolist() == [0, 1, 6, 3, 5, 4, 2, 7]


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_permutation(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_targets_are_uniform() -> None:
    draws = step_rows(1000, seed=3, step=0, batch=9000).draw
    counts = np.bincount([choose(int(d), 9) for d in draws], minlength=9)
    assert counts.sum() == 9000
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_a_row_meets_every_target_as_epochs_go_by() -> None:
    """What is drawn belongs to a position in the sequence of all epochs: as a function of the row, it would never change."""
    epochs = [step_rows(4, seed=0, step=epoch, batch=4) for epoch in range(200)]
    targets: dict[int, set[int]] = {row: set() for row in range(4)}
    for choice in epochs:
        for row, draw in zip(choice.row.tolist(), choice.draw.tolist(), strict=True):
            targets[row].add(choose(draw, 9))
    assert all(found == set(range(9)) for found in targets.values())
    draws = np.concatenate([choice.draw for choice in epochs])
    assert len(np.unique(draws)) == len(draws)
    assert not np.isin(step_rows(4, seed=1, step=0, batch=800).draw, draws).any()


def test_a_batch_only_cuts_the_sequence() -> None:
    whole = step_rows(7, seed=3, step=0, batch=60)
    parts = [step_rows(7, seed=3, step=step, batch=5) for step in range(12)]
    for name in ("row", "draw"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
