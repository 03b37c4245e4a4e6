"""Looking at a row's Gaussians: what the pictures and the `.ply` show is what the row holds, and the depth reconstructor's view is true."""

from __future__ import annotations

import builtins
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData

from configs import ConfigError
from configs.schema import InspectGaussiansConfig
from pipeline import inspect_gaussians
from pipeline.inspect_gaussians import encode_ply, run, see
from pipeline.inspect_rows import contact_sheet, context_colours, middle, read_views, rendered_sheet
from pipeline.plan.windows import PlannedWindow
from pipeline.readers.scannetpp.scene import SceneReader
from pipeline.reconstruct.depth import DepthReconstructor
from pipeline.synthetic import room_specs, write_room
from storage.domain import Frame, Gaussians
from storage.records.gaussians import decode_gaussians, encode_gaussians
from storage.table import Table
from tests.conftest import command
from tests.datasets import Scene, write_dataset
from training.splat import apply_operators, collate_operators
from training.splat.window import WindowSplat

WIDTH, HEIGHT = 448, 336


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Frame]]:
    """A room's name and its nine frames, at 336 x 448."""
    root = str(tmp_path_factory.mktemp("room"))
    spec = room_specs(1, seed=5, frames=9, scale=0.3)[0]
    write_room(root, spec)
    reader = SceneReader(root, spec.scene_id, WIDTH, HEIGHT)
    return spec.scene_id, [reader.read(entry) for entry in reader.index.frames]


@pytest.fixture(scope="module")
def one_row(room: tuple[str, list[Frame]], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A dataset of one row, the room's ends as context, with the depth reconstructor's Gaussians: its URL and the row's key."""
    scene, frames = room
    url = str(tmp_path_factory.mktemp("row"))
    window = PlannedWindow((0, 8), tuple(range(9)))
    table = write_dataset(url, [Scene(scene, frames, [window])], DepthReconstructor(0.4).reconstruct)
    assert table.row(0).key == f"{scene}-{frames[0].name.split('.')[0]}"
    return url, table.row(0).key


def read_row(one_row: tuple[str, str]) -> tuple[list[Frame], list[Frame], Gaussians]:
    """The window's frames, those of its context, and its Gaussians."""
    row = Table.open(one_row[0], ["windows", "masks", "gaussians"]).row(0)
    return row.frames(labels=True, depth=True), row.context(labels=True, depth=True), row.gaussians()


def test_a_held_out_view_of_depth_gaussians_is_true(one_row: tuple[str, str]) -> None:
    window, context, cloud = read_row(one_row)
    view = see(cloud, context_colours(cloud, context), middle(window))
    solid = view.alpha > 0.95
    print(f"held-out view at {HEIGHT} x {WIDTH}: {view.psnr:.2f} dB over {solid.mean():.1%} of it")
    assert solid.mean() > 0.5
    assert view.psnr > 25


def test_what_the_record_rounds_off_hardly_shows(one_row: tuple[str, str]) -> None:
    """On the supervision and on a rendered view; tests/bench/bench_gaussians.py has the figures of other reconstructors."""
    window, context, _ = read_row(one_row)
    cameras = [view.camera for view in context]
    made = DepthReconstructor(0.4).reconstruct(context)
    stored = decode_gaussians(encode_gaussians(made, cameras), cameras)
    tokens = torch.randn(1, 2 * 24 * 32, 64, generator=torch.Generator().manual_seed(0))
    targets, views = [], []
    for cloud in (made, stored):
        operator = WindowSplat(cloud, context).operator(middle(window))
        targets.append(apply_operators(collate_operators([operator]), tokens)[0])
        views.append(see(cloud, context_colours(cloud, context), middle(window)).rendered)
    # Where both views' Gaussians lie on the same surface, rounding can put the other in front; random tokens make the most of that.
    off = (targets[1] - targets[0]).norm(dim=-1)
    assert off.median() < 1e-3 * targets[0].norm(dim=-1).median()
    assert off.norm() < 0.02 * targets[0].norm()
    assert np.sqrt(np.mean((views[1] - views[0]) ** 2)) < 0.25 / 255


def test_gaussians_of_no_pixel_take_the_colours_that_they_show_in(one_row: tuple[str, str]) -> None:
    window, context, cloud = read_row(one_row)
    half = cloud.take(np.random.default_rng(0).permutation(len(cloud))[::2])
    free = replace(half, scales=1.4 * half.scales)
    view = see(free, context_colours(free, context), middle(window))
    print(f"held-out view of half the Gaussians, lifted by transposed weights: {view.psnr:.2f} dB")
    assert np.mean(view.alpha > 0.95) > 0.5
    assert view.psnr > 25


def test_splatted_depth_is_the_meshs(one_row: tuple[str, str]) -> None:
    _, context, cloud = read_row(one_row)
    view = see(cloud, context_colours(cloud, context), context[0])
    assert context[0].depth is not None
    compared = (view.alpha > 0.95) & (context[0].depth > 0)
    off = np.abs(view.depth[compared] / context[0].depth[compared] - 1)
    assert compared.mean() > 0.9
    assert np.median(off) < 0.01  # on a slope the nearer Gaussians come first
    assert np.quantile(off, 0.9) < 0.05
    assert (view.depth[view.alpha == 0] == 0).all()


def test_a_context_of_three_views_within_its_window_is_shown(room: tuple[str, list[Frame]], tmp_path: Path) -> None:
    """Nothing takes the context for a pair, or for the window's ends."""
    scene, frames = room
    windows = [PlannedWindow((1, 3, 6), (0, 4, 8))]
    table = write_dataset(str(tmp_path / "rows"), [Scene(scene, frames, windows)], DepthReconstructor(0.4).reconstruct)
    row = table.row(0)
    views = read_views(row)
    assert [frame.name for frame in views.context] == [frames[i].name for i in (1, 3, 6)]
    assert views.target.name == frames[4].name
    assert [frame.name for frame in row.frames()] == [frames[i].name for i in (0, 1, 3, 4, 6, 8)]
    assert len(views.cloud) == 3 * HEIGHT * WIDTH
    sheet = contact_sheet([views])
    assert [axis.get_title() for axis in sheet.axes[::2]] == ["context 0", "context 1", "context 2", "target (middle)"]
    (ratio,) = rendered_sheet([views])[1]
    assert ratio > 25
    shown: list[str] = []
    output = tmp_path / "pictures"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect_gaussians, "views_sheet", lambda title, views: shown.extend(views) or sheet)
        run(asked((str(tmp_path / "rows"), row.key), output))
    assert shown == ["context 0", "context 1", "context 2", "target"]
    assert len(PlyData.read(str(output / f"{row.key}.ply"))["vertex"]) == (views.cloud.opacities > 0).sum()


