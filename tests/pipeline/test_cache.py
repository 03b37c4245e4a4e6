"""Caching Gaussians: a killed actor costs nothing but time, a refused pair keeps its row, a reconstructor's demands are checked first."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from configs import ConfigError, load
from configs.schema import CacheGaussiansConfig
from pipeline.cache_gaussians import run
from pipeline.makers import GaussiansMaker, context_pairs
from pipeline.reconstruct.depth import DepthReconstructor
from pipeline.reconstruct.reconstructor import BadPair
from storage import codec
from storage.column import Column, open_columns, read_members
from storage.gaussians import decode_gaussians
from storage.rows import decode_window
from tests.conftest import REPOSITORY, command


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


def test_a_killed_actor_leaves_no_trace_in_the_column(dataset: str) -> None:
    arguments = ["pipeline/cache_gaussians.py", f"dataset={dataset}", "column=again", "ray.workers=2"]
    process = subprocess.Popen([sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline, killed = time.monotonic() + 120, None
    while killed is None and time.monotonic() < deadline and process.poll() is None:
        killed = next((pid for pid, line in descendants(process.pid) if "ray::Builder" in line), None)
    assert killed is not None, process.communicate()[0][-2000:]
    os.kill(killed, signal.SIGKILL)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed[-3000:]
    tars = sorted(Path(dataset, "gaussians").glob("*.tar"))
    assert len(tars) >= 2
    for tar in tars:
        assert Path(dataset, "again", tar.name.replace("gaussians", "again")).read_bytes() == tar.read_bytes()


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
