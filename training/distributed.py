"""The ranks of one training: their process group, their devices, and how they stop together where one of them cannot start."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from configs import ConfigError
from storage.location import StorageError

SETUP_TIMEOUT = timedelta(minutes=5)  # for a rank to do a part of the set-up; torch's own 30 minutes hold for steps
_GRACE_S = 5.0  # torchrun ends all ranks when the first ends: the others give the one that reports time to do so


class Ranks:
    """The process group of a training. device: this rank's, known after `choose_device`."""

    def __init__(self) -> None:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._setup = dist.new_group(backend="gloo", timeout=SETUP_TIMEOUT)

    @contextmanager
    def together(self) -> Iterator[None]:
        """All ranks come through the block, or none does.

        Raises:
            ConfigError, StorageError: on the first rank that was refused, so that one line is printed. The others end silently with the
                same exit code.
        """
        error: Exception | None = None
        try:
            yield
        except (ConfigError, StorageError) as refused:
            error = refused
        codes: list[Any] = [None] * self.world
        own = None if error is None else 2 if isinstance(error, ConfigError) else 1
        self._exchange(lambda: dist.all_gather_object(codes, own, group=self._setup))
        first = next((rank for rank, code in enumerate(codes) if code is not None), None)
        if first is None:
            return
        if first == self.rank:
            assert error is not None
            raise error
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(codes[first]))
        time.sleep(_GRACE_S)
        sys.exit(codes[first])

    def from_rank_0(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        said = [value]
        self._exchange(lambda: dist.broadcast_object_list(said, group=self._setup))
        return said[0]

    def _exchange(self, collective: Any) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise ConfigError(
                f"rank {self.rank}: another rank ended while the training was set up, or gave no answer in {SETUP_TIMEOUT}; see its message"
            ) from error


@contextmanager
def process_group() -> Iterator[Ranks]:
    """The ranks that torchrun started; without torchrun, one."""
    ranks = Ranks()
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def choose_device(wanted: str) -> torch.device:
    """This rank's GPU, or the CPU. wanted: auto, cpu or cuda. Raises ConfigError where the node does not have it."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={wanted!r}: choose auto, cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device; choose device=cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(f"rank {local_rank} of this node has no GPU of its own ({torch.cuda.device_count()} here); give torchrun "
                          f"--nproc-per-node={torch.cuda.device_count()}, or device=cpu")  # fmt: skip
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
