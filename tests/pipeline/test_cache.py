"""Caching Gaussians: a killed actor costs nothing but time, a refused pair keeps its row, a reconstructor's demands are checked first."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import ConfigError, load
from configs.fields import Choice
from configs.schema import CacheGaussiansConfig, InspectGaussiansConfig, WindowsConfig
from pipeline import inspect_gaussians
from pipeline.cache_gaussians import run
from pipeline.columns.gaussians import GaussiansMaker
from pipeline.plan.windows import build_windows
from pipeline.reconstruct import depth
from pipeline.reconstruct.base import BadContext
from pipeline.reconstruct.depth import DepthReconstructor
from storage import codec
from storage.column import Column, ShardPlan
from storage.index import Index
from storage.location import StorageError
from storage.records.frames import CAMERA
from storage.records.gaussians import decode_gaussians
from storage.records.operators import encode_operator
from storage.table import Table
from tests.conftest import REPOSITORY, command, hashes
from training.figures import to_png


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
GAUSSIANS_ALONE = ("operators.targets=none",)


@pytest.fixture(scope="module")
def pairs_64(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of 64 windows in 16 shards, and MVSplat's Gaussians of them (dummy weights, which mean nothing)."""
    root, url = (str(tmp_path_factory.mktemp(name)) for name in ("rooms_64", "pairs_64"))
    command("pipeline/make_rooms.py", f"root={root}", "rooms=3", "frames=40", "scale=0.125", "val=1", "seed=3")
    made = ("width=96", "height=64", "frames_per_shard=4", "features=none", "source=synthetic-rooms", "licence=MIT", "windows.stride=1")
    command("pipeline/build_shards.py", f"root={root}", f"dataset={url}", *made)
    command("pipeline/cache_gaussians.py", f"dataset={url}", *RULE, *GAUSSIANS_ALONE)
    return url


