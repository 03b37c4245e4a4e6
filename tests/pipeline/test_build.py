"""The build: real rooms through real Ray. What is committed stays, what is missing is made again byte for byte, what is bad is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.readers.scannetpp.scene import SceneReader
from pipeline.synthetic import room_specs, write_room, write_root
from storage import codec, location
from storage.column import Column
from storage.index import Index
from storage.table import Table
from tests.conftest import BUILD, command, hashes

ALL = ("windows", "masks", "features", "gaussians", "operators")


def test_a_second_build_does_nothing_and_a_missing_shard_alone_is_made_again(rooms: str, dataset: str) -> None:
    before = hashes(dataset)
    assert any(name.endswith("frames-000001.tar") for name in before)
    result = command("pipeline/build_shards.py", f"root={rooms}", f"dataset={dataset}", *BUILD)
    assert result.stdout.count("are committed, nothing to do") == 3
    assert "building" not in result.stdout
    assert hashes(dataset) == before

    location.remove(f"{dataset}/frames/frames-000001.tar")
    for record in Path(dataset, "features").glob("features-000000.*.json"):
        record.unlink()
    result = command("pipeline/build_shards.py", f"root={rooms}", f"dataset={dataset}", *BUILD)
    assert "frames: building 1 of" in result.stdout
    assert "masks: all 6 shards are committed" in result.stdout
    assert "features: building 1 of" in result.stdout
    assert hashes(dataset) == before


def test_columns_agree_and_plain_webdataset_reads_them(dataset: str) -> None:
    table = Table.open(dataset, ALL)
    frames, windows = table.frames.all_keys(), table.windows.all_keys()
    assert len(frames) == len(set(frames)) == 40
    assert len(windows) == len(set(windows)) >= 4
    members = {"frames": ("jpg", "camera.json", "depth.png"), "masks": ("mask.png",), "features": ("tokens.npy",),
               "gaussians": ("gaussians.bin",), "operators": ("08.operator.safetensors",)}  # fmt: skip
    for name, wanted in members.items():
        tars = sorted(str(p) for p in Path(dataset, name).glob("*.tar"))
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        assert [s["__key__"] for s in samples] == (windows if name in ("gaussians", "operators") else frames)
        assert all(member in s for s in samples for member in wanted)
    assert Column(dataset, "frames").provenance().settings["source"] == "synthetic-rooms"
    assert Column(dataset, "gaussians").provenance().inputs == {
        "frames": table.frames.provenance, "windows": table.windows.provenance,
    }  # fmt: skip


def test_a_row_holds_what_the_scene_shows(rooms: str, dataset: str) -> None:
    row = Table.open(dataset, ALL).row(1)
    window, frames = row.window(), row.frames(labels=True, depth=True)
    assert len(frames) == len(window.targets) == 9
    assert window.context == (window.targets[0], window.targets[-1])
    reader = SceneReader(rooms, window.scene, 126, 84)
    entries = {entry.name: entry for entry in reader.index.frames}
    for stored in frames:
        seen = reader.read(entries[stored.name])
        np.testing.assert_array_equal(stored.labels, seen.labels)
        np.testing.assert_array_equal(stored.valid, seen.valid)
        np.testing.assert_array_equal(stored.camera.c2w, seen.camera.c2w)
        assert np.abs(stored.image.astype(int) - seen.image).mean() < 3
        np.testing.assert_allclose(stored.depth, seen.depth, atol=5.1e-4)
    assert len(row.gaussians()) == 2 * 84 * 126
    assert row.tokens().shape == (2, 6, 9, 384)


def test_a_new_release_goes_on_with_a_half_built_dataset(rooms: str, dataset: str, tmp_path: Path) -> None:
    """Code version and time are kept, and bind nothing."""
    shutil.copytree(dataset, tmp_path / "d")
    for name in ("frames", "masks", "features", "windows"):
        note = tmp_path / "d" / name / "column.json"
        value = codec.unseal(note.read_bytes())
        value["recorded"] |= {"code_version": "0.0.1", "time": "2020-01-01T00:00:00+00:00"}
        note.write_bytes(codec.seal(value))
    (tmp_path / "d" / "masks" / "masks-000004.tar").unlink()
    result = command("pipeline/build_shards.py", f"root={rooms}", f"dataset={tmp_path}/d", *BUILD)
    assert "masks: building 1 of 6" in result.stdout
    assert hashes(str(tmp_path / "d")) == hashes(dataset)
    assert Column(f"{tmp_path}/d", "masks").provenance().recorded["code_version"] == "0.0.1"


def test_reprojection_is_below_half_a_pixel(dataset: str) -> None:
    """Mesh points seen by one stored camera land, through another stored camera, where that one's own depth puts them."""
    table = Table.open(dataset, ALL)
    for row in map(table.row, range(0, len(table), 3)):
        first, last = row.context(depth=True)
        cloud = row.gaussians()
        points = cloud.means[: 84 * 126][cloud.opacities[: 84 * 126] > 0]
        own, _ = first.camera.project(points)
        grid = np.stack(np.meshgrid(np.arange(126) + 0.5, np.arange(84) + 0.5), -1).reshape(-1, 2)[cloud.opacities[: 84 * 126] > 0]
        assert np.abs(own - grid).max() < 0.01

        pixels, depth = last.camera.project(points)
        inside = (depth > 0.05) & (pixels > 2).all(1) & (pixels < np.array([124, 82])).all(1)
        pixels, depth, own = pixels[inside], depth[inside], own[inside]
        # The last view's own surface there: on a plane the inverse depth is linear in the pixel, so interpolating it is exact.
        inverse = 1 / np.where(last.depth > 0, last.depth, 1e3)
        x, y = (pixels - 0.5).T
        j, i = np.floor(x).astype(int), np.floor(y).astype(int)
        top = inverse[i, j] * (1 - x + j) + inverse[i, j + 1] * (x - j)
        bottom = inverse[i + 1, j] * (1 - x + j) + inverse[i + 1, j + 1] * (x - j)
        seen = 1 / (top * (1 - y + i) + bottom * (y - i))
        visible = np.abs(seen - depth) < 0.03
        assert visible.mean() > 0.6
        ray = np.concatenate([(pixels - last.camera.K[:2, 2]) / last.camera.K[[0, 1], [0, 1]], np.ones((len(pixels), 1))], axis=1)
        world = (ray * seen[:, None])[visible] @ last.camera.c2w[:3, :3].T + last.camera.c2w[:3, 3]
        back, _ = first.camera.project(world)
        assert np.quantile(np.linalg.norm(back - own[visible], axis=1), 0.99) < 0.5


