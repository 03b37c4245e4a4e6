"""Windows: by file number and pose, never across a hole, evenly spread contexts; an index over `frames` whose shards keep their numbers."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import ConfigError
from configs.schema import WindowsConfig
from pipeline.plan.windows import PlannedWindow, build_windows, plan_scene, plan_windows
from storage.column import Column, ColumnMismatch
from storage.index import Index, IndexRows
from storage.records.frames import frame_key
from storage.table import Table

RULE = WindowsConfig(
    rule="gap", gap=8, stride=4, views=2, min_baseline=0.03, max_baseline=0.6, max_rotation=25.0, held_out=False
)  # fmt: skip
ANY_POSE = replace(RULE, min_baseline=0.0, max_baseline=9.0, max_rotation=180.0)


def walk(numbers: Sequence[int], step: float = 0.02, degrees: float = 1.0) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(numbers), 1, 1))
    for pose, number in zip(poses, numbers, strict=True):
        angle = np.radians(degrees * number)
        pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        pose[0, 3] = step * number
    return poses


def plan(numbers: Sequence[int], rule: WindowsConfig = RULE, **how: float) -> tuple[list[PlannedWindow], dict[str, int]]:
    return plan_scene(np.array(numbers, np.int64), walk(numbers, **how), rule)


def plainly(numbers: Sequence[int], poses: np.ndarray, rule: WindowsConfig) -> tuple[list[PlannedWindow], dict[str, int]]:
    """What `plan_scene` promises, frame after frame, with exact numbers where there are any."""
    windows: list[PlannedWindow] = []
    reasons: Counter[str] = Counter()
    for left, number in enumerate(numbers):
        if windows and number < numbers[windows[-1].context[0]] + rule.stride:
            continue
        later = range(left + 1, len(numbers))
        apart = {i: float(np.linalg.norm(poses[i, :3, 3] - poses[left, :3, 3])) for i in later}
        if rule.rule == "gap":
            ends = [i for i in later if numbers[i] == number + rule.gap]
        else:
            ends = [i for i in later if numbers[i] <= number + rule.gap and apart[i] >= rule.min_baseline]
        if not ends:
            reasons["no_frame_at_gap" if rule.rule == "gap" else "no_frame_at_baseline"] += 1
            continue
        right = ends[0]
        cosine = (np.trace(poses[left, :3, :3].T @ poses[right, :3, :3]) - 1) / 2
        context = [left + round(Fraction((right - left) * view, rule.views - 1)) for view in range(rule.views)]
        if apart[right] < rule.min_baseline:
            reasons["baseline_too_short"] += 1
        elif apart[right] > rule.max_baseline:
            reasons["baseline_too_long"] += 1
        elif np.degrees(np.arccos(np.clip(cosine, -1, 1))) > rule.max_rotation:
            reasons["rotation_too_large"] += 1
        elif len(set(context)) < rule.views:
            reasons["too_few_frames"] += 1
        else:
            windows.append(PlannedWindow(tuple(context), tuple(range(left, right + 1))))
    return windows, dict(sorted(reasons.items()))


def test_an_unbroken_walk_gives_a_window_every_stride() -> None:
    windows, passed = plan(range(100, 120))
    assert [w.context for w in windows] == [(0, 8), (4, 12), (8, 16)]
    assert [w.targets for w in windows] == [tuple(range(start, start + 9)) for start in (0, 4, 8)]
    assert passed == {"no_frame_at_gap": 8}


numbers_of_a_scene = st.lists(st.integers(0, 80), unique=True, max_size=60).map(sorted)


@given(numbers_of_a_scene, st.integers(1, 12), st.integers(1, 9))
def test_every_window_spans_exactly_the_gap(numbers: list[int], gap: int, stride: int) -> None:
    windows, passed = plan(numbers, replace(ANY_POSE, gap=gap, stride=stride))
    starts = [numbers[w.context[0]] for w in windows]
    for start, window in zip(starts, windows, strict=True):
        inside = [i for i, n in enumerate(numbers) if start <= n <= start + gap]
        assert window.targets == tuple(inside)
        assert window.context == (inside[0], inside[-1])
        assert numbers[inside[-1]] == start + gap
    assert all(b - a >= stride for a, b in itertools.pairwise(starts))
    possible = [n for n in numbers if n + gap in numbers]
    assert bool(windows) == bool(possible)
    assert all(any(start <= n < start + stride for start in starts) for n in possible)
    assert len(windows) + sum(passed.values()) <= len(numbers)


def test_windows_whose_poses_do_not_suit_are_counted() -> None:
    numbers = range(9)
    assert plan(numbers, step=0.001)[1] == {"baseline_too_short": 1, "no_frame_at_gap": 8}
    assert plan(numbers, step=0.1)[1] == {"baseline_too_long": 1, "no_frame_at_gap": 8}
    assert plan(numbers, degrees=4.0)[1] == {"no_frame_at_gap": 8, "rotation_too_large": 1}
    assert plan([]) == ([], {})
    assert plan([], replace(RULE, rule="baseline")) == ([], {})


def test_further_context_views_stand_evenly_between_the_ends() -> None:
    windows, _ = plan(range(100, 120), replace(RULE, views=3))
    assert [w.context for w in windows] == [(0, 4, 8), (4, 8, 12), (8, 12, 16)]
    assert plan(range(9), replace(RULE, views=5))[0][0].context == (0, 2, 4, 6, 8)
    assert plan(range(9), replace(RULE, views=9))[0][0].context == tuple(range(9))
    windows, passed = plan([0, 8, 16], replace(RULE, views=3))
    assert (windows, passed) == ([], {"no_frame_at_gap": 1, "too_few_frames": 2})


def test_a_frame_more_before_a_window_does_not_move_its_middle_view() -> None:
    """Else one mended frame would make anew all that is derived from every window after it."""
    rule = replace(ANY_POSE, gap=3, stride=1, views=3)

    def named(numbers: Sequence[int]) -> dict[int, list[int]]:
        return {numbers[w.context[0]]: [numbers[i] for i in w.context] for w in plan(numbers, rule)[0]}

    without, mended = named(range(10, 30)), named([8, *range(10, 30)])
    assert {start: mended[start] for start in without} == without


def test_the_baseline_rule_ends_at_the_first_frame_far_enough_away() -> None:
    rule = replace(ANY_POSE, rule="baseline", min_baseline=0.09, stride=1)
    windows, passed = plan([0, 1, 2, 5, 6, 20], rule)  # 0.02 m a number: 5 numbers are 0.1 m
    assert [w.targets for w in windows] == [(0, 1, 2, 3), (1, 2, 3, 4)]  # from 2, number 20 lies beyond the gap
    assert passed == {"no_frame_at_baseline": 4}
    slow = np.concatenate([walk(range(5), step=0.001), walk(range(5, 40), step=0.05)])
    (first, *_), _ = plan_scene(np.arange(40), slow, replace(rule, gap=16, views=3))
    assert first == PlannedWindow((0, 2, 5), tuple(range(6)))
    assert plan(range(9), replace(rule, max_baseline=0.05, min_baseline=0.04, stride=9))[0][0].targets == (0, 1, 2)
    # Half a metre a frame: the first that is far enough away is too far.
    assert plan(range(3), replace(rule, max_baseline=0.4), step=0.5)[1] == {"baseline_too_long": 2, "no_frame_at_baseline": 1}


@given(
    numbers_of_a_scene,
    st.integers(0, 2**32 - 1),
    st.builds(
        WindowsConfig,
        rule=st.sampled_from(["gap", "baseline"]), gap=st.integers(1, 14), stride=st.integers(1, 9), views=st.integers(2, 5),
        min_baseline=st.sampled_from([0.0, 0.03, 0.1, 0.5]), max_baseline=st.sampled_from([0.1, 0.6, 9.0]),
        max_rotation=st.sampled_from([5.0, 25.0, 180.0]), held_out=st.just(False),
    ),
)  # fmt: skip
def test_every_rule_is_what_it_says(numbers: list[int], seed: int, rule: WindowsConfig) -> None:
    random = np.random.default_rng(seed)
    poses = walk(numbers, degrees=float(random.uniform(0, 4)))
    poses[:, :3, 3] = np.cumsum(random.normal(scale=0.04, size=(len(numbers), 3)), axis=0)
    assert plan_scene(np.array(numbers, np.int64), poses, rule) == plainly(numbers, poses, rule)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "gaps"}, "rule=gaps: choose gap or baseline"),
        ({"gap": 0}, "gap=0: must be above 0"),
        ({"stride": 0}, "stride=0: must be above 0"),
        ({"views": 1}, "views=1: a context has at least 2 views"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(RULE, **changes)


@dataclass(frozen=True)
class Shard:
    """A shard of `frames` to be, of which only the index is made. tar: what stands for the sum of its tar."""

    number: int
    scene: str
    counters: Sequence[int]
    tar: str
    held_out: Sequence[int] = ()


def frames_index(root: str, shards: Sequence[Shard]) -> Index:
    """The index of `frames` over these shards, now the current one of `root`."""
    rows = [(shard, counter) for shard in shards for counter in shard.counters]
    zeros, none = np.zeros(len(rows), np.int64), np.empty(0, np.uint32)
    index_rows = IndexRows(
        layouts=[()], keys=[frame_key(shard.scene, f"DSC{counter:05d}.JPG") for shard, counter in rows],
        shard=np.array([shard.number for shard, _ in rows], np.int32), offset=zeros, layout=zeros.astype(np.int16), lengths=zeros,
        sizes=none, crc32s=none,
        attributes={
            "scene": [shard.scene for shard, _ in rows], "number": [counter for _, counter in rows],
            "c2w": [pose.ravel().tolist() for pose in walk([counter for _, counter in rows])],
            "held_out": [counter in shard.held_out for shard, counter in rows],
        },
    )  # fmt: skip
    metadata = {"kind": "frames", "of": {}, "provenance": "made", "shards": [[s.number, f"source {s.tar}", 1, s.tar] for s in shards]}
    return Column(root, "frames").publish_index(index_rows, metadata, records="")


def blocks(scene: str, first: int, frames: int, size: int = 10, **more: Sequence[int]) -> list[Shard]:
    """The shards of a scene's frames, numbered from `first`."""
    runs = [range(start, min(start + size, frames)) for start in range(0, frames, size)]
    return [Shard(first + i, scene, run, f"{scene}{i}", **more) for i, run in enumerate(runs)]


