"""Datasets of furnished rooms, written as the pipeline writes them: two to fit probes on, two to judge them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.plan.windows import PlannedWindow
from pipeline.reconstruct.depth import DepthReconstructor
from storage import codec
from storage.domain import Camera, Frame
from tests.datasets import Scene, write_dataset
from tests.training.probes.rooms import CLASSES, make_room, orbit_views

HEIGHT, WIDTH = 84, 126  # 6 x 9 tokens
ANGLES = (6.0, 12.0, 24.0, 48.0)


def write_rooms(root: Path, seeds: dict[str, int], operators: bool = False) -> str:
    """A dataset with a scene for each seed: frames, masks and reports; and two windows."""
    scenes = []
    for name, seed in seeds.items():
        room, frames, objects = make_room(seed), [], {}
        for number, view in enumerate(orbit_views(room, HEIGHT, WIDTH, ANGLES)):
            one = view.frame
            assert one.K is not None
            assert one.c2w is not None
            assert one.labels is not None
            assert one.instances is not None
            camera = Camera(one.c2w, one.K, WIDTH, HEIGHT)
            valid = np.ones((HEIGHT, WIDTH), bool)
            valid[:3, :5] = number != 1
            frames.append(Frame(f"{number}.jpg", camera, one.image, one.instances.astype(np.uint16), valid, one.depth))
            for instance in np.unique(one.instances):
                objects[str(instance)] = CLASSES[int(one.labels[one.instances == instance][0])]
        scenes.append(Scene(name, frames, [PlannedWindow((0, 2), (0, 1, 2, 3)), PlannedWindow((1, 3), (1, 2, 3))]))
        report = {"scene": name, "kept": [], "skipped": [], "quarantined": None, "sources": [], "figures": {"objects": objects}}
        (root / "scenes").mkdir(parents=True, exist_ok=True)
        (root / "scenes" / f"{name}.json").write_bytes(codec.encode_json(report))
    write_dataset(str(root), scenes, DepthReconstructor(0.4).reconstruct if operators else None, operators=operators)
    return str(root)


@pytest.fixture(scope="session")
def train_rooms(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rooms(tmp_path_factory.mktemp("train"), {"hall": 0, "loft": 1}, operators=True)


@pytest.fixture(scope="session")
def test_rooms(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rooms(tmp_path_factory.mktemp("test"), {"barn": 1000, "shed": 1001}, operators=True)
