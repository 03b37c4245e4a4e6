"""The first look at a scene: which frames are sound, which are left out and why, and which windows they give.

The report of each scene lies at `{dataset}/scenes/{scene}.json` and is what the shards are planned from, so that a later run plans the same
shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from configs.schema import BuildShardsConfig
from pipeline.scannetpp import BadFrame, BadScene, SceneReader
from pipeline.windows import PlannedWindow, plan_windows
from storage import codec, location
from storage.location import NotFound, join

Report = dict[str, Any]


def scan_scene(config: BuildShardsConfig, scene: str) -> Report:
    """Reads every image of the scene once. Bad frames are skipped and a bad scene is quarantined, each with its reason; storage errors
    raise. A report that is there is taken, unless other settings made it or it set the scene aside: that may have been mended.

    The report: kept (names), skipped ([{frame, reason, detail}]), windows (names of each), pairs_passed_over, mesh and camera figures,
    quarantined.
    """
    url = report_url(config.dataset, scene)
    made_with = {"width": config.width, "height": config.height, "keep_bad": config.keep_bad, "window": asdict(config.window)}
    try:
        present = codec.decode_json(location.read_bytes(url))
        if present["made_with"] == made_with and not present["quarantined"]:
            return present
    except NotFound:
        pass
    try:
        report = _scan(config, scene)
    except BadScene as error:
        report = {"scene": scene, "quarantined": {"reason": error.reason, "detail": error.detail}, "kept": [], "skipped": [], "windows": []}
    report["made_with"] = made_with
    location.write_bytes(url, codec.encode_json(report))
    return report


def report_url(dataset: str, scene: str) -> str:
    return join(dataset, "scenes", f"{scene}.json")


def _scan(config: BuildShardsConfig, scene: str) -> Report:
    reader = SceneReader(config.root, scene, config.width, config.height, keep_bad=config.keep_bad)
    skipped = list(reader.index.skipped)
    kept = []
    for entry in reader.index.frames:
        try:
            reader.check(entry)
        except BadFrame as error:
            skipped.append(error.skip)
        else:
            kept.append(entry)
    poses = np.array([entry.c2w for entry in kept]).reshape(-1, 4, 4)
    windows, passed_over = plan_windows(scene, [e.name for e in kept], [e.number for e in kept], poses, config.window)
    report = {
        "scene": scene,
        "quarantined": None,
        "kept": [entry.name for entry in kept],
        "skipped": [{"frame": s.frame, "reason": s.reason, "detail": s.detail} for s in skipped],
        "windows": [list(window.names) for window in windows],
        "pairs_passed_over": passed_over,
        "notes": list(reader.index.notes),
        "figures": reader.report(),
    }
    if not windows:
        report["quarantined"] = {"reason": "too_few_frames", "detail": f"{len(kept)} kept frames give no window ({passed_over})"}
    return report


def planned_shards(reports: Sequence[Report], rows_per_shard: int) -> list[list[PlannedWindow]]:
    """All windows, scene after scene, cut into shards."""
    windows = [PlannedWindow(r["scene"], tuple(names)) for r in reports for names in r["windows"]]
    return [windows[i : i + rows_per_shard] for i in range(0, len(windows), rows_per_shard)]


def summary(reports: Sequence[Report]) -> list[str]:
    """What a person wants to know after the scan: lines of text, every quarantined scene by name."""
    kept = sum(len(r["kept"]) for r in reports)
    reasons = Counter(s["reason"] for r in reports for s in r["skipped"])
    lines = [
        f"scenes: {len(reports)}; frames kept: {kept}, skipped: {sum(reasons.values())}" + (f" ({_counts(reasons)})" if reasons else "")
    ]
    lines += [f"quarantined: {r['scene']}: {r['quarantined']['reason']}: {r['quarantined']['detail']}" for r in reports if r["quarantined"]]
    return lines


def kept_share(reports: Sequence[Report]) -> float:
    """The smaller of two shares: of listed frames that are kept, and of scenes that are not set aside."""
    kept, skipped = (sum(len(r[name]) for r in reports) for name in ("kept", "skipped"))
    sound = sum(not r["quarantined"] for r in reports)
    return min(kept / max(kept + skipped, 1), sound / max(len(reports), 1))


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))