def test_a_killed_actor_leaves_no_trace_in_the_column(pairs_64: str, tmp_path: Path) -> None:
    for name in ("frames", "masks", "windows"):
        shutil.copytree(Path(pairs_64, name), tmp_path / name)
    arguments = ["pipeline/cache_gaussians.py", f"dataset={tmp_path}", *RULE, *GAUSSIANS_ALONE]
    process = subprocess.Popen([sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    builders: set[int] = set()
    deadline, killed = time.monotonic() + 120, None
    while killed is None and time.monotonic() < deadline and process.poll() is None:
        at_work = {pid: "Builder.build" in line for pid, line in descendants(process.pid) if "ray::Builder" in line}
        builders |= at_work.keys()
        if len(at_work) == 2 and all(at_work.values()) and list(tmp_path.glob("mvsplat/mvsplat-*.json")):
            killed = min(at_work)
            os.kill(killed, signal.SIGKILL)
    assert killed is not None, process.communicate()[0][-2000:]
    assert len(list(tmp_path.glob("mvsplat/mvsplat-*.json"))) < 16
    while process.poll() is None and time.monotonic() < deadline:
        builders |= {pid for pid, line in descendants(process.pid) if "ray::Builder" in line}
        time.sleep(0.05)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed[-3000:]
    assert len(builders) == 3  # the two, and one in place of the killed
    keys = Index.open(str(tmp_path), "mvsplat").all_keys()
    assert keys == Index.open(pairs_64, "windows").all_keys()
    assert len(set(keys)) == 64
    assert hashes(str(tmp_path / "mvsplat")) == hashes(f"{pairs_64}/mvsplat")


def test_a_picture_of_dummy_weights_says_that_it_means_nothing(
    pairs_64: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles: list[str] = []

    def keep_title(figure: Figure) -> bytes:
        titles.append(figure.get_suptitle())
        return to_png(figure)

    monkeypatch.setattr(inspect_gaussians, "to_png", keep_title)
    key = Index.open(pairs_64, "mvsplat").key(0)
    asked = [f"dataset={pairs_64}", "gaussians=mvsplat", f"key={key}", f"output={tmp_path}"]
    inspect_gaussians.run(load(InspectGaussiansConfig, asked))
    for said in (*titles, capsys.readouterr().out):
        assert "mvsplat, weights rule: made up, the Gaussians mean nothing" in said
    assert len(titles) == 1


def test_another_reconstructor_goes_into_another_column(pairs_64: str) -> None:
    result = command("pipeline/cache_gaussians.py", f"dataset={pairs_64}", "column=mvsplat", *GAUSSIANS_ALONE, check=False)
    assert result.returncode == 1
    assert "reconstructor.name: there 'mvsplat', here 'depth'" in result.stderr
    assert "choose another dataset URL or column name" in result.stderr
    command("pipeline/cache_gaussians.py", f"dataset={pairs_64}", *GAUSSIANS_ALONE)
    beside = [Column(pairs_64, name).provenance().settings["reconstructor"]["name"] for name in ("mvsplat", "gaussians")]
    assert beside == ["mvsplat", "depth"]
    with pytest.raises(StorageError, match="'mvsplat' and 'gaussians' both hold gaussians; open one of them"):
        Table.open(pairs_64, ["windows", "mvsplat", "gaussians"])


def test_bad_contexts_are_reported_with_their_reasons(pairs_64: str, tmp_path: Path) -> None:
    """Through the whole stage: they keep their rows, beside sound ones in the same pass."""
    dataset = str(tmp_path)
    rule = {name: value for name, value in Column(pairs_64, "windows").provenance().settings.items() if name != "kind"}
    apart = WindowsConfig(**{**rule, "stride": 16})  # no spoiled frame is the target of another window
    build_windows(pairs_64, "apart", apart, Index.open(pairs_64, "frames"))
    windows = Table.open(pairs_64, ["apart"])
    rows = [windows.row(number) for number in range(len(windows))]
    assert len(rows) == 4
    last = [windows.frames.key(row.window().context[-1]) for row in rows]
    source = Column(pairs_64, "frames")
    records = source.records(source.listing())
    content = {record.number: source.read_shard(record.number) for record in records}
    cameras = {key: codec.decode_json(members[CAMERA]) for shard_rows in content.values() for key, members in shard_rows}
    cameras[last[1]]["K"][0][0] = 0.0
    cameras[last[2]]["c2w"][1][1] = 2.0
    cameras[last[3]]["c2w"] = cameras[windows.frames.key(rows[3].window().context[0])]["c2w"]

    shutil.copytree(Path(pairs_64, "masks"), tmp_path / "masks")
    spoiled = Column(dataset, "frames")
    spoiled.declare(source.provenance())
    plan = [ShardPlan(record.number, record.source) for record in records]
    for record, shard_plan in zip(records, plan, strict=True):
        members = [(key, {**m, CAMERA: codec.encode_json(cameras[key])}) for key, m in content[record.number]]
        spoiled.commit(shard_plan, members, record.provenance, attributes=record.attributes)
    frames = spoiled.write_index(plan, {})
    masks = Column(dataset, "masks")
    masks.write_index([ShardPlan(c.number, c.source) for c in masks.listing()], {"frames": frames.sha256})
    build_windows(dataset, "windows", apart, frames)

    printed = command("pipeline/cache_gaussians.py", f"dataset={dataset}", *RULE, "operators.targets=1").stdout
    reasons = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    expected = ["focal lengths 0 and", "the pose is not rigid", "the cameras stand 0 m apart"]
    assert len(reasons) == 6  # three of each column
    for row, part in zip(rows[1:], expected, strict=True):
        assert len([reason for reason in reasons if reason.startswith(f"{row.key}: frame") and part in reason]) == 2
    table = Table.open(dataset, ["windows", "masks", "mvsplat", "operators"])
    for kind in ("gaussians", "operators"):
        assert [table.by_kind[kind].has(row, "skipped.json") for row in range(4)] == [False, True, True, True]
    assert not table.row(1).gaussians().opacities.any()


def test_operators_instead_of_gaussians_are_the_same_operators(dataset: str) -> None:
    """Straight from the reconstructor or from its cached Gaussians; for three targets those of all nine."""
    arguments = ("pipeline/cache_gaussians.py", f"dataset={dataset}", "column=none", "keep_gaussians=false", "operators.targets=3")
    command(*arguments, "operators.column=few")
    assert not Path(dataset, "none").exists()
    operators, few = (Table.open(dataset, ["windows", "masks", name]).row for name in ("operators", "few"))
    index = Index.open(dataset, "few")
    assert index.members(0) == ["00.operator.safetensors", "04.operator.safetensors", "08.operator.safetensors"]
    for number in range(len(index)):
        one, other = (encode_operator(replace(row(number).operator(4), source_hash="")) for row in (operators, few))
        assert one == other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("operators.targets=some",), "operators.targets=some: choose none, all, or a number above 0"),
        (("keep_gaussians=false", "operators.targets=none"), "leaves nothing to build"),
        (("operators.values=f8",), "operators.values=f8: choose f16 or u8"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(load(CacheGaussiansConfig, ["dataset=nowhere", *arguments]))


def test_a_refused_context_keeps_its_row_and_says_why(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BadContext("identical cameras")

    pins = Table.open(dataset, ["windows"]).pins()
    maker = GaussiansMaker(dataset, "windows", Choice("depth", depth.Config(0.5)), "g", pins)
    monkeypatch.setattr(DepthReconstructor, "reconstruct", refuse)
    rows = dict(maker.make(0)["g"].rows)
    windows = Table.open(dataset, ["windows"]).rows_of_shard(0)
    assert list(rows) == [row.key for row in windows]
    for row in windows:
        assert codec.decode_json(rows[row.key]["skipped.json"]) == {"reason": "identical cameras"}
        assert not decode_gaussians(rows[row.key], [view.camera for view in row.context()]).opacities.any()


def test_a_reconstructor_that_cannot_take_the_size_is_refused_first(dataset: str) -> None:
    arguments = ("pipeline/cache_gaussians.py", f"dataset={dataset}", "column=mv", "reconstructor=mvsplat", "reconstructor.checkpoint=rule")
    result = command(*arguments, check=False)
    assert result.returncode == 2
    assert "height and width must be multiples of 16" in result.stderr.splitlines()[-1]
    assert not Path(dataset, "mv").exists()


def test_a_network_for_pairs_is_refused_a_context_of_three_first(pairs_64: str) -> None:
    rule = {name: value for name, value in Column(pairs_64, "windows").provenance().settings.items() if name != "kind"}
    build_windows(pairs_64, "threes", WindowsConfig(**{**rule, "views": 3}), Index.open(pairs_64, "frames"))
    asked = [f"dataset={pairs_64}", "windows=threes", "column=threes-mvsplat", "reconstructor=mvsplat", "reconstructor.checkpoint=rule"]
    with pytest.raises(ConfigError, match="it takes 2 views, but a context of windows=threes has 3"):
        run(load(CacheGaussiansConfig, asked))
    assert not Path(pairs_64, "threes-mvsplat").exists()


def test_an_argument_that_the_reconstructor_lacks_is_named(dataset: str) -> None:
    result = command("pipeline/cache_gaussians.py", f"dataset={dataset}", "+reconstructor.footprnt=3", check=False)
    assert result.returncode == 2
    assert "footprnt" in result.stderr.splitlines()[-1]


def test_depth_gaussians_stand_on_the_surface(dataset: str) -> None:
    context = Table.open(dataset, ["windows"]).row(0).context(depth=True)
    cloud = DepthReconstructor(0.5).reconstruct(context)
    first = context[0]
    seen = (first.depth > 0) & first.valid
    pixels, depth = first.camera.project(cloud.means[: first.depth.size])
    np.testing.assert_allclose(depth, np.where(seen, first.depth, 1).ravel(), atol=1e-4)
    np.testing.assert_allclose(
        pixels[:, 0].reshape(first.depth.shape), np.arange(first.camera.width)[None] + 0.5 + 0 * first.depth, atol=0.01
    )
    assert set(np.unique(cloud.opacities)) <= {0.0, 1.0}
    assert (cloud.opacities[: first.depth.size] == seen.ravel()).all()
