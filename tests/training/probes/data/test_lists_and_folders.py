"""Readers of list files and label folders give the arrays that lie in the official layouts, and refuse what does not fit."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.errors import ConfigError
from storage.location import StorageError
from tests.training.probes.data.layouts import INDOOR, millimetres, noise, one_line, write_image, write_lines, write_palette
from training.probes.data import ade20k, files, kitti, nyuv2, scannet_probe, scannetpp_probe, voc2012
from training.probes.data.base import IGNORED, ProbeFrame
from training.probes.data.classes import ADE150, NYU13, NYU40, SCANNETPP100, VOC21


def test_the_published_numbers_of_classes() -> None:
    assert [len(names) for names in (NYU13, NYU40, SCANNETPP100, ADE150, VOC21)] == [13, 40, 100, 150, 21]
    assert NYU13 == (
        "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "painting", "sofa", "table", "tv", "wall", "window",
    )  # fmt: skip
    assert all(len(set(names)) == len(names) for names in (NYU13, NYU40, SCANNETPP100, ADE150, VOC21))


# -- depth lists -------------------------------------------------------------------------------------------------------------------------


def write_nyu(root: Path) -> dict[str, Any]:
    """Two train frames, named in the wrong order, and one test frame, as the lists since BTS name them. Returns the arrays, by key."""
    truth = {}
    for n, (scene, number) in enumerate((("kitchen_0028b", 45), ("bedroom_0001", 3), ("office_0002", 7))):
        image = write_image(root / scene / f"rgb_{number:05d}.jpg", noise(n, *INDOOR, 3))
        raw, depth = millimetres(n, *INDOOR)
        write_image(root / scene / f"sync_depth_{number:05d}.png", raw)
        truth[f"{scene}/rgb_{number:05d}"] = (image, depth)
    line = "/{0}/rgb_{1}.jpg /{0}/sync_depth_{1}.png 518.8579"
    write_lines(root / "nyu_train.txt", [line.format("kitchen_0028b", "00045"), line.format("bedroom_0001", "00003")])
    write_lines(root / "nyu_test.txt", ["office_0002/rgb_00007.jpg office_0002/sync_depth_00007.png", "x/rgb_1.jpg None 518.8"])
    return truth


@pytest.fixture(scope="module")
def nyu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("nyu")
    return root, write_nyu(root)


def test_nyu_lists_give_the_arrays_of_the_files(nyu: tuple[Path, dict[str, Any]]) -> None:
    root, truth = nyu
    data = nyuv2.make(nyuv2.Config(root=str(root)))
    train, test = data.frames("train"), data.frames("test")
    assert [frame.key for frame in train] == ["bedroom_0001/rgb_00003", "kitchen_0028b/rgb_00045"]  # by image path
    assert [frame.key for frame in test] == ["office_0002/rgb_00007"]  # a depth of None drops its line
    for frame in [*train, *test]:
        image, depth = truth[frame.key]
        np.testing.assert_array_equal(frame.image, image)
        np.testing.assert_array_equal(frame.depth, depth)
        assert frame.group == frame.key.split("/")[0]
        assert frame.labels is None
    assert (data.tasks, data.depth_range, data.depth_crop, data.pairs()) == ({"depth"}, (0.001, 10.0), "indoor", ())


def test_what_was_read_is_written_out(nyu: tuple[Path, dict[str, Any]]) -> None:
    said = nyuv2.make(nyuv2.Config(root=str(nyu[0]))).describe()
    assert said["frames"] == {"train": ["bedroom_0001/rgb_00003", "kitchen_0028b/rgb_00045"], "test": ["office_0002/rgb_00007"]}
    assert said["counts"] == {"train": 2, "test": 1, "pairs": 0}
    assert said["config"]["part"] == "depth"
    assert said == nyuv2.make(nyuv2.Config(root=str(nyu[0]))).describe()
    json.dumps(said)


def test_frames_are_decoded_when_they_are_asked_for(nyu: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    decode = files.decode_rgb
    monkeypatch.setattr(files, "decode_rgb", lambda url, *args: decoded.append(url) or decode(url, *args))
    frames = nyuv2.make(nyuv2.Config(root=str(nyu[0]))).frames("train")
    assert (len(frames), len(frames[1:]), decoded) == (2, 1, [])
    assert frames[1:][0].key == frames[-1].key == "kitchen_0028b/rgb_00045"
    assert len(decoded) == 2


def test_a_list_of_the_users_own_lies_anywhere(nyu: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    write_lines(tmp_path / "mine.txt", ["kitchen_0028b/rgb_00045.jpg kitchen_0028b/sync_depth_00045.png"])
    data = nyuv2.make(nyuv2.Config(root=str(nyu[0]), train_list="nyu_test.txt", test_list=str(tmp_path / "mine.txt")))
    assert [frame.key for frame in data.frames("test")] == ["kitchen_0028b/rgb_00045"]


def small_list(root: Path, line: str = "a/x.jpg a/x.png") -> scannetpp_probe.Config:
    """A layout of one frame in each split, 20x30."""
    for scene in ("a", "b"):
        write_image(root / scene / "x.jpg", noise(1, 20, 30, 3))
        write_image(root / scene / "x.png", millimetres(1, 20, 30)[0])
    write_lines(root / "scannetpp_train.txt", [line])
    write_lines(root / "scannetpp_val.txt", ["b/x.jpg b/x.png"])
    return scannetpp_probe.Config(root=str(root))


@pytest.mark.parametrize(
    "path", ["../x.jpg", "a/../../x.jpg", "a//x.jpg", "./x.jpg", "a\\..\\x.jpg", "s3://bucket/x.jpg", "file::x.jpg", "a/\x07.jpg", ".."]
)
def test_a_list_leads_nowhere_but_below_its_root(tmp_path: Path, path: str) -> None:
    config = small_list(tmp_path, f"{path} a/x.png")
    with pytest.raises(StorageError) as refused:
        scannetpp_probe.make(config).frames("train")
    one_line(refused.value, "scannetpp_train.txt", "no path below")


@given(path=st.text(min_size=1, max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_text_names_a_file_outside_the_root(path: str) -> None:
    try:
        url = files.inside("/data/root", path, "list.txt")
    except StorageError:
        return
    assert os.path.normpath(url).startswith("/data/root/")
    assert "://" not in url


def test_an_absolute_path_of_a_list_is_below_the_root_or_nowhere(tmp_path: Path) -> None:
    config = small_list(tmp_path, "/etc/hostname a/x.png")
    with pytest.raises(StorageError) as refused:
        scannetpp_probe.make(config).frames("train")
    one_line(refused.value, f"{tmp_path}/etc/hostname", "not found", "scannetpp_train.txt")


def test_links_are_followed(tmp_path: Path) -> None:
    config = small_list(tmp_path / "root", "a/x.jpg linked/x.png")
    (tmp_path / "elsewhere").mkdir()
    os.rename(tmp_path / "root/a/x.png", tmp_path / "elsewhere/x.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "root/linked")
    os.symlink(tmp_path / "elsewhere/x.png", tmp_path / "root/a/x.png")
    assert scannetpp_probe.make(config).frames("train")[0].depth.any()


def all_frames(config: scannetpp_probe.Config) -> list[ProbeFrame]:
    data = scannetpp_probe.make(config)
    return [*data.frames("train"), *data.frames("test")]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda root: os.remove(root / "scannetpp_train.txt"), ["scannetpp_train.txt", "root"]),
        (lambda root: os.remove(root / "a/x.png"), ["a/x.png", "not found", "scannetpp_train.txt"]),
        (lambda root: write_lines(root / "scannetpp_train.txt", ["a/x.jpg"]), ["scannetpp_train.txt, line 1", "image depth"]),
        (lambda root: (root / "scannetpp_train.txt").write_bytes(b"\xff\xfe\x00"), ["scannetpp_train.txt", "UTF-8"]),
        (lambda root: write_lines(root / "scannetpp_train.txt", ["a/x.jpg a/x.png"] * 2), ["a/x", "unique"]),
        (lambda root: write_lines(root / "scannetpp_val.txt", []), ["no test frames"]),
        (lambda root: write_image(root / "a/x.png", millimetres(1, 20, 31)[0]), ["a/x.png", "20x31", "20x30", "nearest"]),
        (lambda root: write_image(root / "a/x.png", noise(1, 20, 30)), ["a/x.png", "16 bits"]),
        (lambda root: write_image(root / "a/x.png", (millimetres(1, 20, 30)[1] * 1).astype(np.uint16)), ["a/x.png", "unit"]),
        (lambda root: write_image(root / "a/x.png", millimetres(1, 20, 30, unit=8000)[0]), ["a/x.png", "unit"]),
        (lambda root: (root / "a/x.jpg").write_bytes((root / "a/x.jpg").read_bytes()[:200]), ["a/x.jpg", "damaged"]),
        (lambda root: (root / "a/x.png").write_bytes((root / "a/x.png").read_bytes()[:200]), ["a/x.png", "damaged"]),
        (lambda root: (root / "a/x.png").write_bytes(b""), ["a/x.png", "damaged"]),
    ],
)  # fmt: skip
def test_damage_is_refused_by_name(tmp_path: Path, damage: Any, named: list[str]) -> None:
    config = small_list(tmp_path)
    damage(tmp_path)
    with pytest.raises(StorageError) as refused:
        all_frames(config)
    one_line(refused.value, *named)


def test_a_frame_of_both_splits_is_refused(tmp_path: Path) -> None:
    """A head would be judged on what it was trained on."""
    config = small_list(tmp_path, "a/x.jpg a/x.png")
    write_lines(tmp_path / "scannetpp_val.txt", ["b/x.jpg b/x.png", "a/x.jpg b/x.png"])
    with pytest.raises(StorageError) as refused:
        scannetpp_probe.make(config).frames("test")
    one_line(refused.value, str(tmp_path / "a/x.jpg"), "frame a/x", "take it out")


@pytest.mark.parametrize(("module", "scene"), [(scannetpp_probe, "0a7cc12c0e"), (scannet_probe, "scene0011_01")])
def test_a_scene_of_both_splits_is_refused(tmp_path: Path, module: Any, scene: str) -> None:
    lists = ("train_index.txt", "test_index.txt") if module is scannet_probe else ("scannetpp_train.txt", "scannetpp_val.txt")
    for number, name in enumerate(lists):
        write_image(tmp_path / f"color/{scene}/{number}.jpg", noise(number, 20, 30, 3))
        write_image(tmp_path / f"depth/{scene}/{number}.png", millimetres(number, 20, 30)[0])
        write_lines(tmp_path / name, [f"color/{scene}/{number}.jpg depth/{scene}/{number}.png"])
    with pytest.raises(StorageError) as refused:
        module.make(module.Config(root=str(tmp_path))).frames("test")
    one_line(refused.value, f"{scene}/1.jpg", f"scene {scene}", "take it out")


def test_one_folder_of_all_images_is_no_scene_of_both_splits(tmp_path: Path) -> None:
    """Where no path names a scene, the folder stands in for it."""
    config = small_list(tmp_path)
    os.rename(tmp_path / "b/x.jpg", tmp_path / "a/y.jpg")
    write_lines(tmp_path / "scannetpp_val.txt", ["a/y.jpg b/x.png"])
    assert [frame.group for frame in all_frames(config)] == ["a", "a"]


def test_splits_of_nyu_may_share_rooms(nyu: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The official ones do."""
    root, _ = nyu
    write_lines(tmp_path / "train.txt", ["office_0002/rgb_00008.jpg office_0002/sync_depth_00007.png"])
    if not (root / "office_0002/rgb_00008.jpg").exists():
        os.link(root / "office_0002/rgb_00007.jpg", root / "office_0002/rgb_00008.jpg")
    data = nyuv2.make(nyuv2.Config(root=str(root), train_list=str(tmp_path / "train.txt")))
    assert data.frames("train")[0].group == data.frames("test")[0].group == "office_0002"


