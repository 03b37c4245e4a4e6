"""Where every member of a column lies: one Arrow file, mapped into memory, with no Python object a row.

    index = Index.open("s3://bucket/rooms", "frames")
    index.locate(7, "jpg")      # Member(url=".../frames-000000.tar", name="jpg", offset=..., size=..., crc32=...)

A row holds its key, its shard, where it begins there, its layout (which members, in which order), and their sizes and checksums; offsets
follow from the sizes. The file is named by its content, so every version is kept and can be pinned, and checked when it is opened. Of an
index on remote storage a node keeps one copy, which all its processes map.

Long because the file's layout is written and read here, and nowhere else.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage import codec, location
from storage.location import NotFound, StorageError, join
from storage.shard import data_offset

_DIGITS = 16  # of the sum that an index's name carries

INDEX_NAME = re.compile(rf"index-[0-9a-f]{{{_DIGITS}}}\.arrow")
ATTRIBUTES: dict[str, pa.DataType] = {
    "scene": pa.string(),
    "number": pa.int64(),
    "held_out": pa.bool_(),
    "c2w": pa.list_(pa.float64(), 16),
    "context": pa.list_(pa.int32()),
    "targets": pa.list_(pa.int32()),
}
"""What a row may carry beside its members, and as what type."""
FRAME_ATTRIBUTES = ("scene", "number", "held_out", "c2w")


class Damaged(StorageError):
    """An object is there but is not what was written."""


class Member(NamedTuple):
    """One file of one row: `size` bytes at `offset` of the tar at `url`."""

    url: str
    name: str
    offset: int
    size: int
    crc32: int


@dataclass
class IndexRows:
    """The rows of an index to be, column-wise. sizes, crc32s: of all rows, one after the other; lengths says how many each has."""

    layouts: list[tuple[str, ...]]
    keys: list[str]
    shard: np.ndarray  # [rows] int32
    offset: np.ndarray  # [rows] int64
    layout: np.ndarray  # [rows] int16, into layouts
    lengths: np.ndarray  # [rows] members of the row
    sizes: np.ndarray  # [sum of lengths] uint32
    crc32s: np.ndarray  # [sum of lengths] uint32
    attributes: dict[str, Any]  # a list, or a numpy or Arrow array, of each name in ATTRIBUTES

    def __len__(self) -> int:
        return len(self.keys)


def index_name(sha256: str) -> str:
    """The file name of an index with that sum."""
    return f"index-{sha256[:_DIGITS]}.arrow"


def encode_index(rows: IndexRows, metadata: Mapping[str, Any]) -> bytes:
    """The Arrow file. Equal rows and metadata give equal bytes."""
    starts = pa.array(np.concatenate([[0], np.cumsum(rows.lengths)]).astype(np.int32))
    columns = {
        "key": pa.array(rows.keys, pa.string()),
        "shard": pa.array(rows.shard, pa.int32()),
        "offset": pa.array(rows.offset, pa.int64()),
        "layout": pa.array(rows.layout, pa.int16()),
        "sizes": pa.ListArray.from_arrays(starts, pa.array(rows.sizes, pa.uint32())),
        "crc32s": pa.ListArray.from_arrays(starts, pa.array(rows.crc32s, pa.uint32())),
        **{name: _attribute(name, values) for name, values in sorted(rows.attributes.items())},
    }
    note = codec.encode_json({**metadata, "keys_sha256": _keys_sha256(columns["key"]), "layouts": rows.layouts})
    table = pa.table(columns).replace_schema_metadata({"index": note})
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(rows)))
    return stream.getvalue().to_pybytes()


def _attribute(name: str, values: Any) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, ATTRIBUTES[name])


def _keys_sha256(keys: pa.Array) -> str:
    digest = hashlib.sha256()
    for buffer in keys.buffers()[1:]:
        if buffer is not None:
            digest.update(buffer)
    return digest.hexdigest()


def read_current(root: str, column: str) -> dict[str, Any] | None:
    """What a column's `current.json` says: `index` (sum), `of`, `records`, `rows`; None where no build of it has finished."""
    url = join(root, column, "current.json")
    try:
        data = location.read_bytes(url)
    except NotFound:
        return None
    try:
        return decode_current(data)
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{url}: damaged ({error}); {set_aside_hint(root)}") from error


def decode_current(data: bytes) -> dict[str, Any]:
    """The content of a `current.json`. Raises ValueError, KeyError or TypeError where it is not what a build writes."""
    value = codec.unseal(data)
    if not isinstance(value["of"], dict):
        raise ValueError("not what a build writes")
    texts = [value["records"], *value["of"].keys(), *value["of"].values()]
    if not (re.fullmatch("[0-9a-f]{64}", value["index"]) and isinstance(value["rows"], int) and all(isinstance(t, str) for t in texts)):
        raise ValueError("not what a build writes")
    return value