def shards_of(index: Index) -> dict[str, tuple[int, dict]]:
    """By source, the number of each shard of a windows table, and the sums of the tars that it is made from."""
    return {source: (number, inputs["frames"]) for number, source, inputs in index.metadata["shards"]}


def test_the_index_names_each_scenes_frames_and_copies_none(tmp_path: Path) -> None:
    frames = frames_index(str(tmp_path), [*blocks("a", 0, 25), *blocks("b", 3, 25)])
    windows, passed = build_windows(str(tmp_path), "windows", replace(RULE, views=3), frames)
    assert windows.all_keys() == [f"{scene}-DSC{start:05d}" for scene in "ab" for start in (0, 4, 8, 12, 16)]
    assert passed == {"no_frame_at_gap": 10}
    table = Table.open(str(tmp_path), ["windows"])
    for number in range(len(table)):
        window = table.row(number).window()
        keys = [frames.key(row) for row in window.context]
        start = int(keys[0][-5:])
        assert keys == [f"{window.scene}-DSC{n:05d}" for n in (start, start + 4, start + 8)]
        assert [frames.key(row) for row in window.targets] == [f"{window.scene}-DSC{n:05d}" for n in range(start, start + 9)]
        assert keys[0] == window.key
    # A window lies in the shard that belongs to its first frame's, and names the tars of all its frames.
    assert [windows.shard(row) for row in range(10)] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert [set(sums) for _, sums in shards_of(windows).values()] == [{"0", "1"}, {"1", "2"}, {"3", "4"}, {"4", "5"}]
    assert {path.name for path in (tmp_path / "windows").iterdir()} == {
        "column.json", "current.json", f"index-{windows.sha256[:16]}.arrow"
    }  # fmt: skip


