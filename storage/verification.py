"""One pass over a dataset that finds whatever is broken: notes, plans, indexes, joins of columns, commit records, tars, rows.

Long because it is one pass with one state: a check leaves alone what an earlier one found broken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from storage import codec, location
from storage.column import Column, Committed, Record, index_rows, records_digest
from storage.dataset import SCENES, SET_ASIDE, column_names
from storage.index import INDEX_NAME, Damaged, Index, decode_current, encode_index, index_name
from storage.location import NotFound, StorageError, join
from storage.plan import PLAN_NAME
from storage.provenance import Provenance
from storage.records.check import RowCheck
from storage.sound_objects import check_plan, check_report, check_sum, decode_index, decode_record, parse_index, read_tar

_READS = 3  # of an object that does not fit its checksum: a bit can flip on the way
_TOGETHER = 256  # small objects that are read in one go

T = TypeVar("T")


class Finding(NamedTuple):
    """What is wrong with an object, and the objects that must go so that the next build makes them again; names relative to the dataset."""

    name: str
    problem: str
    moves: tuple[str, ...] = ()


class Verification:
    """One pass over a dataset. remarks: what is not damage, as (name, what it is)."""

    def __init__(self, root: str, decode: bool) -> None:
        self.root, self.decode = root, decode
        self.sizes = {n: size for n, size in location.find_sizes(root).items() if not n.startswith(f"{SET_ASIDE}/")}
        self.columns = [Column(root, name) for name in column_names(root)]
        if not self.columns:
            raise NotFound(f"{root}: no dataset here; check the URL")
        for column in self.columns:
            with contextlib.suppress(NotFound, Damaged):  # both are findings; an older release's dataset is refused here
                column.provenance()
        self.findings: list[Finding] = []
        self.remarks: list[tuple[str, str]] = []
        self._notes: dict[str, Provenance] = {}
        self._current: dict[str, dict[str, Any]] = {}
        self._indexes: dict[tuple[str, str], Index] = {}  # by column and sum: the current ones, and those that they were made for
        self._counts = dict.fromkeys(("shards", "rows", "members", "bytes"), 0)

    def summary(self) -> str:
        """Of what was read, in one line."""
        c, how = self._counts, "re-hashed and decoded" if self.decode else "re-hashed"
        verified = (
            f"{len(self.columns)} columns, {c['shards']} shards, {c['rows']} rows, {c['members']} members ({c['bytes'] / 1e9:.3f} GB)"
        )
        return f"{verified} {how}: {f'{len(self.findings)} findings' if self.findings else 'sound'}"

    def run(self) -> list[Finding]:
        """Everything that is wrong: small objects first, then joins, then every shard."""
        self._check_small()
        for column in self.columns:
            self._check_indexes(column)
        for column in self.columns:
            index = self._current_index(column)
            if index:
                self._attempt(f"{column.name}/{index_name(index.sha256)}", partial(self._check_joins, index))
        shards = {column.name: self._check_records(column) for column in self.columns}
        with tqdm(
            total=sum(self._tar_bytes(c) for c in self.columns), unit="B", unit_scale=True, desc="tars", delay=5, mininterval=1.0
        ) as bar:
            for column in self.columns:
                self._check_tars(column, shards[column.name], bar)
        return self.findings

    def _found(self, name: str, problem: str, *moves: str) -> None:
        self.findings.append(Finding(name, problem, moves))

    def _attempt(self, name: str, check: Callable[[], None], *moves: str) -> None:
        """A check of parsed content. A sealed object can still hold what no builder writes; that is a finding too, whatever it raises."""
        try:
            check()
        except StorageError:
            raise
        except Exception as error:
            self._found(name, f"holds what no build writes ({_why(error)})", *moves)

    def _settled(self, name: str, data: bytes | None, check: Callable[[bytes], T], broken: str, *moves: str) -> T | None:
        """What `check` makes of the object; one that does not pass is read anew before it is called broken. data: as it was read first."""
        for remaining in reversed(range(_READS)):
            if data is None:
                try:
                    data = location.read_bytes(join(self.root, name))
                except NotFound:
                    self._found(name, "went away while the dataset was verified; do not run this beside a builder")
                    return None
            try:
                return check(data)
            except Exception as error:  # whatever bytes do to a decoder
                if not remaining:
                    self._found(name, f"{broken} ({_why(error)})", *moves)
            data = None
        return None

    def _read(self, names: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """Small objects, many at a time; None for what is to be read on its own, as one beside it is gone."""
        for start in range(0, len(names), _TOGETHER):
            part = names[start : start + _TOGETHER]
            found: Sequence[bytes | None]
            try:
                found = location.read_many([join(self.root, name) for name in part])
            except NotFound:
                found = [None] * len(part)
            yield from zip(part, found, strict=True)

    def _check_small(self) -> None:
        """Notes, plans, what says which index is current, reports; and a remark on each object that is none of a dataset's."""
        names = {column.name for column in self.columns}
        small = []
        for name in sorted(self.sizes):
            folder, _, file = name.partition("/")
            if folder in names:
                if file in ("column.json", "current.json") or PLAN_NAME.fullmatch(file):
                    small.append(name)
                elif not (INDEX_NAME.fullmatch(file) or Column(self.root, folder).is_of_shard(file)):
                    self.remarks.append((name, "not of a dataset; nothing reads it"))
            elif folder == SCENES and file.endswith(".json") and "/" not in file:
                small.append(name)
            else:
                self.remarks.append((name, "not of a dataset; nothing reads it"))
        for name, data in self._read(small):
            folder, file = name.split("/")
            if folder == SCENES:
                self._settled(name, data, check_report, "damaged report of a scene", name)
            elif file == "column.json":
                note = self._settled(name, data, lambda data: Provenance.from_json(codec.unseal(data)), "damaged note", name)
                if note:
                    self._notes[folder] = note
            elif file == "current.json":
                current = self._settled(name, data, decode_current, "damaged", name)
                if current:
                    self._current[folder] = current
            else:
                more = "; if a scene was withdrawn since the plan before, withdraw it again after the next build"
                self._settled(name, data, check_plan, f"damaged plan{more}", name)
        for column in self.columns:
            if f"{column.name}/column.json" not in self.sizes:
                self._found(f"{column.name}/column.json", "gone; the next build writes it again")

    def _check_indexes(self, column: Column) -> None:
        """Every kept index against its name; the current one is there and is what `current.json` says."""
        current, current_name = self._current.get(column.name), f"{column.name}/current.json"
        pins = {sha256 for other in self._current.values() for name, sha256 in other["of"].items() if name == column.name}
        if current:
            pins.add(current["index"])
            wanted = f"{column.name}/{index_name(current['index'])}"
            if wanted not in self.sizes:
                self._found(current_name, f"names an index that is gone ({index_name(current['index'])})", current_name)
        kept = {index_name(sha256): sha256 for sha256 in pins}
        for name in sorted(n for n in self.sizes if n.startswith(f"{column.name}/") and INDEX_NAME.fullmatch(n.rsplit("/", 1)[1])):
            file = name.rsplit("/", 1)[1]
            is_current = current is not None and file == index_name(current["index"])
            moves = [name, current_name] if is_current else [name]
            broken = "damaged index" if is_current else "damaged older index, which no build writes again; only a run that pins it needs it"
            index = self._settled(name, None, partial(decode_index, column, file, file in kept), broken, *moves)
            if index:
                self._indexes[column.name, index.sha256] = index
                if is_current:
                    self._attempt(current_name, partial(self._check_current, column, index), current_name)

    def _current_index(self, column: Column) -> Index | None:
        """Where it and what names it are sound."""
        current = self._current.get(column.name)
        return self._indexes.get((column.name, current["index"])) if current else None

    def _check_current(self, column: Column, index: Index) -> None:
        current, name = self._current[column.name], f"{column.name}/current.json"
        if (current["index"], current["of"], current["rows"]) != (index.sha256, index.of, len(index)):
            self._found(name, "says otherwise than the index that it names", name)
        note = self._notes.get(column.name)
        if note and note.fingerprint != index.provenance:
            self._found(name, f"its index was made by another configuration ({index.provenance[:12]}) than column.json says", name)

    def _check_joins(self, index: Index) -> None:
        """Keys of each column are those of what it belongs to; a window names frames that are there."""
        sources = {name: self._indexes.get((name, sha256)) for name, sha256 in index.of.items()}
        name = f"{index.column}/{index_name(index.sha256)}"
        for source, sha256 in index.of.items():
            if f"{source}/{index_name(sha256)}" not in self.sizes:
                self.remarks.append((name, f"was made for an index of {source!r} that is gone ({index_name(sha256)}); run its build again"))
        base = next((s for s in sources.values() if s and s.kind == _base_kind(index.kind)), None)
        if base is None:
            return
        if index.kind == "windows":
            for attribute in ("context", "targets"):
                _, rows = index.lists(attribute)
                if len(rows) and not (rows.min() >= 0 and rows.max() < len(base)):
                    return self._found(
                        name,
                        f"names frames {rows.min()} to {rows.max()} ({attribute}), of {len(base)}",
                        name,
                        f"{index.column}/current.json",
                    )
            offsets, context = index.lists("context")
            named = [base.key(row) for row in context[np.asarray(offsets)[:-1]].tolist()]
            if named != index.all_keys():
                self._found(name, "a key is not that of its window's first frame", name, f"{index.column}/current.json")
            return
        strange = base.rows_of(index)
        if strange is not None and (strange < 0).any():
            key, count = index.key(int(np.argmax(strange < 0))), int((strange < 0).sum())
            self._found(name, f"{count} rows are none of {base.column!r}, the first is {key!r}; delete the column and build it again")
        there = index.rows_of(base)
        if index.kind != "features" and there is not None and (there < 0).any():
            key, count = base.key(int(np.argmax(there < 0))), int((there < 0).sum())
            self._found(name, f"{count} rows of {base.column!r} have none here, the first is {key!r}; delete the column and build it again")

    def _check_records(self, column: Column) -> dict[int, list[Record]]:
        """The sound records by shard; rows of the current index are theirs."""
        records: dict[int, list[Record]] = {}
        broken = set()
        listed = {f"{column.name}/{c.record_name}": c for c in self._listed(column)}
        for name, data in self._read(sorted(listed)):
            moves = (name, f"{column.name}/{column.tar_name(listed[name].number)}")
            record = self._settled(name, data, partial(decode_record, column, name), "damaged commit record", *moves)
            if record is None:
                broken.add(listed[name].number)
            else:
                records.setdefault(record.number, []).append(record)
        index = self._current_index(column)
        if index and index.kind != "windows":
            name = f"{column.name}/{index_name(index.sha256)}"
            self._attempt(name, lambda: self._check_rows(column, index, records, broken), name, f"{column.name}/current.json")
        return records

    def _check_rows(self, column: Column, index: Index, records: Mapping[int, list[Record]], broken: set[int]) -> None:
        used, complete = [], True
        for number, source, _, sha256 in index.metadata["shards"]:
            record = next((r for r in records.get(number, []) if (r.source, r.tar_sha256) == (source, sha256)), None)
            if record:
                used.append(record)
            else:
                complete = False
                if number not in broken:
                    self._found(
                        f"{column.name}/{column.tar_name(number)}",
                        "the shard that the current index names is not committed; run its build again",
                    )
        name, current_name = f"{column.name}/{index_name(index.sha256)}", f"{column.name}/current.json"
        if not complete:
            return
        if self._current[column.name]["records"] != records_digest([r.name for r in used]):
            self._found(current_name, "says otherwise than the commit records", current_name)
        fresh = parse_index(column, index.sha256, encode_index(index_rows(used), index.metadata))
        if not fresh.equals(index):
            self._found(name, "its rows are not those of the commit records", name, current_name)

    def _listed(self, column: Column) -> list[Committed]:
        """The commit records, as the one listing at the start shows them."""
        folder = f"{column.name}/"
        return column.listed({name.removeprefix(folder): size for name, size in self.sizes.items() if name.startswith(folder)})

    def _tar_bytes(self, column: Column) -> int:
        return sum(size for name, size in self.sizes.items() if name.startswith(f"{column.name}/") and name.endswith(".tar"))

    def _check_tars(self, column: Column, records: Mapping[int, list[Record]], bar: tqdm) -> None:
        check = self._row_check(column)
        listed: dict[int, list[str]] = {}
        for committed in self._listed(column):
            listed.setdefault(committed.number, []).append(f"{column.name}/{committed.record_name}")
        note, index = self._notes.get(column.name), self._current_index(column)
        sums = index.tar_sums() if index and index.kind != "windows" else {}
        for number, record_names in sorted(listed.items()):
            name, of_shard = f"{column.name}/{column.tar_name(number)}", records.get(number, [])
            if name not in self.sizes:
                self._found(name, "gone, though its commit record is there; the next build makes it again")
                continue
            if not of_shard:  # its records are findings of their own; the current index has the tar's sum too
                if str(number) in sums:
                    self._settled(name, None, partial(check_sum, sums[str(number)]), "damaged", name, *record_names)
                continue
            result = self._settled(name, None, partial(read_tar, of_shard), "damaged", name, *record_names)
            bar.update(self.sizes[name])
            if result is None:
                continue
            record, rows = result
            for other in of_shard:
                if other is not record:
                    self._found(f"{column.name}/{other.name}", "speaks of another tar than lies there", f"{column.name}/{other.name}")
            if note and record.provenance != note.fingerprint:
                self._found(
                    f"{column.name}/{record.name}", f"was made by another configuration ({record.provenance[:12]}) than column.json says"
                )
            self._counts["shards"] += 1
            self._counts["rows"] += len(rows)
            self._counts["members"] += sum(map(len, rows.values()))
            self._counts["bytes"] += record.tar_bytes
            if check:
                self._decode(check, record, rows, name, record_names)
        numbered = set(map(column.tar_name, listed))
        for name in sorted(self.sizes):
            folder, _, file = name.partition("/")
            if folder == column.name and file.endswith(".tar") and file not in numbered and column.is_of_shard(file):
                self.remarks.append(
                    (name, "has no commit record, so it does not count; the next build writes it again, or delete.py frees it")
                )

    def _decode(
        self, check: RowCheck, record: Record, rows: Mapping[str, Mapping[str, bytes]], name: str, record_names: Sequence[str]
    ) -> None:
        for key, members in rows.items():
            try:
                check.decode(key, members, record.provenance)
            except StorageError:
                continue  # a frame that it needs cannot be read, which is a finding of its own
            except Exception as error:  # whatever bytes do to a decoder
                self._found(name, f"row {key!r} cannot be decoded ({_why(error)})", name, *record_names)
                return

    def _row_check(self, column: Column) -> RowCheck | None:
        current, note = self._current.get(column.name), self._notes.get(column.name)
        of = current["of"] if current else {}
        sources = [index for name, sha256 in of.items() if (index := self._indexes.get((name, sha256)))]
        kinds = {index.kind: index for index in sources}
        kind = note.settings.get("kind") if note else None
        return RowCheck(str(kind), kinds.get("windows"), kinds.get("frames")) if self.decode and kind else None


def _why(error: Exception) -> str:
    """One line."""
    text = str(error).splitlines()[0] if str(error) else ""
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def _base_kind(kind: str) -> str:
    return "windows" if kind in ("gaussians", "operators") else "frames"
