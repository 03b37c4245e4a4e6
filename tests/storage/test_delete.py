"""Deleting: what is named goes and nothing else; describing says what would go, and what is left to do."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from configs import ConfigError
from configs.schema import DeleteConfig, Deletion
from storage import delete, location
from storage.column import Column, ShardPlan
from storage.describe import describe
from storage.index import read_current
from storage.location import NotFound, StorageError, join
from storage.plan import FramesPlan, FramesShard
from storage.provenance import Provenance
from storage.table import Table
from storage.verification import Verification
from tests.conftest import command, hashes
from tests.storage import small


def objects(url: str) -> set[str]:
    return set(location.find_sizes(url))


def retire(url: str) -> set[str]:
    """Makes leftovers of every kind. Returns their names."""
    small.build(url, ("a", "b", "c"))
    before = objects(url)
    column = Column(url, "frames")
    frames = Table.open(url, []).frames
    planned = FramesPlan.read(url)
    left = tuple(shard for shard in planned.shards if shard.number not in (1, 2))
    assert replace(planned, generation=planned.generation + 1, shards=left).publish(url)
    kept = [ShardPlan(number, source) for number, source, *_ in frames.metadata["shards"] if number not in (1, 2)]
    column.write_index(kept, {})  # shards 1 and 2 are retired, and the index that named them is an older one
    current = read_current(url, "frames")
    assert current
    names = {f"frames/{name}" for name in location.list_sizes(column.url) if re.match(r"frames-00000[12]\.|index-", name)}
    names = {name for name in names if current["index"][:16] not in name}
    names |= {name for name in before if re.match(r"(masks|features|windows|gaussians|operators)/index-", name)}
    for folder in ("masks", "features", "windows", "gaussians", "operators"):
        now = read_current(url, folder)
        assert now
        names -= {f"{folder}/index-{now['index'][:16]}.arrow"}
    location.write_bytes(join(url, "masks/masks-000003.0123456789abcdef.999-01234567.json"), b"{}")  # of a tar that is not there so
    location.write_bytes(join(url, "set-aside/masks/masks-000000.tar"), b"1" * 100)
    names |= {"masks/masks-000003.0123456789abcdef.999-01234567.json", "set-aside/masks/masks-000000.tar"}
    for stranger in ("frames/readme", "runs/1/checkpoint", "notes.txt"):
        location.write_bytes(join(url, stranger), b"mine")
    return names


def test_retired_is_what_no_index_names(store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    small.build(store_url)
    doomed = retire(store_url)
    before = objects(store_url)
    delete.run(DeleteConfig(store_url, Deletion.retired, None, dry_run=True))
    printed = capsys.readouterr().out
    assert objects(store_url) == before
    assert f"{len(doomed)} objects" in printed
    assert "kept, this is a dry run" in printed
    assert set(re.findall(r"^  (\S+)  \d+ bytes$", printed, re.MULTILINE)) == doomed
    delete.run(DeleteConfig(store_url, Deletion.retired, None, dry_run=False))
    assert objects(store_url) == before - doomed
    table = Table.open(store_url, [])
    assert len(table.read_frames(range(len(table.frames)))) == 12
    delete.run(DeleteConfig(store_url, Deletion.retired, None, dry_run=False))
    assert objects(store_url) == before - doomed


def test_a_dataset_without_leftovers_loses_nothing_and_a_build_under_way_counts(dataset: str) -> None:
    column = Column(dataset, "features")
    column.commit(ShardPlan(9, "0" * 16), [("later", {"tokens.npy": b""})], column.provenance().fingerprint)
    before = hashes(dataset)
    delete.run(DeleteConfig(dataset, Deletion.retired, None, dry_run=False))
    assert hashes(dataset) == before
    small.build(dataset)
    assert Verification(dataset, decode=False).run() == []


def test_indexes_stay_while_nothing_says_which_is_current(dataset: str) -> None:
    before = hashes(dataset)
    location.remove(join(dataset, "windows", "current.json"))
    delete.run(DeleteConfig(dataset, Deletion.retired, None, dry_run=False))
    small.build(dataset)
    assert hashes(dataset) == before


def test_a_column_that_others_were_made_from_is_refused(dataset: str) -> None:
    before = hashes(dataset)
    with pytest.raises(ConfigError, match=r"column=windows: gaussians, operators were made from it; delete those first"):
        delete.run(DeleteConfig(dataset, Deletion.column, "windows", dry_run=False))
    with pytest.raises(ConfigError, match=r"column=nothing: .* has features, frames, gaussians, masks, operators, windows"):
        delete.run(DeleteConfig(dataset, Deletion.column, "nothing", dry_run=False))
    location.remove(join(dataset, "operators", "current.json"))  # a build that has not come to an index was declared all the same
    with pytest.raises(ConfigError, match="operators were made from it"):
        delete.run(DeleteConfig(dataset, Deletion.column, "gaussians", dry_run=False))
    delete.run(DeleteConfig(dataset, Deletion.column, "operators", dry_run=False))
    after = hashes(dataset)
    assert after == {name: sha256 for name, sha256 in before.items() if not name.startswith("operators/")}
    assert len(Table.open(dataset, ["windows", "masks", "gaussians"])) == 4
    small.build(dataset)
    assert hashes(dataset) == before


def test_a_dataset_goes_whole_and_what_lies_beside_it_stays(dataset: str) -> None:
    retire(dataset)
    for name in ("backup/raw.tar", "my.backup/frames-000000.tar"):  # folders with tars, but no columns
        location.write_bytes(join(dataset, name), b"mine")
    delete.run(DeleteConfig(dataset, Deletion.dataset, None, dry_run=False))
    assert objects(dataset) == {"runs/1/checkpoint", "notes.txt", "backup/raw.tar", "my.backup/frames-000000.tar"}
    with pytest.raises(ConfigError, match="no dataset here"):
        delete.run(DeleteConfig(dataset, Deletion.dataset, None, dry_run=False))


def test_a_deletion_cut_short_leaves_nothing_that_looks_whole(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remove_many = location.remove_many
    monkeypatch.setattr(location, "remove_many", lambda urls: remove_many(urls[: len(urls) // 2]))
    delete.run(DeleteConfig(dataset, Deletion.column, "operators", dry_run=False))
    with pytest.raises(NotFound):
        Table.open(dataset, ["operators"])
    monkeypatch.undo()
    delete.run(DeleteConfig(dataset, Deletion.column, "operators", dry_run=False))
    assert not Path(dataset, "operators").exists() or not list(Path(dataset, "operators").iterdir())


def test_the_command_keeps_all_unless_told(dataset: str) -> None:
    before = hashes(dataset)
    assert "kept, this is a dry run" in command("storage/delete.py", f"dataset={dataset}", "what=dataset").stdout
    assert hashes(dataset) == before


def test_describe_says_what_is_there_stale_unfinished_and_retired(dataset: str) -> None:
    text = "\n".join(describe(dataset))
    assert re.search(r"^  operators  operators +4 +2 +2 +[\d.]+ kB  finished$", text, re.MULTILINE)
    assert "of 14 frames listed in 2 scenes kept 12 (85.7%), skipped 2: blurred 2" in text
    assert "4 windows of 2 context frames and 3 targets each, 12 in all" in text
    assert "reconstructor (name depth)" in text
    assert "to do" not in text
    assert "no longer counts" not in text
    doomed = retire(dataset)
    plan = FramesPlan.read(dataset)
    under_way = [FramesShard(plan.next + n, "d", n, "0" * 16) for n in range(2)]
    assert replace(plan, generation=plan.generation + 1, next=plan.next + 2, shards=(*plan.shards, *under_way)).publish(dataset)
    column = Column(dataset, "half")
    column.declare(Provenance({"frames": "0"}, {"kind": "features"}, 2))
    text = "\n".join(describe(dataset))
    assert "masks: stale: made for another state of 'frames' than it has now; run pipeline/build_shards.py" in text
    assert "operators: stale: made for another state of 'frames' than it has now; run pipeline/cache_gaussians.py" in text
    assert "half: no build of it has finished, 0 shards are committed" in text
    assert "frames: unfinished: 2 shards are planned or committed, but not in its index" in text
    assert f"retired shards and older indexes: {len(doomed) - 1} objects" in text
    assert "set aside as damaged: 1 objects, 100 B" in text


def test_describe_of_what_is_damaged_or_absent_is_one_line(dataset: str) -> None:
    for name in ("frames/column.json", "frames/current.json", "scenes/a.json", "frames/plan-000000.json"):
        path = Path(dataset, name)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(StorageError, match=rf"{name}: damaged .*set_aside=true"):
            list(describe(dataset))
        path.write_bytes(data)
    result = command("storage/describe.py", f"dataset={dataset}/nothing", check=False)
    assert (result.returncode, result.stderr) == (1, f"error: {dataset}/nothing: no dataset here; check the URL\n")