def test_the_command_writes_the_picture_and_the_ply(one_row: tuple[str, str], tmp_path: Path) -> None:
    url, key = one_row
    printed = command("pipeline/inspect_gaussians.py", f"dataset={url}", f"key={key}", f"output={tmp_path}").stdout
    assert [line.split(",")[0] for line in printed.splitlines()[:3]] == ["context 0", "context 1", "target"]
    assert printed.count(" dB where alpha > 0.95") == 3
    picture = np.asarray(Image.open(tmp_path / f"{key}.png").convert("RGB"))
    assert picture.std() > 20
    *_, cloud = read_row(one_row)
    vertices = PlyData.read(str(tmp_path / f"{key}.ply"))["vertex"]
    assert len(vertices) == (cloud.opacities > 0).sum()
    assert f"with {len(vertices)} Gaussians" in printed


def test_the_ply_read_back_holds_the_gaussians() -> None:
    random = np.random.default_rng(0)
    n = 500
    quats = random.normal(size=(n, 4))
    opacities = random.random(n).astype(np.float32)
    opacities[:3] = [0, 1, 1 / 255]
    cloud = Gaussians(
        random.normal(size=(n, 3)).astype(np.float32),
        (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        np.exp(random.normal(size=(n, 3))).astype(np.float32),
        opacities,
    )
    colours = random.random((n, 3)).astype(np.float32)
    ply = PlyData.read(io.BytesIO(encode_ply(cloud, colours)))
    assert (ply.text, ply.byte_order) == (False, "<")
    vertices = ply["vertex"].data
    assert vertices.dtype.names == ("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity",
                                    "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")  # fmt: skip
    assert all(vertices.dtype[name] == np.dtype("<f4") for name in vertices.dtype.names)
    seen = cloud.opacities > 0
    assert len(vertices) == seen.sum() == n - 1

    def stacked(*names: str) -> np.ndarray:
        return np.stack([vertices[name] for name in names], axis=1)

    np.testing.assert_array_equal(stacked("x", "y", "z"), cloud.means[seen])
    np.testing.assert_array_equal(stacked("nx", "ny", "nz"), 0)
    np.testing.assert_array_equal(stacked("rot_0", "rot_1", "rot_2", "rot_3"), cloud.quats[seen])
    np.testing.assert_allclose(np.exp(stacked("scale_0", "scale_1", "scale_2")), cloud.scales[seen], rtol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-vertices["opacity"])), cloud.opacities[seen], atol=2e-6)
    np.testing.assert_allclose(0.5 + 0.5 / np.sqrt(np.pi) * stacked("f_dc_0", "f_dc_1", "f_dc_2"), colours[seen], atol=1e-6)


def asked(one_row: tuple[str, str], output: Path, **changes: Any) -> InspectGaussiansConfig:
    given = {"dataset": one_row[0], "windows": "windows", "masks": "masks", "gaussians": "gaussians", "key": one_row[1]}
    return InspectGaussiansConfig(**{**given, "output": str(output), "view": False, **changes})


def test_an_unknown_key_is_refused_by_name(one_row: tuple[str, str], tmp_path: Path) -> None:
    wrong = one_row[1][:-1] + "x"
    with pytest.raises(ConfigError, match=rf"^key={wrong}: not among the 1 windows of .*; there are {one_row[1]} \.\.\.$"):
        run(asked(one_row, tmp_path, key=wrong))
    assert not list(tmp_path.iterdir())


def test_without_viser_the_extra_is_named(one_row: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "viser":
            raise ModuleNotFoundError("No module named 'viser'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"^view=true: No module named 'viser'; install the extra: .*\[viewer\]"):
        run(asked(one_row, tmp_path, view=True))
    assert not list(tmp_path.iterdir())


def test_the_viewer_is_opened_with_what_was_rendered(one_row: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple] = []
    monkeypatch.setattr(inspect_gaussians, "_viser", lambda: "viser")
    monkeypatch.setattr(inspect_gaussians, "show", lambda *arguments: shown.append(arguments))
    run(asked(one_row, tmp_path, view=True))
    window, context, cloud = read_row(one_row)
    ((_, given, colours, frames, with_images),) = shown
    assert np.array_equal(given.means, cloud.means)
    assert np.array_equal(colours, context_colours(cloud, context))
    assert [frame.name for frame in frames] == [frame.name for frame in window]
    assert with_images == [window[0].name, window[-1].name]
