"""What a single object of a dataset must hold to be sound. Each function takes the object's bytes, and raises where they are not."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from storage import codec, shard
from storage.column import Column, Record
from storage.index import Index, index_name

_SHOWN = 3  # damaged members that a line names


def check_plan(data: bytes) -> None:
    """A plan of shards."""
    value = codec.unseal(data)
    if {type(value["next"]), *(type(number) for number, _scene, _block, _source in value["shards"])} != {int}:
        raise ValueError("not what a build writes")
    list(value["withdrawn"])


def check_report(data: bytes) -> None:
    """The report of a scene."""
    value = codec.decode_json(data)
    for name in ("scene", "kept", "skipped", "quarantined", "sources"):
        value[name]


def decode_index(column: Column, file: str, wanted: bool, data: bytes) -> Index | None:
    """The index, where it is wanted; of the others only the sum is looked at."""
    sha256 = hashlib.sha256(data).hexdigest()
    if index_name(sha256) != file:
        raise ValueError("it differs from its checksum")
    return parse_index(column, sha256, data) if wanted else None


def parse_index(column: Column, sha256: str, data: bytes) -> Index:
    """An index from its bytes."""
    return Index(column.root, column.name, sha256, pa.ipc.open_file(pa.BufferReader(data)).read_all())


def decode_record(column: Column, name: str, data: bytes) -> Record:
    """The commit record called `name`."""
    record = Record(**codec.unseal(data))
    if f"{column.name}/{record.name}" != name:
        raise ValueError(f"it is the record of {record.name}")
    if not (isinstance(record.provenance, str) and isinstance(record.notes, dict)):
        raise ValueError("not what a build writes")
    list(_members(record))
    return record


def _members(record: Record) -> Iterator[tuple[str, int, int, int]]:
    """Name, offset, size and crc32 of each member of a shard. Raises where the record's parts do not fit each other."""
    rows = zip(record.keys, record.layout, record.offsets, record.sizes, record.crc32s, strict=True)
    for key, layout, offset, sizes, crc32s in rows:
        for member, (name, size, crc32) in enumerate(zip(record.layouts[layout], sizes, crc32s, strict=True)):
            yield f"{key}.{name}", shard.data_offset(offset, sizes, member), size, crc32


def check_sum(sha256: str, data: bytes) -> None:
    """A tar of which only the sum is known."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("it differs from the current index")


def read_tar(records: Sequence[Record], data: bytes) -> tuple[Record, dict[str, dict[str, bytes]]]:
    """The record that speaks of this tar, and its rows. Raises ValueError, naming members, where there is none."""
    sha256 = hashlib.sha256(data).hexdigest()
    record = next((r for r in records if (r.tar_bytes, r.tar_sha256) == (len(data), sha256)), None)
    if record is None:
        differ = [label for label, offset, size, crc32 in _members(records[-1]) if zlib.crc32(data[offset : offset + size]) != crc32]
        which = f": {', '.join(differ[:_SHOWN])}{f' and {len(differ) - _SHOWN} more' if len(differ) > _SHOWN else ''}" if differ else ""
        raise ValueError(f"it differs from its commit record{which}")
    rows = dict(shard.unpack(data))
    if [(key, list(members)) for key, members in rows.items()] != [
        (key, list(record.layouts[layout])) for key, layout in zip(record.keys, record.layout, strict=True)
    ]:
        raise ValueError("its rows are not those of its commit record")
    contents = (content for members in rows.values() for content in members.values())
    for (label, offset, size, crc32), content in zip(_members(record), contents, strict=True):
        if data[offset : offset + size] != content or zlib.crc32(content) != crc32:
            raise ValueError(f"{label} lies elsewhere than its commit record says")
    return record, rows
