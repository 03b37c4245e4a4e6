"""Adds a `gaussians` column to a dataset: a frozen reconstructor's output for the context pair of every row.

    python pipeline/cache_gaussians.py dataset=s3://bucket/scannetpp reconstructor=depth
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python pipeline/cache_gaussians.py dataset=...

Another reconstructor makes another column beside the first: `column=gaussians-mvsplat`.
"""

from __future__ import annotations

import time
from importlib.metadata import version

import numpy as np

from configs import command
from configs.schema import CacheGaussiansConfig
from pipeline.cluster import joined
from pipeline.column_job import run_column
from pipeline.makers import GaussiansMaker
from pipeline.reconstruct.reconstructor import make_reconstructor
from storage.column import Column, Manifest, open_columns


def run(config: CacheGaussiansConfig) -> None:
    """Checks that the reconstructor takes the stored size, then builds the missing shards."""
    started = time.monotonic()
    reconstructor = make_reconstructor(config.reconstructor)
    frames = Manifest(config.dataset, "frames")
    settings = frames.made_by["config"]
    reconstructor.check_size(settings["height"], settings["width"])
    column = Column(config.dataset, config.column)
    column.declare(
        {
            "column": "gaussians",
            "code_version": version("splat-and-distill-at-scale"),
            "from": {"frames": frames.content_hash},
            "reconstructor": reconstructor.describe(),
        }
    )
    rows_of_shard = np.bincount(frames.shard_of_rows()).tolist()
    with joined(config.ray) as cluster:
        workers, resources = cluster.model_stage()
        built = run_column(column, GaussiansMaker, (config.dataset, config.reconstructor), rows_of_shard, workers, resources)
    open_columns(config.dataset, ["frames", config.column])
    print(f"{column.url}: {built} shards built in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    command("cache_gaussians", CacheGaussiansConfig, run)
