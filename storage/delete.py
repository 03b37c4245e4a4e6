"""Deletes what is named: a column, a dataset, or what no current index names any more.

    python storage/delete.py dataset=s3://bucket/rooms what=retired                  # says what would go
    python storage/delete.py dataset=s3://bucket/rooms what=retired dry_run=false
    python storage/delete.py dataset=s3://bucket/rooms what=column column=features dry_run=false

`retired` are shards whose place another took, tars without a commit record, what `verify.py` set aside, and indexes that are not current. A
run that began before the newest index pins an older one: it can no longer go on once that is gone. Do not run it beside a builder.
"""

from __future__ import annotations

from configs import ConfigError, command
from configs.schema import DeleteConfig, Deletion
from storage import location
from storage.column import Column
from storage.dataset import SCENES, SET_ASIDE, column_names, retired_objects
from storage.index import Damaged, read_current
from storage.location import NotFound, join


def run(config: DeleteConfig) -> None:
    """Lists the objects, and removes them unless it is a dry run."""
    sizes = location.find_sizes(config.dataset)
    columns = column_names(config.dataset)
    set_aside = [name for name in sizes if name.startswith(f"{SET_ASIDE}/")]
    if not columns and not set_aside:
        raise ConfigError(f"dataset={config.dataset}: no dataset here")
    if config.what is Deletion.dataset:  # nothing but the dataset: runs may lie beside its columns
        doomed = [name for name in sizes if name.split("/")[0] in {*columns, SCENES, SET_ASIDE} and "/" in name]
    elif config.what is Deletion.column:
        if config.column not in columns:
            raise ConfigError(f"column={config.column}: {config.dataset} has {', '.join(columns)}")
        used_by = [name for name in columns if name != config.column and config.column in _sources(config.dataset, name)]
        if used_by:
            raise ConfigError(f"column={config.column}: {', '.join(used_by)} were made from it; delete those first")
        doomed = [name for name in sizes if name.startswith(f"{config.column}/")]
    else:
        doomed = set_aside
        for column in columns:
            of_column = {name.removeprefix(f"{column}/"): size for name, size in sizes.items() if name.startswith(f"{column}/")}
            doomed += [f"{column}/{name}" for name in retired_objects(config.dataset, column, of_column)]
    gigabytes = sum(sizes[name] for name in doomed) / 1e9
    for name in sorted(doomed)[:20]:
        print(f"  {name}  {sizes[name]} bytes")
    more = f" ({len(doomed) - 20} more not shown)" if len(doomed) > 20 else ""
    print(
        f"{config.dataset}: {len(doomed)} objects, {gigabytes:.3f} GB{more}: {'kept, this is a dry run' if config.dry_run else 'deleted'}"
    )
    if not config.dry_run:
        location.remove_many([join(config.dataset, name) for name in sorted(doomed, key=_notes_first)])


def _sources(root: str, column: str) -> set[str]:
    """What a column was made from, as its current index and its note say; a build may not have come to an index."""
    current = read_current(root, column)
    try:
        declared = set(Column(root, column).provenance().inputs)
    except (NotFound, Damaged):
        declared = set()
    return declared | set(current["of"] if current else {})


def _notes_first(name: str) -> tuple[bool, str]:
    """What makes a column readable goes before its shards, so that a deletion cut short leaves nothing that looks whole."""
    return name.endswith(".tar"), name


if __name__ == "__main__":
    command(DeleteConfig, run)
