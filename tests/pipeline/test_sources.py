"""Readers and sources of masks that another package brings: one file and an entry point, and the commands know them by name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import ConfigError, load
from configs.schema import BuildShardsConfig
from configs.schema.data import MASK_SOURCES, READERS
from pipeline.columns.masks import encode_labels
from storage.column import Column
from storage.domain import Camera, Frame
from storage.location import StorageError
from storage.table import Table
from tests.conftest import BUILD, REPOSITORY, command, hashes

TOY_MASKS = """
from dataclasses import dataclass

import numpy as np


@dataclass
class Config:
    cell: int = 21


@dataclass
class GridMasks:
    cell: int
    needs_scene = False

    def labels(self, frame, scene):
        assert scene is None and frame.labels is None
        v, u = np.indices(frame.image.shape[:2]) // self.cell
        return 1 + 100 * v + u

    def describe(self):
        return {"cell": self.cell}


def make(config):
    return GridMasks(config.cell)
"""

TOY_READER = """
from dataclasses import dataclass

import numpy as np

from pipeline.readers import BadFrame, BadScene, FrameEntry, SceneIndex
from storage.domain import Camera, Frame
from storage.location import read_bytes


@dataclass
class Config:
    pass


@dataclass
class Scene:
    index: SceneIndex
    width: int
    height: int

    def read(self, entry):
        if entry.number == 3:
            raise BadFrame(self.index.scene_id, entry.name, "image_unreadable", "a toy")
        K = np.array([[50.0, 0, self.width / 2], [0, 50.0, self.height / 2], [0, 0, 1]])
        shape = (self.height, self.width)
        image = np.full((*shape, 3), 10 * entry.number, np.uint8)
        return Frame(entry.name, Camera(entry.c2w, K, self.width, self.height), image, None, np.ones(shape, bool))

    def report(self):
        return {"scene": self.index.scene_id}


class Reader:
    def scenes(self, root, split):
        return read_bytes(f"{root}/{split}").decode().split()

    def listing(self, root, scene_id, keep_bad):
        if scene_id == "empty":
            raise BadScene(scene_id, "no_frames", "a toy")
        poses = [np.eye(4) for _ in range(14)]
        for number, pose in enumerate(poses):
            pose[0, 3] = 0.02 * number
        frames = tuple(FrameEntry(f"{n:03d}.png", n, pose, "", None, "1") for n, pose in enumerate(poses))
        return SceneIndex(scene_id, frames, (), (), "1")

    def open(self, root, scene_id, width, height, keep_bad):
        return Scene(self.listing(root, scene_id, keep_bad), width, height)


def make(config):
    return Reader()
"""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user who installed a package with both."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "toy_masks.py").write_text(TOY_MASKS)
    (folder / "toy_reader.py").write_text(TOY_READER)
    (folder / "toys-1.0.dist-info").mkdir()
    (folder / "toys-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (folder / "toys-1.0.dist-info" / "entry_points.txt").write_text(
        "[splat_and_distill.mask_sources]\ntoy = toy_masks\n[splat_and_distill.readers]\ntoy = toy_reader\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(folder)])}


def test_masks_of_another_source_lie_beside_those_of_the_mesh(rooms: str, dataset: str, toys: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "d")
    url, before = str(tmp_path / "d"), hashes(dataset)
    arguments = ("pipeline/build_shards.py", f"root={rooms}", f"dataset={url}", *BUILD, "masks=toy", "features=none")
    result = command(*arguments, environment=toys)
    assert "masks-toy: building 6 of 6 shards" in result.stdout
    assert "/frames: all 6 shards are committed, nothing to do" in result.stdout
    operators = ("masks=masks-toy", "operators.column=operators-toy", "operators.targets=1")
    early = command("pipeline/cache_gaussians.py", f"dataset={dataset}", *operators, environment=toys, check=False)
    assert "build it with: python pipeline/build_shards.py masks=toy" in early.stderr
    command("pipeline/cache_gaussians.py", f"dataset={url}", *operators, environment=toys)

    after = hashes(url)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"masks-toy", "operators-toy"}
    table = Table.open(url, ["windows", "masks-toy", "gaussians", "operators-toy"])
    v, u = np.indices((84, 126)) // 21
    for frame in table.read_frames(range(len(table.frames)), labels=True):
        np.testing.assert_array_equal(frame.labels, 1 + 100 * v + u)
    assert len(table.row(0).operator(4).R) == 24, "the operator blends within the 4 x 6 cells of the grid"
    settings = Column(url, "masks-toy").provenance().settings
    assert (settings["masks"], settings["options"]) == ("toy", {"cell": 21})
    assert "all 6 shards are committed, nothing to do" in command(*arguments, environment=toys).stdout.split("masks-toy: ")[1]


def test_a_reader_of_another_layout_and_masks_without_a_mesh(toys: dict[str, str], tmp_path: Path) -> None:
    """Frames do not depend on masks: what a wrong choice of masks stopped is built once the choice is right."""
    (tmp_path / "train").write_text("hall empty")
    keys = (f"root={tmp_path}", "split=train", "layout=toy", "features=none", "min_kept_share=0.4", "windows.gap=4")
    wrong = command("pipeline/build_shards.py", f"dataset={tmp_path}/d", *BUILD, *keys, environment=toys, check=False)
    assert wrong.returncode == 1
    assert "masks=mesh: frame 000.png has no labels" in wrong.stderr.splitlines()[-1]
    command("pipeline/build_shards.py", f"dataset={tmp_path}/d", *BUILD, *keys, "masks=toy", environment=toys)
    table = Table.open(f"{tmp_path}/d", ["windows", "masks-toy"])
    assert table.frames.all_keys() == [f"hall-{n:03d}" for n in range(14) if n != 3]
    assert len(table) > 0
    assert Column(f"{tmp_path}/d", "frames").provenance().settings["layout"] == {"name": "toy"}
    report = (tmp_path / "d" / "scenes" / "empty.json").read_text()
    assert '"reason":"no_frames"' in report


def test_choices_are_listed_where_there_is_none_of_that_name() -> None:
    """What readers share is no choice, though it lies in their folder."""
    assert "scannetpp" in READERS.names()
    assert not {"base", "lens", "undistort"} & {*READERS.names(), *MASK_SOURCES.names()}
    with pytest.raises(ConfigError, match=r"masks=base: choose one of .*mesh"):
        load(BuildShardsConfig, ["root=x", "dataset=y", "masks=base"])
    with pytest.raises(ConfigError, match=r"layout=undistort: choose one of .*scannetpp"):
        load(BuildShardsConfig, ["root=x", "dataset=y", "layout=undistort"])


@pytest.mark.parametrize(
    "labels",
    [np.zeros((4, 5), int), np.zeros((4, 6), np.float32), np.full((4, 6), 65536), np.full((4, 6), -1)],
    ids=["size", "float", "large", "negative"],
)
def test_labels_that_cannot_be_stored_are_refused_by_source_and_frame(labels: np.ndarray) -> None:
    frame = Frame("a.jpg", Camera(np.eye(4), np.eye(3), 6, 4), np.zeros((4, 6, 3), np.uint8), None, np.ones((4, 6), bool))
    with pytest.raises(StorageError, match=r"masks=toy: a\.jpg: .*mend the source"):
        encode_labels("toy", frame, labels)
    assert encode_labels("toy", frame, np.full((4, 6), 65535)).keys() == {"mask.png"}
