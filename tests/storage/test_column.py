"""Columns: equal rows give equal bytes, a shard exists when its record does, and plain WebDataset reads the tars."""

import io
import json
import multiprocessing
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import location, shard
from storage.column import Column, ColumnMismatch, ShardPlan, source_digest
from storage.index import Damaged, Index
from storage.location import NotFound, StorageError, join
from storage.provenance import Provenance
from storage.reader import MemberReader
from storage.table import Table
from tests.storage.race import declare_at_once

KEYS = st.text("abcdefXYZ0189-_", min_size=1, max_size=20)
ROWS = st.dictionaries(
    KEYS, st.dictionaries(st.sampled_from(["a.json", "00.jpg", "x.npy"]), st.binary(max_size=2000), min_size=1), max_size=6
)
MADE = Provenance({}, {"kind": "frames", "size": {"width": 448, "height": 336}}, 2, {"code_version": "1"})


def rows(shard_number: int, count: int = 3) -> list[shard.Row]:
    return [(f"s{shard_number}-{i}", {"a.bin": bytes([i]) * (500 * i + 1), "b.json": b"{}"}) for i in range(count)]


def plan(shards: int, of: str = "raw") -> list[ShardPlan]:
    return [ShardPlan(number, source_digest(of, number)) for number in range(shards)]


def build(root: str, name: str, shards: int, made: Provenance = MADE, of: dict[str, str] | None = None, source: str = "raw") -> Column:
    column, planned = Column(root, name), {p.number: p for p in plan(shards, source)}
    column.declare(made)
    for number, stale in column.missing(planned.values()).items():
        column.commit(planned[number], rows(number), made.fingerprint, stale)
    column.write_index(list(planned.values()), of or {})
    return column


def read(members: list) -> list[bytes]:
    return MemberReader().read(members)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_every_member_lies_where_the_index_says(content: dict[str, dict[str, bytes]]) -> None:
    tar_bytes, samples = shard.pack(content.items())
    assert tar_bytes == shard.pack(content.items())[0]
    assert [(s.key, *s.names) for s in samples] == [(k, *sorted(files)) for k, files in content.items()]
    for sample in samples:
        for member, (name, size) in enumerate(zip(sample.names, sample.sizes, strict=True)):
            offset = shard.data_offset(sample.offset, sample.sizes, member)
            assert tar_bytes[offset : offset + size] == content[sample.key][name]
    assert dict(shard.unpack(tar_bytes)) == content
    with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as tar:
        assert {(i.mtime, i.uid, i.gid, i.mode) for i in tar} <= {(0, 0, 0, 0o644)}


@given(st.lists(ROWS, max_size=3))
@settings(max_examples=25, deadline=None)
def test_an_index_finds_every_member_of_rows_of_any_layout(tmp_path_factory: pytest.TempPathFactory, shards: list[dict]) -> None:
    """Through commit records, index and reader; keys are made unlike across shards."""
    column = Column(str(tmp_path_factory.mktemp("column")), "frames")
    column.declare(MADE)
    content = {f"{n}-{key}": files for n, part in enumerate(shards) for key, files in part.items()}
    for planned in plan(len(shards)):
        column.commit(planned, [(f"{planned.number}-{k}", f) for k, f in shards[planned.number].items()], MADE.fingerprint)
    index = column.write_index(plan(len(shards)), {})
    assert index.all_keys() == list(content)
    found = {key: {name: index.locate(row, name) for name in index.members(row)} for row, key in enumerate(index.all_keys())}
    assert {key: dict(zip(members, read(list(members.values())), strict=True)) for key, members in found.items()} == content


@pytest.mark.parametrize("key", ["", "a.b", "a/b"])
def test_keys_that_webdataset_would_split_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        shard.pack([(key, {"a": b""})])


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        shard.pack([("k", {"a": b""}), ("k", {"a": b""})])


