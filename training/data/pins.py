"""Which state of the dataset a run trains from: decided when it starts, kept beside its checkpoints, and the same whenever it goes on."""

from __future__ import annotations

from typing import Any

from configs.schema import TrainConfig
from storage import codec, location
from storage.index import Damaged, Index, read_current
from storage.location import NotFound, StorageError, join
from training import checkpoint
from training.data.rows import WindowRows, open_rows
from training.distributed import Ranks


def pinned_rows(config: TrainConfig, ranks: Ranks | None = None) -> WindowRows:
    """The rows of a run: those of the indexes that it began with, which a dataset that grows keeps.

    Rank 0 decides, all ranks follow. Raises StorageError where a scene was withdrawn since, unless `loader.skip_withdrawn`: its rows are
    then replaced by others, and `dataset.json` says so.
    """
    if ranks is None:
        return _open(config, *_decide(config))
    decided = None
    with ranks.together():
        if ranks.rank == 0:
            decided = _decide(config)
    decided = ranks.from_rank_0(decided)
    with ranks.together():
        rows = _open(config, *decided)
    return rows


def _open(config: TrainConfig, indexes: dict[str, str], withdrawn: list[str]) -> WindowRows:
    rows = open_rows(config, indexes)
    rows.withdrawn = frozenset(withdrawn)
    return rows


def _decide(config: TrainConfig) -> tuple[dict[str, str], list[str]]:
    """The sums that lie with the run, or, where it has no checkpoint yet, those of now; and the scenes to do without."""
    url = join(config.output, "dataset.json")
    before = noted(config.output) if checkpoint.steps(config.output) else None
    rows = open_rows(config, before and before["indexes"])
    indexes, withdrawn = rows.pins or {}, sorted(_withdrawn(config, rows))
    if before != {"indexes": indexes, "withdrawn": withdrawn}:
        location.write_bytes(url, codec.seal({"indexes": indexes, "withdrawn": withdrawn}))
    return indexes, withdrawn


def noted(run: str) -> dict[str, Any] | None:
    """What a run began with: `indexes`, the sum of each column's; `withdrawn`, the scenes to do without. None: it never began."""
    url = join(run, "dataset.json")
    try:
        return codec.unseal(location.read_bytes(url))
    except NotFound:
        return None
    except ValueError as error:
        raise Damaged(f"{url}: damaged ({error}); start the run anew with another output") from error


def _withdrawn(config: TrainConfig, rows: WindowRows) -> set[str]:
    """The scenes of the pinned rows that the dataset no longer has."""
    current = read_current(config.dataset, "frames")
    if current is None or current["index"] == rows.table.frames.sha256:
        return set()
    gone = rows.table.windows.scenes() - Index.open(config.dataset, "frames", current["index"]).scenes()
    if gone and not config.loader.skip_withdrawn:
        raise StorageError(
            f"{config.dataset}: {len(gone)} scenes of this run's rows were withdrawn since it began ({', '.join(sorted(gone)[:3])}); start "
            "a new run (output=...), or go on without them: loader.skip_withdrawn=true"
        )
    return gone
