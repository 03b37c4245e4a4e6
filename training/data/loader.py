"""From a step's number to its batch, several batches in flight in every worker.

for batch in step_batches(rows, config, range(20, 40), rank=0, world=2): ...    # batch i: this rank's rows of step 20 + i

With `accumulate` parts a step there are that many batches for each, one after the other.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from configs import ConfigError
from configs.schema import TrainConfig
from training.data.batch import Batch
from training.data.order import step_rows
from training.data.rows import Choice, WindowRows


def check_share(batch: int, world: int, accumulate: int = 1) -> None:
    """Raises ConfigError where the ranks cannot share a batch equally, or a rank its share in so many parts."""
    if batch % (world * accumulate):
        parts = f" in {accumulate} parts each" if accumulate > 1 else ""
        raise ConfigError(
            f"batch={batch} rows a step cannot be shared equally by {world} ranks{parts}; choose a multiple of {world * accumulate}"
        )


class StepSampler:
    """The (row, draw) pairs of one rank for each part of each step."""

    def __init__(self, rows: int, seed: int, batch: int, steps: range, rank: int, world: int, accumulate: int = 1) -> None:
        check_share(batch, world, accumulate)
        self.rows, self.seed, self.batch, self.rank, self.world, self.accumulate = rows, seed, batch, rank, world, accumulate
        self.parts = [(step, part) for step in steps for part in range(accumulate)]

    def __len__(self) -> int:
        return len(self.parts)

    def choices(self, step: int, part: int = 0) -> list[Choice]:
        """What this rank reads for a part of a step."""
        choice = step_rows(self.rows, self.seed, step, self.batch)
        mine = slice(self.rank + part * self.world, None, self.world * self.accumulate)
        return [(int(r), int(d)) for r, d in zip(choice.row[mine], choice.draw[mine], strict=True)]

    def __iter__(self) -> Iterator[list[Choice]]:
        return (self.choices(*part) for part in self.parts)


class BatchStream(torch.utils.data.IterableDataset):
    """The batches of a sampler. Of W workers, worker w makes every W-th, and keeps `ahead` of its own in flight."""

    def __init__(self, rows: WindowRows, sampler: StepSampler, ahead: int) -> None:
        self.rows, self.sampler, self.ahead = rows, sampler, ahead

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        parts = self.sampler.parts if worker is None else self.sampler.parts[worker.id :: worker.num_workers]
        len(self.rows)  # opens the table, before threads share it
        waiting: deque[Future] = deque()
        with ThreadPoolExecutor(self.ahead, thread_name_prefix="fetch") as pool:
            try:
                for part in parts:
                    waiting.append(pool.submit(self.rows.fetch, self.sampler.choices(*part)))
                    if len(waiting) > self.ahead:  # one more than the pool fetches at a time: that many are in flight during decoding too
                        yield self.rows.decode(waiting.popleft().result())
                while waiting:
                    yield self.rows.decode(waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()


def step_batches(
    rows: WindowRows, config: TrainConfig, steps: range, rank: int, world: int, pinned: bool = False
) -> torch.utils.data.DataLoader:
    """The batches of `steps` for one rank, in order, read ahead by worker processes (spawned, so that no client is forked)."""
    sampler = StepSampler(len(rows), config.seed, config.batch, steps, rank, world, config.accumulate)
    workers = config.loader.workers
    ahead: dict[str, Any] = {"multiprocessing_context": multiprocessing.get_context("spawn")} if workers else {}
    return torch.utils.data.DataLoader(
        BatchStream(rows, sampler, config.loader.prefetch),
        batch_size=None,
        num_workers=workers,
        pin_memory=pinned,
        worker_init_fn=_leave_signals_to_the_rank,
        **ahead,
    )


def _leave_signals_to_the_rank(_: int) -> None:
    """torchrun signals a rank's whole process group: a worker that died of it would take the rank along before its checkpoint."""
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(one, signal.SIG_IGN)
