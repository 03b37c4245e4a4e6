"""A dataset grows, shrinks, is mended, gets another windows table: what does not change stays byte for byte, nothing is made twice."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import ConfigError, load
from configs.schema import BuildShardsConfig, CacheGaussiansConfig, PlanWindowsConfig, TrainConfig, WithdrawConfig
from pipeline import build_shards, cache_gaussians, plan_windows, withdraw
from pipeline.synthetic import room_specs, write_room, write_root
from pipeline.synthetic.spec import RoomSpec
from storage.index import Index
from storage.location import StorageError
from storage.table import Table
from tests.conftest import REPOSITORY, hashes
from training import train
from training.data.loader import step_batches
from training.data.pins import pinned_rows
from training.data.rows import open_rows
from training.metrics import read_metrics

SIZE = ("width=112", "height=84", "frames_per_shard=8", "source=synthetic-rooms", "licence=MIT", "features=none", "backbone=demo")
DERIVED = ("windows", "masks", "gaussians", "operators")
TINY = ("backbone=demo", "batch=2", "steps=4", "head.hidden=32", "head.prototypes=64", "head.student_temperature=0.1",
        "head.teacher_temperature=0.05", "allow_unstable=true",
         "optimizer.lr=0.001", "loader.workers=0", "checkpoint_every=2", "picture_every=1000",
        "teacher.every=1", "device=cpu")  # fmt: skip


def build(root: str, dataset: str, *more: str) -> None:
    build_shards.run(load(BuildShardsConfig, [f"root={root}", f"dataset={dataset}", *SIZE, *more]))


def cache(dataset: str, *more: str) -> None:
    cache_gaussians.run(load(CacheGaussiansConfig, [f"dataset={dataset}", *more]))


def training(dataset: str, output: Path | str, *more: str) -> TrainConfig:
    return load(TrainConfig, [f"dataset={dataset}", f"output={output}", *TINY, *more])


def losses(output: Path | str) -> list[float]:
    return [m["loss"] for m in read_metrics(str(output))]


def list_scenes(root: str, specs: list[RoomSpec]) -> None:
    write_root(root, specs, train=[spec.scene_id for spec in specs], val=[])


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[RoomSpec]]:
    """Five rooms, of which the split lists the first three."""
    root = str(tmp_path_factory.mktemp("raw"))
    specs = room_specs(5, seed=21, frames=20, scale=0.1)
    for spec in specs:
        write_room(root, spec)
    list_scenes(root, specs[:3])
    return root, specs


@pytest.fixture(scope="module")
def three(raw: tuple[str, list[RoomSpec]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dataset of the first three rooms."""
    list_scenes(raw[0], raw[1][:3])
    url = str(tmp_path_factory.mktemp("three"))
    build(raw[0], url)
    cache(url)
    return url


