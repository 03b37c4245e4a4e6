"""What was made from a shard that changed is stale, and nothing else is; what was pinned before is not mixed with what came after."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.columns.features import features_plan
from pipeline.columns.gaussians import windows_plan
from storage import codec, location
from storage.column import Column, ShardPlan
from storage.index import Damaged, Index
from storage.location import StorageError
from storage.table import Table
from tests.storage import small

NUMBER = 1  # the shard that changes, of each column


def remade(dataset: str, name: str) -> None:
    """The column with shard NUMBER made anew from the same source, with other bytes of the same length; and its index."""
    column = Column(dataset, name)
    committed = column.listing()
    record = column.records([committed[NUMBER]])[0]
    (key, first), *others = column.read_shard(NUMBER)
    member = max(first, key=lambda member: len(first[member]))
    other = first[member][:-1] + bytes([first[member][-1] ^ 1])
    plan = ShardPlan(NUMBER, record.source, record.inputs)
    content = [(key, {**first, member: other}), *others]
    column.commit(plan, content, record.provenance, [committed[NUMBER].record_name], record.attributes, record.notes)
    of = codec.unseal(Path(column.url, "current.json").read_bytes())["of"]
    column.write_index([ShardPlan(c.number, c.source) for c in column.listing()], of)
    assert [c.tar_bytes for c in column.listing()] == [c.tar_bytes for c in committed]


def stale(dataset: str) -> dict[str, set[int]]:
    """The shards of each derived column that its plan of now asks for anew."""
    frames, windows, masks, gaussians = (Index.open(dataset, name) for name in ("frames", "windows", "masks", "gaussians"))
    columns = {name: Column(dataset, name) for name in ("features", "gaussians", "operators")}
    notes = {name: column.provenance() for name, column in columns.items()}
    plans = {
        "features": features_plan(frames, notes["features"], None),
        "gaussians": windows_plan(windows, notes["gaussians"]),
        "operators": windows_plan(windows, notes["operators"], [masks], [gaussians]),
    }
    return {name: set(columns[name].missing(plan)) for name, plan in plans.items()}


def of_windows_that_see(dataset: str, frames_shard: int) -> set[int]:
    """The shards of the windows table of which a window names a frame of that shard."""
    table = Table.open(dataset, ["windows"])
    windows = [(table.windows.shard(n), table.row(n).window()) for n in range(len(table))]
    return {n for n, w in windows if frames_shard in {table.frames.shard(f) for f in (*w.context, *w.targets)}}


@pytest.mark.parametrize("source", ["frames", "masks", "features", "gaussians"])
def test_a_source_shard_that_changed_makes_exactly_what_came_from_it_stale(source: str, dataset: str) -> None:
    """Each column in turn is made anew in one shard, whose number, source and length stay: only the sum of its tar tells."""
    assert stale(dataset) == {"features": set(), "gaussians": set(), "operators": set()}
    seeing = of_windows_that_see(dataset, NUMBER)
    assert 0 < len(seeing) < len(Index.open(dataset, "windows").metadata["shards"])
    remade(dataset, source)
    expected: dict[str, dict[str, set[int]]] = {
        "frames": {"features": {NUMBER}},
        "masks": {"operators": seeing},
        "features": {},  # no column is made from it
        "gaussians": {"operators": {NUMBER}},
    }
    assert stale(dataset) == {"features": set(), "gaussians": set(), "operators": set(), **expected[source]}


def test_windows_of_frames_that_changed_get_new_shards_and_the_others_keep_theirs(dataset: str) -> None:
    before = Index.open(dataset, "windows").metadata["shards"]
    seeing = of_windows_that_see(dataset, NUMBER)
    remade(dataset, "frames")
    frames = Index.open(dataset, "frames")
    windows, _ = small.build_windows(dataset, "windows", small.RULE, frames)
    after = windows.metadata["shards"]
    assert [shard for shard in after if shard in before] == [shard for shard in before if shard[0] not in seeing]
    assert len(after) == len(before)
    gaussians = Column(dataset, "gaussians")
    missing = gaussians.missing(windows_plan(windows, gaussians.provenance()))
    assert set(missing) == {number for number, *_ in after} - {number for number, *_ in before}
    assert len(missing) == len(seeing)
    for _, _, inputs in after:
        assert inputs["frames"].items() <= frames.tar_sums().items()


def test_a_frame_between_the_ends_of_a_window_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a frame a shard: the one in the middle is a target only."""
    monkeypatch.setattr(small, "PER_SHARD", 1)
    small.build(str(tmp_path))
    seeing = of_windows_that_see(str(tmp_path), NUMBER)
    assert seeing == {0}
    before = Index.open(str(tmp_path), "windows").metadata["shards"]
    remade(str(tmp_path), "frames")
    windows, _ = small.build_windows(str(tmp_path), "windows", small.RULE, Index.open(str(tmp_path), "frames"))
    assert {n for n, *_ in before} - {n for n, *_ in windows.metadata["shards"]} == seeing


def test_who_pinned_the_source_before_it_changed_is_not_given_the_other_bytes(dataset: str) -> None:
    """A maker opens what its shards were planned from; a shard that was made anew meanwhile is refused by name, the others are read."""
    names = ["windows", "masks", "gaussians"]
    pinned = Table.open(dataset, names).pins()
    for source in ("masks", "gaussians"):
        remade(dataset, source)
    table = Table.open(dataset, names, pinned)
    assert table.pins() == pinned
    assert Table.open(dataset, ["windows", "masks"]).pins()["masks"] != pinned["masks"]
    for row in table.rows_of_shard(0):
        row.gaussians()
    with pytest.raises(Damaged, match=r"gaussians-000001\.tar: member .* made anew since this index was pinned"):
        [row.gaussians() for row in table.rows_of_shard(NUMBER)]
    changed = table.frames.rows_of_shard(NUMBER)
    table.read_frames([r for r in range(len(table.frames)) if r not in changed], labels=True)
    with pytest.raises(Damaged, match=r"masks-000001\.tar: member .* made anew since this index was pinned"):
        table.read_frames(changed, labels=True)
    location.remove(Index.open(dataset, "masks").url + f"/index-{pinned['masks'][:16]}.arrow")
    with pytest.raises(StorageError, match="this index is gone; start a new run, or bring it back"):
        Table.open(dataset, names, pinned)


def test_a_whole_shard_of_other_bytes_is_not_taken_for_what_its_record_says(dataset: str) -> None:
    """Swapped, not cut: of the same length, sound by itself."""
    column = Column(dataset, "masks")
    data = Path(column.tar_url(0)).read_bytes()
    remade(dataset, "masks")
    changed = Path(column.tar_url(NUMBER)).read_bytes()
    assert len(data) == len(changed)
    Path(column.tar_url(NUMBER)).write_bytes(data)
    assert not column.missing([ShardPlan(c.number, c.source) for c in column.listing()])  # a listing cannot tell
    with pytest.raises(Damaged, match=r"masks-000001\.tar: differs from its commit record; run .*set_aside=true"):
        column.read_shard(NUMBER)