def set_aside_hint(root: str) -> str:
    """The remedy for something damaged: it moves away what is broken and nothing else."""
    return f"run `python storage/verify.py dataset={root} set_aside=true`, then the build again"


class Index:
    """One index file, for those who read it."""

    def __init__(self, root: str, column: str, sha256: str, table: pa.Table) -> None:
        self.root, self.column, self.sha256, self.url = root, column, sha256, join(root, column)
        self._table = table
        note = self.metadata
        self.keys_sha256: str = note["keys_sha256"]
        self.of: dict[str, str] = note["of"]
        self.kind: str = note["kind"]
        self.provenance: str = note["provenance"]
        self._layouts = [{name: member for member, name in enumerate(names)} for names in note["layouts"]]
        self._shards = _numpy(self._column("shard"))
        sizes, crc32s = self._column("sizes"), self._column("crc32s")
        # As views, whose elements are plain ints in a third of the time that numpy takes.
        self._shard, self._offset, self._layout = (_numpy(self._column(name)).data for name in ("shard", "offset", "layout"))
        self._first, self._sizes, self._crc32s = (_numpy(array).data for array in (sizes.offsets, sizes.values, crc32s.values))
        self._key_ends, self._key_bytes = _strings(self._column("key"))

    @classmethod
    def open(cls, root: str, column: str, sha256: str | None = None) -> Index:
        """The current index of a column, or the one with that sum.

        Raises NotFound where the column has no finished build, or the pinned index is gone; Damaged where the file is not what was written.
        """
        if sha256 is None:
            current = read_current(root, column)
            if current is None:
                raise NotFound(f"{join(root, column)}: no finished column {column!r} here; {_how_to_build(column)}, and let it finish")
            sha256 = current["index"]
        return cls._load(root, column, index_name(sha256))

    @classmethod
    def kept(cls, root: str, column: str) -> list[Index]:
        """Every index of a column that is still there, the current one among them."""
        return [cls._load(root, column, name) for name in sorted(location.list_sizes(join(root, column))) if INDEX_NAME.fullmatch(name)]

    @classmethod
    def _load(cls, root: str, column: str, name: str) -> Index:
        url = join(root, column, name)
        path = location.local_path(url) or _node_copy(url)
        try:
            sha256 = _file_sha256(path)
            if index_name(sha256) != name and location.local_path(url) is None:
                sha256 = _file_sha256(_node_copy(url, anew=True))
        except FileNotFoundError as error:
            raise NotFound(f"{url}: this index is gone; start a new run, or bring it back") from error
        if index_name(sha256) != name:
            raise Damaged(f"{url}: damaged (it differs from its checksum); {set_aside_hint(root)}")
        return cls(root, column, sha256, pa.ipc.open_file(pa.memory_map(str(path))).read_all())

    def __len__(self) -> int:
        return self._table.num_rows

    def equals(self, other: Index) -> bool:
        """Whether rows and metadata are the same, whichever release of Arrow wrote them."""
        return self.metadata == other.metadata and self._table.equals(other._table)

    @property
    def metadata(self) -> dict[str, Any]:
        """`kind`, `of`, `provenance` (fingerprint), `shards`, and what else its builder kept. Parsed anew at each call: it is large."""
        return codec.decode_json(self._table.schema.metadata[b"index"])

    def _column(self, name: str) -> pa.Array:
        column = self._table[name]
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    def has_attribute(self, name: str) -> bool:
        return name in self._table.column_names

    def attribute(self, name: str) -> np.ndarray:
        """[rows] or [rows,n]: an attribute of fixed size of every row, without a copy where its type allows it."""
        column = self._column(name)
        if pa.types.is_fixed_size_list(column.type):
            return _numpy(column.values).reshape(len(self), column.type.list_size)
        return column.to_numpy(zero_copy_only=False)

    def lists(self, name: str) -> tuple[memoryview, np.ndarray]:
        """An attribute of varying length: offsets [rows+1], as a view of ints, and all values."""
        column = self._column(name)
        return _numpy(column.offsets).data, _numpy(column.values)

    @cached_property
    def _scenes(self) -> tuple[np.ndarray, np.ndarray]:
        return _strings(self._column("scene"))

    def is_of_scenes(self, scenes: Iterable[str]) -> np.ndarray:
        """[rows] bool: whether each row belongs to one of these scenes."""
        return pc.is_in(self._column("scene"), value_set=pa.array(sorted(scenes), pa.string())).to_numpy(zero_copy_only=False)

    def scene(self, row: int) -> str:
        ends, data = self._scenes
        return data[ends[row] : ends[row + 1]].tobytes().decode()

    def scenes(self) -> set[str]:
        """Every scene that has a row."""
        return set(pc.unique(self._table["scene"]).to_pylist())

    def key(self, row: int) -> str:
        return self._key_bytes[self._key_ends[row] : self._key_ends[row + 1]].tobytes().decode()

    def all_keys(self) -> list[str]:
        """All keys, as a list: for tools and tests."""
        return self._column("key").to_pylist()

    def find(self, key: str) -> int:
        """The row with that key, -1 where there is none."""
        return int(pc.index(self._table["key"], key).as_py())

    def rows_of(self, keys_of: Index) -> np.ndarray | None:
        """[rows of keys_of] int32: this column's row for each of another, -1 where it has none; None where the rows are the same."""
        if self.keys_sha256 == keys_of.keys_sha256:
            return None
        found = pc.index_in(keys_of._column("key"), value_set=self._column("key"))
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)

    def members(self, row: int) -> list[str]:
        """The names of the members of a row, in the order in which they lie."""
        return list(self._layouts[self._layout[row]])

    def has(self, row: int, name: str) -> bool:
        return name in self._layouts[self._layout[row]]

    def locate(self, row: int, name: str) -> Member:
        """Where a member lies. KeyError names the column, the key and what there is."""
        member = self._layouts[self._layout[row]].get(name)
        if member is None:
            raise KeyError(f"column {self.column!r}, key {self.key(row)!r}: no member {name!r}; it has {', '.join(self.members(row))}")
        first = self._first[row]
        sizes = self._sizes[first : first + member + 1].tolist()
        return Member(
            self.tar_url(self._shard[row]), name, data_offset(self._offset[row], sizes, member), sizes[member], self._crc32s[first + member]
        )

    def tar_sums(self) -> dict[str, str]:
        """The sha256 of each shard's tar, by its number."""
        return {str(number): sha256 for number, _, _, sha256 in self.metadata["shards"]}

    def tar_url(self, shard: int) -> str:
        return f"{self.url}/{self.column}-{shard:06d}.tar"

    def shard(self, row: int) -> int:
        return self._shard[row]

    def shard_of_rows(self) -> np.ndarray:
        """[rows] int32: the shard in which each row lies."""
        return self._shards

    def rows_of_shard(self, number: int) -> range:
        """The rows of one shard: neighbours, as shards are in ascending order."""
        low, high = np.searchsorted(self._shards, [number, number + 1])
        return range(int(low), int(high))


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=True) if len(array) else np.empty(0, array.type.to_pandas_dtype())


