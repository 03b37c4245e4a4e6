"""What lies in a dataset: its columns, and the objects that belong to each shard."""

from __future__ import annotations

from collections.abc import Mapping

from storage import codec, location
from storage.column import COLUMN_NAME, Column
from storage.index import INDEX_NAME, Index, index_name, read_current
from storage.location import NotFound, StorageError, join
from storage.plan import FramesPlan

OF_FRAMES = ("frames", "masks", "features")  # the kinds whose shards are numbered as the plan of `frames` says
SCENES, SET_ASIDE = "scenes", "set-aside"  # the folders beside the columns: a report of each scene, what verify.py moved away


def column_names(root: str) -> list[str]:
    """The columns and tables of a dataset: its folders that hold a note, an index or a shard."""
    return [name for name in location.list_folders(root) if _holds_column(root, name)]


def _holds_column(root: str, name: str) -> bool:
    there = location.list_sizes(join(root, name))
    notes = {"column.json", "current.json"} & there.keys()
    return COLUMN_NAME.fullmatch(name) is not None and (bool(notes) or any(Column(root, name).is_of_shard(file) for file in there))


def scene_objects(root: str, scene: str) -> dict[int, str]:
    """The labels of a scene's objects, by the ids that its masks hold, as its report says; {} where the raw scene names none."""
    url = join(root, SCENES, f"{scene}.json")
    try:
        figures = codec.decode_json(location.read_bytes(url))["figures"] or {}
        return {int(number): str(label) for number, label in figures.get("objects", {}).items()}
    except NotFound as error:
        raise NotFound(f"{url}: no report of this scene; run python pipeline/build_shards.py again, which writes it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{url}: not the report of a scene; remove it and run python pipeline/build_shards.py again") from error


def objects_of_shards(root: str, name: str, numbers: set[int]) -> list[str]:
    """The URLs of the tars and commit records of these shards."""
    column = Column(root, name)
    records = [c.record_name for c in column.listing() if c.number in numbers]
    return [join(column.url, file) for file in [*records, *map(column.tar_name, sorted(numbers))]]


def retired_objects(root: str, name: str, sizes: Mapping[str, int]) -> list[str]:
    """The names of a column's indexes, tars and commit records that do not count any more.

    sizes: of the objects in the column's folder. A whole shard that the plan of `frames` names, or whose number is above the index's last,
    is of a build under way.
    """
    column, current = Column(root, name), read_current(root, name)
    kept, there = set(), None
    if current is None:  # where current.json was set aside, the indexes still know what the next build has to number alike
        kept = {file for file in sizes if INDEX_NAME.fullmatch(file)}
    else:
        index = Index.open(root, name, current["index"])
        kept.add(index_name(index.sha256))
        there = set() if index.kind == "windows" else {number for number, *_ in index.metadata["shards"]}
        if index.kind in OF_FRAMES:
            there |= {shard.number for shard in FramesPlan.read(root).shards}
    for committed in column.listed(sizes):
        if committed.whole and (there is None or committed.number in there or committed.number > max(there, default=-1)):
            kept |= {committed.record_name, column.tar_name(committed.number)}
    return [file for file in sizes if file not in kept and (INDEX_NAME.fullmatch(file) or column.is_of_shard(file))]
