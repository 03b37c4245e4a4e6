"""Says what a dataset holds, what made it, and what is left to do.

    python storage/describe.py dataset=s3://bucket/rooms

It reads indexes, notes and scene reports, no shard. Whether the bytes are sound is for `storage/verify.py` to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from configs import command
from configs.schema import DescribeConfig
from storage import codec, location
from storage.column import Column
from storage.dataset import SCENES, SET_ASIDE, column_names, retired_objects
from storage.index import Damaged, Index, read_current, set_aside_hint
from storage.location import NotFound, join
from storage.plan import PLAN_NAME
from storage.provenance import Provenance

_ORDER = ("frames", "masks", "features", "windows", "gaussians", "operators")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def run(config: DescribeConfig) -> None:
    """Prints it all."""
    print("\n".join(describe(config.dataset)), flush=True)


def describe(root: str) -> Iterator[str]:
    """The lines. Raises StorageError where there is no dataset, or what describes it is damaged."""
    names = column_names(root)
    if not names:
        raise NotFound(f"{root}: no dataset here; check the URL")
    sizes = location.find_sizes(root)
    notes = {name: note for name in names if (note := _note(root, name))}
    current = {name: Index.open(root, name, said["index"]) for name in names if (said := read_current(root, name))}
    kinds = {name: current[name].kind if name in current else notes[name].settings["kind"] if name in notes else "?" for name in names}
    names.sort(key=lambda name: (_ORDER.index(kinds[name]) if kinds[name] in _ORDER else len(_ORDER), name))
    of_column = {n: {k.removeprefix(f"{n}/"): size for k, size in sizes.items() if k.startswith(f"{n}/")} for n in names}
    to_do = {name: list(_to_do(root, name, kinds, current, notes, of_column[name])) for name in names}

    yield f"{root}: {len(names)} columns, {_bytes(sum(sizes.values()))}"
    yield ""
    rows = [("column", "kind", "rows", "scenes", "shards", "bytes", "state")]
    for name in names:
        index = current.get(name)
        state = "to do, see below" if to_do[name] else "finished"
        total = _bytes(sum(of_column[name].values()))
        if index is None:
            rows.append((name, kinds[name], "-", "-", str(len(Column(root, name).listed(of_column[name]))), total, state))
        else:
            shards = "-" if index.kind == "windows" else str(len(index.metadata["shards"]))
            rows.append((name, index.kind, str(len(index)), str(_scenes(index, current)), shards, total, state))
    yield from _table(rows)

    yield from _titled("frames", _frames(root, current.get("frames"), sizes))
    yield from _titled(
        "windows tables",
        (line for name in names if kinds[name] == "windows" and name in current for line in _windows(current[name], notes)),
    )
    yield from _titled(
        "provenance", (line for name in names if name in notes and kinds[name] != "windows" for line in _provenance(name, notes[name]))
    )
    yield from _titled("to do", (f"{name}: {line}" for name in names for line in to_do[name]))
    retired = [(n, f) for n in names for f in retired_objects(root, n, of_column[n])]
    aside = [size for name, size in sizes.items() if name.startswith(f"{SET_ASIDE}/")]
    free = []
    if retired:
        each = Counter(name for name, _ in retired)
        objects = ", ".join(f"{name} {count}" for name, count in each.items())
        free.append(
            f"retired shards and older indexes: {len(retired)} objects ({objects}), {_bytes(sum(of_column[n][f] for n, f in retired))}"
        )
    if aside:
        free.append(f"set aside as damaged: {len(aside)} objects, {_bytes(sum(aside))}")
    if free:
        free.append(f"to free them: python storage/delete.py dataset={root} what=retired")
    yield from _titled("no longer counts", free)


def _note(root: str, name: str) -> Provenance | None:
    try:
        return Column(root, name).provenance()
    except NotFound:
        return None


def _titled(title: str, lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield from ("", title, *(f"  {line}" for line in found))


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of text; the third to the sixth, numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) if 2 <= n <= 5 else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))]
        yield f"  {'  '.join(cells)}".rstrip()


def _bytes(count: float) -> str:
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if not unit or count >= 100 else f"{count:.1f} {_UNITS[unit]}"


def _scenes(index: Index, current: Mapping[str, Index]) -> int | str:
    """In how many scenes its rows lie: it says so, or what it belongs to does."""
    if index.has_attribute("scene"):
        return len(index.scenes())
    base = next(
        (current[name] for name in index.of if name in current and current[name].has_attribute("scene") and _is_base(index, current[name])),
        None,
    )
    if base is None:
        return "-"
    rows = base.rows_of(index)
    return len(base.scenes()) if rows is None else len(set(base.attribute("scene")[rows[rows >= 0]]))


def _is_base(index: Index, base: Index) -> bool:
    return base.kind == ("windows" if index.kind in ("gaussians", "operators") else "frames")


def _frames(root: str, frames: Index | None, sizes: Mapping[str, int]) -> Iterator[str]:
    """What was kept of the raw scenes, and what is held out."""
    urls = [join(root, name) for name in sorted(sizes) if name.startswith(f"{SCENES}/") and name.endswith(".json")]
    kept, reasons, quarantined = 0, Counter[str](), []
    for url, data in zip(urls, location.read_many(urls), strict=True):
        try:
            report = codec.decode_json(data)
            kept += len(report["kept"])
            reasons.update(skip["reason"] for skip in report["skipped"])
            if report["quarantined"]:
                why = report["quarantined"]
                quarantined.append(f"scene {report['scene']} set aside: {why['reason']}: {why['detail']}")
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{url}: damaged report of a scene ({error}); {set_aside_hint(root)}") from error
    if urls:
        why = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        listed = kept + reasons.total()
        yield f"of {listed} frames listed in {len(urls)} scenes kept {kept} ({kept / max(listed, 1):.1%}), skipped {reasons.total()}" + (
            f": {why}" if why else ""
        )
        yield from quarantined
    if frames is not None and frames.has_attribute("held_out"):
        held_out = int(np.sum(frames.attribute("held_out")))
        yield f"for training {len(frames) - held_out}, held out {held_out}"


def _windows(index: Index, notes: Mapping[str, Provenance]) -> Iterator[str]:
    (contexts, _), (targets, _) = index.lists("context"), index.lists("targets")
    rule = _settings(notes[index.column].settings, ("kind",)) if index.column in notes else "rule unknown"
    yield f"{index.column}: {rule}"
    each = np.diff(targets)
    counts = f"{each.min()} to {each.max()}" if len(each) and each.min() != each.max() else f"{each[0] if len(each) else 0}"
    views = int(np.diff(contexts).max(initial=0))
    yield f"  {len(index)} windows of {views} context frames and {counts} targets each, {int(each.sum())} in all"
    passed = ", ".join(f"{reason} {count}" for reason, count in index.metadata["passed_over"].items())
    if passed:
        yield f"  passed over: {passed}"


def _provenance(name: str, note: Provenance) -> Iterator[str]:
    yield f"{name}: {_settings(note.settings, ('kind',))}"
    if note.inputs:
        yield f"  from {', '.join(note.inputs)}"
    if note.recorded:
        yield f"  recorded: {_settings(note.recorded, ())}"


def _settings(settings: Mapping[str, Any], without: Sequence[str]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in settings.items() if name not in without)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"({', '.join(f'{k} {_value(v)}' for k, v in value.items())})"
    if isinstance(value, list):
        return " x ".join(map(str, value)) if value else "none"
    return str(value)


def _to_do(
    root: str, name: str, kinds: Mapping[str, str], current: Mapping[str, Index], notes: Mapping[str, Provenance], sizes: Mapping[str, int]
) -> Iterator[str]:
    """What is stale, unfinished or gone, and which build mends it."""
    index, column, build = current.get(name), Column(root, name), _build(root, name, kinds, notes)
    whole = {(c.number, c.source) for c in column.listed(sizes) if c.whole}
    if "column.json" not in sizes:
        yield f"its note column.json is gone; run {build}"
    if index is None:
        yield f"no build of it has finished, {len(whole)} shards are committed; run {build}"
        return
    for source, sha256 in index.of.items():
        if source not in current or current[source].sha256 != sha256:
            yield f"stale: made for another state of {source!r} than it has now; run {build}"
    if index.kind == "windows":
        return
    there = {(number, source) for number, source, *_ in index.metadata["shards"]}
    if there - whole:
        yield f"{len(there - whole)} shards that its index names are not there; run {build}"
    above = {number for number, _ in whole if number > max((n for n, _ in there), default=-1)}
    planned = _planned(root, sizes) - {number for number, _ in there} if name == "frames" else set()
    if above or planned:
        yield f"unfinished: {len(above | planned)} shards are planned or committed, but not in its index; run {build}"


def _planned(root: str, sizes: Mapping[str, int]) -> set[int]:
    """The numbers of the shards of the newest plan of `frames`."""
    plans = sorted((name for name in sizes if PLAN_NAME.fullmatch(name)), key=lambda name: int(name[5:-5]))
    if not plans:
        return set()
    url = join(root, "frames", plans[-1])
    try:
        return {number for number, *_ in codec.unseal(location.read_bytes(url))["shards"]}
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{url}: damaged plan ({error}); {set_aside_hint(root)}") from error


def _build(root: str, name: str, kinds: Mapping[str, str], notes: Mapping[str, Provenance]) -> str:
    """The command that builds a column, as far as the dataset knows it."""
    kind = kinds[name]
    if kind == "windows":
        return f"pipeline/plan_windows.py dataset={root} name={name} (with its rule)"
    if kind in ("gaussians", "operators"):
        windows = next((source for source in (notes[name].inputs if name in notes else {}) if kinds.get(source) == "windows"), "windows")
        key = "column" if kind == "gaussians" else "operators.column"
        named = "".join(f" {k}={v}" for k, v, usual in (("windows", windows, "windows"), (key, name, kind)) if v != usual)
        return f"pipeline/cache_gaussians.py dataset={root}{named} (with its settings)"
    other = f" masks={name.removeprefix('masks-')}" if name.startswith("masks-") else ""
    return f"pipeline/build_shards.py dataset={root}{other} (with its settings)"


if __name__ == "__main__":
    command(DescribeConfig, run)