def _strings(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets [n+1] and bytes of an Arrow string array."""
    _, offsets, data = array.buffers()
    if not len(array):
        return np.zeros(1, np.int32), np.empty(0, np.uint8)
    return np.frombuffer(offsets, np.int32, len(array) + 1), np.frombuffer(data or b"", np.uint8)


def _file_sha256(path: str | Path) -> str:
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if not size:
            return hashlib.sha256().hexdigest()
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:  # pages of the file itself, none of this process's own
            return hashlib.sha256(view).hexdigest()


def node_folder() -> Path:
    """Where this node keeps copies that all processes of a user share: SPLAT_AND_DISTILL_CACHE, else a folder in the temporary one.

    Raises StorageError where somebody else owns it.
    """
    chosen = os.environ.get("SPLAT_AND_DISTILL_CACHE")
    folder = Path(chosen) if chosen else Path(tempfile.gettempdir(), f"splat-and-distill-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise StorageError(f"{folder}: belongs to another user; set SPLAT_AND_DISTILL_CACHE to a folder of your own")
    return folder


def _node_copy(url: str, anew: bool = False) -> Path:
    """The node's copy of a remote index, read where there is none yet, and moved in whole. anew: the copy that is there is damaged."""
    folder = node_folder() / "index"
    folder.mkdir(exist_ok=True)
    path = folder / url.rsplit("/", 1)[1]
    if anew or not path.exists():
        temporary = folder / f"{path.name}.{os.getpid()}.partial"
        temporary.write_bytes(location.read_bytes(url))
        os.replace(temporary, path)
    return path


def _how_to_build(column: str) -> str:
    script = {"frames": "build_shards", "masks": "build_shards", "features": "build_shards", "windows": "plan_windows"}.get(column)
    if column.startswith("masks-"):
        return f"build it with: python pipeline/build_shards.py masks={column.removeprefix('masks-')}"
    return f"build it with: python pipeline/{script or 'cache_gaussians'}.py"
