"""Turns raw scenes into the tables of a dataset: `frames` with `masks` and `features`, and an index of windows over them.

    python pipeline/build_shards.py root=/data/scannetpp dataset=s3://bucket/rooms
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python pipeline/build_shards.py root=... dataset=...

`layout` says how raw scenes lie on disk. Each sound frame is undistorted, resized, cast against the mesh for labels and depth, encoded and
stored once; what was left out and why stands in `scenes/*.json`. `masks=NAME` adds masks of another source, as a column `masks-NAME`.

A run that is repeated makes only what is not there: more scenes in the split are new shards at the end, a raw file that changed makes its
shard anew under a new number. `plan_only=true` says what would be made, and makes nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from configs import command
from configs.schema import BuildShardsConfig
from pipeline.cluster import Cluster, joined, map_tasks
from pipeline.columns.features import FeaturesMaker, context_frames, features_plan, features_provenance
from pipeline.columns.frames import FramesMaker, frames_provenance
from pipeline.columns.job import ColumnBuild, run_columns
from pipeline.columns.masks import ImageMasksMaker, masks_plan, masks_provenance
from pipeline.estimate import estimate_frames
from pipeline.masks import make_mask_source, masks_column
from pipeline.plan.scan import kept_share, read_reports, report_url, scan_scene, scene_report, summary, wanted
from pipeline.plan.windows import build_windows, windows_provenance
from pipeline.readers import make_reader
from pipeline.release import recorded
from storage import codec, location
from storage.column import Column, ShardPlan
from storage.index import Index
from storage.location import StorageError
from storage.plan import FramesPlan, agree
from storage.provenance import Provenance

WINDOWS = "windows"


def run(config: BuildShardsConfig) -> None:
    """Scan, frames with masks, windows, features, in this order."""
    started = time.monotonic()
    reader, source = make_reader(config.layout), make_mask_source(config.masks)
    scenes = reader.scenes(config.root, config.split)
    provenance = frames_provenance(config, recorded())
    masks = masks_provenance(config.masks.name, source, provenance, recorded())
    frames_column, of_masks = Column(config.dataset, "frames"), Column(config.dataset, masks_column(config.masks.name))
    frames_column.check(provenance)
    of_masks.check(masks)
    Column(config.dataset, WINDOWS).check(windows_provenance(config.windows, provenance.fingerprint))
    with joined(config.ray) as cluster:
        scans = _scan(config, scenes, provenance.fingerprint, cluster)
        if config.plan_only:
            print("\n".join(estimate_frames(config, scans, provenance.fingerprint)), flush=True)
            return
        frames_column.declare(provenance)
        of_masks.declare(masks)
        plan = agree(config.dataset, wanted(scans))
        _print_kept_as_they_are(plan, scans)
        scanned = {scan["scene"] for scan in scans if scan["blocks"]}
        own = [ShardPlan(s.number, s.source, group=s.scene) for s in plan.shards if s.scene in scanned]
        builds = [ColumnBuild(frames_column, own, provenance.fingerprint)]
        if source.needs_scene:
            builds.append(ColumnBuild(of_masks, masks_plan(own, masks), masks.fingerprint))
        built = run_columns(builds, FramesMaker, (config, provenance.fingerprint), cluster.workers, {"num_cpus": 1})
        _report(config, scans, plan, built)
        # As planned by now: a scene can have been withdrawn meanwhile, and shards of others can be under way in another build.
        newest = [ShardPlan(s.number, s.source, group=s.scene) for s in FramesPlan.read(config.dataset).shards]
        absent = set(frames_column.missing(newest))
        if source.needs_scene:
            absent |= set(of_masks.missing(masks_plan(newest, masks)))
        shards = [s for s in newest if s.number not in absent]
        _print_left_out([s for s in newest if s.number in absent])
        frames = frames_column.write_index(shards, {})
        if source.needs_scene:
            of_masks.write_index(masks_plan(shards, masks), {"frames": frames.sha256})
        else:
            built += _build_image_masks(config, of_masks, frames, masks, cluster)
        windows, passed_over = build_windows(config.dataset, WINDOWS, config.windows, frames)
        print(f"{windows.url}: {len(windows)} windows over {len(frames)} frames{passed_over_text(passed_over)}", flush=True)
        if not len(windows):
            raise StorageError(f"{config.root}: split {config.split} gives no window at all; see {config.dataset}/scenes/*.json")
        if config.features != "none":
            built += _build_features(config, frames, windows, provenance, cluster)
    print(f"{config.dataset}: {len(built)} shards built in {time.monotonic() - started:.0f} s", flush=True)


def passed_over_text(passed_over: dict[str, int]) -> str:
    """Why candidates gave no window, for a line of text."""
    return "; passed over: " + ", ".join(f"{reason} {count}" for reason, count in passed_over.items()) if passed_over else ""


def _scan(config: BuildShardsConfig, scenes: Sequence[str], fingerprint: str, cluster: Cluster) -> list[dict[str, Any]]:
    scans: list[dict[str, Any]] = [{}] * len(scenes)
    done = map_tasks(scan_scene, [(config, scene, fingerprint) for scene in scenes], cluster.workers)
    for number, scan in tqdm(done, total=len(scenes), unit="scene", desc="scan", mininterval=1.0, file=sys.stderr):
        scans[number] = scan
    return scans


def _print_kept_as_they_are(plan: FramesPlan, scans: Sequence[dict[str, Any]]) -> None:
    """Scenes of the split that are not built: withdrawn ones, and those that can no longer be read but were, whose shards stay."""
    back = sorted(set(plan.withdrawn) & {scan["scene"] for scan in scans})
    if back:
        print(f"withdrawn, not built again: {', '.join(back)}", flush=True)
    held = sorted({s.scene for s in plan.shards} & {scan["scene"] for scan in scans if not scan["blocks"]})
    if held:
        print(f"set aside now, with the shards that were made before (withdraw.py takes them out): {', '.join(held)}", flush=True)


def _print_left_out(shards: Sequence[ShardPlan]) -> None:
    """Planned shards that the index must do without: of scenes that this run does not build."""
    if shards:
        scenes = ", ".join(sorted({shard.group for shard in shards})[:5])
        print(
            f"left out of the index: {len(shards)} planned shards that are not there, of {scenes}; another build makes them, or they "
            "were lost: build the split that lists these scenes",
            flush=True,
        )


def _report(config: BuildShardsConfig, scans: Sequence[dict[str, Any]], plan: FramesPlan, built: Sequence[int]) -> None:
    """Writes the reports of the scenes whose shards are not those that the report speaks of, prints what they say, and ends the run where
    too little is sound."""
    there = read_reports(config.dataset, [scan["scene"] for scan in scans])
    column = Column(config.dataset, "frames")
    committed = column.committed()
    numbers: dict[str, list[int]] = {}
    for shard in plan.shards:
        numbers.setdefault(shard.scene, []).append(shard.number)
    reports = []
    for scan in scans:
        present, of_scene = there.get(scan["scene"]), numbers.get(scan["scene"], [])
        if (
            present
            and present["sources"] == [source for _, source, _ in scan["blocks"]]
            and scan["blocks"]
            and not set(of_scene) & set(built)
        ):
            reports.append(present)
            continue
        report = scene_report(scan, column.records([committed[n] for n in of_scene if n in committed]))
        location.write_bytes(report_url(config.dataset, scan["scene"]), codec.encode_json(report))
        reports.append(report)
    print("\n".join(summary(reports)), flush=True)
    share = kept_share(reports)
    if share < config.min_kept_share:
        raise StorageError(
            f"{config.root}: only {share:.0%} of the listed frames are sound, min_kept_share is {config.min_kept_share:.0%}; "
            f"see {config.dataset}/scenes/*.json"
        )


def _build_image_masks(config: BuildShardsConfig, column: Column, frames: Index, provenance: Provenance, cluster: Cluster) -> list[int]:
    """The masks of a source that needs the stored images alone."""
    plan = features_plan(frames, provenance, None)
    pins = {"frames": frames.sha256}
    build = ColumnBuild(column, plan, provenance.fingerprint)
    built = run_columns([build], ImageMasksMaker, (config.dataset, config.masks, pins), cluster.workers, {"num_cpus": 1})
    column.write_index(plan, pins)
    return built


def _build_features(config: BuildShardsConfig, frames: Index, windows: Index, note: Provenance, cluster: Cluster) -> list[int]:
    from training.model.backbone import build_backbone
    from training.model.weights import hash_weights, load_weights

    weights = load_weights(config.backbone)
    # What does not fit is refused here.
    build_backbone(config.backbone.architecture, weights, config.height, config.width, config.backbone.blocks)
    column = Column(config.dataset, "features")
    provenance = features_provenance(config.backbone, hash_weights(weights), config.features, frames, note, recorded())
    column.declare(provenance)
    of_context = config.features == "context"
    plan = features_plan(frames, provenance, context_frames(frames, windows) if of_context else None)
    workers, resources = cluster.model_stage(config.actor, gpu=True)
    pins = {"frames": frames.sha256, WINDOWS: windows.sha256}
    arguments = (config.dataset, config.backbone, config.height, config.width, WINDOWS if of_context else None, pins)
    built = run_columns([ColumnBuild(column, plan, provenance.fingerprint)], FeaturesMaker, arguments, workers, resources)
    column.write_index(plan, {"frames": frames.sha256, **({WINDOWS: windows.sha256} if of_context else {})})
    return built


if __name__ == "__main__":
    command(BuildShardsConfig, run)