def test_held_out_frames_are_never_named_by_a_training_window(tmp_path: Path) -> None:
    held_out = [3, 17, *range(40, 60)]
    frames = frames_index(str(tmp_path), [*blocks("a", 0, 60, held_out=held_out), *blocks("b", 6, 60, held_out=range(60))])
    out = frames.attribute("held_out")
    rule = replace(ANY_POSE, stride=1)
    training, held = (build_windows(str(tmp_path), name, replace(rule, held_out=value), frames)[0] for name, value in
                      (("windows", False), ("held", True)))  # fmt: skip
    for windows, value in ((training, False), (held, True)):
        named = np.concatenate([windows.lists(name)[1] for name in ("context", "targets")])
        assert len(windows)
        assert (out[named] == value).all()
    assert training.scenes() == {"a"}
    assert held.scenes() == {"a", "b"}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), unique=True, max_size=90), st.integers(1, 20),
       st.sampled_from([2, 3, 4]), st.sampled_from(["gap", "baseline"]))  # fmt: skip
def test_keys_are_unique_and_rows_lie_by_shard(
    tmp_path_factory: pytest.TempPathFactory, frames: list[tuple[str, int]], size: int, views: int, rule: str
) -> None:
    """Whatever the shards of `frames` are: here they are even given their numbers in no order."""
    root = str(tmp_path_factory.mktemp("frames"))
    runs = []
    for scene, group in itertools.groupby(sorted(frames), key=lambda frame: frame[0]):
        counters = [counter for _, counter in group]
        runs += [(scene, counters[i : i + size]) for i in range(0, len(counters), size)]
    order = np.random.default_rng(len(frames)).permutation(len(runs))
    shards = [Shard(number, *runs[i], f"tar {i}") for number, i in enumerate(order)]
    index = frames_index(root, shards)
    rows, planned, following, _ = plan_windows(index, replace(ANY_POSE, rule=rule, views=views, stride=2, min_baseline=0.05))
    assert len(set(rows.keys)) == len(rows.keys)
    assert (np.diff(rows.shard) >= 0).all()
    assert [shard.number for shard in planned] == list(range(following)) == sorted(set(rows.shard.tolist()))
    numbers = index.attribute("number")
    for context, targets in zip(rows.attributes["context"], rows.attributes["targets"], strict=True):
        assert (np.diff(numbers[targets]) > 0).all()
        assert len(context) == views
        assert {index.scene(row) for row in targets} == {index.scene(context[0])}


