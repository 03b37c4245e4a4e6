"""What a build would make, before it is made: shards, rows, bytes and hours, from a few timed samples. Nothing is written."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.schema import BuildShardsConfig, CacheGaussiansConfig
from pipeline.columns.gaussians import gaussian_members
from pipeline.columns.masks import encode_labels
from pipeline.columns.operators import target_indices
from pipeline.masks import make_mask_source
from pipeline.plan.scan import blocks
from pipeline.plan.windows import plan_scene
from pipeline.readers import BadFrame, BadScene, make_reader
from pipeline.reconstruct.base import Reconstructor
from storage.column import Column
from storage.domain import Frame, Gaussians
from storage.plan import FramesPlan
from storage.records.frames import encode_frame
from storage.records.operators import encode_operator
from storage.table import Table

_SAMPLES = 3


def estimate_frames(config: BuildShardsConfig, scans: Sequence[Mapping[str, Any]], fingerprint: str) -> list[str]:
    """Lines of text: missing shards of `frames` and `masks`, with bytes and CPU-hours; and the windows that the listed poses would give."""
    present = FramesPlan.read(config.dataset)
    committed = Column(config.dataset, "frames").committed()
    made = {shard.source for shard in present.shards if shard.number in committed}
    missing = [(scan["scene"], count) for scan in scans for _, source, count in scan["blocks"] if source not in made]
    frames = sum(count for _, count in missing)
    lines = [
        f"scene {s['scene']}: set aside: {s['quarantined']['reason']}: {s['quarantined']['detail']}" for s in scans if s["quarantined"]
    ]
    skipped = Counter(skip["reason"] for scan in scans for skip in scan["skipped"])
    if skipped:
        lines.append("listed frames that cannot be used: " + ", ".join(f"{reason} {count}" for reason, count in sorted(skipped.items())))
    total = sum(len(scan["blocks"]) for scan in scans)
    lines.append(
        f"frames, masks: {len(missing)} of {total} shards to make, {frames} frames of {len({scene for scene, _ in missing})} scenes"
    )
    windows, passed = 0, Counter[str]()
    for scan in scans:
        count, reasons = _scene_windows(config, scan["scene"], fingerprint) if scan["blocks"] else (0, {})
        windows += count
        passed.update(reasons)
    lines.append(f"windows: {windows}" + "".join(f"; passed over: {reason} {count}" for reason, count in sorted(passed.items())))
    if missing:
        lines.append(_sampled_frames(config, missing))
    return lines


def _scene_windows(config: BuildShardsConfig, scene: str, fingerprint: str) -> tuple[int, Mapping[str, int]]:
    index = make_reader(config.layout).listing(config.root, scene, config.keep_bad)
    entries = [
        entry
        for block in blocks(config, index, fingerprint)
        for entry, held_out in zip(block.entries, block.held_out, strict=True)
        if held_out == config.windows.held_out
    ]
    poses = np.array([entry.c2w for entry in entries]).reshape(-1, 4, 4)
    planned, passed = plan_scene(np.array([entry.number for entry in entries], np.int64), poses, config.windows)
    return len(planned), passed


def _sampled_frames(config: BuildShardsConfig, missing: Sequence[tuple[str, int]]) -> str:
    """Reads and encodes a few frames of the first scene that has sound ones."""
    reader, masks = make_reader(config.layout), make_mask_source(config.masks)
    scenes, frames = list(dict.fromkeys(scene for scene, _ in missing)), sum(count for _, count in missing)
    for scene in scenes:
        began = time.process_time()
        seconds, sizes = [], []
        try:
            opened = reader.open(config.root, scene, config.width, config.height, config.keep_bad)
            opened.report()  # loads the mesh
            loading = time.process_time() - began
            listed = opened.index.frames
            for entry in listed[:: max(1, len(listed) // _SAMPLES)][:_SAMPLES]:
                began = time.process_time()
                try:
                    frame = opened.read(entry)
                except BadFrame:
                    continue
                members = encode_frame(scene, frame, False)
                if masks.needs_scene:
                    members |= encode_labels(config.masks.name, frame, masks.labels(frame, opened))
                seconds.append(time.process_time() - began)
                sizes.append(sum(map(len, members.values())))
        except BadScene:
            continue
        if seconds:
            hours = (frames * float(np.median(seconds)) + len(scenes) * loading) / 3600
            return (
                f"about {frames * np.mean(sizes) / 1e9:.2f} GB and {hours:.2f} CPU-hours ({np.median(seconds):.3f} CPU-s and "
                f"{np.mean(sizes) / 1e3:.0f} kB a frame, {loading:.1f} CPU-s for a scene's mesh; timed on {len(seconds)} frames of {scene})"
            )
    return "no frame could be timed: every scene tried is bad"


def estimate_windows(
    config: CacheGaussiansConfig, table: Table, reconstructor: Reconstructor, missing: Mapping[str, set[int]]
) -> list[str]:
    """Lines of text: what is missing of `gaussians` and `operators` (shards of the windows table), with bytes and hours from a few timed
    windows."""
    shards, lines = len(table.windows.metadata["shards"]), [f"{config.windows}: {len(table)} windows"]
    windows = {name: sum(len(table.windows.rows_of_shard(number)) for number in numbers) for name, numbers in missing.items()}
    lines += [f"{name}: {len(numbers)} of {shards} shards to make, {windows[name]} windows" for name, numbers in missing.items()]
    if not any(windows.values()):
        return lines
    parts: dict[str, list[tuple[float, int]]] = {"gaussians": [], "operators": []}
    for number in np.linspace(0, len(table) - 1, min(_SAMPLES, len(table))).round().astype(int):
        row = table.row(int(number))
        labels = config.operators.targets != "none"
        context = row.context(labels=labels, depth=reconstructor.needs_depth)
        began = time.process_time(), time.monotonic()
        (cloud,) = reconstructor.reconstruct_batch([context])
        members = gaussian_members(cloud, [view.camera for view in context])
        spent = time.monotonic() - began[1] if reconstructor.uses_gpu else time.process_time() - began[0]
        parts["gaussians"].append((spent, sum(map(len, members.values()))))
        if labels and isinstance(cloud, Gaussians):
            parts["operators"].append(_sampled_operators(config, row.targets(labels=True), context, cloud))
    for name, samples in parts.items():
        if samples and windows[name]:
            seconds, size = (float(np.mean(values)) for values in zip(*samples, strict=True))
            unit = "hours of the device" if reconstructor.uses_gpu and name == "gaussians" else "CPU-hours"
            lines.append(
                f"{name}: about {windows[name] * size / 1e9:.2f} GB and {windows[name] * seconds / 3600:.2f} {unit} "
                f"({seconds:.2f} s and {size / 1e3:.0f} kB a window; timed on {len(samples)})"
            )
    return lines


def _sampled_operators(
    config: CacheGaussiansConfig, targets: Sequence[Frame], context: Sequence[Frame], cloud: Gaussians
) -> tuple[float, int]:
    from training.splat.window import WindowSplat

    began, size = time.process_time(), 0
    splat = WindowSplat(cloud, context, config.operators.patch)
    for index in target_indices(config.operators.targets, len(targets)):
        size += sum(map(len, encode_operator(splat.operator(targets[index]), config.operators.values).values()))
    return time.process_time() - began, size
