"""Adds the columns of a windows table: `gaussians`, a frozen reconstructor's output for the context of every window, and `operators`, the
splat of that into each target as a sparse matrix over tokens, on the grid of a backbone's patches (`operators.patch`).

    python pipeline/cache_gaussians.py dataset=s3://bucket/rooms reconstructor=depth
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python pipeline/cache_gaussians.py dataset=...

Training reads `operators` alone; `keep_gaussians=false` does without `gaussians`, which pictures and the other ways to supervise need.
Another reconstructor, windows table or column of masks makes other columns beside the first: `column=NAME operators.column=NAME`. A run
that is repeated makes only what is missing or stale; `plan_only=true` says what that would be, and makes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from configs import ConfigError, command
from configs.schema import CacheGaussiansConfig
from pipeline.cluster import joined
from pipeline.columns.gaussians import GaussiansMaker, gaussians_provenance, windows_plan
from pipeline.columns.job import ColumnBuild, run_columns
from pipeline.columns.operators import OperatorsMaker, operators_provenance
from pipeline.estimate import estimate_windows
from pipeline.reconstruct.base import make_reconstructor
from pipeline.release import recorded
from storage.column import Column
from storage.index import Index, read_current
from storage.provenance import Provenance
from storage.records.frames import DEPTH
from storage.table import Table


def run(config: CacheGaussiansConfig) -> None:
    """Checks that the reconstructor takes the stored frames, then builds the missing shards."""
    started = time.monotonic()
    reconstructor = make_reconstructor(config.reconstructor)
    with_operators = config.operators.targets != "none"
    table = Table.open(config.dataset, [config.windows, *([config.masks] if with_operators else [])])
    frames, windows = table.frames, table.windows
    note = Column(config.dataset, "frames").provenance()
    height, width = note.settings["height"], note.settings["width"]
    reconstructor.check_size(height, width)
    if reconstructor.needs_depth and len(windows) and not frames.has(int(table.context(0)[0]), DEPTH):
        raise ConfigError("reconstructor: it needs depth, and these frames carry none; build them from scenes with a mesh")
    views = len(table.context(0)) if len(windows) else reconstructor.views
    if reconstructor.views not in (None, views):
        raise ConfigError(
            f"reconstructor: it takes {reconstructor.views} views, but a context of windows={config.windows} has {views}; choose another "
            "windows table or reconstructor"
        )
    described = {**reconstructor.describe(), "name": config.reconstructor.name}
    made = gaussians_provenance(windows, frames, note, described, recorded())
    gaussians = Column(config.dataset, config.column) if config.keep_gaussians else None
    masks = table.by_kind["masks"] if with_operators else None
    operators = Column(config.dataset, config.operators.column) if with_operators else None
    declared = _operators_provenance(config, table, made, note, described)
    for column, provenance in ((gaussians, made), (operators, declared)):
        if column:
            column.check(provenance)
    if config.plan_only:
        missing = {
            "gaussians": set(gaussians.missing(windows_plan(windows, made))) if gaussians else set(),
            "operators": _missing_operators(operators, declared, table, gaussians) if operators else set(),
        }
        print("\n".join(estimate_windows(config, table, reconstructor, missing)), flush=True)
        return
    pins = table.pins()
    of = {name: pins[name] for name in ("frames", config.windows)}
    built: list[int] = []
    with joined(config.ray) as cluster:
        workers, resources = cluster.model_stage(config.actor, gpu=reconstructor.uses_gpu)
        stored = None
        if gaussians:
            gaussians.declare(made)
            plan = windows_plan(windows, made)
            arguments = (config.dataset, config.windows, config.reconstructor, config.column, of)
            built += run_columns([ColumnBuild(gaussians, plan, made.fingerprint)], GaussiansMaker, arguments, workers, resources)
            stored = gaussians.write_index(plan, of)
            pins[config.column] = stored.sha256
            workers, resources = cluster.model_stage(config.actor, gpu=False)
        if operators and masks is not None:
            operators.declare(declared)
            plan = windows_plan(windows, declared, [masks], [stored] if stored else [])
            columns = (config.windows, config.masks, config.column if stored else None, config.reconstructor, config.operators.column)
            asked = config.operators
            how = (declared.fingerprint, asked.targets, asked.values, pins, asked.patch, asked.splat)
            build = ColumnBuild(operators, plan, declared.fingerprint)
            built += run_columns([build], OperatorsMaker, (config.dataset, *columns, *how), workers, resources)
            operators.write_index(plan, pins)
    print(f"{config.dataset}: {len(built)} shards built in {time.monotonic() - started:.0f} s", flush=True)


def _missing_operators(operators: Column, declared: Provenance, table: Table, gaussians: Column | None) -> set[int]:
    """The shards that are to be made: those of other sources too, as far as the Gaussians are there to tell."""
    masks, windows = table.by_kind["masks"], table.windows
    if gaussians is None:
        return set(operators.missing(windows_plan(windows, declared, [masks])))
    if read_current(gaussians.root, gaussians.name) is None:
        return {number for number, *_ in windows.metadata["shards"]}
    stored = Index.open(gaussians.root, gaussians.name)
    there = stored.tar_sums()
    new = {number for number, *_ in windows.metadata["shards"] if str(number) not in there}
    return new or set(operators.missing(windows_plan(windows, declared, [masks], [stored])))


def _operators_provenance(
    config: CacheGaussiansConfig, table: Table, made: Provenance, note: Provenance, described: Mapping[str, Any]
) -> Provenance:
    """made: provenance of the Gaussians, from which operators are made where they are kept. described: the reconstructor."""
    sources = {name: index.provenance for name, index in table.columns.items()}
    if config.keep_gaussians:
        sources[config.column] = made.fingerprint
    height, width, patch = note.settings["height"], note.settings["width"], config.operators.patch
    if patch > min(height, width):
        raise ConfigError(f"operators.patch={patch}: images of {height} x {width} pixels have no such patch; choose the backbone's")
    grid = height // patch, width // patch
    asked = (grid, config.operators.targets, config.operators.values, config.operators.splat)
    return operators_provenance(sources, config.masks, note, described, *asked, recorded())


if __name__ == "__main__":
    command(CacheGaussiansConfig, run)
