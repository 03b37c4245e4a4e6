"""Takes a scene out of a dataset: its rows leave every index at once, its shards are removed.

    python pipeline/withdraw.py dataset=s3://bucket/rooms scene=5fb5d2dbf2

The builders do not make it again. A run that began before is told so when it goes on, and can go on without the scene
(`loader.skip_withdrawn=true`). What else keeps a copy (runs, caches of nodes, backups) is for you to find. Do not run it beside a builder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from configs import ConfigError, command
from configs.schema import WindowsConfig, WithdrawConfig
from configs.stored import restore
from pipeline.plan.scan import report_url
from pipeline.plan.windows import build_windows
from storage import location
from storage.column import Column, ShardPlan
from storage.dataset import OF_FRAMES, SET_ASIDE, column_names, objects_of_shards
from storage.index import Index, read_current
from storage.location import join
from storage.plan import FramesPlan


def run(config: WithdrawConfig) -> None:
    """Plan, indexes, then shards, those of `frames` last: killed in between, the same command finishes it."""
    plan = FramesPlan.read(config.dataset)
    if config.scene not in {s.scene for s in plan.shards} | set(plan.withdrawn):
        raise ConfigError(f"scene={config.scene}: {config.dataset} has no such scene")
    columns = column_names(config.dataset)
    indexes = {
        name: Index.open(config.dataset, name, current["index"]) for name in columns if (current := read_current(config.dataset, name))
    }
    shards = _shards_of_scene(config, columns, indexes)
    aside = _set_aside(config.dataset, shards)
    counts = ", ".join(f"{name} {len(numbers)} shards" for name, numbers in shards.items())
    print(f"{config.dataset}: scene {config.scene}: {counts}; set aside by verify: {len(aside)} objects", flush=True)
    if config.dry_run:
        return
    if config.scene not in plan.withdrawn and not plan.without([config.scene]).publish(config.dataset):
        raise ConfigError(f"{config.dataset}: another builder is planning at this moment; run again")
    renewed: dict[str, Index] = {}
    for name in sorted(indexes, key=lambda name: len(indexes[name].of)):  # sources first
        renewed[name] = _rewritten(config, indexes, name, shards.get(name, set()), renewed)
    location.remove_many([*aside, report_url(config.dataset, config.scene)])
    for name in sorted(shards, key=lambda name: name == "frames"):
        location.remove_many(objects_of_shards(config.dataset, name, shards[name]))
    left = {name: len(index) for name, index in renewed.items()}
    print(f"{config.dataset}: withdrawn; rows left: " + ", ".join(f"{name} {count}" for name, count in left.items()), flush=True)


def _shards_of_scene(config: WithdrawConfig, columns: Sequence[str], indexes: Mapping[str, Index]) -> dict[str, set[int]]:
    """For each column the shards that ever held the scene's frames, or windows of them, whether an index names them or not."""
    ever = {shard.number for plan in FramesPlan.all(config.dataset) for shard in plan.shards if shard.scene == config.scene}
    kinds = {
        name: indexes[name].kind if name in indexes else Column(config.dataset, name).provenance().settings["kind"] for name in columns
    }
    shards = {name: ever for name, kind in kinds.items() if kind in OF_FRAMES}
    frames = Column(config.dataset, "frames")
    keys = {key for record in frames.records([c for c in frames.listing() if c.number in ever]) for key in record.keys}
    for index in Index.kept(config.dataset, "frames"):
        keys |= {index.key(row) for row in np.flatnonzero(index.is_of_scenes([config.scene])).tolist()}
    for name, kind in kinds.items():
        if kind in ("gaussians", "operators"):
            column = Column(config.dataset, name)
            shards[name] = {record.number for record in column.records(column.listing()) if not keys.isdisjoint(record.keys)}
    return shards


def _set_aside(dataset: str, shards: Mapping[str, set[int]]) -> list[str]:
    """Tars and records of these shards that verify.py moved away."""
    found = []
    for name in location.find_sizes(join(dataset, SET_ASIDE)):
        column, _, file = name.rpartition("/")
        number = re.match(rf"{re.escape(column)}-(\d{{6,}})\.", file)
        if number and int(number[1]) in shards.get(column, set()):
            found.append(join(dataset, SET_ASIDE, name))
    return found


def _rewritten(config: WithdrawConfig, indexes: Mapping[str, Index], name: str, gone: set[int], renewed: Mapping[str, Index]) -> Index:
    """The index without the scene. One that was made for another state of its sources is not made to look current by it."""
    index, column = indexes[name], Column(config.dataset, name)
    if index.kind == "windows":
        settings = {key: value for key, value in column.provenance().settings.items() if key != "kind"}
        return build_windows(config.dataset, name, restore(WindowsConfig, settings, column.url), renewed["frames"])[0]
    current = all(source in indexes and indexes[source].sha256 == sha256 for source, sha256 in index.of.items())
    kept = [ShardPlan(number, source) for number, source, *_ in index.metadata["shards"] if number not in gone]
    return column.write_index(kept, {source: renewed[source].sha256 for source in index.of} if current else index.of)


if __name__ == "__main__":
    command(WithdrawConfig, run)