@pytest.fixture(scope="module")
def five(raw: tuple[str, list[RoomSpec]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dataset of all five, built at once."""
    list_scenes(raw[0], raw[1])
    url = str(tmp_path_factory.mktemp("five"))
    build(raw[0], url)
    cache(url)
    return url


def copied(dataset: str, to: Path) -> str:
    shutil.copytree(dataset, to)
    return str(to)


def tars(dataset: str) -> dict[str, str]:
    return {name: sha256 for name, sha256 in hashes(dataset).items() if name.endswith(".tar")}


def test_two_scenes_more_are_new_shards_at_the_end(
    raw: tuple[str, list[RoomSpec]], three: str, five: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = copied(three, tmp_path / "grown")
    train.run(training(grown, tmp_path / "run", "until=2"))
    before = tars(grown)
    list_scenes(raw[0], raw[1])
    capsys.readouterr()
    build(raw[0], grown)
    assert "frames: building 6 of 15 shards" in capsys.readouterr().out
    with pytest.raises(StorageError, match=r"column 'gaussians' was made for another state of 'frames' .* makes only what is missing"):
        Table.open(grown, DERIVED)
    cache(grown)
    made = capsys.readouterr().out
    assert [f"{name}: building {new} of" in made for name, new in (("gaussians", 4), ("operators", 4))] == [True, True], made
    after = tars(grown)
    assert {name: after[name] for name in before} == before
    assert after == tars(five)
    same = {name: sha256 for name, sha256 in hashes(five).items() if "index-" in name or name.endswith("current.json")}
    assert same.items() <= hashes(grown).items()

    # A run that began before goes on with the rows that it began with; a new one sees all.
    train.run(training(grown, tmp_path / "run"))
    train.run(training(three, tmp_path / "undisturbed"))
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "undisturbed"), rtol=1e-6)
    new, at_once = (open_rows(training(dataset, "nowhere")) for dataset in (grown, five))
    assert len(new) == len(at_once) > len(open_rows(training(three, "nowhere")))
    for one, other in zip(*(step_batches(rows, rows.config, range(4), 0, 1) for rows in (new, at_once)), strict=True):
        assert one.keys == other.keys
        assert one.operators is not None
        assert other.operators is not None
        assert np.array_equal(one.operators.splat_values, other.operators.splat_values)


def test_a_withdrawn_scene_is_drawn_no_more(
    raw: tuple[str, list[RoomSpec]], three: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, scene = copied(three, tmp_path / "d"), raw[1][1].scene_id
    train.run(training(dataset, tmp_path / "run", "until=2"))
    shutil.copytree(tmp_path / "run", tmp_path / "other-run")
    before = hashes(dataset)
    withdraw.run(load(WithdrawConfig, [f"dataset={dataset}", f"scene={scene}", "dry_run=true"]))
    assert hashes(dataset) == before
    withdraw.run(load(WithdrawConfig, [f"dataset={dataset}", f"scene={scene}"]))
    table = Table.open(dataset, DERIVED)
    for index in table.columns.values():
        keys = index.all_keys()
        assert keys
        assert not any(key.startswith(scene) for key in keys)
    left = tars(dataset)
    assert {name: before[name] for name in left} == left
    assert len(left) == len([n for n in before if n.endswith(".tar")]) * 2 // 3
    assert not any(scene.encode() in path.read_bytes() for path in Path(dataset).rglob("*.tar"))

    list_scenes(raw[0], raw[1][:3])
    capsys.readouterr()
    build(raw[0], dataset)
    assert f"withdrawn, not built again: {scene}" in capsys.readouterr().out
    assert tars(dataset) == left

    with pytest.raises(StorageError, match=rf"1 scenes of this run's rows were withdrawn since it began \({scene}\); start a new run"):
        train.run(training(dataset, tmp_path / "run"))
    config = training(dataset, tmp_path / "other-run", "loader.skip_withdrawn=true")
    rows = pinned_rows(config)
    drawn = [key for batch in step_batches(rows, config, range(20), 0, 1) for key in batch.keys]
    assert len(drawn) == 40
    assert not any(key.startswith(scene) for key in drawn)
    train.run(config)
    assert len(losses(tmp_path / "other-run")) == 4
    for spec in (raw[1][0], raw[1][2]):  # to the last one
        withdraw.run(load(WithdrawConfig, [f"dataset={dataset}", f"scene={spec.scene_id}"]))
    assert not tars(dataset)
    assert len(Table.open(dataset, DERIVED)) == 0
    with pytest.raises(ConfigError, match="has no such scene"):
        withdraw.run(load(WithdrawConfig, [f"dataset={dataset}", "scene=nobody"]))


def test_a_withdrawal_makes_nothing_stale_look_current_and_leaves_no_unfinished_shard(
    raw: tuple[str, list[RoomSpec]], three: str, tmp_path: Path
) -> None:
    """Amid builds that did not finish: frames have grown, one column has no index, one shard was set aside."""
    dataset, scene = copied(three, tmp_path / "d"), raw[1][1].scene_id
    list_scenes(raw[0], raw[1])
    build(raw[0], dataset)
    (tmp_path / "d" / "gaussians" / "current.json").unlink()
    number = next(iter(Index.open(dataset, "masks").shard_of_rows()[Index.open(dataset, "frames").is_of_scenes([scene])]))
    aside = tmp_path / "d" / "set-aside" / "masks"
    aside.mkdir(parents=True)
    for path in (tmp_path / "d" / "masks").glob(f"masks-{number:06d}.*"):
        shutil.copy(path, aside)
    withdraw.run(load(WithdrawConfig, [f"dataset={dataset}", f"scene={scene}"]))
    assert not any(scene.encode() in path.read_bytes() for path in Path(dataset).rglob("*.tar"))
    assert not list(aside.iterdir())
    for name in ("masks", "windows"):
        Table.open(dataset, ["windows", name])
    with pytest.raises(StorageError, match="column 'operators' was made for another state of"):
        Table.open(dataset, ["windows", "operators"])
    cache(dataset)
    table = Table.open(dataset, DERIVED)
    assert len(table) == 12
    assert scene not in table.windows.scenes()


def test_a_lost_shard_of_another_split_is_said_and_comes_back_with_its_own(
    raw: tuple[str, list[RoomSpec]], three: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, other = copied(three, tmp_path / "d"), raw[1][2].scene_id
    before = hashes(dataset)
    lost = Index.open(dataset, "frames").rows_of_shard(8)
    (tmp_path / "d" / "masks" / "masks-000008.tar").unlink()
    list_scenes(raw[0], raw[1][:2])
    build(raw[0], dataset)
    assert f"left out of the index: 1 planned shards that are not there, of {other}" in capsys.readouterr().out
    assert len(Table.open(dataset, ["masks"]).frames) == lost.start
    list_scenes(raw[0], raw[1][:3])
    build(raw[0], dataset)
    assert "masks: building 1 of 9" in capsys.readouterr().out
    assert before.items() <= hashes(dataset).items()


def test_a_mended_raw_file_makes_exactly_its_shards_anew(
    raw: tuple[str, list[RoomSpec]], three: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, dataset = copied(raw[0], tmp_path / "raw"), copied(three, tmp_path / "d")
    for path in Path(raw[0]).rglob("*"):  # the copy is the same raw data: size and time of every file
        os.utime(tmp_path / "raw" / path.relative_to(raw[0]), ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    list_scenes(root, raw[1][:3])
    table, before = Table.open(dataset, DERIVED), hashes(dataset)
    scene = raw[1][1].scene_id
    row = next(r for r in range(len(table.frames)) if table.frames.scene(r) == scene) + 9  # in the scene's second shard
    shard = table.frames.shard(row)
    name = table.read_frames([row])[0].name
    image = tmp_path / "raw" / "data" / scene / "dslr" / "resized_images" / name
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image, quality=95)
    touching = {number for number, _, inputs in table.windows.metadata["shards"] if str(shard) in inputs["frames"]}

    capsys.readouterr()
    build(root, dataset)
    cache(dataset)
    printed = capsys.readouterr().out
    for column, made in (("frames", 1), ("masks", 1), ("gaussians", len(touching)), ("operators", len(touching))):
        assert f"{column}: building {made} of" in printed, printed
    after = hashes(dataset)
    assert {n: s for n, s in after.items() if n in before and n.endswith((".tar", ".arrow"))} == {
        n: s for n, s in before.items() if n.endswith((".tar", ".arrow"))
    }  # fmt: skip
    assert sorted(n for n in after if n not in before and n.endswith(".tar") and n.startswith(("frames", "masks"))) == [
        "frames/frames-000009.tar", "masks/masks-000009.tar",
    ]  # fmt: skip
    mended = Table.open(dataset, DERIVED)
    assert len(mended.frames) == len(table.frames)
    assert shard not in mended.frames.shard_of_rows()
    numbers = {n for n, *_ in mended.windows.metadata["shards"]}
    assert numbers & touching == set()
    assert len(numbers) == len(table.windows.metadata["shards"])
    seen = mended.read_frames([mended.frames.find(table.frames.key(row))])[0]
    assert np.abs(seen.image.astype(int) - (255 - table.read_frames([row])[0].image.astype(int))).mean() < 8
    windows = {mended.windows.key(r): [f.name for f in mended.row(r).frames()] for r in range(len(mended))}
    assert windows == {table.windows.key(r): [f.name for f in table.row(r).frames()] for r in range(len(table))}


def test_another_rule_is_another_index_and_touches_no_image(three: str, tmp_path: Path) -> None:
    """Not even where the images are away. And windows of three context frames train, from operators and live."""
    dataset = copied(three, tmp_path / "d")
    shutil.move(tmp_path / "d" / "frames", tmp_path / "away")
    (tmp_path / "d" / "frames").mkdir()
    for path in (tmp_path / "away").iterdir():
        if path.suffix != ".tar":
            shutil.copy(path, tmp_path / "d" / "frames")
    asked = [f"dataset={dataset}", "name=three", "windows.views=3", "windows.stride=2"]
    plan_windows.run(load(PlanWindowsConfig, asked))
    for path in (tmp_path / "away").glob("*.tar"):
        shutil.copy(path, tmp_path / "d" / "frames")
    assert hashes(f"{dataset}/frames") == hashes(f"{three}/frames")
    with pytest.raises(StorageError, match=r"settings\.views: there 3, here 2"):
        plan_windows.run(load(PlanWindowsConfig, [f"dataset={dataset}", "name=three"]))

    cache(dataset, "windows=three", "column=gaussians-three", "operators.column=operators-three")
    table = Table.open(dataset, ["three", "masks", "gaussians-three", "operators-three"])
    assert len(table) > len(Index.open(dataset, "windows"))
    assert {len(table.context(r)) for r in range(len(table))} == {3}
    assert table.row(0).operator(4).context_grid[0] == 3
    columns = ("windows=three", "supervision.gaussians=gaussians-three", "supervision.operators=operators-three")
    for mode in ("operators", "live"):
        train.run(training(dataset, tmp_path / mode, f"supervision.mode={mode}", "picture_every=2", *columns))
    np.testing.assert_allclose(losses(tmp_path / "operators"), losses(tmp_path / "live"), rtol=1e-5)
    assert losses(tmp_path / "live")[-1] < losses(tmp_path / "live")[0]


def test_held_out_frames_are_in_no_training_window(raw: tuple[str, list[RoomSpec]], tmp_path: Path) -> None:
    list_scenes(raw[0], raw[1][:2])
    dataset, scene = str(tmp_path), raw[1][0].scene_id
    build(raw[0], dataset, f"held_out.scenes=[{scene}]", "held_out.part=0.45", "windows.gap=4")
    plan_windows.run(load(PlanWindowsConfig, [f"dataset={dataset}", "name=held-out", "windows.held_out=true", "windows.gap=4"]))
    frames = Index.open(dataset, "frames")
    held_out = frames.attribute("held_out")
    scenes = np.array([frames.scene(r) for r in range(len(frames))])
    assert held_out[scenes == scene].all()
    assert held_out[scenes != scene].tolist() == [False] * 11 + [True] * 9
    for name, expected in (("windows", False), ("held-out", True)):
        windows = Index.open(dataset, name)
        assert len(windows)
        named = np.concatenate([windows.lists(column)[1] for column in ("context", "targets")])
        assert set(held_out[named]) == {expected}


def test_a_plan_says_what_would_be_made_and_makes_nothing(
    raw: tuple[str, list[RoomSpec]], three: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    list_scenes(raw[0], raw[1])
    build(raw[0], str(tmp_path / "none"), "plan_only=true")
    printed = capsys.readouterr().out
    assert "frames, masks: 15 of 15 shards to make, 100 frames of 5 scenes" in printed
    assert "windows: 15; passed over: no_frame_at_gap" in printed
    assert "CPU-hours" in printed
    assert not (tmp_path / "none").exists()
    before = hashes(three)
    build(raw[0], three, "plan_only=true")
    assert "frames, masks: 6 of 15 shards to make, 40 frames of 2 scenes" in capsys.readouterr().out
    cache(three, "column=other", "operators.column=others", "plan_only=true")
    printed = capsys.readouterr().out
    assert "gaussians: 6 of 6 shards to make, 9 windows" in printed
    assert "operators: 6 of 6 shards to make, 9 windows" in printed
    assert "operators: about" in printed
    cache(three, "plan_only=true")
    assert "operators: 0 of 6 shards to make, 0 windows" in capsys.readouterr().out
    assert hashes(three) == before
    assert not Path(three, "other").exists()


def start(root: str, dataset: str, *more: str) -> subprocess.Popen:
    arguments = ["pipeline/build_shards.py", f"root={root}", f"dataset={dataset}", *SIZE, *more]
    return subprocess.Popen([sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)  # fmt: skip


def test_killed_builders_and_two_side_by_side_leave_the_same_bytes(raw: tuple[str, list[RoomSpec]], three: str, tmp_path: Path) -> None:
    list_scenes(raw[0], raw[1][:3])
    dataset = str(tmp_path / "d")
    process = start(raw[0], dataset)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("d/masks/*.tar")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list(tmp_path.glob("d/masks/*.json")))
    assert done < 9
    refused = start(raw[0], dataset, "width=126")
    both = [start(raw[0], dataset) for _ in range(2)]
    for process in both:
        printed, _ = process.communicate(timeout=250)
        assert process.returncode == 0, printed[-3000:]
    printed, _ = refused.communicate(timeout=100)
    assert refused.returncode == 1
    assert "settings.width: there 112, here 126" in printed
    for name in ("frames", "masks", "windows"):
        made, expected = (hashes(f"{d}/{name}") for d in (dataset, three))
        assert made == expected


def test_the_source_digest_of_the_old_raw_file_is_not_taken_for_the_new(raw: tuple[str, list[RoomSpec]]) -> None:
    """The same bytes at another time count as another file: a listing cannot tell, and a false 'same' would be believed for ever."""
    from pipeline.readers.scannetpp.layout import read_scene

    scene = raw[1][4].scene_id
    before = read_scene(raw[0], scene)
    image = Path(raw[0], "data", scene, "dslr", "resized_images", before.frames[0].name)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    os.utime(image, ns=(1, 1))
    after = read_scene(raw[0], scene)
    assert hashlib.sha256(image.read_bytes()).hexdigest() == digest
    assert [a.version == b.version for a, b in zip(after.frames, before.frames, strict=True)] == [False] + [True] * 19
    assert after.version == before.version
