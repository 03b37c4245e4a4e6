"""A column: numbered shards, a commit record beside each, a manifest over all, and one note of what made it.

    frames/column.json              what made it: configuration, code version, weights hash, source, licence note
    frames/frames-000000.tar        shard 0
    frames/frames-000000.parquet    its commit record: written after the tar; without it the shard does not exist
    frames/manifest.parquet         all commit records, one after the other; written when every shard is there

A build that runs again asks `missing_shards` and builds those alone.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage import codec, location, shard
from storage.location import NotFound, StorageError, join

FORMAT_VERSION = 1

_MEMBERS = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("member", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
    ]
)


class ColumnMismatch(StorageError):
    """The column exists, but something else made it."""


class Column:
    """One column of the dataset at `root`, for those who build it."""

    def __init__(self, root: str, name: str) -> None:
        self.root, self.name, self.url = root, name, join(root, name)

    def tar_url(self, number: int) -> str:
        return join(self.url, f"{self.name}-{number:06d}.tar")

    def _record_url(self, number: int) -> str:
        return join(self.url, f"{self.name}-{number:06d}.parquet")

    def declare(self, made_by: dict[str, Any]) -> None:
        """Says what makes this column, before its first shard. Anything else that made it already is refused by name."""
        made_by = {"format_version": FORMAT_VERSION, **made_by}
        if not self.check(made_by):
            location.write_bytes(join(self.url, "column.json"), codec.encode_json(made_by))

    def check(self, made_by: dict[str, Any]) -> bool:
        """Whether the column was declared; refuses by name where it was declared with other values for the keys of `made_by`."""
        try:
            present = self.made_by()
        except NotFound:
            return False
        different = differences({name: present.get(name) for name in made_by}, made_by)
        if different:
            raise ColumnMismatch(
                f"{self.url}: was made by another configuration ({'; '.join(different[:4])}); "
                "choose another dataset URL or column name, or remove this column"
            )
        return True

    def made_by(self) -> dict[str, Any]:
        """What `declare` wrote."""
        return codec.decode_json(location.read_bytes(join(self.url, "column.json")))

    def missing_shards(self, count: int) -> list[int]:
        """The numbers in 0..count-1 without a commit record, or whose tar is absent or not as long as its record says."""
        sizes = location.list_sizes(self.url)
        missing = []
        for number in range(count):
            tar, record = f"{self.name}-{number:06d}.tar", f"{self.name}-{number:06d}.parquet"
            if tar not in sizes or record not in sizes or sizes[tar] != self._recorded_bytes(number):
                missing.append(number)
        return missing

    def _recorded_bytes(self, number: int) -> int:
        metadata = pq.read_schema(io.BytesIO(location.read_bytes(self._record_url(number)))).metadata
        return int(metadata[b"tar_bytes"])

    def commit(self, number: int, rows: Iterable[shard.Row]) -> int:
        """Writes shard `number`: the tar first, its commit record last. Returns the number of rows."""
        tar_bytes, members = shard.pack(rows)
        location.write_bytes(self.tar_url(number), tar_bytes)
        columns = list(zip(*members, strict=True)) if members else [()] * 5
        table = pa.table([pa.array([number] * len(members), pa.int32()), *columns], schema=_MEMBERS)
        metadata = {"tar_bytes": str(len(tar_bytes)), "tar_sha256": hashlib.sha256(tar_bytes).hexdigest()}
        location.write_bytes(self._record_url(number), _to_parquet(table.replace_schema_metadata(metadata)))
        return len({member.key for member in members})

    def write_manifest(self, count: int) -> int:
        """Puts the commit records of all `count` shards together. Returns the number of rows. Equal records give equal bytes."""
        records = [pq.read_table(io.BytesIO(location.read_bytes(self._record_url(number)))) for number in range(count)]
        table = pa.concat_tables(r.replace_schema_metadata(None) for r in records) if records else _MEMBERS.empty_table()
        hashes = [r.schema.metadata[b"tar_sha256"].decode() for r in records]
        starts = _row_starts(table)
        keys = table["key"].take(pa.array(starts[:-1])).to_pylist()
        if len(set(keys)) < len(keys):
            twice = next(key for key, count in Counter(keys).items() if count > 1)
            raise StorageError(f"{self.url}: row {twice!r} lies in two shards; remove this column and build it again")
        metadata = {"made_by": codec.encode_json(self.made_by()), "tar_sha256": codec.encode_json(hashes)}
        location.write_bytes(join(self.url, "manifest.parquet"), _to_parquet(table.replace_schema_metadata(metadata)))
        return len(keys)

    def read_shard(self, number: int) -> list[tuple[str, dict[str, bytes]]]:
        """All rows of one shard, its tar checked against the hash in its commit record."""
        tar_bytes = location.read_bytes(self.tar_url(number))
        metadata = pq.read_schema(io.BytesIO(location.read_bytes(self._record_url(number)))).metadata
        if hashlib.sha256(tar_bytes).hexdigest() != metadata[b"tar_sha256"].decode():
            raise StorageError(f"{self.tar_url(number)}: differs from its commit record; remove both and run the build again")
        return list(shard.unpack(tar_bytes))


class Manifest:
    """The manifest of a finished column, for those who read it: which rows there are, and where each member lies."""

    def __init__(self, root: str, name: str) -> None:
        self.column = Column(root, name)
        try:
            data = location.read_bytes(join(self.column.url, "manifest.parquet"))
        except NotFound as error:
            raise NotFound(
                f"{self.column.url}: no finished column {name!r} here (manifest.parquet is absent); {_how_to_build(name)}"
            ) from error
        table = pq.read_table(io.BytesIO(data))
        self.made_by: dict[str, Any] = codec.decode_json(table.schema.metadata[b"made_by"])
        self.content_hash = hashlib.sha256(table.schema.metadata[b"tar_sha256"]).hexdigest()
        """Over the hashes of all shards: what a derived column says that it was derived from."""
        self._starts = _row_starts(table)
        self._shard = table["shard"].to_numpy()
        self._offset, self._size, self._crc32 = (table[c].to_numpy() for c in ("offset", "size", "crc32"))
        self._member = table["member"].combine_chunks().dictionary_encode()
        self.keys: list[str] = table["key"].take(pa.array(self._starts[:-1])).to_pylist()

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, row: int) -> list[str]:
        """The names of the members of a row, sorted."""
        return self._member[int(self._starts[row]) : int(self._starts[row + 1])].to_pylist()

    def locate(self, row: int, member: str) -> tuple[str, shard.Member]:
        """The tar's URL and the member's place in it. KeyError names the column, the key and what there is."""
        names = self.members(row)
        if member not in names:
            raise KeyError(f"column {self.column.name!r}, key {self.keys[row]!r}: no member {member!r}; it has {', '.join(names)}")
        i = int(self._starts[row]) + names.index(member)
        place = shard.Member(self.keys[row], member, int(self._offset[i]), int(self._size[i]), int(self._crc32[i]))
        return self.column.tar_url(int(self._shard[i])), place

    def shard_of_rows(self) -> np.ndarray:
        """[rows] int32: the shard in which each row lies."""
        return self._shard[self._starts[:-1]]


def read_members(places: Sequence[tuple[str, shard.Member]]) -> list[bytes]:
    """The bytes of members found by `Manifest.locate`, all in flight together, each checked against its checksum."""
    parts = location.read_ranges([url for url, _ in places], [m.offset for _, m in places], [m.size for _, m in places])
    for (url, member), data in zip(places, parts, strict=True):
        if zlib.crc32(data) != member.crc32:
            raise StorageError(
                f"{url}: member {member.key}.{member.name} differs from its checksum; remove the shard and run its build again"
            )
    return parts


def open_columns(root: str, names: Sequence[str]) -> dict[str, Manifest]:
    """The manifests of several columns, which must list the same keys in the same order, each derived from the others as they are now."""
    manifests = {name: Manifest(root, name) for name in names}
    first = manifests[names[0]]
    for name in names[1:]:
        other = manifests[name]
        if other.keys != first.keys:
            n = next((i for i, (a, b) in enumerate(zip(first.keys, other.keys, strict=False)) if a != b), min(len(first), len(other)))
            raise StorageError(
                f"{root}: columns {names[0]!r} ({len(first)} rows) and {name!r} ({len(other)} rows) differ from row {n} on; "
                f"build {name!r} again from the present {names[0]!r}"
            )
    for name, manifest in manifests.items():
        for source, content in manifest.made_by.get("from", {}).items():
            if source in manifests and manifests[source].content_hash != content:
                raise StorageError(f"{root}: column {name!r} was made from another {source!r} than is there now; build it again")
    return manifests


def _how_to_build(name: str) -> str:
    script = "build_shards.py" if name in ("frames", "features") else "cache_gaussians.py"
    return f"build it with: python pipeline/{script}, and let it finish"


def _row_starts(table: pa.Table) -> np.ndarray:
    """[rows + 1] int64: where each row's members start. Members of one row are neighbours."""
    if not len(table):
        return np.zeros(1, np.int64)
    codes = table["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    changes = np.flatnonzero(codes[1:] != codes[:-1]) + 1
    return np.concatenate([[0], changes, [len(table)]]).astype(np.int64)


def _to_parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def differences(there: Any, here: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, a line each: `window.gap: there 8, here 10`."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [line for k in sorted({*there, *here}) for line in differences(there.get(k), here.get(k), f"{path}.{k}" if path else k)]
    return [] if there == here else [f"{path}: there {there!r}, here {here!r}"]
