"""Takes a scene out of a dataset: its rows leave every index at once, its shards are removed.

    python pipeline/withdraw.py dataset=s3://bucket/rooms scene=5fb5d2dbf2

The builders do not make it again. A run that began before is told so when it goes on, and can go on without the scene
(`loader.skip_withdrawn=true`). What else keeps a copy (runs, caches of nodes, backups) is for you to find.
"""

from __future__ import annotations

from collections.abc import Mapping

from configs import ConfigError, command
from configs.schema import WindowsConfig, WithdrawConfig
from pipeline.plan.frames import FramesPlan
from pipeline.plan.scan import report_url
from pipeline.plan.windows import build_windows
from storage import location
from storage.column import Column, ShardPlan
from storage.dataset import column_names, objects_of_shards
from storage.index import Index, read_current


def run(config: WithdrawConfig) -> None:
    """Plan, indexes, then shards: killed in between, the same command finishes it."""
    plan = FramesPlan.read(config.dataset)
    if config.scene not in {s.scene for s in plan.shards} | set(plan.withdrawn):
        raise ConfigError(f"scene={config.scene}: {config.dataset} has no such scene")
    indexes = {
        name: Index.open(config.dataset, name, current["index"])
        for name in column_names(config.dataset)
        if (current := read_current(config.dataset, name))
    }
    shards = _shards_of_scene(config, indexes)
    print(f"{config.dataset}: scene {config.scene}: " + ", ".join(f"{name} {len(s)} shards" for name, s in shards.items()), flush=True)
    if config.dry_run:
        return
    if config.scene not in plan.withdrawn and not plan.without([config.scene]).publish(config.dataset):
        raise ConfigError(f"{config.dataset}: another builder is planning at this moment; run again")
    renewed: dict[str, Index] = {}
    for name in sorted(indexes, key=lambda name: len(indexes[name].of)):  # sources first
        renewed[name] = _rewritten(config, indexes[name], shards[name], renewed)
    for name, numbers in shards.items():
        if indexes[name].kind != "windows":
            location.remove_many(objects_of_shards(config.dataset, name, numbers))
    location.remove_many([report_url(config.dataset, config.scene)])
    left = {name: len(index) for name, index in renewed.items()}
    print(f"{config.dataset}: withdrawn; rows left: " + ", ".join(f"{name} {count}" for name, count in left.items()), flush=True)


def _shards_of_scene(config: WithdrawConfig, indexes: Mapping[str, Index]) -> dict[str, set[int]]:
    """For each column the shards that ever held the scene's frames, or windows of them."""
    ever = {shard.number for plan in FramesPlan.all(config.dataset) for shard in plan.shards if shard.scene == config.scene}
    shards = {name: ever for name, index in indexes.items() if index.kind in ("frames", "masks", "features")}
    for name, index in indexes.items():
        if index.kind == "windows":
            kept = Index.kept(config.dataset, name)
            shards[name] = {number for one in kept for number in one.shards_of_scene(config.scene)}
    for name, index in indexes.items():
        if name not in shards:
            shards[name] = next(shards[source] for source in index.of if indexes[source].kind == "windows")
    return shards


def _rewritten(config: WithdrawConfig, index: Index, gone: set[int], renewed: dict[str, Index]) -> Index:
    column = Column(config.dataset, index.column)
    if index.kind == "windows":
        settings = dict(column.provenance().settings)
        settings.pop("kind")
        return build_windows(config.dataset, index.column, WindowsConfig(**settings), renewed["frames"])[0]
    kept = [ShardPlan(number, source) for number, source, *_ in index.metadata["shards"] if number not in gone]
    return column.write_index(kept, {name: renewed[name].sha256 for name in index.of})


if __name__ == "__main__":
    command("withdraw", WithdrawConfig, run)
