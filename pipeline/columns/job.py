"""The one runner of every column: hands missing shards to Ray actors, each of which makes a shard's rows and commits it.

An actor that dies is started again and its shard made again; a shard that fails is named and the others go on; what is committed is never
made twice. Rows go from the actor straight to storage, so Ray's object store carries counts and reasons only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tqdm import tqdm

from pipeline.cluster import result_of
from storage import codec
from storage.column import Column, ShardPlan
from storage.location import StorageError
from storage.records import SKIPPED
from storage.shard import Row

_RESTARTS = 3
_SHOWN = 5  # failures and refusals that are printed


@dataclass
class Content:
    """The rows of a shard to be; attributes and notes as in `storage.column.Record`."""

    rows: list[Row]
    attributes: dict[str, list] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class ShardMaker(Protocol):
    """Makes the content of a shard in each of the columns that are built together; made once in each actor."""

    def make(self, number: int) -> Mapping[str, Content]: ...


@dataclass(frozen=True)
class ColumnBuild:
    """A column that is to have the shards of a plan. provenance: its fingerprint."""

    column: Column
    plan: Sequence[ShardPlan]
    provenance: str


class ShardsFailed(StorageError):
    """Some shards could not be built. Those that could are committed."""


def run_columns(
    builds: Sequence[ColumnBuild],
    make: Callable[..., ShardMaker],
    arguments: Sequence[Any],
    workers: int,
    resources: Mapping[str, float],
) -> list[int]:
    """Builds the missing shards of columns that one maker makes together. Returns the numbers of the shards that it built.

    make, arguments: `make(*arguments)` gives an actor its `ShardMaker`. resources: of one actor, as `ray.remote` takes them.
    """
    import ray

    missing = {build.column.name: build.column.missing(build.plan) for build in builds}
    tasks: dict[int, dict[str, tuple[ShardPlan, list[str]]]] = {}
    groups: dict[str, list[int]] = {}
    for build in builds:
        absent = missing[build.column.name]
        how_many = (
            f"building {len(absent)} of {len(build.plan)} shards"
            if absent
            else f"all {len(build.plan)} shards are committed, nothing to do"
        )
        print(f"{build.column.url}: {how_many}", flush=True)
        for plan in build.plan:
            if plan.number in absent:
                if plan.number not in tasks:
                    groups.setdefault(plan.group, []).append(plan.number)
                tasks.setdefault(plan.number, {})[build.column.name] = (plan, absent[plan.number])
    if not tasks:
        return []
    columns = {build.column.name: (build.column, build.provenance) for build in builds}

    class Builder:
        def __init__(self) -> None:
            self.maker = make(*arguments)

        def build(self, number: int, wanted: dict[str, tuple[ShardPlan, list[str]]]) -> dict[str, str]:
            refused: dict[str, str] = {}
            for name, content in self.maker.make(number).items():
                if name in wanted:
                    column, provenance = columns[name]
                    plan, stale = wanted[name]
                    refused |= {k: codec.decode_json(m[SKIPPED])["reason"] for k, m in content.rows if SKIPPED in m}
                    column.commit(plan, content.rows, provenance, stale, content.attributes, content.notes)
            return refused

    options: dict[str, Any] = {"max_restarts": _RESTARTS, "max_task_retries": _RESTARTS, **resources}
    builder: Any = ray.remote(**options)(Builder)
    queue = _Queue(groups)
    failures: dict[int, Exception] = {}
    refused: dict[str, str] = {}  # why, by row
    built: list[int] = []
    with tqdm(total=len(tasks), unit="shard", desc="+".join(columns), mininterval=1.0) as bar:
        actors = [builder.remote() for _ in range(min(workers, len(tasks)))]
        running = {}
        for actor in actors:
            number = queue.take(actor)
            if number is not None:
                running[actor.build.remote(number, tasks[number])] = (actor, number)
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, number = running.pop(done)
            try:
                refused |= result_of(done)
                bar.update()
                built.append(number)
            except ray.exceptions.ActorDiedError as error:  # it could not start, or died more often than it may be restarted
                failures[number] = error
                queue.leave(actor)
                continue
            except Exception as error:  # whatever the maker raised: recorded, reported below
                failures[number] = error
            following = queue.take(actor)
            if following is not None:
                running[actor.build.remote(following, tasks[following])] = (actor, following)
    url = builds[0].column.url
    if refused:
        shown = "".join(f"\n  {key}: {refused[key]}" for key in sorted(refused)[:_SHOWN])
        print(f"{url}: {len(refused)} of the rows just built hold nothing (skipped.json says why in each):{shown}", flush=True)
    if failures:
        lines = [f"shard {n}: {_reason(e)}" for n, e in sorted(failures.items())]
        raise ShardsFailed(
            f"{url}: {len(tasks) - len(built)} of {len(builds[0].plan)} shards failed or were not begun; mend the cause and run again. "
            + "; ".join(lines[:_SHOWN])
        )
    return sorted(built)


class _Queue:
    """Shards by group. An actor stays with its group until that is empty, then takes the largest that nobody has, then helps another."""

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        self.waiting = {group: sorted(numbers, reverse=True) for group, numbers in groups.items()}
        self.group_of: dict[Any, str] = {}

    def take(self, actor: Any) -> int | None:
        """The next shard for an actor, None where none is left."""
        group = self.group_of.get(actor)
        if group is None or not self.waiting.get(group):
            self.group_of.pop(actor, None)
            left = [g for g, numbers in self.waiting.items() if numbers]
            if not left:
                return None
            group = max(left, key=lambda g: (g not in self.group_of.values(), len(self.waiting[g])))
            self.group_of[actor] = group
        return self.waiting[group].pop()

    def leave(self, actor: Any) -> None:
        """The actor is gone, its group anybody's."""
        self.group_of.pop(actor, None)


def _reason(error: Exception) -> str:
    """One line: of an actor that died the last line, which holds the cause; else type and message."""
    import ray

    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return lines[-1] if isinstance(error, ray.exceptions.ActorDiedError) else f"{type(error).__name__}: {lines[0]}"