def test_an_index_finds_every_member(store_url: str) -> None:
    build(store_url, "frames", 3)
    index = Index.open(store_url, "frames")
    assert index.all_keys() == [key for n in range(3) for key, _ in rows(n)]
    assert index.shard_of_rows().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert index.members(4) == ["a.bin", "b.json"]
    assert read([index.locate(4, "a.bin"), index.locate(0, "b.json")]) == [bytes([1]) * 501, b"{}"]
    with pytest.raises(KeyError, match=r"'s1-1': no member 'c'; it has a.bin, b.json"):
        index.locate(4, "c")


def test_only_what_is_missing_is_missing(store_url: str) -> None:
    column = build(store_url, "frames", 4)
    assert column.missing(plan(4)) == {}
    before = {name: location.read_bytes(join(column.url, name)) for name in location.list_sizes(column.url)}
    records = [c.record_name for c in column.listing()]
    location.remove(column.tar_url(1))
    location.remove(join(column.url, records[2]))
    location.write_bytes(column.tar_url(3), before["frames-000003.tar"][:-512])
    assert column.missing(plan(4)) == {1: [records[1]], 2: [], 3: [records[3]]}
    build(store_url, "frames", 4)
    assert {name: location.read_bytes(join(column.url, name)) for name in location.list_sizes(column.url)} == before


def test_a_stale_source_is_missing_and_names_its_record(store_url: str) -> None:
    column = build(store_url, "frames", 3)
    before = column.listing()
    changed = [*plan(3)[:1], ShardPlan(1, source_digest("changed")), *plan(3)[2:]]
    assert column.missing(changed) == {1: [before[1].record_name]}
    with pytest.raises(StorageError, match="1 shards are not committed, the first is 1; run the build again"):
        column.write_index(changed, {})
    column.commit(changed[1], rows(1), MADE.fingerprint, [before[1].record_name])
    assert [c.source for c in column.listing()] == [p.source for p in changed]
    assert column.missing(changed) == {}


def test_a_shard_made_again_with_other_bytes_of_the_same_length_gets_a_new_index(store_url: str) -> None:
    column = build(store_url, "frames", 2)
    other = [(key, {**files, "b.json": b"[]"}) for key, files in rows(1)]
    column.commit(plan(2)[1], other, MADE.fingerprint, [column.listing()[1].record_name])
    column.write_index(plan(2), {})
    index = Index.open(store_url, "frames")
    assert read([index.locate(0, "b.json"), index.locate(3, "b.json")]) == [b"{}", b"[]"]


@pytest.mark.parametrize("last", [b"{}", b"[]", b"77"])
def test_of_two_records_of_one_shard_the_index_takes_the_one_that_fits_its_tar(tmp_path, last: bytes) -> None:
    """An actor that was retried after it had committed, on a device that gave other bytes of the same length."""
    column = build(str(tmp_path), "frames", 2)
    for content in (*({b"{}", b"[]", b"77"} - {last}), last):
        column.commit(plan(2)[1], [(key, {**files, "b.json": content}) for key, files in rows(1)], MADE.fingerprint)
    assert len(column.listing()) == 4
    index = column.write_index(plan(2), {})
    assert read([index.locate(3, "b.json")]) == [last]


def test_another_configuration_is_refused_by_name(store_url: str) -> None:
    build(store_url, "frames", 1)
    other = replace(MADE, settings={**MADE.settings, "size": {"width": 336, "height": 336}})
    with pytest.raises(ColumnMismatch, match=r"size.width: there 448, here 336\); choose another dataset URL or column name, or delete"):
        Column(store_url, "frames").declare(other)
    location.remove(join(store_url, "frames", "column.json"))
    with pytest.raises(ColumnMismatch, match=r"its rows were made by another configuration"):
        Column(store_url, "frames").declare(other)
    Column(store_url, "frames").declare(MADE)
    assert Column(store_url, "frames").provenance() == MADE


def test_a_table_without_shards_keeps_its_note_too(tmp_path) -> None:
    """A windows table holds rows, no shard."""
    column = build(str(tmp_path), "windows", 1)
    location.remove_many([join(column.url, column.listing()[0].record_name)])
    for present in (True, False):
        with pytest.raises(ColumnMismatch):
            column.declare(replace(MADE, settings={"kind": "frames", "gap": 9}))
        if present:
            location.remove(column.note_url)