def test_equal_names_in_both_label_folders_of_nyu_are_two_frames(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_image(tmp_path / f"nyu_{split}_rgb/0001.png", noise(1, *INDOOR, 3))
        write_image(tmp_path / f"nyuv2_{split}_class13/0001.png", noise(1, *INDOOR, most=14))
    data = nyuv2.make(nyuv2.Config(root=str(tmp_path), part="segmentation"))
    assert data.describe()["frames"] == {"train": ["nyu_train_rgb/0001"], "test": ["nyu_test_rgb/0001"]}


@pytest.mark.parametrize("path", ["a/x.jpg", "a/x.png", "b/x.jpg", "b/x.png"])
def test_another_file_under_the_same_name_is_other_data(tmp_path: Path, path: str) -> None:
    """Results of both would else be compared as if they were of the same data."""
    config = small_list(tmp_path)
    before = scannetpp_probe.make(config).describe()
    with open(tmp_path / path, "ab") as stream:
        stream.write(b"x")
    after = scannetpp_probe.make(config).describe()
    assert {name for name in before if before[name] != after[name]} == {"content"}


def test_files_that_swap_names_are_other_data(tmp_path: Path) -> None:
    config = small_list(tmp_path)
    with open(tmp_path / "a/x.png", "ab") as stream:
        stream.write(b"x")
    before = scannetpp_probe.make(config).describe()
    for old, new in (("a/x.png", "c.png"), ("b/x.png", "a/x.png"), ("c.png", "b/x.png")):
        os.rename(tmp_path / old, tmp_path / new)
    assert before["content"] != scannetpp_probe.make(config).describe()["content"]


def test_lists_and_folders_are_read_from_an_object_store(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    try:
        small_list(tmp_path / "lists")
        _, image, _ = write_folders(tmp_path / "ade", "ade20k")
        store.put(f"{tmp_path}/", "/probe-data/", recursive=True)
        config = scannetpp_probe.Config(root="memory://probe-data/lists")
        np.testing.assert_array_equal(all_frames(config)[0].depth, millimetres(1, 20, 30)[1])
        np.testing.assert_array_equal(ade20k.make(ade20k.Config(root="memory://probe-data/ade")).frames("test")[0].image, image)
        local = scannetpp_probe.Config(root=str(tmp_path / "lists"))
        assert scannetpp_probe.make(config).describe()["content"] == scannetpp_probe.make(local).describe()["content"]
        store.rm("/probe-data/lists/a/x.png")
        with pytest.raises(StorageError) as refused:
            all_frames(config)
        one_line(refused.value, "memory://probe-data/lists/a/x.png", "not found")
    finally:
        store.rm("/probe-data", recursive=True)


def test_a_frame_without_any_depth_is_left_to_the_metric(tmp_path: Path) -> None:
    config = small_list(tmp_path)
    write_image(tmp_path / "a/x.png", np.zeros((20, 30), np.uint16))
    assert not scannetpp_probe.make(config).frames("train")[0].depth.any()


def test_a_missing_dataset_and_a_wrong_part_are_refused(tmp_path: Path) -> None:
    for make, config in (
        (nyuv2.make, nyuv2.Config(root=str(tmp_path / "no"))),
        (nyuv2.make, nyuv2.Config(root=str(tmp_path / "no"), part="segmentation")),
        (scannet_probe.make, scannet_probe.Config(root=str(tmp_path / "no"))),
        (scannet_probe.make, scannet_probe.Config(root=str(tmp_path / "no"), part="segmentation")),
        (kitti.make, kitti.Config(root=str(tmp_path / "no"))),
        (ade20k.make, ade20k.Config(root=str(tmp_path / "no"))),
        (voc2012.make, voc2012.Config(root=str(tmp_path / "no"))),
    ):
        with pytest.raises(StorageError) as refused:
            make(config).frames("test")  # type: ignore[operator]
        one_line(refused.value, str(tmp_path / "no"), "root")
    with pytest.raises(ConfigError, match="part=labels"):
        nyuv2.Config(root="x", part="labels")
    with pytest.raises(ConfigError, match="split=val"):
        nyuv2.make(nyuv2.Config(root=str(tmp_path))).frames("val")


def test_the_indoor_crop_needs_its_size(tmp_path: Path) -> None:
    """The metric's box is in pixels of 480x640: ScanNet's colour images of 968x1296 would be judged elsewhere."""
    raw, _ = millimetres(1, 968, 1296)
    write_image(tmp_path / "scene0000_00/1.jpg", noise(1, 968, 1296, 3))
    write_image(tmp_path / "scene0000_00/1.png", raw)
    write_lines(tmp_path / "train_index.txt", [])
    write_lines(tmp_path / "test_index.txt", ["scene0000_00/1.jpg scene0000_00/1.png"])
    with pytest.raises(StorageError) as refused:
        scannet_probe.make(scannet_probe.Config(root=str(tmp_path))).frames("test")[0]
    one_line(refused.value, "scene0000_00/1.jpg", "968x1296", "480x640")


@pytest.mark.parametrize("lists", [("train_index.txt", "test_index.txt"), ("scannet_train.txt", "scannet_val.txt")])
def test_scannet_lists(tmp_path: Path, lists: tuple[str, str]) -> None:
    raw, depth = millimetres(1, *INDOOR)
    image = write_image(tmp_path / "color/scene0011_01_000100.jpg", noise(1, *INDOOR, 3))
    write_image(tmp_path / "depth/scene0011_01_000100.png", raw)
    write_lines(tmp_path / lists[0], [])
    write_lines(tmp_path / lists[1], ["color/scene0011_01_000100.jpg depth/scene0011_01_000100.png"])
    data = scannet_probe.make(scannet_probe.Config(root=str(tmp_path)))
    (frame,) = data.frames("test")
    np.testing.assert_array_equal(frame.image, image)
    np.testing.assert_array_equal(frame.depth, depth)
    assert (frame.group, data.depth_crop, data.depth_range) == ("scene0011_01", "indoor", (0.001, 10.0))


# -- KITTI -------------------------------------------------------------------------------------------------------------------------------


DRIVE = "2011_09_26_drive_0002_sync"


@pytest.mark.parametrize("flat", [False, True])
def test_both_trees_of_kitti(tmp_path: Path, flat: bool) -> None:
    image = noise(1, 375, 1242, 3)
    raw, depth = millimetres(1, 375, 1242, unit=256, farthest=60)
    line = f"2011_09_26/{DRIVE}/image_02/data/0000000069.png {DRIVE}/proj_depth/groundtruth/image_02/0000000069.png 721.5377"
    if flat:
        line = line.replace("0000000069", f"{DRIVE}_0000000069")
    paths = [tmp_path / folder / part for folder, part in zip(("input", "gt_depth"), line.split(), strict=False)]
    if flat:
        paths = [tmp_path / folder / path.name for folder, path in zip(("images", "depth"), paths, strict=True)]
    write_image(paths[0], image)
    write_image(paths[1], raw)
    unknown = f"2011_09_26/{DRIVE}/image_02/data/0000000070.png None 721.5377"
    train, test = ("kitti_train.txt", "kitti_val.txt") if flat else ("kitti_eigen_train.txt", "kitti_eigen_test.txt")
    write_lines(tmp_path / train, [unknown])
    write_lines(tmp_path / test, [line, unknown])
    data = kitti.make(kitti.Config(root=str(tmp_path)))
    (frame,) = data.frames("test")
    np.testing.assert_array_equal(frame.image, image[23:, 13 : 13 + 1216])
    np.testing.assert_array_equal(frame.depth, depth[23:, 13 : 13 + 1216])
    assert (frame.group, data.depth_crop, data.depth_range) == ("2011_09_26_drive_0002", "kitti", (0.001, 80.0))


def write_flat_kitti(root: Path, lines: list[str], shape: tuple[int, int] = (375, 1242), unit: float = 256) -> kitti.Config:
    write_image(root / "images/0000000069.png", noise(1, *shape, 3))
    write_image(root / "depth/0000000069.png", millimetres(1, *shape, unit=unit, farthest=60)[0])
    write_lines(root / "kitti_train.txt", [])
    write_lines(root / "kitti_val.txt", lines)
    return kitti.Config(root=str(root))


def test_flat_names_of_kitti_must_be_unique(tmp_path: Path) -> None:
    lines = [f"{drive}/0000000069.png {drive}/0000000069.png" for drive in ("drive_0001", "drive_0002")]
    with pytest.raises(StorageError) as refused:
        kitti.make(write_flat_kitti(tmp_path, lines)).frames("test")
    one_line(refused.value, "0000000069", "unique")


def test_kitti_of_another_size_or_unit_is_refused(tmp_path: Path) -> None:
    lines = ["0000000069.png 0000000069.png"]
    for sub, shape, unit, named in (("small", (300, 1242), 256, "352x1216"), ("mm", (375, 1242), 1000, "unit")):
        with pytest.raises(StorageError) as refused:
            kitti.make(write_flat_kitti(tmp_path / sub, lines, shape, unit)).frames("test")[0]
        one_line(refused.value, "0000000069.png", named)


# -- label folders -----------------------------------------------------------------------------------------------------------------------


SEGMENTATION = {"part": "segmentation"}
FOLDERS = {
    "ade20k": (ade20k, {}, "images/{}", "annotations/{}", ("training", "validation"), ".jpg", ADE150, (40, 50)),
    "scannetpp": (scannetpp_probe, SEGMENTATION, "images/{}", "annotations/{}", ("training", "validation"), ".JPG", SCANNETPP100, (40, 50)),
    "scannet_snd": (scannet_probe, SEGMENTATION, "{}/color", "{}/label", ("train", "test"), ".jpg", NYU40, (40, 50)),
    "scannet_fit3d": (scannet_probe, SEGMENTATION, "images/{}", "annotations/{}", ("training", "validation"), ".jpg", NYU40, (40, 50)),
    "nyuv2": (nyuv2, SEGMENTATION, "nyu_{}_rgb", "nyuv2_{}_class13", ("train", "test"), ".png", NYU13, INDOOR),
}


def write_folders(root: Path, name: str, labels: np.ndarray | None = None) -> tuple[Any, np.ndarray, np.ndarray]:
    """One frame a split, in a folder of its scene. Returns the data, and the image and raw labels of the test frame."""
    module, keys, images, annotations, splits, suffix, classes, shape = FOLDERS[name]
    for n, split in enumerate(splits):
        raw = noise(n, *shape, most=len(classes) + 1) if labels is None else labels
        raw = raw.copy()
        raw[0, :3] = (0, 255, len(classes))
        image = write_image(root / images.format(split) / f"scene0707_0{n}/a{n}{suffix}", noise(n + 9, *shape, 3))
        write_image(root / annotations.format(split) / f"scene0707_0{n}/a{n}.png", raw)
    return module.make(module.Config(root=str(root), **keys)), image, raw


@pytest.mark.parametrize("name", FOLDERS)
def test_labels_are_ids_less_one_and_0_and_255_are_ignored(tmp_path: Path, name: str) -> None:
    data, image, raw = write_folders(tmp_path, name)
    assert data.tasks == {"segmentation"}
    assert data.classes == FOLDERS[name][-2]
    (frame,) = data.frames("test")
    np.testing.assert_array_equal(frame.image, image)
    known = (raw > 0) & (raw < 255)
    np.testing.assert_array_equal(frame.labels[known], raw[known] - 1)
    assert (frame.labels[~known] == IGNORED).all()
    assert frame.labels.dtype == np.uint8
    assert (frame.labels[0, :3] == (IGNORED, IGNORED, len(data.classes) - 1)).all()
    assert len(data.frames("train")) == 1


@pytest.mark.parametrize("name", FOLDERS)
def test_a_label_out_of_range_is_refused(tmp_path: Path, name: str) -> None:
    shape, count = FOLDERS[name][-1], len(FOLDERS[name][-2])
    data, _, _ = write_folders(tmp_path, name, np.full(shape, count + 1, np.uint8))
    with pytest.raises(StorageError) as refused:
        data.frames("test")[0]
    one_line(refused.value, "a1.png", f"label {count + 1}", f"1..{count}")


def test_labels_and_their_classes_are_part_of_what_is_written_out(tmp_path: Path) -> None:
    before = write_folders(tmp_path, "ade20k")[0].describe()
    assert before["classes"] == list(ADE150)
    with open(tmp_path / "annotations/validation/scene0707_01/a1.png", "ab") as stream:
        stream.write(b"x")
    assert before["content"] != ade20k.make(ade20k.Config(root=str(tmp_path))).describe()["content"]


def test_labels_of_another_kind_are_refused(tmp_path: Path) -> None:
    data, _, _ = write_folders(tmp_path, "ade20k")
    label = tmp_path / "annotations/validation/scene0707_01/a1.png"
    write_image(label, noise(1, 40, 50, 3))
    with pytest.raises(StorageError) as refused:
        data.frames("test")[0]
    one_line(refused.value, "a1.png", "indices")
    write_image(label, noise(1, 41, 50, most=3))
    with pytest.raises(StorageError) as refused:
        data.frames("test")[0]
    one_line(refused.value, "a1.png", "41x50", "40x50")
    os.remove(label)
    with pytest.raises(StorageError) as refused:
        ade20k.make(ade20k.Config(root=str(tmp_path))).frames("test")
    one_line(refused.value, "a1.png", "not found")


def test_scannet_labels_of_16_bits_are_read_by_value(tmp_path: Path) -> None:
    """ScanNet's own label files have 16 bits; those of raw ids are refused as ids, not cut to 8 bits."""
    data, _, _ = write_folders(tmp_path, "scannet_snd")
    label = tmp_path / "test/label/scene0707_01/a1.png"
    raw = noise(3, 40, 50, most=41, dtype=np.uint16)
    write_image(label, raw)
    np.testing.assert_array_equal(data.frames("test")[0].labels, np.where(raw == 0, IGNORED, raw - 1))
    raw[5, 5] = 256 + 3
    write_image(label, raw)
    with pytest.raises(StorageError) as refused:
        data.frames("test")[0]
    one_line(refused.value, "a1.png", "label 259")


def test_voc_labels_are_palette_indices_with_the_background(tmp_path: Path) -> None:
    raw = noise(1, 30, 40, most=21)
    raw[0, 0] = 255
    for n, split in enumerate(("train", "val")):
        image = write_image(tmp_path / f"JPEGImages/2007_{n}.jpg", noise(n, 30, 40, 3))
        write_palette(tmp_path / f"SegmentationClass/2007_{n}.png", raw)
        write_lines(tmp_path / f"ImageSets/Segmentation/{split}.txt", [f"2007_{n}"])
    data = voc2012.make(voc2012.Config(root=str(tmp_path)))
    (frame,) = data.frames("test")
    assert frame.key == frame.group == "2007_1"
    np.testing.assert_array_equal(frame.image, image)
    np.testing.assert_array_equal(frame.labels, raw)  # nothing is taken off; 255 is IGNORED already
    assert data.classes[0] == "background"
    write_palette(tmp_path / "SegmentationClass/2007_1.png", np.full((30, 40), 21, np.uint8))
    with pytest.raises(StorageError) as refused:
        data.frames("test")[0]
    one_line(refused.value, "2007_1.png", "label 21", "0..20")
    write_lines(tmp_path / "ImageSets/Segmentation/val.txt", ["../../etc/passwd"])
    with pytest.raises(StorageError, match="no path below"):
        voc2012.make(voc2012.Config(root=str(tmp_path))).frames("test")


@given(n=st.integers(2, 150), values=st.lists(st.integers(0, 255), min_size=4, max_size=4), zero=st.booleans())
@settings(max_examples=100, deadline=None)
def test_label_ids(n: int, values: list[int], zero: bool) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.array(values, np.uint8).reshape(2, 2)).save(stream, "PNG")
    most = n if zero else n - 1
    if any(most < v < 255 for v in values):
        with pytest.raises(StorageError, match="label"):
            files.decode_labels("x.png", stream.getvalue(), n, zero)
        return
    found = files.decode_labels("x.png", stream.getvalue(), n, zero).ravel()
    for value, label in zip(values, found, strict=True):
        assert label == (IGNORED if value == 255 or (zero and value == 0) else value - zero)
