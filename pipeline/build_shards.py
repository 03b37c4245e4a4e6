"""Turns raw scenes into the columns `frames` and `features` of a dataset.

    python pipeline/build_shards.py root=/data/scannetpp dataset=s3://bucket/scannetpp
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python pipeline/build_shards.py root=... dataset=...

Scenes -> sound frames and windows (`scenes/*.json` says what was left out and why) -> undistorted, resized frames with instance labels cast
from the mesh -> shards; then the frozen backbone's tokens of every context pair. A run that is repeated makes only what is not committed.
"""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import asdict
from importlib.metadata import version

from tqdm import tqdm

from configs import ConfigError, command
from configs.schema import BuildShardsConfig
from pipeline.cluster import Cluster, joined, map_tasks
from pipeline.column_job import run_column
from pipeline.makers import FeaturesMaker, FramesMaker
from pipeline.scan import Report, kept_share, planned_shards, scan_scene, summary
from pipeline.scannetpp import read_split
from storage import codec
from storage.column import Column, Manifest
from storage.location import StorageError


def run(config: BuildShardsConfig) -> None:
    """Scan, frames, features, in this order."""
    started = time.monotonic()
    _check(config)
    scenes = read_split(config.root, config.split)
    frames = Column(config.dataset, "frames")
    made_by = _frames_made_by(config, scenes)
    frames.check(made_by)
    with joined(config.ray) as cluster:
        shards = planned_shards(_scan(config, scenes, cluster), config.rows_per_shard)
        plan = codec.encode_json([[window.scene, *window.names] for shard in shards for window in shard])
        frames.declare({**made_by, "windows_sha256": hashlib.sha256(plan).hexdigest()})
        rows_of_shard = [len(shard) for shard in shards]
        built = run_column(frames, FramesMaker, (config, shards), rows_of_shard, cluster.workers, {"num_cpus": 1})
        if config.features:
            built += _build_features(config, rows_of_shard, cluster)
    print(f"{config.dataset}: {built} shards built in {time.monotonic() - started:.0f} s", flush=True)


def _check(config: BuildShardsConfig) -> None:
    for name in ("width", "height", "rows_per_shard"):
        if getattr(config, name) <= 0:
            raise ConfigError(f"{name}={getattr(config, name)}: must be above 0")
    if config.window.gap < 1 or config.window.stride < 1:
        raise ConfigError(f"window.gap={config.window.gap}, window.stride={config.window.stride}: both must be at least 1")


def _scan(config: BuildShardsConfig, scenes: list[str], cluster: Cluster) -> list[Report]:
    reports: list[Report] = [{}] * len(scenes)
    done = map_tasks(scan_scene, [(config, scene) for scene in scenes], cluster.workers)
    for number, report in tqdm(done, total=len(scenes), unit="scene", desc="scan", mininterval=1.0, file=sys.stderr):
        reports[number] = report
    print("\n".join(summary(reports)), flush=True)
    share = kept_share(reports)
    if share < config.min_kept_share:
        raise StorageError(
            f"{config.root}: only {share:.0%} of the listed frames are sound, min_kept_share is {config.min_kept_share:.0%}; "
            f"see {config.dataset}/scenes/*.json"
        )
    if not any(report["windows"] for report in reports):
        raise StorageError(f"{config.root}: split {config.split} gives no window at all; see {config.dataset}/scenes/*.json")
    return reports


def _build_features(config: BuildShardsConfig, rows_of_shard: list[int], cluster: Cluster) -> int:
    from training.backbone import build_backbone, hash_weights, load_weights

    weights = load_weights(config.backbone)
    build_backbone(config.backbone.architecture, weights, config.height, config.width)  # what does not fit is refused here
    features = Column(config.dataset, "features")
    frames = Manifest(config.dataset, "frames")
    features.declare(
        {
            "column": "features",
            "code_version": version("splat-and-distill-at-scale"),
            "from": {"frames": frames.content_hash},
            "source": config.source,
            "licence": config.licence,
            "backbone": asdict(config.backbone),
            "weights_sha256": hash_weights(weights),
        }
    )
    workers, resources = cluster.model_stage(config.actor, gpu=True)
    arguments = (config.dataset, config.backbone, config.height, config.width)
    return run_column(features, FeaturesMaker, arguments, rows_of_shard, workers, resources)


def _frames_made_by(config: BuildShardsConfig, scenes: list[str]) -> dict:
    kept = ("split", "width", "height", "keep_bad", "window", "rows_per_shard", "source", "licence")
    return {
        "column": "frames",
        "code_version": version("splat-and-distill-at-scale"),
        "config": {name: value for name, value in asdict(config).items() if name in kept},
        "scenes_sha256": hashlib.sha256(codec.encode_json(scenes)).hexdigest(),
    }


if __name__ == "__main__":
    command("build_shards", BuildShardsConfig, run)
