"""Intervals over rooms and seeds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.probes.intervals import _figures, difference, interval
from training.probes.results import POOLED, Tally, pooled

RNG = np.random.default_rng(0)


def ratios(values: list[float], count: int = 10) -> dict:
    return {f"room {n}": {"rmse": [value * count, count]} for n, value in enumerate(values)}


def test_a_difference_that_every_room_has_is_sure() -> None:
    hard = RNG.uniform(1, 5, 12)  # rooms differ far more than models do
    found = difference([ratios(list(hard))], [ratios(list(hard - 0.1))], "rmse")
    assert found.value == pytest.approx(-0.1)
    assert found.low == pytest.approx(-0.1)
    assert found.high == pytest.approx(-0.1)
    assert (found.up, found.rooms, found.excludes_zero) == (0, 12, True)


def test_a_difference_of_some_rooms_is_not() -> None:
    one = [1.0] * 8
    found = difference([ratios(one)], [ratios([1.5, 0.6, 1.4, 0.5, 1.3, 0.7, 1.2, 0.8])], "rmse")
    assert not found.excludes_zero
    assert found.up == 4


def test_seeds_widen_the_interval() -> None:
    rooms = list(RNG.uniform(1, 2, 10))
    seeds = [ratios([value + shift for value in rooms]) for shift in (-0.3, 0.0, 0.3)]
    alone = difference([ratios(rooms)], [seeds[1]], "rmse")
    together = difference([ratios(rooms)], seeds, "rmse")
    assert together.value == pytest.approx(0, abs=1e-9)
    assert together.high - together.low > 0.2 > alone.high - alone.low


def test_the_interval_has_the_width_of_the_mean_s_error() -> None:
    values = list(RNG.normal(5, 1, 60))
    found = interval([ratios(values)], "rmse")
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values) / 60**0.5, rel=0.1)


def test_the_same_interval_every_time() -> None:
    values = [ratios(list(RNG.normal(5, 1, 12)))]
    assert interval(values, "rmse", samples=101) == interval(values, "rmse", samples=101)


@given(st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_quick_figures_are_the_plain_ones(times: list[int], seed: int) -> None:
    """Of rooms that come several times, one of them without anything to count."""
    rng = np.random.default_rng(seed)
    tally = Tally()
    for room in ("a", "b", "c"):
        tally.add(room, "rmse", *((0.0, 0) if room == "c" else (float(rng.uniform(1, 2)), 3)))
        tally.add_confusion(room, torch.from_numpy(rng.integers(0, 9, (4, 4)) * (np.arange(4) < 3)))
    rooms = [tally.rooms[name] for name in "abc"]
    repeated = [room for room, often in zip(rooms, times, strict=True) for _ in range(often)]
    for metric in ("rmse", *POOLED):
        plain, quick = pooled(repeated, metric), _figures(rooms, metric, np.array([times], float))[0]
        assert np.isnan(quick) if plain is None else quick == pytest.approx(plain)


def test_one_room_has_no_interval() -> None:
    found = difference([ratios([1.0])], [ratios([2.0])], "rmse")
    assert (found.value, found.low, found.high, found.excludes_zero) == (1, None, None, False)


def test_other_rooms_are_refused() -> None:
    with pytest.raises(ValueError, match="not the same"):
        difference([ratios([1.0, 2.0])], [ratios([1.0])], "rmse")


def test_a_figure_that_is_no_number_counts_for_nothing() -> None:
    tally = Tally()
    tally.add("a", "rmse", 2.0)
    tally.add("a", "rmse", float("nan"))
    assert pooled(tally.rooms.values(), "rmse") == 2
    assert pooled(tally.rooms.values(), "other") is None


def test_of_sixteen_rooms_few_differences_of_nothing_are_called_sure() -> None:
    """At 95 % one in twenty is; an interval that is not widened for few rooms is wrong more often."""
    rng = np.random.default_rng(0)

    def rooms(values: np.ndarray) -> list[dict[str, dict[str, list[float]]]]:
        return [{f"room {n}": {"rmse": [float(value), 1]} for n, value in enumerate(values)}]

    sure = [difference(rooms(rng.normal(size=16)), rooms(rng.normal(size=16)), "rmse", samples=400).excludes_zero for _ in range(400)]
    assert 0.02 < np.mean(sure) < 0.085
    assert difference(rooms(np.zeros(5)), rooms(np.ones(5)), "rmse").low is None
