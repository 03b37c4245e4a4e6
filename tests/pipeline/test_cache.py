"""Caching Gaussians: a killed actor costs nothing but time, a refused pair keeps its row, a reconstructor's demands are checked first."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import ConfigError, load
from configs.schema import CacheGaussiansConfig, InspectGaussiansConfig
from pipeline import inspect_gaussians
from pipeline.cache_gaussians import run
from pipeline.makers import GaussiansMaker, context_pairs
from pipeline.reconstruct.depth import DepthReconstructor
from pipeline.reconstruct.reconstructor import BadPair
from storage import codec
from storage.column import Column, Manifest, open_columns, read_members
from storage.gaussians import decode_gaussians
from storage.rows import decode_window
from tests.conftest import REPOSITORY, command, hashes
from training.pictures import to_png


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """The running processes below `pid`: id and command line."""
    parent, line = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                line[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    for child in parent:
        above: int | None = child
        while above is not None and above != pid:
            above = parent.get(above)
        if above == pid:
            yield child, line[child]


RULE = ("reconstructor=mvsplat", "reconstructor.checkpoint=rule", "reconstructor.batch=2", "column=mvsplat", "ray.workers=2")


@pytest.fixture(scope="module")
def pairs_64(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of 64 context pairs in 16 shards, and MVSplat's Gaussians of them (made-up weights, which mean nothing)."""
    root, url = (str(tmp_path_factory.mktemp(name)) for name in ("rooms_64", "pairs_64"))
    command("pipeline/make_rooms.py", f"root={root}", "rooms=3", "frames=40", "scale=0.125", "val=1", "seed=3")
    made = ("width=96", "height=64", "rows_per_shard=4", "features=false", "source=synthetic-rooms", "licence=MIT", "window.stride=1")
    command("pipeline/build_shards.py", f"root={root}", f"dataset={url}", *made)
    command("pipeline/cache_gaussians.py", f"dataset={url}", *RULE)
    return url