def test_what_did_not_change_keeps_its_shard(tmp_path: Path) -> None:
    root, a, b = str(tmp_path), blocks("a", 0, 45), blocks("b", 5, 25)
    first, _ = build_windows(root, "windows", RULE, frames_index(root, [*a, *b]))
    before = shards_of(first)
    assert [number for number, _ in before.values()] == [0, 1, 2, 3, 4, 5]

    # A scene is appended: everything keeps its number, and the new windows come after.
    grown, _ = build_windows(root, "windows", RULE, frames_index(root, [*a, *b, *blocks("c", 8, 25)]))
    after = shards_of(grown)
    assert {source: after[source] for source in before} == before
    assert sorted(number for number, _ in after.values()) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert grown.all_keys()[: len(first)] == first.all_keys()

    # One shard of frames is made anew under a new number: windows that have no frame in it keep theirs.
    replaced = Shard(11, "a", a[1].counters, "a1, mended")
    mended, _ = build_windows(root, "windows", RULE, frames_index(root, [a[0], *a[2:], *b, *blocks("c", 8, 25), replaced]))
    now = shards_of(mended)
    untouched = {source: shard for source, shard in after.items() if "1" not in shard[1]}
    assert len(untouched) == len(after) - 2
    assert {source: now[source] for source in untouched} == untouched
    fresh = {source: shard for source, shard in now.items() if source not in untouched}
    assert sorted(number for number, _ in fresh.values()) == [8, 9]
    assert all(sums["11"] == "a1, mended" for _, sums in fresh.values())
    assert set(mended.all_keys()) == set(grown.all_keys())

    # Its frames are now the last rows of the index, and still a scene's frames stand by their number.
    table = Table.open(root, ["windows"])
    window = table.row(mended.find("a-DSC00008")).window()
    assert [table.frames.key(row)[-2:] for row in window.targets] == [f"{n:02d}" for n in range(8, 17)]

    # A number once given is not given again, even where its shard has gone.
    gone, _ = build_windows(root, "windows", RULE, frames_index(root, [*b]))
    again, _ = build_windows(root, "windows", RULE, frames_index(root, [*b, *blocks("d", 12, 25)]))
    assert {number for number, _ in shards_of(gone).values()} == {4, 5}
    assert {number for number, _ in shards_of(again).values()} == {4, 5, 10, 11}


def test_the_same_frames_give_the_same_index_and_another_rule_is_refused(tmp_path: Path) -> None:
    root = str(tmp_path)
    frames = frames_index(root, blocks("a", 0, 40))
    first, passed = build_windows(root, "windows", RULE, frames)
    assert build_windows(root, "windows", RULE, frames)[0].sha256 == first.sha256
    assert build_windows(root, "windows", RULE, frames)[1] == passed == {"no_frame_at_gap": 8}
    with pytest.raises(ColumnMismatch, match=r"windows: was made by another configuration \(settings\.gap: there 8, here 16"):
        build_windows(root, "windows", replace(RULE, gap=16), frames)
    wide, _ = build_windows(root, "wide", replace(RULE, gap=16), frames)
    assert Index.open(root, "windows").sha256 == first.sha256 != wide.sha256
