"""A shard is a plain WebDataset tar whose bytes depend on its content alone, and a table that says where each member lies.

tar_bytes, members = pack([("scene-DSC00001", {"00.jpg": b"...", "window.json": b"{}"})])
members[0]  # Member(key="scene-DSC00001", name="00.jpg", offset=512, size=3, crc32=...)
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple


class Member(NamedTuple):
    """One file of one row: `size` bytes at `offset` of the tar; in the tar it is called `{key}.{name}`."""

    key: str
    name: str
    offset: int
    size: int
    crc32: int


Row = tuple[str, Mapping[str, bytes]]


def pack(rows: Iterable[Row]) -> tuple[bytes, list[Member]]:
    """Rows in the given order, members of a row sorted by name, all header fields fixed."""
    stream = io.BytesIO()
    members: list[Member] = []
    seen: set[str] = set()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in rows:
            if not key or "." in key or "/" in key:
                raise ValueError(
                    f"key {key!r}: WebDataset splits names at the first dot and groups by folder, so a key has neither '.' nor '/'"
                )
            if key in seen:
                raise ValueError(f"key {key!r} occurs twice in one shard")
            seen.add(key)
            for name, data in sorted(files.items()):
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size, info.mtime, info.mode = len(data), 0, 0o644
                offset = stream.tell() + tarfile.BLOCKSIZE
                tar.addfile(info, io.BytesIO(data))
                members.append(Member(key, name, offset, len(data), zlib.crc32(data)))
    return stream.getvalue(), members


def unpack(tar_bytes: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The rows of a tar written by `pack`, in order."""
    with tarfile.open(fileobj=io.BytesIO(tar_bytes), mode="r:") as tar:
        current: str | None = None
        files: dict[str, bytes] = {}
        for info in tar:
            key, _, name = info.name.partition(".")
            if current is not None and key != current:
                yield current, files
                files = {}
            current = key
            stream = tar.extractfile(info)
            if stream is None:
                raise ValueError(f"{info.name}: not a regular file; was this tar written by pack()?")
            files[name] = stream.read()
        if current is not None:
            yield current, files