def test_another_release_goes_on_and_an_empty_column_is_declared_anew(store_url: str) -> None:
    other = replace(MADE, settings={"kind": "frames", "size": {"width": 1, "height": 1}})
    column = build(store_url, "frames", 0, other)
    build(store_url, "frames", 0)
    assert (column.provenance(), Index.open(store_url, "frames").provenance) == (MADE, MADE.fingerprint)
    build(store_url, "frames", 2)
    build(store_url, "frames", 3, replace(MADE, recorded={"code_version": "2", "time": "later"}))
    assert column.provenance().recorded == {"code_version": "1"}
    assert len(column.committed()) == 3


def test_of_two_that_declare_at_once_one_is_refused_before_it_writes(store_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=declare_at_once, args=(store_url, width, barrier, results)) for width in (448, 336)]
    for process in processes:
        process.start()
    told = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    (winner,) = [width for width, what in told.items() if what == "declared"]
    assert Column(store_url, "frames").provenance().settings["width"] == winner
    assert f"width: there {winner}, here {784 - winner}" in told[784 - winner]
    assert location.list_sizes(join(store_url, "frames")).keys() == {"column.json"}


def test_shards_of_another_configuration_get_into_no_index(tmp_path) -> None:
    column = build(str(tmp_path), "frames", 1)
    column.commit(plan(2)[1], rows(1), "0" * 64)
    with pytest.raises(ColumnMismatch, match=r"shard 1 was made by another configuration \(000000000000\)"):
        column.write_index(plan(2), {})


@pytest.mark.parametrize("note", [{"format_version": 1, "config": {"width": 448}}, {"config": {}, "format_version": 1, "from": {}}])
def test_a_dataset_of_an_older_release_is_refused(store_url: str, note: dict) -> None:
    location.write_bytes(join(store_url, "frames", "column.json"), json.dumps(note, sort_keys=True, separators=(",", ":")).encode())
    for attempt in (Column(store_url, "frames").check, Column(store_url, "frames").declare):
        with pytest.raises(
            StorageError, match=r"column.json: an older release made this dataset, .*; build it again at another URL$"
        ) as caught:
            attempt(MADE)
        assert not isinstance(caught.value, Damaged)


def test_a_damaged_note_of_a_format_version_1_is_no_older_release(tmp_path) -> None:
    column = Column(str(tmp_path), "windows")
    column.declare(replace(MADE, format_version=1))
    data = location.read_bytes(column.note_url)
    location.write_bytes(column.note_url, data.replace(b"448", b"449"))
    with pytest.raises(Damaged, match="differs from its own checksum"):
        column.provenance()


def test_an_index_that_is_current_is_not_written_again(store_url: str) -> None:
    column = build(store_url, "frames", 2)
    before = location.list_objects(column.url)
    if location.local_path(store_url):
        for name in before:
            os.utime(f"{column.url}/{name}", ns=(1, 1))
        before = location.list_objects(column.url)
    build(store_url, "frames", 2)
    assert location.list_objects(column.url) == before
    build(store_url, "frames", 2, of={"raw": "1" * 64})
    after = location.list_objects(column.url)
    assert len(after) == len(before) + 1
    assert after["current.json"] != before["current.json"]


def test_columns_are_joined_by_key(tmp_path) -> None:
    root = str(tmp_path)
    frames = Index.open(root, build(root, "frames", 2).name)
    other = Column(root, "masks")
    made = replace(MADE, settings={"kind": "masks"})
    other.declare(made)
    other.commit(plan(2)[0], rows(0), made.fingerprint)
    other.commit(plan(2)[1], rows(1)[:0:-1], made.fingerprint)
    other.write_index(plan(2), {"frames": frames.sha256})
    table = Table.open(root, ["masks"])
    assert [table.row_in("masks", row) for row in (0, 2, 4, 5)] == [0, 2, 4, 3]
    assert table.by_kind["masks"].key(3) == "s1-2"
    assert table.locate("masks", 5, "a.bin") == table.by_kind["masks"].locate(3, "a.bin")
    with pytest.raises(StorageError, match=r"column 'masks' has no row 's1-0'; run its build again"):
        table.row_in("masks", 3)
    with pytest.raises(NotFound, match=r"no finished column 'operators'"):
        Table.open(root, ["operators"])


