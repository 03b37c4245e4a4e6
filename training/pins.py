"""Which state of the dataset a run trains from: decided when it starts, kept beside its checkpoints, and the same whenever it goes on."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from configs import ConfigError
from configs.schema import TrainConfig
from storage import codec, location
from storage.index import Damaged, Index, read_current
from storage.location import NotFound, StorageError, join
from training.rows import WindowRows, open_rows


def pinned_rows(config: TrainConfig) -> WindowRows:
    """The rows of a run: those of the indexes that it began with, which a dataset that grows keeps.

    Rank 0 decides, all ranks follow. Raises StorageError where a scene was withdrawn since, unless `loader.skip_withdrawn`: its rows are
    then replaced by others.
    """
    said: list[Any] = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        said = [_decide(config)]
    if dist.is_initialized():
        dist.broadcast_object_list(said)
    if isinstance(said[0], Exception):
        raise said[0]
    rows = open_rows(config, said[0])
    rows.withdrawn = _withdrawn(config, rows)
    return rows


def _decide(config: TrainConfig) -> dict[str, str] | Exception:
    """The pins that lie with the run, or new ones, which are written there. An error is an answer too: the other ranks wait for one."""
    url = join(config.output, "dataset.json")
    try:
        try:
            return codec.unseal(location.read_bytes(url))
        except NotFound:
            pins = open_rows(config).pins or {}
            location.write_bytes(url, codec.seal(pins))
            return pins
        except ValueError as error:
            raise Damaged(f"{url}: damaged ({error}); start the run anew with another output") from error
    except (StorageError, ConfigError) as error:
        return error


def _withdrawn(config: TrainConfig, rows: WindowRows) -> frozenset[str]:
    """The scenes of the pinned rows that the dataset no longer has."""
    current = read_current(config.dataset, "frames")
    if current is None or current["index"] == rows.table.frames.sha256:
        return frozenset()
    gone = rows.table.windows.scenes() - Index.open(config.dataset, "frames", current["index"]).scenes()
    if gone and not config.loader.skip_withdrawn:
        raise StorageError(
            f"{config.dataset}: {len(gone)} scenes of this run's rows were withdrawn since it began ({', '.join(sorted(gone)[:3])}); start "
            "a new run (output=...), or go on without them: loader.skip_withdrawn=true"
        )
    return frozenset(gone)
