"""The runner of columns without a cluster: which shard goes to whom, and what comes of those that fail."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.columns.job import ColumnBuild, Content, ShardsFailed, _Queue, run_columns
from storage import codec
from storage.column import Column, ShardPlan, source_digest
from storage.provenance import Provenance
from storage.records import SKIPPED


def taken(groups: Mapping[str, list[int]], turns: str) -> list[tuple[str, int | None]]:
    """What each actor gets that asks in turn."""
    queue = _Queue(groups)
    return [(actor, queue.take(actor)) for actor in turns]


def test_an_actor_stays_with_its_group_in_order_then_takes_the_largest_that_is_free() -> None:
    groups = {"small": [7], "large": [5, 3, 4], "middle": [1, 0]}
    order = taken(groups, "ABAABABB")
    assert order == [("A", 3), ("B", 0), ("A", 4), ("A", 5), ("B", 1), ("A", 7), ("B", None), ("B", None)]


def test_where_no_group_is_free_an_actor_helps_the_one_with_the_most_left() -> None:
    assert taken({"a": [0, 1, 2, 3], "b": [4, 5, 6]}, "ABC") == [("A", 0), ("B", 4), ("C", 1)]
    assert taken({"a": [0, 1]}, "ABA") == [("A", 0), ("B", 1), ("A", None)]


def test_the_group_of_an_actor_that_is_gone_is_free_again() -> None:
    queue = _Queue({"a": [0, 1], "b": [2, 3, 4, 5]})
    assert (queue.take("A"), queue.take("B")) == (2, 0)
    queue.leave("B")
    assert queue.take("C") == 1  # the smaller one, of which nobody takes care
    queue.leave("nobody")


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5)), st.lists(st.sampled_from("ABC"), max_size=40))
@settings(deadline=None)
def test_every_shard_is_given_once_whoever_asks_and_leaves(sizes: dict[str, int], turns: list[str]) -> None:
    groups = {group: [10 * n + i for i in range(size)] for n, (group, size) in enumerate(sizes.items())}
    queue = _Queue(groups)
    given_out = []
    for n, actor in enumerate([*turns, *"A" * 21]):
        if n % 7 == 3:
            queue.leave(actor)
        given_out.append(queue.take(actor))
    numbers = [number for number in given_out if number is not None]
    assert sorted(numbers) == sorted(number for group in groups.values() for number in group)
    assert given_out[-1] is None


class ActorDiedError(Exception):
    """As Ray says it."""


class RayTaskError(Exception):
    """As Ray says it: of an exception in the actor."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Reference:
    """What a call of an actor returns; the work is done when it is asked for."""

    def __init__(self, dead: set[int], call: Callable[..., Any], number: int, wanted: Any) -> None:
        self.dead, self.call, self.number, self.wanted = dead, call, number, wanted

    def result(self) -> Any:
        if self.number in self.dead:
            raise ActorDiedError(f"The actor died.\n\nIt was killed at shard {self.number}")
        try:
            return self.call(self.number, self.wanted)
        except Exception as error:
            raise RayTaskError(error) from error


