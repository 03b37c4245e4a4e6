"""The plan of `frames`: numbers are given once, and what is not asked about stays."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from storage.column import Column, ShardPlan, source_digest
from storage.plan import FramesPlan, Wanted, agree

SCENES = st.lists(st.sampled_from("abcd"), unique=True)
ROUNDS = st.lists(st.tuples(SCENES, st.integers(0, 3), st.sampled_from(["", *"abcd"])), min_size=1, max_size=8)


def asked(scenes: list[str], version: int) -> list[Wanted]:
    """Two shards of each scene, whose second depends on the version of the raw files."""
    return [Wanted(scene, block, f"{scene}{block}{version * block}") for scene in scenes for block in (0, 1)]


@given(ROUNDS)
@settings(max_examples=200, deadline=None)
def test_a_number_stands_for_one_content_for_ever(rounds: list[tuple[list[str], int, str]]) -> None:
    plan, given_to = FramesPlan(), {}
    for scenes, version, withdrawn in rounds:
        before = plan
        plan = plan.updated(asked(scenes, version), {})
        assert [s.number for s in plan.shards] == sorted({s.number for s in plan.shards})
        for shard in plan.shards:
            assert given_to.setdefault(shard.number, shard.source) == shard.source
        kept = {s for s in before.shards if s.scene not in scenes}
        assert kept == {s for s in plan.shards if s.scene not in scenes}  # a scene that cannot be read asks for nothing and stays
        there = {(s.scene, s.block, s.source) for s in plan.shards if s.scene in scenes}
        assert there == {tuple(w) for w in asked(scenes, version) if w.scene not in plan.withdrawn}
        assert plan.updated(asked(scenes, version), {}) is plan
        if withdrawn:
            plan = plan.without([withdrawn])
            assert withdrawn not in {s.scene for s in plan.shards}
            assert plan.updated(asked([withdrawn], version), {}) is plan


def test_of_two_that_plan_at_once_the_second_takes_the_firsts_plan_on(tmp_path) -> None:
    dataset = str(tmp_path)
    first = FramesPlan().updated(asked(["a"], 0), {})
    late = FramesPlan().updated(asked(["b"], 0), {})
    assert first.publish(dataset)
    assert not late.publish(dataset)
    both = agree(dataset, asked(["b"], 0))
    assert [(s.number, s.scene) for s in both.shards] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    assert FramesPlan.read(dataset) == both


def test_a_scene_that_was_withdrawn_stays_so_when_another_is(tmp_path) -> None:
    plan = FramesPlan().updated(asked(["a", "b", "c"], 0), {}).without(["a"]).without(["b"])
    assert plan.withdrawn == ("a", "b")
    assert {s.scene for s in plan.updated(asked(["a", "b", "c"], 1), {}).shards} == {"c"}


def test_shards_that_were_committed_keep_their_numbers_though_the_plan_is_lost(tmp_path) -> None:
    """Before there is an index: of a build that was stopped, and whose plan was then set aside as damaged."""
    dataset = str(tmp_path)
    assert FramesPlan().updated(asked(["a", "b"], 0), {}).publish(dataset)
    column = Column(dataset, "frames")
    wanted = [Wanted(scene, block, source_digest(scene, block)) for scene in "ba" for block in (0, 1)]
    for number, source in ((1, wanted[0].source), (5, wanted[2].source)):
        column.commit(ShardPlan(number, source), [(f"k{number}", {"a": b"1"})], "0" * 64)
    (tmp_path / "frames" / "plan-000000.json").unlink()
    numbers = {(s.scene, s.block): s.number for s in agree(dataset, wanted).shards}
    assert (numbers["b", 0], numbers["a", 0]) == (1, 5)
    assert min(numbers["b", 1], numbers["a", 1]) > 5  # a number that was given stands for what it was given to
