"""The table: what does not belong together is refused by name, and no more is kept than it says."""

from __future__ import annotations

import pytest

from storage import table as table_module
from storage.column import Column, ShardPlan
from storage.index import Index
from storage.location import NotFound, StorageError
from storage.records.operators import operator_member
from storage.table import Table
from tests.storage import small


def test_columns_that_cannot_be_opened_together_are_named(dataset: str) -> None:
    pinned = Table.open(dataset, ["windows", "masks"]).pins()
    with pytest.raises(NotFound, match=r"column 'operators' is none of those that were pinned \(frames, masks, windows\); start anew"):
        Table.open(dataset, ["windows", "operators"], pinned)
    other = Column(dataset, "slic")
    masks = Column(dataset, "masks")
    other.declare(masks.provenance())
    plan = [ShardPlan(c.number, c.source) for c in masks.listing()]
    for planned in plan:
        other.commit(planned, masks.read_shard(planned.number), masks.provenance().fingerprint)
    other.write_index(plan, Index.open(dataset, "masks").of)
    assert len(Table.open(dataset, ["slic"]).frames) == 12
    with pytest.raises(StorageError, match="'masks' and 'slic' both hold masks; open one of them"):
        Table.open(dataset, ["masks", "slic"])
    with pytest.raises(StorageError, match="the windows table 'windows' has no shard 77"):
        Table.open(dataset, ["windows"]).rows_of_shard(77)


def test_decoded_frames_are_kept_for_a_while_and_not_for_ever(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "_KEPT_FRAMES", 2)
    table = Table.open(made, [])

    def asked(frame: int) -> bool:
        before = table.reader.counts()["requests"]
        table.read_frames([frame])
        return table.reader.counts()["requests"] > before

    assert [asked(frame) for frame in (0, 1, 0, 2, 0, 1)] == [True, True, False, True, False, True]


def test_an_operator_is_that_of_its_target_and_no_other(dataset: str) -> None:
    """Two targets' operators change places; sums and index are right."""
    column = Column(dataset, "operators")
    committed, (first, second) = column.listing(), map(operator_member, (0, 1))
    record = column.records(committed[:1])[0]
    (key, members), *others = column.read_shard(0)
    swapped = {**members, first: members[second], second: members[first]}
    column.commit(ShardPlan(0, record.source, record.inputs), [(key, swapped), *others], record.provenance, [committed[0].record_name])
    column.write_index([ShardPlan(c.number, c.source) for c in column.listing()], Index.open(dataset, "operators").of)
    row = Table.open(dataset, ["windows", "operators"]).row(0)
    assert row.key == key
    assert row.operator(2).context_grid == (2, *small.GRID)
    for target in (0, 1):
        with pytest.raises(ValueError, match=r"source hash .*: build the operators again"):
            row.operator(target)
