"""Probe frames of any dataset of ours: what is read is what was written, splits share no scene, and nothing is drawn at random."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs import ConfigError
from configs.compose import build
from storage.location import NotFound, StorageError
from tests.training.probes.conftest import HEIGHT, WIDTH, write_rooms
from tests.training.probes.rooms import CLASSES, make_room, orbit_views
from training.probes.data.base import IGNORED
from training.probes.data.dataset import Config, choose_pairs, evenly, make
from training.probes.geometry import reproject


def test_frames_hold_what_was_written(train_rooms: str, test_rooms: str) -> None:
    data = make(Config(train=train_rooms, test=test_rooms))
    assert data.tasks == {"depth", "normals", "segmentation", "correspondence"}
    assert [len(data.frames(split)) for split in ("train", "test")] == [10, 10]
    assert set(data.classes) <= set(CLASSES)
    assert list(data.classes) == sorted(data.classes)
    frame = data.frames("test")[2]
    assert (frame.key, frame.group) == ("barn-2", "barn")
    (view,) = orbit_views(make_room(1000), HEIGHT, WIDTH, (12.0,))[1:]
    assert view.frame.depth is not None
    assert view.frame.labels is not None
    assert frame.depth is not None
    assert frame.labels is not None
    np.testing.assert_allclose(frame.depth, view.frame.depth, atol=6e-4)
    known = frame.labels != IGNORED
    names = np.array([*data.classes])
    assert (names[frame.labels[known]] == np.array(CLASSES)[view.frame.labels[known]]).all()
    assert known.mean() > 0.9


def test_what_is_anonymised_is_unknown(train_rooms: str, test_rooms: str) -> None:
    frame = make(Config(train=train_rooms, test=test_rooms)).frames("train")[1]
    for part, unknown in ((frame.depth, 0), (frame.labels, IGNORED), (frame.instances, 0)):
        assert part is not None
        assert (part[:3, :5] == unknown).all()


def test_a_label_that_no_train_frame_has_is_ignored(train_rooms: str, tmp_path: Path) -> None:
    other = write_rooms(tmp_path, {"cave": 5})
    report = tmp_path / "scenes" / "cave.json"
    written = json.loads(report.read_text())
    written["figures"]["objects"]["1"] = "stalactite"
    report.write_text(json.dumps(written))
    data = make(Config(train=train_rooms, test=other))
    assert "stalactite" not in data.classes
    hidden = [(f.labels == IGNORED)[f.instances == 1] for f in data.frames("test") if f.labels is not None and f.instances is not None]
    assert sum(map(len, hidden)) > 0
    assert np.concatenate(hidden).all()


def test_scenes_of_one_dataset_can_be_split(train_rooms: str) -> None:
    data = make(Config(train=train_rooms, test_scenes=["loft"]))
    assert {f.group for f in data.frames("train")} == {"hall"}
    assert {f.group for f in data.frames("test")} == {"loft"}


def test_frames_are_evenly_spaced() -> None:
    assert evenly(10, 3) == [1, 5, 8]
    assert evenly(3, 10) == [0, 1, 2]


def test_pairs_see_enough_of_each_other_and_never_change(train_rooms: str, test_rooms: str) -> None:
    config = Config(train=train_rooms, test=test_rooms, pairs_per_scene=6)
    data = make(config)
    frames, pairs = data.frames("test"), data.pairs()
    assert pairs == make(config).pairs()
    assert data.describe() == make(config).describe()
    assert {frames[pair.first].group for pair in pairs} == {"barn", "shed"}
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    angles = []
    for pair in pairs:
        first, second = frames[pair.first], frames[pair.second]
        assert first.group == second.group
        seen = reproject(first, second, np.stack([x.ravel(), y.ravel()], 1))
        assert 0.15 < seen.visible.mean() < 0.98
        angles.append(np.median(seen.angle[seen.visible]))
    assert min(angles) < 15 < max(angles)


def test_each_angle_gives_as_many_pairs_as_it_can() -> None:
    views = [view.frame for view in orbit_views(make_room(3), HEIGHT, WIDTH, (4.0, 8.0, 12.0, 40.0))]
    everything = choose_pairs(views, 1000)
    few = choose_pairs(views, 4)
    assert len(few) == 4
    assert set(few) < set(everything)
    assert any(4 in pair for pair in few)  # the lone view at 40 degrees


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"test": "train"}, r"test=.*give data\.test=URL of another dataset, or data\.test_scenes"),
        ({"test_scenes": ["attic"]}, r"data\.test_scenes: .* has no scene attic; it has hall, loft"),
        ({"test_scenes": ["hall", "loft"]}, r"data\.test_scenes: names every scene of data\.train="),
        ({"test": "copy"}, r"data\.test=.*: scene hall is in data\.train=.* too \(2 are\); judge on other scenes"),
        ({"test_scenes": ["loft"], "masks": "masks-sam"}, r"masks-sam: no finished column 'masks-sam' here; build it with"),
        ({"test_scenes": ["loft"], "frames_per_scene": 0}, r"frames_per_scene=0: must be above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(train_rooms: str, tmp_path: Path, keys: dict, message: str) -> None:
    urls = {"train": train_rooms, "copy": str(tmp_path)}
    if keys.get("test") == "copy":
        write_rooms(tmp_path, {"hall": 0, "loft": 1})
    with pytest.raises((ConfigError, StorageError), match=message) as caught:
        make(build(Config, {"train": train_rooms, **{k: urls.get(v, v) if k == "test" else v for k, v in keys.items()}}))
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_report_is_named(train_rooms: str, tmp_path: Path) -> None:
    other = write_rooms(tmp_path, {"cave": 5})
    (tmp_path / "scenes" / "cave.json").write_text("{}")
    with pytest.raises(StorageError, match=r"scenes/cave\.json: not the report of a scene; remove it and run"):
        make(Config(train=train_rooms, test=other))
    (tmp_path / "scenes" / "cave.json").unlink()
    with pytest.raises(NotFound, match=r"scenes/cave\.json: no report of this scene; run python pipeline/build_shards\.py again"):
        make(Config(train=train_rooms, test=other))
    assert "segmentation" not in make(Config(train=train_rooms, test=other, masks=None)).tasks
