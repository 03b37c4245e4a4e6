"""Verification: every flipped bit is found and named, what is moved is what was broken, and a build brings exactly that back."""

import hashlib
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from configs.schema import VerifyConfig
from storage import codec, location, verify
from storage.column import Column, ShardPlan, index_rows
from storage.location import StorageError, join
from storage.plan import FramesPlan
from storage.provenance import Provenance
from storage.records.operators import encode_operator, operator_member
from storage.table import Table
from storage.verification import Verification
from tests.conftest import command, hashes
from tests.storage import small

COLUMNS = ("frames", "masks", "features", "windows", "gaussians", "operators")


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    bit = rng.randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def fated(dataset: str, name: str) -> set[str]:
    """What goes with a broken object: the other half of its shard, or the `current.json` that names an index."""
    folder, _, file = name.partition("/")
    if file.endswith(".arrow"):
        return {name, f"{folder}/current.json"}
    if file.startswith(f"{folder}-"):
        stem = file.split(".")[0]
        return {f"{folder}/{p.name}" for p in Path(dataset, folder).glob(f"{stem}.*")}
    return {name}


def set_aside(dataset: str) -> dict[str, str]:
    with pytest.raises(StorageError, match=r"\d+ findings; \d+ objects were moved to .*set-aside; run the builds again"):
        verify.run(VerifyConfig(dataset, decode=False, set_aside=True))
    return hashes(f"{dataset}/set-aside")