def test_a_killed_actor_leaves_no_trace_in_the_column(pairs_64: str, tmp_path: Path) -> None:
    shutil.copytree(Path(pairs_64, "frames"), tmp_path / "frames")
    arguments = ["pipeline/cache_gaussians.py", f"dataset={tmp_path}", *RULE]
    process = subprocess.Popen([sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    builders: set[int] = set()
    deadline, killed = time.monotonic() + 120, None
    while killed is None and time.monotonic() < deadline and process.poll() is None:
        at_work = {pid: "Builder.build" in line for pid, line in descendants(process.pid) if "ray::Builder" in line}
        builders |= at_work.keys()
        if len(at_work) == 2 and all(at_work.values()) and list(tmp_path.glob("mvsplat/*.parquet")):
            killed = min(at_work)
            os.kill(killed, signal.SIGKILL)
    assert killed is not None, process.communicate()[0][-2000:]
    assert len(list(tmp_path.glob("mvsplat/*.parquet"))) < 16
    while process.poll() is None and time.monotonic() < deadline:
        builders |= {pid for pid, line in descendants(process.pid) if "ray::Builder" in line}
        time.sleep(0.05)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed[-3000:]
    assert len(builders) == 3  # the two, and one in place of the killed
    keys = Manifest(str(tmp_path), "mvsplat").keys
    assert keys == Manifest(pairs_64, "frames").keys
    assert len(set(keys)) == 64
    assert hashes(str(tmp_path / "mvsplat")) == hashes(f"{pairs_64}/mvsplat")


def test_a_picture_of_made_up_weights_says_that_it_means_nothing(
    pairs_64: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles: list[str] = []

    def keep_title(figure: Figure) -> bytes:
        titles.append(figure.get_suptitle())
        return to_png(figure)

    monkeypatch.setattr(inspect_gaussians, "to_png", keep_title)
    key = Manifest(pairs_64, "mvsplat").keys[0]
    asked = [f"dataset={pairs_64}", "gaussians=mvsplat", f"key={key}", f"output={tmp_path}"]
    inspect_gaussians.run(load("inspect_gaussians", InspectGaussiansConfig, asked))
    for said in (*titles, capsys.readouterr().out):
        assert "mvsplat, weights rule: made up, the Gaussians mean nothing" in said
    assert len(titles) == 1


def test_another_reconstructor_goes_into_another_column(pairs_64: str) -> None:
    result = command("pipeline/cache_gaussians.py", f"dataset={pairs_64}", "column=mvsplat", check=False)
    assert result.returncode == 1
    assert "reconstructor.name: there 'mvsplat', here 'depth'" in result.stderr
    assert "choose another dataset URL or column name" in result.stderr
    command("pipeline/cache_gaussians.py", f"dataset={pairs_64}")
    beside = open_columns(pairs_64, ["frames", "mvsplat", "gaussians"])
    assert [beside[name].made_by["reconstructor"]["name"] for name in ("mvsplat", "gaussians")] == ["mvsplat", "depth"]


def test_bad_pairs_are_reported_with_their_reasons(pairs_64: str, tmp_path: Path) -> None:
    """Through the whole stage: they keep their rows, beside sound ones in the same pass."""
    spoils: list[Callable[[list[dict[str, Any]]], object]] = [
        lambda cameras: None,
        lambda cameras: cameras[0]["K"][0].__setitem__(0, 0.0),
        lambda cameras: cameras[-1]["c2w"][1].__setitem__(1, 2.0),
        lambda cameras: cameras.__setitem__(-1, cameras[0]),
    ]
    source, rows = Column(pairs_64, "frames"), []
    for spoil, (key, members) in zip(spoils, source.read_shard(0), strict=True):
        header = codec.decode_json(members["window.json"])
        spoil(header["cameras"])
        rows.append((key, {**members, "window.json": codec.encode_json(header)}))
    spoiled = Column(str(tmp_path), "frames")
    spoiled.declare({name: value for name, value in source.made_by().items() if name != "format_version"})
    spoiled.commit(0, rows)
    spoiled.write_manifest(1)

    printed = command("pipeline/cache_gaussians.py", f"dataset={tmp_path}", *RULE, "operators.targets=1").stdout
    assert "3 of the rows just built hold nothing" in printed
    reasons = [line.split(": frame")[1] for line in printed.splitlines() if line.startswith("  ")]
    expected = ["focal lengths 0 and", "the pose is not rigid", "the cameras stand 0 m apart"]
    assert all(part in reason for part, reason in zip(expected, reasons[:3], strict=True))
    assert reasons[3:] == reasons[:3]  # of the operators
    for column in ("mvsplat", "operators"):
        made = dict(Column(str(tmp_path), column).read_shard(0))
        assert ["skipped.json" in made[key] for key, _ in rows] == [False, True, True, True]


def test_operators_instead_of_gaussians_are_the_same_operators(dataset: str) -> None:
    """Straight from the reconstructor or from its cached Gaussians; for three targets those of all nine."""
    arguments = ("pipeline/cache_gaussians.py", f"dataset={dataset}", "column=none", "keep_gaussians=false", "operators.targets=3")
    command(*arguments, "operators.column=few")
    assert not Path(dataset, "none").exists()
    columns = open_columns(dataset, ["frames", "operators", "few"])
    assert columns["few"].members(0) == ["00.operator.safetensors", "04.operator.safetensors", "08.operator.safetensors"]
    for row in range(len(columns["few"])):
        places = [columns[name].locate(row, "04.operator.safetensors") for name in ("operators", "few")]
        assert len(set(read_members(places))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("operators.targets=some",), "operators.targets=some: choose none, all, or a number above 0"),
        (("keep_gaussians=false",), "leaves nothing to build"),
        (("operators.values=f8",), "operators.values=f8: choose f16 or u8"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(load("cache_gaussians", CacheGaussiansConfig, ["dataset=nowhere", *arguments]))


def test_a_refused_pair_keeps_its_row_and_says_why(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BadPair("identical cameras")

    maker = GaussiansMaker(dataset, {"_target_": "pipeline.reconstruct.depth.DepthReconstructor", "footprint": 0.5})
    monkeypatch.setattr(DepthReconstructor, "reconstruct", refuse)
    rows = dict(maker.rows(0))
    assert list(rows) == [key for key, _ in Column(dataset, "frames").read_shard(0)]
    for key, frames in Column(dataset, "frames").read_shard(0):
        window = decode_window(frames["window.json"])
        assert codec.decode_json(rows[key]["skipped.json"]) == {"reason": "identical cameras"}
        assert not decode_gaussians(rows[key], [window.cameras[place] for place in window.context]).opacities.any()


def test_a_reconstructor_that_cannot_take_the_size_is_refused_first(dataset: str) -> None:
    arguments = ("pipeline/cache_gaussians.py", f"dataset={dataset}", "column=mv", "reconstructor=mvsplat", "reconstructor.checkpoint=rule")
    result = command(*arguments, check=False)
    assert result.returncode == 2
    assert "height and width must be multiples of 16" in result.stderr.splitlines()[-1]
    assert not Path(dataset, "mv").exists()


def test_an_argument_that_the_reconstructor_lacks_is_named(dataset: str) -> None:
    result = command("pipeline/cache_gaussians.py", f"dataset={dataset}", "+reconstructor.footprnt=3", check=False)
    assert result.returncode == 2
    assert "footprnt" in result.stderr.splitlines()[-1]


def test_depth_gaussians_stand_on_the_surface(dataset: str) -> None:
    _, pair = next(iter(context_pairs(Column(dataset, "frames"), 0)))
    cloud = DepthReconstructor(0.5).reconstruct(pair)
    first = pair[0]
    seen = (first.depth > 0) & first.valid
    pixels, depth = first.camera.project(cloud.means[: first.depth.size])
    np.testing.assert_allclose(depth, np.where(seen, first.depth, 1).ravel(), atol=1e-4)
    np.testing.assert_allclose(
        pixels[:, 0].reshape(first.depth.shape), np.arange(first.camera.width)[None] + 0.5 + 0 * first.depth, atol=0.01
    )
    assert set(np.unique(cloud.opacities)) <= {0.0, 1.0}
    assert (cloud.opacities[: first.depth.size] == seen.ravel()).all()
