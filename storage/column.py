"""A column, for those who write it: numbered shards, a commit record beside each, a note of what made it, an index over all.

    frames/column.json                                     provenance, written before the first shard
    frames/frames-000000.tar                               shard 0
    frames/frames-000000.5f3a9c01be77d2a4.1843200-07c1f3e2.json
                                                           its commit record, written last: without it the shard does not exist
    frames/index-5d41402abc4b2a76.arrow                    where every member lies; named by its content, and kept
    frames/current.json                                    which index is the current one

A record's name says what the shard was made from (`source`), how long its tar is, and how its sum begins, so that a listing alone tells
what is missing, what is stale, and whether the index is of these bytes: a network's output made again elsewhere can differ.
Equal rows give equal bytes, down to the index. Everything that is not a tar carries its own checksum.

Long because what a commit record says, how it is written and how it is read back must change together.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from storage import codec, location, shard
from storage.index import ATTRIBUTES, FRAME_ATTRIBUTES, Damaged, Index, IndexRows, encode_index, index_name, read_current, set_aside_hint
from storage.location import NotFound, StorageError, join
from storage.provenance import Provenance, differences

FORMAT_VERSION = 2
COLUMN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SOURCE_DIGITS, _SUM_DIGITS = 16, 8  # of the digests in a record's name
_RECORDS = 1000  # read at a time for an index


class ColumnMismatch(StorageError):
    """The column exists, but something else made it."""


@dataclass(frozen=True)
class ShardPlan:
    """A shard that should be there. source: digest of all that it is made from; inputs: sums of the source shards' tars, by column and
    number; group: shards of one group are made by one process where that can be (a scene, whose mesh is loaded once)."""

    number: int
    source: str
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    group: str = ""


class Committed(NamedTuple):
    """What a listing says of a commit record. whole: its tar is there and as long as the record says."""

    number: int
    source: str
    tar_bytes: int
    record_name: str
    whole: bool


@dataclass(frozen=True)
class Record:
    """The commit record of one shard.

    provenance: the column's fingerprint. source, inputs: see `ShardPlan`. layouts: the member names of its rows, each set once. keys to
    crc32s: its rows, column-wise; `layout` says which of the layouts a row has. attributes: more about each row, by name. notes: what a
    report wants to know (what was left out, and why).
    """

    column: str
    number: int
    provenance: str
    source: str
    inputs: Mapping[str, Mapping[str, str]]
    tar_bytes: int
    tar_sha256: str
    layouts: Sequence[Sequence[str]]
    keys: Sequence[str]
    layout: Sequence[int]
    offsets: Sequence[int]
    sizes: Sequence[Sequence[int]]
    crc32s: Sequence[Sequence[int]]
    attributes: Mapping[str, Sequence[Any]]
    notes: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.column}-{self.number:06d}.{self.source}.{self.tar_bytes}-{self.tar_sha256[:_SUM_DIGITS]}.json"


def source_digest(*parts: Any) -> str:
    """Over JSON values that say what a shard is made from: the few digits that its record's name carries."""
    return hashlib.sha256(codec.encode_json(parts)).hexdigest()[:_SOURCE_DIGITS]


def records_digest(names: Sequence[str]) -> str:
    """Over what an index is put together from: the names of the commit records, ascending."""
    return hashlib.sha256(codec.encode_json(list(names))).hexdigest()


