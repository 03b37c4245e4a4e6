"""The one runner of every column: hands missing shards to Ray actors, each of which makes a shard's rows and commits it.

An actor that dies is started again and its shard made again; a shard that fails is named and the others go on; what is committed is never
made twice. Rows go from the actor straight to storage, so Ray's object store carries counts and reasons only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from tqdm import tqdm

from pipeline.cluster import result_of
from storage import codec
from storage.column import Column
from storage.location import StorageError
from storage.shard import Row

_RESTARTS = 3
_SHOWN = 5  # failures and refusals that are printed


class ShardMaker(Protocol):
    """Makes the rows of a shard; built once in each actor, from what `run_column` was given."""

    def rows(self, number: int) -> Iterable[Row]: ...


class ShardsFailed(StorageError):
    """Some shards could not be built. Those that could are committed."""


def run_column(
    column: Column,
    make: Callable[..., ShardMaker],
    arguments: Sequence[Any],
    rows_of_shard: Sequence[int],
    workers: int,
    resources: dict[str, float],
) -> int:
    """Builds the missing shards of `column` (there are `len(rows_of_shard)` in all), then its manifest. Returns how many shards it built.

    make, arguments: `make(*arguments)` gives an actor its `ShardMaker`. resources: of one actor, as `ray.remote` takes them.
    """
    import ray

    total = len(rows_of_shard)
    missing = column.missing_shards(total)
    if not missing:
        print(f"{column.url}: all {total} shards are committed, nothing to do", flush=True)
        column.write_manifest(total)
        return 0
    print(f"{column.url}: building {len(missing)} of {total} shards", flush=True)

    class Builder:
        def __init__(self) -> None:
            self.maker = make(*arguments)

        def build(self, number: int) -> tuple[int, dict[str, str]]:
            refused: dict[str, str] = {}

            def noted() -> Iterator[Row]:
                for key, members in self.maker.rows(number):
                    if "skipped.json" in members:
                        refused[key] = codec.decode_json(members["skipped.json"])["reason"]
                    yield key, members

            return column.commit(number, noted()), refused

    options: dict[str, Any] = {"max_restarts": _RESTARTS, "max_task_retries": _RESTARTS, **resources}
    builder: Any = ray.remote(**options)(Builder)
    failures: dict[int, Exception] = {}
    refused: dict[str, str] = {}  # why, by row
    with tqdm(total=sum(rows_of_shard[n] for n in missing), unit="row", desc=column.name, mininterval=1.0) as bar:
        queue = list(reversed(missing))
        actors = [builder.remote() for _ in range(min(workers, len(missing)))]
        running = {actor.build.remote(number): (actor, number) for actor in actors if queue for number in [queue.pop()]}
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, number = running.pop(done)
            try:
                rows, refused_here = result_of(done)
                bar.update(rows)
                refused |= refused_here
            except ray.exceptions.ActorDiedError as error:  # it could not start, or died more often than it may be restarted
                failures[number] = error
                continue
            except Exception as error:  # whatever the maker raised: recorded, reported below
                failures[number] = error
            if queue:
                number = queue.pop()
                running[actor.build.remote(number)] = (actor, number)
    if refused:
        shown = "".join(f"\n  {key}: {refused[key]}" for key in sorted(refused)[:_SHOWN])
        print(f"{column.url}: {len(refused)} of the rows just built hold nothing (skipped.json says why in each):{shown}", flush=True)
    if failures:
        lines = [f"shard {n}: {_reason(e)}" for n, e in sorted(failures.items())]
        raise ShardsFailed(
            f"{column.url}: {len(failures) + len(queue)} of {total} shards failed or were not begun; mend the cause and run again. "
            + "; ".join(lines[:_SHOWN])
        )
    in_all = column.write_manifest(total)
    print(f"{column.url}: {total} shards, {in_all} rows", flush=True)
    return len(missing)


def _reason(error: Exception) -> str:
    """One line: of an actor that died the last line, which holds the cause; else type and message."""
    import ray

    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return lines[-1] if isinstance(error, ray.exceptions.ActorDiedError) else f"{type(error).__name__}: {lines[0]}"