class Actor:
    """An object of a remote class: `actor.build.remote(...)`."""

    def __init__(self, dead: set[int], cls: type) -> None:
        build = cls().build
        self.build = SimpleNamespace(remote=lambda number, wanted: Reference(dead, build, number, wanted))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the runner asks of Ray, in this process and one after the other. actors: how many it made; options: what it asked for them;
    dead: the shards at which an actor dies for good, for the test to set."""
    seen = SimpleNamespace(actors=0, options={}, dead=set())

    def remote(**options: Any) -> Callable[[type], Any]:
        def of_class(cls: type) -> Any:
            def start() -> Actor:
                seen.actors += 1
                return Actor(seen.dead, cls)

            return SimpleNamespace(remote=start)

        seen.options = options
        return of_class

    module = ModuleType("ray")
    vars(module).update(
        remote=remote,
        wait=lambda references, num_returns: (references[:num_returns], references[num_returns:]),
        get=lambda reference: reference.result(),
        exceptions=SimpleNamespace(ActorDiedError=ActorDiedError, RayTaskError=RayTaskError),
    )
    monkeypatch.setitem(sys.modules, "ray", module)
    return seen


MADE = Provenance({}, {"kind": "masks"}, 2)


class Maker:
    """Rows of two columns; the shards that are told so fail. made: the numbers in the order in which it was asked."""

    def __init__(self, failing: tuple[int, ...], made: list[int]) -> None:
        self.failing, self.made = failing, made

    def make(self, number: int) -> dict[str, Content]:
        self.made.append(number)
        if number in self.failing:
            raise ValueError(f"no mesh\nin scene {number}")
        members = {"a.bin": b"%d" % number}
        skipped = {SKIPPED: codec.encode_json({"reason": "identical cameras"})} if number == 1 else {}
        one = Content([(f"k{number}", members | skipped)], {"number": [number]}, {"figures": number})
        return {"one": one, "two": Content([(f"k{number}", members)])}


def builds(root: Path, count: int, source: str = "raw") -> list[ColumnBuild]:
    made = []
    for name in ("one", "two"):
        column = Column(str(root), name)
        column.declare(MADE)
        plan = [ShardPlan(n, source_digest(source, n), {"of": {"0": "sum"}}, group=f"scene {n // 2}") for n in range(count)]
        made.append(ColumnBuild(column, plan, MADE.fingerprint))
    return made


def run(asked: list[ColumnBuild], workers: int = 2, failing: tuple[int, ...] = ()) -> tuple[list[int], list[int]]:
    """Returns what the runner says that it built, and what the makers were asked for."""
    made: list[int] = []
    return run_columns(asked, Maker, (failing, made), workers, {"num_cpus": 1}), made


def test_shards_that_are_missing_in_any_column_are_made_once_and_committed_where_they_are_missing(
    ray: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = builds(tmp_path, 5)
    built, made = run(asked)
    assert built == sorted(made) == [0, 1, 2, 3, 4]
    assert ray.actors == 2
    assert ray.options["num_cpus"] == 1
    assert ray.options["max_restarts"] > 0  # a killed actor is started again
    assert ray.options["max_task_retries"] > 0  # and makes its shard again
    indexes = [build.column.write_index(build.plan, {}) for build in asked]
    assert [index.all_keys() for index in indexes] == [[f"k{n}" for n in range(5)]] * 2
    assert indexes[0].attribute("number").tolist() == [0, 1, 2, 3, 4]
    records = asked[0].column.records(asked[0].column.listing())
    assert [(r.notes, r.inputs, r.provenance) for r in records] == [
        ({"figures": n}, {"of": {"0": "sum"}}, MADE.fingerprint) for n in range(5)
    ]
    printed = capsys.readouterr().out
    assert "one: building 5 of 5 shards" in printed
    assert "1 of the rows just built hold nothing (skipped.json says why in each):\n  k1: identical cameras" in printed
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    Path(asked[1].column.tar_url(3)).unlink()
    ray.actors = 0
    assert run(asked) == ([3], [3])
    assert ray.actors == 1  # a second one would load its model for nothing
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()} == before
    assert not asked[1].column.missing(asked[1].plan)
    capsys.readouterr()
    assert run(asked) == ([], [])
    assert capsys.readouterr().out.count("all 5 shards are committed, nothing to do") == 2


def test_a_stale_shard_takes_the_place_of_the_one_before(ray: SimpleNamespace, tmp_path: Path) -> None:
    run(builds(tmp_path, 2))
    again = builds(tmp_path, 2, source="changed")
    assert run(again)[0] == [0, 1]
    assert [c.source for c in again[0].column.listing()] == [p.source for p in again[0].plan]
    assert ray.actors == 4


def test_a_shard_that_fails_is_named_and_the_others_are_committed(ray: SimpleNamespace, tmp_path: Path) -> None:
    asked = builds(tmp_path, 6)
    with pytest.raises(ShardsFailed, match=r"one: 2 of 6 shards failed or were not begun; mend the cause and run again") as caught:
        run(asked, failing=(0, 3))
    assert str(caught.value).endswith("run again. shard 0: ValueError: no mesh; shard 3: ValueError: no mesh")
    assert sorted(asked[1].column.committed()) == [1, 2, 4, 5]
    assert run(asked)[0] == [0, 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_dead_actor_leaves_goes_to_the_others_or_is_counted(ray: SimpleNamespace, workers: int, tmp_path: Path) -> None:
    ray.dead = {0}
    asked = builds(tmp_path, 6)
    left = {1: [], 2: [1, 2, 3, 4, 5]}[workers]
    message = rf"{6 - len(left)} of 6 shards failed or were not begun; .* shard 0: It was killed at shard 0$"
    with pytest.raises(ShardsFailed, match=message):
        run(asked, workers)
    assert ray.actors == workers
    assert sorted(asked[0].column.committed()) == left
    ray.dead = set()
    assert run(asked, workers)[0] == sorted({*range(6)} - {*left})
    assert len(asked[0].column.write_index(asked[0].plan, {})) == 6


def test_the_scene_of_a_dead_actor_is_as_free_as_one_that_nobody_began(ray: SimpleNamespace, tmp_path: Path) -> None:
    column, made = Column(str(tmp_path), "one"), list[int]()
    plan = [ShardPlan(n, source_digest(n), group=group) for n, group in enumerate("aaaaabbcc")]
    ray.dead = {0}
    with pytest.raises(ShardsFailed, match="1 of 9 shards failed"):
        run_columns([ColumnBuild(column, plan, MADE.fingerprint)], Maker, ((), made), 2, {})
    assert made == [5, 6, 1, 2, 3, 4, 7, 8]