class Column:
    """One column of the dataset at `root`, for those who build it."""

    def __init__(self, root: str, name: str) -> None:
        if not COLUMN_NAME.fullmatch(name):
            raise StorageError(f"{root}: {name!r} is no name for a column; use letters, digits, '-' and '_'")
        self.root, self.name, self.url = root, name, join(root, name)
        self._tar_name = re.compile(rf"{re.escape(name)}-\d{{6,}}\.tar")
        self._record_name = re.compile(
            rf"{re.escape(name)}-(\d{{6,}})\.([0-9a-f]{{{_SOURCE_DIGITS}}})\.(\d+)-[0-9a-f]{{{_SUM_DIGITS}}}\.json"
        )

    def tar_name(self, number: int) -> str:
        return f"{self.name}-{number:06d}.tar"

    def is_of_shard(self, name: str) -> bool:
        """Whether an object of that name in the column's folder is a shard's tar or commit record."""
        return bool(self._record_name.fullmatch(name) or self._tar_name.fullmatch(name))

    def tar_url(self, number: int) -> str:
        return join(self.url, self.tar_name(number))

    @property
    def note_url(self) -> str:
        return join(self.url, "column.json")

    def declare(self, provenance: Provenance) -> None:
        """Says what makes this column, before its first shard. Of two that declare a new column at once one is the first, where the store
        can tell, and the other is refused.

        Raises ColumnMismatch, by name, where something else made it and it holds a shard or a row; an empty column is declared anew.
        """
        present = self.check(provenance)
        if present and present.binding == provenance.binding:
            return
        if present:
            location.remove_many([self.note_url])
        if not location.create_bytes(self.note_url, codec.seal(provenance.to_json())):
            different = differences(self.provenance().binding, provenance.binding)
            if different:
                raise self._mismatch(f"at this moment another build declares it otherwise ({'; '.join(different[:4])})")

    def check(self, provenance: Provenance) -> Provenance | None:
        """What the column was declared as, None where it was not. Raises ColumnMismatch as `declare` does."""
        try:
            present = self.provenance()
        except NotFound:
            made = self._fingerprint_of_rows()
            if made and made != provenance.fingerprint:
                raise self._mismatch(
                    f"its rows were made by another configuration ({made[:12]}) than this one ({provenance.fingerprint[:12]})"
                ) from None
            return None
        different = differences(present.binding, provenance.binding)
        if different and self._fingerprint_of_rows():
            raise self._mismatch(f"was made by another configuration ({'; '.join(different[:4])})")
        return present

    def _mismatch(self, different: str) -> ColumnMismatch:
        return ColumnMismatch(f"{self.url}: {different}; choose another dataset URL or column name, or delete this column")

    def _fingerprint_of_rows(self) -> str | None:
        """The fingerprint of what made the rows that are there, None without rows: a note that was set aside can only come back as it was.

        A windows table has no shards; its index says it.
        """
        for committed in self.listing():  # one at a time: the first nearly always has rows
            (record,) = self.records([committed])
            if record.keys:
                return record.provenance
        current = read_current(self.root, self.name)
        return Index.open(self.root, self.name, current["index"]).provenance if current and current["rows"] else None

    def provenance(self) -> Provenance:
        """What `declare` wrote. Raises NotFound, or Damaged."""
        data = location.read_bytes(self.note_url)
        try:
            return Provenance.from_json(codec.unseal(data))
        except (ValueError, KeyError, TypeError) as error:
            if codec.is_unsealed(data, "format_version"):
                raise StorageError(
                    f"{self.note_url}: an older release made this dataset, and its format is no longer read; build it again at another URL"
                ) from error
            raise Damaged(f"{self.note_url}: damaged ({error}); {set_aside_hint(self.root)}") from error

    def listing(self) -> list[Committed]:
        """The commit records that a listing shows, in ascending order."""
        return self.listed(location.list_sizes(self.url))

    def listed(self, sizes: Mapping[str, int]) -> list[Committed]:
        """The commit records among the objects of the column's folder, name -> bytes."""
        matches = [match for match in map(self._record_name.fullmatch, sorted(sizes)) if match]
        return [
            Committed(int(m[1]), m[2], int(m[3]), m[0], whole=sizes.get(self.tar_name(int(m[1]))) == int(m[3])) for m in matches
        ]  # fmt: skip

    def committed(self) -> dict[int, Committed]:
        """By number, the shards that a listing shows to be whole."""
        return {c.number: c for c in self.listing() if c.whole}

    def missing(self, plan: Iterable[ShardPlan]) -> dict[int, list[str]]:
        """The numbers of the plan that are not committed, or were made from something else than the plan says; for each the names of the
        records that must go before it is made."""
        records: dict[int, list[Committed]] = {}
        for committed in self.listing():
            records.setdefault(committed.number, []).append(committed)
        return {
            wanted.number: [c.record_name for c in records.get(wanted.number, [])]
            for wanted in plan
            if not any(c.whole and c.source == wanted.source for c in records.get(wanted.number, []))
        }

    def commit(
        self,
        plan: ShardPlan,
        rows: Iterable[shard.Row],
        provenance: str,
        stale: Sequence[str] = (),
        attributes: Mapping[str, Sequence[Any]] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Record:
        """Writes a shard: stale records go first, then the tar is written, its record last.

        provenance: the column's fingerprint. attributes, notes: see `Record`; read after the rows were, which may fill them.
        """
        tar_bytes, samples = shard.pack(rows)
        layouts = sorted({sample.names for sample in samples})
        record = Record(
            column=self.name, number=plan.number, provenance=provenance, source=plan.source, inputs=plan.inputs,
            tar_bytes=len(tar_bytes), tar_sha256=hashlib.sha256(tar_bytes).hexdigest(), layouts=layouts,
            keys=[s.key for s in samples], layout=[layouts.index(s.names) for s in samples], offsets=[s.offset for s in samples],
            sizes=[s.sizes for s in samples], crc32s=[s.crc32s for s in samples], attributes=attributes or {}, notes=notes or {},
        )  # fmt: skip
        location.remove_many([join(self.url, name) for name in stale])
        location.write_bytes(self.tar_url(plan.number), tar_bytes)
        location.write_bytes(join(self.url, record.name), codec.seal(asdict(record)))
        return record

    def records(self, committed: Sequence[Committed]) -> list[Record]:
        """Commit records, many read at a time. Raises Damaged, naming the record."""
        urls = [join(self.url, c.record_name) for c in committed]
        return [self.decode_record(url, data) for url, data in zip(urls, location.read_many(urls), strict=True)]

    def decode_record(self, url: str, data: bytes) -> Record:
        """A commit record from its bytes. Raises Damaged, naming `url`, where they are not what `commit` wrote there."""
        try:
            record = Record(**codec.unseal(data))
        except (ValueError, TypeError) as error:
            raise Damaged(f"{url}: damaged commit record ({error}); {set_aside_hint(self.root)}") from error
        if not url.endswith(f"/{record.name}"):
            raise Damaged(f"{url}: holds the record of {record.name}; {set_aside_hint(self.root)}")
        return record

    def read_shard(self, number: int) -> list[tuple[str, dict[str, bytes]]]:
        """All rows of one shard, its tar checked against the sum in its commit record."""
        committed = self.committed().get(number)
        if committed is None:
            raise NotFound(f"{self.tar_url(number)}: not committed; run its build again")
        tar_bytes = location.read_bytes(self.tar_url(number))
        if hashlib.sha256(tar_bytes).hexdigest() != self.records([committed])[0].tar_sha256:
            raise Damaged(f"{self.tar_url(number)}: differs from its commit record; {set_aside_hint(self.root)}")
        return list(shard.unpack(tar_bytes))

    def write_index(self, plan: Sequence[ShardPlan], of: Mapping[str, str]) -> Index:
        """The index over the shards of the plan, all of which must be committed; written only where the current one is another.

        of: the sums of the indexes that this column was made for, by column. Equal records give equal bytes.
        """
        present = self._present()
        absent = [p.number for p in plan if (p.number, p.source) not in present]
        if absent:
            raise StorageError(f"{self.url}: {len(absent)} shards are not committed, the first is {absent[0]}; run the build again")
        wanted = sorted(present[p.number, p.source] for p in plan)
        provenance, names = self.provenance(), records_digest([c.record_name for c in wanted])
        current = read_current(self.root, self.name)
        if current and current["records"] == names and current["of"] == dict(of):
            index = Index.open(self.root, self.name, current["index"])
            if index.provenance == provenance.fingerprint:  # that of a column without shards may be another
                return index
        shards: list[list[Any]] = []
        shard_of: dict[str, int] = {}

        def checked() -> Iterator[Record]:
            for first in range(0, len(wanted), _RECORDS):
                for record in self.records(wanted[first : first + _RECORDS]):
                    self._check_record(record, provenance.fingerprint, shard_of)
                    shards.append([record.number, record.source, record.tar_bytes, record.tar_sha256])
                    yield record

        rows = index_rows(checked())
        if provenance.settings["kind"] == "frames" and not len(rows):
            rows.attributes = {name: [] for name in FRAME_ATTRIBUTES}
        metadata = {"kind": provenance.settings["kind"], "of": dict(of), "provenance": provenance.fingerprint, "shards": shards}
        return self.publish_index(rows, metadata, names)

    def _present(self) -> dict[tuple[int, str], Committed]:
        """The whole shards by number and source; of one that was made twice, with other bytes of one length, what fits its tar."""
        present: dict[tuple[int, str], Committed] = {}
        for committed in self.listing():
            other = present.get((committed.number, committed.source))
            if committed.whole and (other is None or not self._fits_its_tar(other)):
                present[committed.number, committed.source] = committed
        return present

    def _fits_its_tar(self, committed: Committed) -> bool:
        tar_sha256 = hashlib.sha256(location.read_bytes(self.tar_url(committed.number))).hexdigest()
        return self.records([committed])[0].tar_sha256 == tar_sha256

    def publish_index(self, rows: IndexRows, metadata: Mapping[str, Any], records: str) -> Index:
        """Writes an index under its sum, then makes it the current one. records: digest of what it was put together from."""
        data = encode_index(rows, metadata)
        sha256 = hashlib.sha256(data).hexdigest()
        location.write_bytes(join(self.url, index_name(sha256)), data)
        current = {"index": sha256, "of": metadata["of"], "records": records, "rows": len(rows)}
        location.write_bytes(join(self.url, "current.json"), codec.seal(current))
        return Index.open(self.root, self.name, sha256)

    def _check_record(self, record: Record, provenance: str, shard_of: dict[str, int]) -> None:
        if record.provenance != provenance:
            raise self._mismatch(f"shard {record.number} was made by another configuration ({record.provenance[:12]}) than the others")
        for key in record.keys:
            other = shard_of.setdefault(key, record.number)
            if other != record.number:
                raise StorageError(
                    f"{self.url}: row {key!r} lies in the shards {other} and {record.number}; delete this column and build it again"
                )


def index_rows(records: Iterable[Record]) -> IndexRows:
    """The rows of commit records, one record after the other. Each is dropped once read: as Python objects a row takes kilobytes."""
    numbers: dict[tuple[str, ...], int] = {}
    keys: list[str] = []
    made: list[array[int]] = [array(code) for code in "iqhqII"]
    shard, offset, layout, lengths, sizes, crc32s = made
    attributes: defaultdict[str, list[pa.Array]] = defaultdict(list)
    for r in records:
        number_of = [numbers.setdefault(tuple(names), len(numbers)) for names in r.layouts]
        keys.extend(r.keys)
        shard.extend([r.number] * len(r.keys))
        offset.extend(r.offsets)
        layout.extend(number_of[index] for index in r.layout)
        lengths.extend(map(len, r.sizes))
        sizes.extend(chain.from_iterable(r.sizes))
        crc32s.extend(chain.from_iterable(r.crc32s))
        for name, values in r.attributes.items():
            attributes[name].append(pa.array(values, ATTRIBUTES[name]))
    layouts = sorted(numbers)
    sorted_number = np.argsort([numbers[names] for names in layouts])
    return IndexRows(
        layouts=layouts,
        keys=keys,
        shard=np.array(shard),
        offset=np.array(offset),
        layout=sorted_number[np.array(layout)].astype(np.int16),
        lengths=np.array(lengths),
        sizes=np.array(sizes),
        crc32s=np.array(crc32s),
        attributes={name: pa.concat_arrays(parts) for name, parts in sorted(attributes.items())},
    )
