"""A shard is a plain WebDataset tar whose bytes depend on its content alone; where each member lies follows from the sizes.

tar_bytes, samples = pack([("scene-DSC00001", {"jpg": b"...", "camera.json": b"{}"})])
samples[0]  # Sample(key="scene-DSC00001", names=("camera.json", "jpg"), offset=0, sizes=(2, 3), crc32s=(..., ...))
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

_BLOCK = tarfile.BLOCKSIZE


class Sample(NamedTuple):
    """One row of a tar: its members by name, in the order in which they lie; the first one's header begins at `offset`."""

    key: str
    names: tuple[str, ...]
    offset: int
    sizes: tuple[int, ...]
    crc32s: tuple[int, ...]


Row = tuple[str, Mapping[str, bytes]]


def pack(rows: Iterable[Row]) -> tuple[bytes, list[Sample]]:
    """Rows in the given order, members of a row sorted by name, all header fields fixed."""
    stream = io.BytesIO()
    samples: list[Sample] = []
    seen: set[str] = set()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in rows:
            if not key or "." in key or "/" in key:
                raise ValueError(
                    f"key {key!r}: WebDataset splits names at the first dot and groups by folder, so a key has neither '.' nor '/'"
                )
            if key in seen:
                raise ValueError(f"key {key!r} occurs twice in one shard")
            if not files:
                raise ValueError(f"key {key!r} has no members")
            seen.add(key)
            offset, members = stream.tell(), sorted(files.items())
            for name, data in members:
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size, info.mtime, info.mode = len(data), 0, 0o644
                tar.addfile(info, io.BytesIO(data))
            names, contents = zip(*members, strict=True)
            samples.append(Sample(key, names, offset, tuple(map(len, contents)), tuple(map(zlib.crc32, contents))))
    return stream.getvalue(), samples


def data_offset(sample_offset: int, sizes: Sequence[int], member: int) -> int:
    """Where the data of a sample's member number `member` begins in its tar, from the sizes of the members before it."""
    offset = sample_offset + _BLOCK
    for size in sizes[:member]:
        offset += _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK
    return offset


def unpack(tar_bytes: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The rows of a tar written by `pack`, in order. Raises ValueError or tarfile.TarError for anything else."""
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
