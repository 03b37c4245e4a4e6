"""A context's Gaussians and their lift, where the two differ in kind from row to row, or the context is not valid everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import load
from configs.schema import SplatConfig, TrainConfig
from pipeline.plan.windows import PlannedWindow
from pipeline.reconstruct.depth import DepthReconstructor
from storage.domain import Camera, Frame, Gaussians
from storage.records.gaussians import transparent_gaussians
from storage.records.operators import encode_operator, operator_member
from storage.table import Table
from tests.datasets import Scene, write_dataset
from training.data.rows import open_rows
from training.objective.distill import supervise
from training.splat.window import WindowSplat

GOLDEN = Path(__file__).parents[1] / "golden" / "release-0.1.0" / "dataset"
SIZE = 56  # 4 x 4 tokens


def before_a_wall(valid_columns: int = SIZE) -> list[Frame]:
    """Three cameras in a row, 2 m before a wall of two halves; of the outer ones only the first columns are valid."""
    K = np.array([[60.0, 0, SIZE / 2], [0, 60.0, SIZE / 2], [0, 0, 1]])
    labels = np.repeat([[1, 2]], SIZE // 2, axis=1).repeat(SIZE, axis=0).astype(np.uint16)
    frames = []
    for i in range(3):
        c2w = np.eye(4)
        c2w[0, 3] = 0.05 * i
        valid = np.zeros((SIZE, SIZE), bool)
        valid[:, : SIZE if i == 1 else valid_columns] = True
        depth = np.full((SIZE, SIZE), 2.0, np.float32) if i != 1 else None
        frames.append(Frame(f"{i}.jpg", Camera(c2w, K, SIZE, SIZE), np.full((SIZE, SIZE, 3), 99, np.uint8), labels, valid, depth))
    return frames


def test_what_only_invalid_pixels_show_has_no_say() -> None:
    """A model that is not pixel-aligned puts Gaussians there too; they must not make zero targets of tokens that none can speak for."""
    first, target, last = before_a_wall(valid_columns=SIZE // 2)
    whole = DepthReconstructor(0.5).reconstruct([replace(view, valid=np.ones_like(view.valid)) for view in (first, last)])
    aligned = WindowSplat(DepthReconstructor(0.5).reconstruct([first, last]), [first, last]).operator(target)
    free = WindowSplat(replace(whole, pixel_aligned=False), [first, last]).operator(target)
    assert aligned.alpha.reshape(4, 4).min(axis=0) == pytest.approx([1, 1, 0, 0], abs=0.05)
    np.testing.assert_allclose(free.alpha, aligned.alpha, atol=0.05)
    np.testing.assert_allclose(free.coverage, free.alpha, atol=1e-3)
    everywhere = [replace(view, valid=np.ones_like(view.valid)) for view in (first, last)]
    assert WindowSplat(replace(whole, pixel_aligned=False), everywhere).operator(target).coverage.min() > 0.9


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """A dataset of three rows that differ in their Gaussians: pixel-aligned, free, and none since the context was refused."""
    kinds = iter(["aligned", "free", "refused"])

    def reconstruct(context: Sequence[Frame]) -> Gaussians:
        kind = next(kinds)
        if kind == "refused":
            return transparent_gaussians([view.camera for view in context])
        cloud = DepthReconstructor(0.5).reconstruct(context)
        return cloud if kind == "aligned" else cloud.take(np.random.default_rng(0).permutation(len(cloud))[: len(cloud) // 2])

    window = PlannedWindow((0, 2), (0, 1, 2))
    write_dataset(str(tmp_path), [Scene(f"wall{i}", before_a_wall(), [window]) for i in range(3)], reconstruct, operators=True)
    return str(tmp_path)


@pytest.mark.parametrize("mode", ["operators", "on_the_fly"])
def test_rows_of_all_kinds_go_through_one_batch(mixed: str, mode: str) -> None:
    targets = []
    for way in ("live", mode):
        config = load(TrainConfig, [f"dataset={mixed}", "output=x", "backbone=demo", f"supervision.mode={way}"])
        rows = open_rows(config)
        batch = rows.decode(rows.fetch([(row, 0) for row in range(3)])).to(torch.device("cpu"))
        if way == "live":
            assert [lift is None for lift in batch.lifts] == [True, False, True]
        batch.context_tokens = torch.randn(3, 2, 4, 4, 8, generator=torch.Generator().manual_seed(1))
        targets.append(supervise(config, None, batch))  # type: ignore[arg-type]  # the tokens are there, no teacher is asked
    live, matrices = targets
    off = 2e-3 if mode == "operators" else 1e-5  # float16, as they are stored
    torch.testing.assert_close(live.tokens, matrices.tokens, atol=off, rtol=off)
    assert torch.equal(live.keep, matrices.keep)
    assert live.keep.flatten(1).any(1).tolist() == [True, True, False]


def test_operators_keep_the_bytes_of_release_0_1_0() -> None:
    """Rebuilt from the Gaussians and masks of the stored dataset."""
    table = Table.open(str(GOLDEN), ["masks", "windows", "gaussians", "operators"])
    row = table.row(0)
    published = SplatConfig(upsample_grid="align_corners", no_neighbour="zero")
    splat = WindowSplat(row.gaussians(), row.context(labels=True), rule=published)
    for i, target in enumerate(row.targets(labels=True)):
        (stored,) = table.reader.read([table.locate("operators", 0, operator_member(i))])
        (rebuilt,) = encode_operator(splat.operator(target, source_hash=row.operator_source(i))).values()
        assert rebuilt == stored