@pytest.fixture(scope="module")
def broken_rooms(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, dict]]:
    """One sound room, one with planted defects, one without frames, and one that is only in the split."""
    root = str(tmp_path_factory.mktemp("broken"))
    sound = room_specs(1, seed=11, frames=14, scale=0.1)
    defects = ("missing_image", "truncated_jpeg", "nan_pose", "far_pose", "duplicate")
    bad = room_specs(1, seed=12, frames=24, scale=0.1, defects=defects)
    empty = room_specs(1, seed=13, frames=12, scale=0.1, defects=("empty",))
    specs = [*sound, *bad, *empty]
    planted = {spec.scene_id: write_room(root, spec) for spec in specs}
    write_root(root, specs, train=[*(s.scene_id for s in specs), "ffffffffff"], val=[])
    return root, planted


def test_bad_input_is_skipped_or_set_aside_by_name(broken_rooms: tuple[str, dict[str, dict]], tmp_path: Path) -> None:
    root, planted = broken_rooms
    result = command("pipeline/build_shards.py", f"root={root}", f"dataset={tmp_path}", *BUILD, "features=none", "min_kept_share=0.5")
    sound, bad, empty = planted
    reports = {scene: codec.decode_json((tmp_path / "scenes" / f"{scene}.json").read_bytes()) for scene in [*planted, "ffffffffff"]}
    assert reports[sound]["skipped"] == []
    assert {s["reason"] for s in reports[bad]["skipped"]} == {
        "image_missing", "image_unreadable", "pose_not_finite", "pose_outside_mesh", "duplicate",
    }  # fmt: skip
    listed = {name for r in (reports[sound], reports[bad]) for name in [*r["kept"], *(s["frame"] for s in r["skipped"])]}
    assert len(reports[bad]["kept"]) + len({s["frame"] for s in reports[bad]["skipped"] if s["reason"] != "duplicate"}) == 24
    assert listed
    assert reports[empty]["quarantined"]["reason"] == "no_frames"
    assert reports["ffffffffff"]["quarantined"]["reason"] == "scene_missing"
    for scene in (empty, "ffffffffff"):
        assert f"quarantined: {scene}" in result.stdout
    assert Index.open(str(tmp_path), "frames").scenes() == {sound, bad}
    kept = [key for key in Index.open(str(tmp_path), "frames").all_keys() if key.startswith(bad)]
    assert kept == [f"{bad}-{name.split('.')[0]}" for name in reports[bad]["kept"]]


def test_too_few_sound_frames_end_the_run(broken_rooms: tuple[str, dict[str, dict]], tmp_path: Path) -> None:
    arguments = (f"root={broken_rooms[0]}", f"dataset={tmp_path}", *BUILD, "features=none", "min_kept_share=0.99")
    result = command("pipeline/build_shards.py", *arguments, check=False)
    assert result.returncode == 1
    assert "of the listed frames are sound, min_kept_share is 99%" in result.stderr.splitlines()[-1]


def test_a_wrong_root_and_another_configuration_are_refused(rooms: str, dataset: str, tmp_path: Path) -> None:
    wrong = command("pipeline/build_shards.py", f"root={tmp_path}/nothing", f"dataset={tmp_path}/d", *BUILD, check=False)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (1, 1)
    assert "nvs_sem_train.txt: no such split" in wrong.stderr
    other = command("pipeline/build_shards.py", f"root={rooms}", f"dataset={dataset}", *BUILD, "width=224", check=False)
    assert (other.returncode, len(other.stderr.splitlines())) == (1, 1)
    assert "settings.width: there 126, here 224" in other.stderr
