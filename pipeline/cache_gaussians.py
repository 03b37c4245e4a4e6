"""Adds a `gaussians` column to a dataset: a frozen reconstructor's output for the context pair of every row.

    python pipeline/cache_gaussians.py dataset=s3://bucket/scannetpp reconstructor=depth
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python pipeline/cache_gaussians.py dataset=...

Another reconstructor makes another column beside the first: `column=gaussians-mvsplat`. With `operators.targets=all` it also adds, or with
`keep_gaussians=false` adds instead, the column `operators`: the splat into each frame of a window as a sparse matrix over tokens.
"""

from __future__ import annotations

import time
from importlib.metadata import version

import numpy as np

from configs import ConfigError, command
from configs.schema import CacheGaussiansConfig
from pipeline.cluster import joined
from pipeline.column_job import run_column
from pipeline.makers import GaussiansMaker, OperatorsMaker
from pipeline.reconstruct.reconstructor import make_reconstructor
from storage.column import Column, Manifest, open_columns


def run(config: CacheGaussiansConfig) -> None:
    """Checks that the reconstructor takes the stored size, then builds the missing shards."""
    started = time.monotonic()
    _check(config)
    reconstructor = make_reconstructor(config.reconstructor)
    frames = Manifest(config.dataset, "frames")
    settings = frames.made_by["config"]
    reconstructor.check_size(settings["height"], settings["width"])
    if reconstructor.needs_depth and len(frames) and "00.depth.png" not in frames.members(0):
        raise ConfigError("reconstructor: it needs depth, and these frames carry none; build them from scenes with a mesh")
    made_by = {
        "code_version": version("splat-and-distill-at-scale"),
        "from": {"frames": frames.content_hash},
        "source": settings["source"],
        "licence": settings["licence"],
        "reconstructor": reconstructor.describe(),
    }
    gaussians, operators = Column(config.dataset, config.column), Column(config.dataset, config.operators.column)
    rows_of_shard = np.bincount(frames.shard_of_rows()).tolist()
    with_operators = config.operators.targets != "none"
    declarations = []
    if config.keep_gaussians:
        declarations.append((gaussians, {"column": "gaussians", **made_by}))
    if with_operators:
        asked = {"targets": config.operators.targets, "values": config.operators.values}
        declarations.append((operators, {"column": "operators", **made_by, **asked}))
    for column, declared in declarations:
        column.check(declared)
    for column, declared in declarations:
        column.declare(declared)
    built = 0
    with joined(config.ray) as cluster:
        workers, resources = cluster.model_stage(config.actor, gpu=reconstructor.uses_gpu)
        if config.keep_gaussians:
            built += run_column(gaussians, GaussiansMaker, (config.dataset, config.reconstructor), rows_of_shard, workers, resources)
            open_columns(config.dataset, ["frames", config.column])
        if with_operators:
            source = config.column if config.keep_gaussians else None
            if source:
                workers, resources = cluster.model_stage(config.actor, gpu=False)
            arguments = (
                config.dataset,
                config.operators.column,
                source,
                config.reconstructor,
                config.operators.targets,
                config.operators.values,
            )
            built += run_column(operators, OperatorsMaker, arguments, rows_of_shard, workers, resources)
            open_columns(config.dataset, ["frames", config.operators.column])
    print(f"{config.dataset}: {built} shards built in {time.monotonic() - started:.0f} s", flush=True)


def _check(config: CacheGaussiansConfig) -> None:
    targets, values = config.operators.targets, config.operators.values
    if targets not in ("none", "all") and not (targets.isdigit() and int(targets) > 0):
        raise ConfigError(f"operators.targets={targets}: choose none, all, or a number above 0")
    if values not in ("f16", "u8"):
        raise ConfigError(f"operators.values={values}: choose f16 or u8")
    if targets == "none" and not config.keep_gaussians:
        raise ConfigError("keep_gaussians=false with operators.targets=none leaves nothing to build; set operators.targets=all")


if __name__ == "__main__":
    command("cache_gaussians", CacheGaussiansConfig, run)
