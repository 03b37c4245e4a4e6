"""What CONTRIBUTING promises to who adds a reconstructor or a source of masks: one file and, if wanted, one preset."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pipeline.masks
import pipeline.reconstruct
from configs import ConfigError, compose, load
from configs.help import help_text
from configs.schema import BuildShardsConfig, CacheGaussiansConfig
from pipeline.columns.gaussians import gaussian_members
from pipeline.columns.masks import encode_labels
from pipeline.masks import make_mask_source
from pipeline.reconstruct.base import make_reconstructor
from storage.records import SKIPPED
from tests.conftest import REPOSITORY, command
from tests.training.test_window import before_a_wall

PLANE = """
from dataclasses import dataclass

import numpy as np

from configs.fields import check_above
from pipeline.reconstruct.base import Reconstructor, check_views
from storage.domain import Gaussians


@dataclass
class Config:
    depth: float = 2.0
    \"\"\"Metres from each camera to its plane.\"\"\"

    def __post_init__(self):
        check_above(self, 0, "depth")


class Plane(Reconstructor):
    needs_depth = False
    uses_gpu = False

    def __init__(self, depth):
        self.depth = depth

    def describe(self):
        return {"depth": self.depth}

    def check_size(self, height, width):
        pass

    def reconstruct(self, views):
        check_views(views)
        cameras = [view.camera for view in views]
        means = [(c.rays() * self.depth) @ c.c2w[:3, :3].T + c.c2w[:3, 3] for c in cameras]
        scales = [np.full(c.height * c.width, 0.4 * self.depth / c.K[0, 0]) for c in cameras]
        means, scales = np.concatenate([m.reshape(-1, 3) for m in means]), np.concatenate(scales)
        n = len(means)
        return Gaussians(
            means.astype(np.float32), np.tile(np.float32([1, 0, 0, 0]), (n, 1)), np.tile(np.float32(scales)[:, None], (1, 3)),
            np.ones(n, np.float32),
        )


def make(config):
    return Plane(config.depth)
"""

BRIGHTNESS = """
from dataclasses import dataclass

import numpy as np

from configs.fields import check_above


@dataclass
class Config:
    levels: int = 4
    \"\"\"Steps of brightness, each a label.\"\"\"

    def __post_init__(self):
        check_above(self, 0, "levels")


@dataclass
class Brightness:
    levels: int
    needs_scene = False

    def labels(self, frame, scene):
        return 1 + (frame.image.mean(axis=2) * self.levels / 256).astype(int)

    def describe(self):
        return {"levels": self.levels}


def make(config):
    return Brightness(config.levels)
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in each of the two folders, a preset of each, and nothing else."""
    added = {pipeline.reconstruct: ("reconstructor", "plane", PLANE, "depth: 3.0"),
             pipeline.masks: ("masks", "brightness", BRIGHTNESS, "levels: 6")}  # fmt: skip
    for package, (key, name, text, values) in added.items():
        (tmp_path / "modules" / key).mkdir(parents=True)
        (tmp_path / "modules" / key / f"{name}.py").write_text(text)
        (tmp_path / "configs" / key).mkdir(parents=True)
        (tmp_path / "configs" / key / f"my_{name}.yaml").write_text(f"name: {name}\n{values}\n")
        package.__path__.append(str(tmp_path / "modules" / key))
    monkeypatch.setattr(compose, "HERE", tmp_path / "configs")
    yield tmp_path
    for package in added:
        package.__path__.pop()
        for name in [name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(str(tmp_path))]:
            del sys.modules[name]


def offered(shown: str, key: str) -> set[str]:
    """What `--help` names for a key."""
    (line,) = [line for line in shown.splitlines() if line.startswith(f"{key}=")]
    return set(line.removeprefix(f"{key}=").split("  ")[0].split("|"))


def test_a_reconstructor_is_one_file_and_a_preset(toys: Path) -> None:
    views = before_a_wall()[:2]
    for choice, depth in (("plane", 2.0), ("my_plane", 3.0)):
        config = load(CacheGaussiansConfig, ["dataset=y", f"reconstructor={choice}"])
        cloud = make_reconstructor(config.reconstructor).reconstruct(views)
        assert config.reconstructor.name == "plane"
        np.testing.assert_allclose(views[0].camera.project(cloud.means[:10])[1], depth, rtol=1e-5)
        assert SKIPPED not in gaussian_members(cloud, [view.camera for view in views])
    shown = help_text(CacheGaussiansConfig)
    assert {"depth", "plane", "my_plane"} <= offered(shown, "reconstructor")
    assert "with reconstructor=plane: reconstructor.depth: float = 2.0\n        Metres from each camera to its plane." in shown


def test_a_source_of_masks_is_one_file_and_a_preset(toys: Path) -> None:
    frame = before_a_wall()[0]
    for choice, levels in (("brightness", 4), ("my_brightness", 6)):
        config = load(BuildShardsConfig, ["root=x", "dataset=y", f"masks={choice}"])
        assert (config.masks.name, config.masks.config.levels) == ("brightness", levels)
        source = make_mask_source(config.masks)
        assert encode_labels(choice, frame, source.labels(frame, None)).keys() == {"mask.png"}
    assert {"mesh", "brightness", "my_brightness"} <= offered(help_text(BuildShardsConfig), "masks")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["masks=brigthness"], "^masks=brigthness: choose one of .*brightness, .*my_brightness, .*or install a package"),
        (["masks=brightness", "masks.level=3"], "^unknown key 'masks.level'; did you mean 'masks.levels'"),
        (["masks=my_brightness", "masks.levels=0"], "^masks.levels=0: must be above 0"),
        (["masks=brightness", "masks.levels=few"], "^masks.levels=few: must be a whole number"),
    ],
)
def test_what_is_misspelt_is_refused_in_one_line(toys: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load(BuildShardsConfig, ["root=x", "dataset=y", *words])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make(config): ...", "masks=half: half has no dataclass `Config`; write one"),
        ("class Config: ...\ndef make(config): ...", "masks=half: half has no dataclass `Config`; write one"),
        ("import dataclasses\n@dataclasses.dataclass\nclass Config: ...", "masks=half: half has no function `make(config)`; write one"),
    ],
    ids=["no Config", "no dataclass", "no make"],
)
def test_half_a_choice_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    """Of another package, so that `--help`, which asks every choice, says which it is."""
    (tmp_path / "half.py").write_text(text)
    (tmp_path / "half-1.0.dist-info").mkdir()
    (tmp_path / "half-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: half\nVersion: 1.0\n")
    (tmp_path / "half-1.0.dist-info" / "entry_points.txt").write_text("[splat_and_distill.mask_sources]\nhalf = half\n")
    result = command("pipeline/build_shards.py", "--help", environment={"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}, check=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: configuration: {message}")