def test_a_sound_dataset_is_sound(made: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = hashes(made)
    verify.run(VerifyConfig(made, decode=True, set_aside=True))
    assert capsys.readouterr().out == f"{made}: 6 columns, 16 shards, 44 rows, 86 members (0.000 GB) re-hashed and decoded: sound\n"
    assert hashes(made) == before


def test_a_hundred_flipped_bits_are_found_named_and_mended(made: str, tmp_path: Path) -> None:
    """One in each column at a time; the build afterwards makes what was moved, and gives the same bytes."""
    rng, before, flipped = random.Random(7), hashes(made), Counter[str]()
    for turn in range(17):
        dataset = str(tmp_path / str(turn))
        shutil.copytree(made, dataset)
        broken = []
        for column in COLUMNS:
            kinds: dict[str, list[str]] = {}
            for name in before:
                if name.startswith(f"{column}/"):
                    kinds.setdefault(re.sub(r".*/([a-z]+).*(\..*)", r"\1\2", name), []).append(name)
            kind = rng.choice(sorted(kinds))
            broken.append(rng.choice(kinds[kind]))
            flip(Path(dataset, broken[-1]), rng)
            flipped[kind.replace(column, "shard")] += 1
        damaged, expected = hashes(dataset), set().union(*(fated(dataset, name) for name in broken))
        assert set(broken) <= {finding.name for finding in Verification(dataset, decode=False).run()}
        assert set_aside(dataset) == {name: damaged[name] for name in expected}
        small.build(dataset)
        assert Verification(dataset, decode=False).run() == []
        shutil.rmtree(f"{dataset}/set-aside")
        assert hashes(dataset) == before
        shutil.rmtree(dataset)
    assert flipped.total() == 102
    assert flipped.keys() == {"column.json", "current.json", "index.arrow", "plan.json", "shard.json", "shard.tar"}


def test_a_plan_that_is_lost_with_a_shard_gives_it_its_number_again(dataset: str) -> None:
    small.build(dataset, ("0", "a", "b"))
    before = hashes(dataset)
    for pattern in ("frames/plan-000000.json", "frames/plan-000001.json", "frames/frames-000001.tar"):
        flip(Path(dataset, pattern), random.Random(1))
    set_aside(dataset)
    assert small.build(dataset, ("0", "a", "b")) == ["frames/frames-000001.tar"]
    shutil.rmtree(f"{dataset}/set-aside")
    plan = "frames/plan-000001.json"  # that of both builds is one now
    assert {k: v for k, v in hashes(dataset).items() if "plan" not in k} == {k: v for k, v in before.items() if "plan" not in k}
    assert plan not in hashes(dataset)


VICTIMS = ("frames/frames-000003.tar", "operators/operators-000001.*.json", "windows/index-CURRENT*", "windows/current.json")


@pytest.mark.parametrize("pattern", VICTIMS)
def test_only_what_was_moved_is_made_again(dataset: str, pattern: str) -> None:
    """Of a dataset that lost a scene and got another, whose windows are not numbered as a first build would number them."""
    assert FramesPlan.read(dataset).without(["a"]).publish(dataset)
    small.build(dataset, ("0", "b"))
    before = hashes(dataset)
    current = codec.unseal(Path(dataset, "windows/current.json").read_bytes())["index"]
    victim = next(str(p.relative_to(dataset)) for p in sorted(Path(dataset).glob(pattern.replace("CURRENT", current[:16]))))
    flip(Path(dataset, victim), random.Random(1))
    moved = set_aside(dataset)
    assert sorted(small.build(dataset, ("0", "b"))) == sorted(name for name in moved if name.endswith(".tar"))
    shutil.rmtree(f"{dataset}/set-aside")
    assert hashes(dataset) == before


def test_a_damaged_object_on_s3_is_found_behind_the_nodes_copy(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLAT_AND_DISTILL_CACHE", str(tmp_path / "cache"))
    small.build(s3)
    before = {name: location.read_bytes(join(s3, name)) for name in location.find_sizes(s3)}
    patterns = ("features/*.arrow", "frames/*.tar", "masks/masks-*.json")
    broken = [next(name for name in sorted(before) if fnmatch(name, pattern)) for pattern in patterns]
    for name in broken:
        location.write_bytes(join(s3, name), before[name][:-1] + bytes([before[name][-1] ^ 4]))
    Table.open(s3, ["features"])  # from the node's copies, which are sound
    assert set(broken) <= {finding.name for finding in Verification(s3, decode=True).run()}
    set_aside(s3)
    small.build(s3)
    assert {name: location.read_bytes(join(s3, name)) for name in before} == before


def test_a_bit_that_flips_on_the_way_condemns_nothing(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: dict[str, int] = {}
    whole = location.read_bytes

    def first_read_flips(url: str) -> bytes:
        reads[url] = reads.get(url, 0) + 1
        data = whole(url)
        return bytes([data[0] ^ 1]) + data[1:] if reads[url] == 1 else data

    monkeypatch.setattr(location, "read_bytes", first_read_flips)
    monkeypatch.setattr(location, "read_many", lambda urls: [bytes([whole(url)[0] ^ 1]) + whole(url)[1:] for url in urls])
    findings = Verification(made, decode=False).run()
    assert findings == []
    assert len(reads) > 40


def damage(value: object) -> Callable[[bytes], bytes]:
    return lambda _: codec.seal(value)


@pytest.mark.parametrize(
    "mangle",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 40,
        lambda data: b"[" * 100_000,
        lambda data: b'{"sha256": 1, "value": 1e999}',
        damage(None),
        damage([]),
        damage({}),
        damage({"index": 3, "of": [], "records": None, "rows": "x"}),
        damage({"next": "a", "shards": [[1]], "withdrawn": 3}),
        damage({"inputs": 1, "settings": [], "format_version": None}),
    ],
    ids=range(11),
)
def test_no_bytes_raise_anything_but_findings(made: str, tmp_path: Path, mangle: Callable[[bytes], bytes]) -> None:
    """Objects of every kind in turn, so that whatever is read after one is read beside the damage."""
    once = r"-00000[123]|scenes/.*b\.json"  # of each kind one will do
    names = [n for n in hashes(made) if re.match(r"(frames|windows|operators|scenes)/", n) and not re.search(once, n)]
    assert len(names) == 15
    dataset = str(tmp_path / "dataset")
    shutil.copytree(made, dataset)
    for name in names:
        path = Path(dataset, name)
        data = path.read_bytes()
        path.write_bytes(mangle(data))
        assert name in {finding.name for finding in Verification(dataset, decode=False).run()}, name
        path.write_bytes(data)


def renamed(dataset: str, folder: str, data: bytes) -> None:
    """Makes any bytes the current index, under their right name and sum."""
    sha256 = hashlib.sha256(data).hexdigest()
    Path(dataset, folder, f"index-{sha256[:16]}.arrow").write_bytes(data)
    current = codec.unseal(Path(dataset, folder, "current.json").read_bytes())
    Path(dataset, folder, "current.json").write_bytes(codec.seal({**current, "index": sha256}))


def test_a_mangled_index_under_its_right_sum_is_a_finding(dataset: str) -> None:
    rng = random.Random(3)
    for folder in ("frames", "windows", "operators"):
        (path,) = Path(dataset, folder).glob("index-*.arrow")
        for _ in range(8):
            data = bytearray(path.read_bytes())
            for _ in range(40):
                data[rng.randrange(len(data))] = rng.randrange(256)
            saved = Path(dataset, folder, "current.json").read_bytes()
            renamed(dataset, folder, bytes(data))
            assert any(finding.name.startswith(folder) for finding in Verification(dataset, decode=True).run())
            Path(dataset, folder, "current.json").write_bytes(saved)


def recommitted(dataset: str, name: str, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Writes the first row of a column's first shard anew, with all sums right, and an index over it."""
    column = Column(dataset, name)
    committed = column.listing()
    rows = column.read_shard(0)
    record = column.records(committed[:1])[0]
    rows[0] = (rows[0][0], change(rows[0][1]))
    plan = ShardPlan(0, record.source, record.inputs)
    column.commit(plan, rows, record.provenance, [committed[0].record_name], record.attributes, record.notes)
    current = codec.unseal(location.read_bytes(join(column.url, "current.json")))
    column.write_index([ShardPlan(c.number, c.source) for c in column.listing()], current["of"])


@pytest.mark.parametrize(
    ("column", "member", "data"),
    [
        ("frames", "jpg", b"\xff\xd8\xff"),
        ("frames", "camera.json", b"{}"),
        ("masks", "mask.png", b"no picture"),
        ("features", "tokens.npy", b"\x80\x04K\x01."),
        ("gaussians", "gaussians.bin", b"1"),
        ("operators", operator_member(0), next(iter(encode_operator(small.operator("another source")).values()))),
        ("operators", operator_member(77), b""),
    ],
)
def test_a_member_that_cannot_be_decoded_is_named(dataset: str, column: str, member: str, data: bytes) -> None:
    recommitted(dataset, column, lambda members: {**members, member: data})
    key = Column(dataset, column).read_shard(0)[0][0]
    assert not any("decoded" in finding.problem for finding in Verification(dataset, decode=False).run())
    found = [f for f in Verification(dataset, decode=True).run() if "cannot be decoded" in f.problem]
    assert (f"{column}/{column}-000000.tar", True) in {(f.name, key in f.problem) for f in found}


def test_keys_of_another_column_and_lost_rows_are_found(dataset: str) -> None:
    column = Column(dataset, "masks")
    committed = column.listing()
    (_, first), *rows = column.read_shard(0)
    record = column.records(committed[:1])[0]
    column.commit(ShardPlan(0, record.source), [("stranger", first), *rows], record.provenance, [committed[0].record_name])
    index = column.write_index([ShardPlan(c.number, c.source) for c in column.listing()], {"frames": Table.open(dataset, []).frames.sha256})
    problems = {f.problem for f in Verification(dataset, decode=False).run() if f.name == f"masks/index-{index.sha256[:16]}.arrow"}
    assert any("1 rows are none of 'frames', the first is 'stranger'" in problem for problem in problems)
    assert any("1 rows of 'frames' have none here, the first is 'a-DSC00000'" in problem for problem in problems)


def test_an_index_that_is_not_of_its_records_is_found(dataset: str) -> None:
    column = Column(dataset, "masks")
    index = Table.open(dataset, ["masks"]).by_kind["masks"]
    records = column.records(column.listing())
    rows = index_rows(records)
    rows.offset = rows.offset + 512
    column.publish_index(rows, index.metadata, codec.unseal(Path(dataset, "masks/current.json").read_bytes())["records"])
    (finding,) = Verification(dataset, decode=False).run()
    assert finding.problem == "its rows are not those of the commit records"
    set_aside(dataset)
    small.build(dataset)
    assert Verification(dataset, decode=False).run() == []


def test_strange_and_uncommitted_objects_are_remarks(dataset: str) -> None:
    Path(dataset, "notes.txt").write_text("mine")
    Path(dataset, "frames", "readme").write_text("mine")
    shutil.copy(Path(dataset, "frames/frames-000000.tar"), Path(dataset, "frames/frames-000099.tar"))
    verification = Verification(dataset, decode=False)
    assert verification.run() == []
    assert sorted(name for name, _ in verification.remarks) == ["frames/frames-000099.tar", "frames/readme", "notes.txt"]


OPENERS: dict[str, Callable[[str], object]] = {
    "frames/column.json": lambda url: Column(url, "frames").check(Provenance({}, {}, 2)),
    "windows/column.json": lambda url: Column(url, "windows").check(Provenance({}, {}, 2)),
    "frames/current.json": lambda url: Table.open(url, []),
    "windows/current.json": lambda url: Table.open(url, ["windows"]),
    "operators/current.json": lambda url: Table.open(url, ["windows", "operators"]),
    "frames/index-*.arrow": lambda url: Table.open(url, []),
    "gaussians/index-*.arrow": lambda url: Table.open(url, ["windows", "gaussians"]),
    "frames/plan-*.json": FramesPlan.read,
    "masks/masks-000000.*.json": lambda url: Column(url, "masks").records(Column(url, "masks").listing()),
}


@pytest.mark.parametrize("pattern", OPENERS)
def test_damaged_metadata_gives_one_line_with_the_remedy(dataset: str, pattern: str) -> None:
    (path,) = Path(dataset).glob(pattern)
    data, rng = path.read_bytes(), random.Random(5)
    for turn in range(40):
        path.write_bytes(data)
        if turn < 3:
            path.write_bytes([b"", data[:-1], codec.seal(None)][turn])
        else:
            flip(path, rng)
        with pytest.raises(StorageError) as caught:
            OPENERS[pattern](dataset)
        (line,) = str(caught.value).splitlines()
        assert line.startswith(str(path))
        assert line.endswith(f"run `python storage/verify.py dataset={dataset} set_aside=true`, then the build again")


def test_the_command_ends_with_a_line_and_a_code(dataset: str) -> None:
    assert command("storage/verify.py", f"dataset={dataset}").stdout.endswith("decoded: sound\n")
    Path(dataset, "frames/plan-000000.json").write_text(json.dumps({"next": 1}))
    result = command("storage/verify.py", f"dataset={dataset}", "decode=false", check=False)
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)
    assert f"{dataset}/frames/plan-000000.json: damaged plan" in result.stdout
    assert result.stderr == f"error: {dataset}: 1 findings; run again with set_aside=true, then the builds\n"
    result = command("storage/verify.py", f"dataset={dataset}/frames", check=False)
    assert (result.returncode, result.stderr) == (1, f"error: {dataset}/frames: no dataset here; check the URL\n")


def test_a_dataset_of_an_older_release_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/column.json").write_text('{"config":{},"format_version":1}')
    np.save(tmp_path / "frames/x.npy", np.zeros(1))
    before = hashes(str(tmp_path))
    with pytest.raises(StorageError, match="an older release made this dataset"):
        verify.run(VerifyConfig(str(tmp_path), decode=True, set_aside=True))
    assert hashes(str(tmp_path)) == before
