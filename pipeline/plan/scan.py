"""The first look at a raw scene: what is listed there, in which state, cut into the runs of frames that shards are made of.

The reader of its layout lists it; no image and no mesh is opened. What the images and the mesh say against a frame is found when
its shard is made, in the same pass, and stands in the shard's record. The report of a scene, `{dataset}/scenes/{scene}.json`, puts both
together.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from configs.schema import BuildShardsConfig
from pipeline.readers import BadScene, FrameEntry, SceneIndex, make_reader
from storage import codec, location
from storage.column import Record, source_digest
from storage.location import join
from storage.plan import Wanted

Report = dict[str, Any]
_COUNTER = re.compile(r"(\d+)$")


@dataclass(frozen=True)
class Block:
    """A run of listed frames that one shard is made of. source: digest of all raw files and settings behind it."""

    number: int
    entries: tuple[FrameEntry, ...]
    held_out: tuple[bool, ...]
    source: str


def blocks(config: BuildShardsConfig, index: SceneIndex, fingerprint: str) -> list[Block]:
    """The runs of `frames_per_shard` listed frames of a scene.

    A frame's position counts the skipped ones too: where one is mended, only its own run changes. fingerprint: the column's.
    """
    listed = {entry.name: entry.number for entry in index.frames}
    for skip in index.skipped:
        counter = _COUNTER.search(skip.frame.rsplit(".", 1)[0])
        if counter:
            listed.setdefault(skip.frame, int(counter[1]))
    position = {name: i for i, (_, name) in enumerate(sorted((number, name) for name, number in listed.items()))}
    first_held_out = 0 if index.scene_id in config.held_out.scenes else len(position) * (1 - config.held_out.part)
    runs: dict[int, list[FrameEntry]] = {}
    for entry in index.frames:
        runs.setdefault(position[entry.name] // config.frames_per_shard, []).append(entry)
    found = []
    for number, entries in sorted(runs.items()):
        held_out = tuple(position[entry.name] >= first_held_out for entry in entries)
        files = [[entry.name, entry.version, out] for entry, out in zip(entries, held_out, strict=True)]
        found.append(Block(number, tuple(entries), held_out, source_digest(fingerprint, index.scene_id, index.version, files)))
    return found


def scan_scene(config: BuildShardsConfig, scene: str, fingerprint: str) -> dict[str, Any]:
    """What the builder's driver needs to know of a scene: its runs of frames (number, source, how many), what was skipped, or why it is set
    aside. Storage errors raise."""
    try:
        index = make_reader(config.layout).listing(config.root, scene, config.keep_bad)
    except BadScene as error:
        return {"scene": scene, "quarantined": {"reason": error.reason, "detail": error.detail}, "skipped": [], "notes": [], "blocks": []}
    found = [[b.number, b.source, len(b.entries)] for b in blocks(config, index, fingerprint)]
    return {"scene": scene, "quarantined": None, "skipped": [asdict(s) for s in index.skipped], "notes": list(index.notes), "blocks": found}


def wanted(scans: Sequence[Mapping[str, Any]]) -> list[Wanted]:
    """The shards that the scanned scenes ask for, in their order."""
    return [Wanted(scan["scene"], number, source) for scan in scans for number, source, _ in scan["blocks"]]


def scene_report(scan: Mapping[str, Any], records: Sequence[Record]) -> Report:
    """What is to be said of a scene: kept (names), skipped ([{frame, reason, detail}]), quarantined, notes, figures of mesh and camera.

    sources: of the shards that it speaks of.
    """
    notes = [record.notes for record in records]
    quarantined = scan["quarantined"] or next((n["quarantined"] for n in notes if n.get("quarantined")), None)
    return {
        "scene": scan["scene"],
        "quarantined": quarantined,
        "kept": [name for n in notes for name in n.get("kept", [])],
        "skipped": [
            {k: s[k] for k in ("frame", "reason", "detail")} for s in [*scan["skipped"], *(s for n in notes for s in n["skipped"])]
        ],
        "notes": scan["notes"],
        "figures": next((n["figures"] for n in notes if n.get("figures")), None),
        "sources": [source for _, source, _ in scan["blocks"]],
    }


def report_url(dataset: str, scene: str) -> str:
    return join(dataset, "scenes", f"{scene}.json")


def read_reports(dataset: str, scenes: Sequence[str]) -> dict[str, Report]:
    """The reports that are there, by scene. One that cannot be read is as good as absent: it is put together anew."""
    there = location.list_sizes(join(dataset, "scenes"))
    found = [scene for scene in scenes if f"{scene}.json" in there]
    reports = {}
    for scene, data in zip(found, location.read_many([report_url(dataset, scene) for scene in found]), strict=True):
        with contextlib.suppress(ValueError, AttributeError):
            report = codec.decode_json(data)
            if {"kept", "skipped", "quarantined", "sources"} <= report.keys():
                reports[scene] = report
    return reports


def summary(reports: Sequence[Report]) -> list[str]:
    """What a person wants to know of the frames: lines of text, every quarantined scene by name."""
    kept = sum(len(r["kept"]) for r in reports)
    reasons = Counter(s["reason"] for r in reports for s in r["skipped"])
    counts = ", ".join(f"{name} {count}" for name, count in sorted(reasons.items()))
    lines = [f"scenes: {len(reports)}; frames kept: {kept}, skipped: {sum(reasons.values())}" + (f" ({counts})" if counts else "")]
    lines += [f"quarantined: {r['scene']}: {r['quarantined']['reason']}: {r['quarantined']['detail']}" for r in reports if r["quarantined"]]
    return lines


def kept_share(reports: Sequence[Report]) -> float:
    """The smaller of two shares: of listed frames that are kept, and of scenes that are not set aside."""
    kept, skipped = (sum(len(r[name]) for r in reports) for name in ("kept", "skipped"))
    sound = sum(not r["quarantined"] for r in reports)
    return min(kept / max(kept + skipped, 1), sound / max(len(reports), 1))
