"""Which rows a step consumes: a pure function of (seed, epoch, number of rows), the same for every world size.

Step i of a run consumes positions [i*B, (i+1)*B) of one endless sequence of rows: epoch after epoch, each a permutation of all rows.
Resuming is a number; nothing is stored. The randomness is a counter hashed with splitmix64, so that no library's next release can reorder
the data.

    step_rows(rows=10, seed=0, step=3, batch=4)      # -> RowChoice(row=array([...]), draw=array([...]))
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_DRAWS = 2**63  # stands where an epoch's number stands, and is none


def mix(*words: int | np.ndarray) -> np.ndarray:
    """Hashes integers (or arrays of them, elementwise) to uint64 by chained splitmix64."""
    state: np.ndarray = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            state = np.asarray(state ^ np.asarray(word).astype(np.uint64)) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


@lru_cache(maxsize=4)
def epoch_permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """[rows] int64: the order of the rows in that epoch."""
    return np.argsort(mix(seed, epoch, np.arange(rows)), kind="stable")


class RowChoice(NamedTuple):
    """A step's rows [B] int64, and for each a uint64 from which all that is random about it is drawn (its target, its dropout)."""

    row: np.ndarray
    draw: np.ndarray


def step_rows(rows: int, seed: int, step: int, batch: int) -> RowChoice:
    """The rows of one step over all ranks; rank r of R takes positions r, r+R, r+2R, ..."""
    if rows <= 0:
        raise ValueError("the dataset has no rows")
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs, within = positions // rows, positions % rows
    row = np.array([epoch_permutation(rows, seed, int(e))[i] for e, i in zip(epochs, within, strict=True)], dtype=np.int64)
    return RowChoice(row, mix(seed, _DRAWS, positions))


def choose(draw: int, count: int) -> int:
    """An index in 0..count-1, uniform to 1 in 2**53."""
    return int((int(draw) >> 11) * count >> 53)
