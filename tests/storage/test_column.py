"""Columns: equal rows give equal bytes, a shard exists when its record does, and plain WebDataset reads the tars."""

import io
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import location, shard
from storage.column import Column, ColumnMismatch, Manifest, open_columns, read_members
from storage.location import NotFound, StorageError, join

KEYS = st.text("abcdefXYZ0189-_", min_size=1, max_size=20)
ROWS = st.dictionaries(
    KEYS, st.dictionaries(st.sampled_from(["a.json", "00.jpg", "x.npy"]), st.binary(max_size=2000), min_size=1), max_size=6
)


def rows(shard_number: int, count: int = 3) -> list[shard.Row]:
    return [(f"s{shard_number}-{i}", {"a.bin": bytes([i]) * (500 * i + 1), "b.json": b"{}"}) for i in range(count)]


def build(root: str, name: str, shards: int) -> Column:
    column = Column(root, name)
    column.declare({"made": "here"})
    for number in column.missing_shards(shards):
        column.commit(number, rows(number))
    column.write_manifest(shards)
    return column


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_every_member_lies_where_the_index_says(content: dict[str, dict[str, bytes]]) -> None:
    tar_bytes, members = shard.pack(content.items())
    assert tar_bytes == shard.pack(content.items())[0]
    assert [(m.key, m.name) for m in members] == [(k, n) for k, files in content.items() for n in sorted(files)]
    for member in members:
        assert tar_bytes[member.offset : member.offset + member.size] == content[member.key][member.name]
    assert dict(shard.unpack(tar_bytes)) == content
    with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as tar:
        assert {(i.mtime, i.uid, i.gid, i.mode) for i in tar} <= {(0, 0, 0, 0o644)}


@pytest.mark.parametrize("key", ["", "a.b", "a/b"])
def test_keys_that_webdataset_would_split_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        shard.pack([(key, {"a": b""})])


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        shard.pack([("k", {"a": b""}), ("k", {"a": b""})])


def test_manifest_finds_every_member(place: str) -> None:
    build(place, "frames", 3)
    manifest = Manifest(place, "frames")
    assert manifest.keys == [key for n in range(3) for key, _ in rows(n)]
    assert manifest.shard_of_rows().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert manifest.members(4) == ["a.bin", "b.json"]
    assert read_members([manifest.locate(4, "a.bin"), manifest.locate(0, "b.json")]) == [bytes([1]) * 501, b"{}"]
    with pytest.raises(KeyError, match=r"'s1-1': no member 'c'; it has a.bin, b.json"):
        manifest.locate(4, "c")


def test_only_what_is_missing_is_missing(place: str) -> None:
    column = build(place, "frames", 4)
    assert column.missing_shards(4) == []
    before = {name: location.read_bytes(join(column.url, name)) for name in location.list_sizes(column.url)}
    location.remove(column.tar_url(1))
    location.remove(join(column.url, "frames-000002.parquet"))
    location.write_bytes(column.tar_url(3), before["frames-000003.tar"][:-512])
    assert column.missing_shards(4) == [1, 2, 3]
    build(place, "frames", 4)
    assert {name: location.read_bytes(join(column.url, name)) for name in location.list_sizes(column.url)} == before


def test_another_configuration_is_refused_by_name(place: str) -> None:
    Column(place, "frames").declare({"config": {"width": 448, "gap": 8}})
    Column(place, "frames").declare({"config": {"width": 448, "gap": 8}})
    with pytest.raises(ColumnMismatch, match=r"config.width: there 448, here 336"):
        Column(place, "frames").declare({"config": {"width": 336, "gap": 8}})


def test_columns_must_list_the_same_keys_in_the_same_order(tmp_path) -> None:
    root = str(tmp_path)
    build(root, "frames", 2)
    build(root, "gaussians", 2)
    assert open_columns(root, ["frames", "gaussians"])["gaussians"].keys == Manifest(root, "frames").keys
    other = Column(root, "features")
    other.declare({})
    other.commit(0, rows(0))
    other.commit(1, rows(1)[::-1])
    other.write_manifest(2)
    with pytest.raises(StorageError, match=r"'frames' .* and 'features' .* differ from row 3 on"):
        open_columns(root, ["frames", "features"])
    with pytest.raises(NotFound, match=r"no finished column 'operators'"):
        open_columns(root, ["frames", "operators"])


def test_a_column_derived_from_something_else_is_refused(tmp_path) -> None:
    root = str(tmp_path)
    build(root, "frames", 1)
    for name, source in (("good", Manifest(root, "frames").content_hash), ("stale", "0" * 64)):
        derived = Column(root, name)
        derived.declare({"from": {"frames": source}})
        derived.commit(0, rows(0))
        derived.write_manifest(1)
    open_columns(root, ["frames", "good"])
    with pytest.raises(StorageError, match=r"column 'stale' was made from another 'frames' than is there now"):
        open_columns(root, ["frames", "stale"])


def test_a_row_in_two_shards_is_refused(tmp_path) -> None:
    column = Column(str(tmp_path), "frames")
    column.declare({})
    column.commit(0, rows(0))
    column.commit(1, rows(0)[1:])
    with pytest.raises(StorageError, match="row 's0-1' lies in two shards"):
        column.write_manifest(2)


def test_a_flipped_byte_is_noticed(tmp_path) -> None:
    column = build(str(tmp_path), "frames", 1)
    manifest = Manifest(str(tmp_path), "frames")
    data = bytearray(location.read_bytes(column.tar_url(0)))
    data[manifest.locate(2, "a.bin")[1].offset + 3] ^= 1
    location.write_bytes(column.tar_url(0), bytes(data))
    assert read_members([manifest.locate(1, "a.bin")]) == [bytes([1]) * 501]
    with pytest.raises(StorageError, match=r"s0-2\.a\.bin differs from its checksum"):
        read_members([manifest.locate(2, "a.bin")])
    with pytest.raises(StorageError, match="differs from its commit record"):
        column.read_shard(0)


def test_plain_webdataset_reads_the_tars(tmp_path) -> None:
    column = build(str(tmp_path), "frames", 2)
    samples = list(webdataset.WebDataset([column.tar_url(0), column.tar_url(1)], shardshuffle=False))
    assert [(s["__key__"], s["a.bin"]) for s in samples] == [(key, members["a.bin"]) for n in range(2) for key, members in rows(n)]


def test_a_column_without_rows_has_a_manifest(tmp_path) -> None:
    build(str(tmp_path), "frames", 0)
    assert len(Manifest(str(tmp_path), "frames")) == 0
    assert np.array_equal(Manifest(str(tmp_path), "frames").shard_of_rows(), [])