def test_a_column_made_for_another_state_is_refused(tmp_path) -> None:
    root = str(tmp_path)
    frames = build(root, "frames", 1)
    first = Index.open(root, "frames").sha256
    for name in ("masks", "features"):
        build(root, name, 1, replace(MADE, settings={"kind": name}), {"frames": first})
    Table.open(root, ["masks", "features"])
    build(root, "frames", 2)
    build(root, "features", 1, replace(MADE, settings={"kind": "features"}), {"frames": Index.open(root, "frames").sha256})
    Table.open(root, ["features"])
    with pytest.raises(
        StorageError, match=r"column 'masks' was made for another state of 'frames' than it has now; run the build of 'masks'"
    ):
        Table.open(root, ["masks"])
    pins = {"frames": first, "masks": Index.open(root, "masks").sha256}
    assert len(Table.open(root, ["masks"], pins).frames) == 3
    assert frames.name == "frames"


def test_a_row_in_two_shards_is_refused(tmp_path) -> None:
    column = Column(str(tmp_path), "frames")
    column.declare(MADE)
    column.commit(plan(2)[0], rows(0), MADE.fingerprint)
    column.commit(plan(2)[1], rows(0)[1:], MADE.fingerprint)
    with pytest.raises(StorageError, match="row 's0-1' lies in the shards 0 and 1"):
        column.write_index(plan(2), {})


def test_a_flipped_byte_is_noticed(tmp_path) -> None:
    column = build(str(tmp_path), "frames", 1)
    index = Index.open(str(tmp_path), "frames")
    data = bytearray(location.read_bytes(column.tar_url(0)))
    data[index.locate(2, "a.bin").offset + 3] ^= 1
    location.write_bytes(column.tar_url(0), bytes(data))
    assert read([index.locate(1, "a.bin")]) == [bytes([1]) * 501]
    with pytest.raises(Damaged, match=r"frames-000000\.tar: member s0-2\.a\.bin differs from its checksum"):
        read([index.locate(2, "a.bin")])
    with pytest.raises(Damaged, match="differs from its commit record"):
        column.read_shard(0)


def test_plain_webdataset_reads_the_tars(tmp_path) -> None:
    column = build(str(tmp_path), "frames", 2)
    samples = list(webdataset.WebDataset([column.tar_url(0), column.tar_url(1)], shardshuffle=False))
    assert [(s["__key__"], s["a.bin"]) for s in samples] == [(key, members["a.bin"]) for n in range(2) for key, members in rows(n)]


def test_a_column_without_rows_has_an_index(tmp_path) -> None:
    build(str(tmp_path), "frames", 0)
    assert len(Index.open(str(tmp_path), "frames")) == 0
    assert np.array_equal(Index.open(str(tmp_path), "frames").shard_of_rows(), [])


def test_who_looked_before_another_declared_does_not_write_over_it(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build(store_url, "frames", 0)
    monkeypatch.setattr(Column, "check", lambda *_: None)  # it saw no note
    other = replace(MADE, settings={**MADE.settings, "size": {"width": 336, "height": 336}})
    with pytest.raises(ColumnMismatch, match=r"another build declares it otherwise \(settings\.size\.width: there 448, here 336"):
        Column(store_url, "frames").declare(other)
    assert Column(store_url, "frames").provenance() == MADE


def test_a_column_whose_shards_hold_no_row_is_declared_anew(tmp_path) -> None:
    """All scenes of a first try were set aside, say."""
    column = build(str(tmp_path), "frames", 0)
    column.commit(plan(1)[0], [], MADE.fingerprint)
    other = replace(MADE, settings={"kind": "frames", "size": {"width": 336, "height": 336}})
    column.declare(other)
    assert column.provenance() == other


def test_a_record_that_lies_under_the_name_of_another_is_damage(store_url: str) -> None:
    column = build(store_url, "frames", 2)
    first, second = (join(column.url, c.record_name) for c in column.listing())
    location.write_bytes(second, location.read_bytes(first))
    with pytest.raises(Damaged, match=r"frames-000001\..*: holds the record of frames-000000\..*set_aside=true"):
        column.records(column.listing())


def test_a_shard_whose_tar_is_cut_off_is_not_committed(store_url: str) -> None:
    column = build(store_url, "frames", 2)
    location.write_bytes(column.tar_url(1), location.read_bytes(column.tar_url(1))[:-512])
    assert list(column.committed()) == [0]
    with pytest.raises(NotFound, match=r"frames-000001\.tar: not committed; run its build again"):
        column.read_shard(1)


def test_an_index_of_more_records_than_are_read_at_a_time_has_them_all_in_any_order_of_the_plan(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = build(str(tmp_path), "frames", 7)
    monkeypatch.setattr("storage.column._RECORDS", 3)
    location.remove(join(column.url, "current.json"))
    index = column.write_index(plan(7)[::-1], {})
    assert index.all_keys() == [key for n in range(7) for key, _ in rows(n)]
    assert [number for number, *_ in index.metadata["shards"]] == list(range(7))


def test_keys_of_equal_lengths_are_not_taken_for_equal_keys(tmp_path) -> None:
    root = str(tmp_path)
    frames, made = build(root, "frames", 1), replace(MADE, settings={"kind": "masks"})
    masks = Column(root, "masks")
    masks.declare(made)
    masks.commit(plan(1)[0], rows(0)[::-1], made.fingerprint)
    masks.write_index(plan(1), {})
    table = Table.open(root, ["masks"])
    assert [table.row_in("masks", row) for row in range(3)] == [2, 1, 0]
    assert frames.name == "frames"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(MADE, format_version=3), "format_version: there 2, here 3"),
        (replace(MADE, inputs={"raw": "1"}), r"inputs\.raw: there None, here '1'"),
        (replace(MADE, settings={"kind": "frames"}), r"settings\.size: there \{.*\}, here None"),
    ],
)
def test_every_part_of_a_provenance_binds(tmp_path, other: Provenance, message: str) -> None:
    build(str(tmp_path), "frames", 1)
    assert other.fingerprint != MADE.fingerprint
    with pytest.raises(ColumnMismatch, match=message):
        Column(str(tmp_path), "frames").declare(other)


def test_a_nodes_copy_of_an_index_is_whole_or_not_there_and_mended_when_damaged(s3: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLAT_AND_DISTILL_CACHE", str(tmp_path / "of-the-builder"))
    build(s3, "frames", 1)
    monkeypatch.setenv("SPLAT_AND_DISTILL_CACHE", str(tmp_path / "node"))
    with monkeypatch.context() as patch:
        patch.setattr("storage.index.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Index.open(s3, "frames")
    assert not list((tmp_path / "node" / "index").glob("*.arrow"))
    keys = Index.open(s3, "frames").all_keys()
    (copy,) = (tmp_path / "node" / "index").glob("*.arrow")
    whole = copy.read_bytes()
    copy.unlink()  # a mapped file is not written over
    copy.write_bytes(whole[: len(whole) // 2])
    assert Index.open(s3, "frames").all_keys() == keys
    assert copy.read_bytes() == whole


def test_a_nodes_folder_of_another_user_is_refused(s3: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLAT_AND_DISTILL_CACHE", str(tmp_path))
    owner = os.getuid()
    monkeypatch.setattr("storage.index.os.getuid", lambda: owner + 1)
    with pytest.raises(StorageError, match=r"belongs to another user; set SPLAT_AND_DISTILL_CACHE to a folder of your own"):
        build(s3, "frames", 1)
