"""Training: world size, interruption and resumption change nothing, and there is something to learn."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import ConfigError, load
from configs.compose import presets
from configs.schema import ExportConfig, SplatConfig, SupervisionMode, TrainConfig
from pipeline.columns.gaussians import gaussians_provenance, windows_plan
from pipeline.columns.operators import OperatorsMaker, operators_provenance
from pipeline.reconstruct.depth import DepthReconstructor
from storage import location
from storage.column import Column
from storage.records.gaussians import encode_gaussians
from storage.table import Table
from tests.conftest import REPOSITORY
from training import checkpoint
from training.export import run as export
from training.metrics import read_metrics
from training.model.weights import load_weights
from training.train import run

# A head small enough for two cores. Temperatures below 1 give a gradient that 40 steps can follow; the published ones need thousands.
SMALL = ("backbone=demo", "batch=2", "steps=40", "head.hidden=64", "head.prototypes=256", "head.student_temperature=0.1",
         "head.teacher_temperature=0.05", "head.centring=mean",
         "optimizer.lr=0.001", "loader.workers=0", "checkpoint_every=20", "picture_every=1000",
         "teacher.every=1", "teacher.momentum=0.99", "device=cpu", "supervision.mode=on_the_fly")  # fmt: skip


def config(dataset: str, output: Path | str, *more: str) -> TrainConfig:
    return load(TrainConfig, [f"dataset={dataset}", f"output={output}", *SMALL, *more])


def losses(output: Path | str) -> np.ndarray:
    metrics = read_metrics(str(output))
    assert [m["step"] for m in metrics] == list(range(len(metrics)))
    return np.array([m["loss"] for m in metrics])


def torchrun(ranks: int, *overrides: str, **popen) -> subprocess.Popen:
    program = str(Path(sys.executable).parent / "torchrun")
    arguments = [program, "--standalone", f"--nproc-per-node={ranks}", "training/train.py", *overrides]
    return subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen)


@pytest.fixture(scope="module")
def undisturbed(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 steps on one rank."""
    output = tmp_path_factory.mktemp("undisturbed")
    run(config(dataset, output))
    return output


def test_two_ranks_give_the_losses_of_one(dataset: str, undisturbed: Path, tmp_path: Path) -> None:
    process = torchrun(2, f"dataset={dataset}", f"output={tmp_path}", *SMALL)
    printed, _ = process.communicate(timeout=280)
    assert process.returncode == 0, printed[-3000:]
    np.testing.assert_allclose(losses(tmp_path), losses(undisturbed), rtol=1e-4)
    assert [m["kept_tokens"] for m in read_metrics(str(tmp_path))] == [m["kept_tokens"] for m in read_metrics(str(undisturbed))]


def test_a_run_stopped_at_20_goes_on_as_if_undisturbed(dataset: str, undisturbed: Path, tmp_path: Path) -> None:
    run(config(dataset, tmp_path, "until=20"))
    assert checkpoint.steps(str(tmp_path)) == [20]
    assert len(losses(tmp_path)) == 20
    run(config(dataset, tmp_path))
    np.testing.assert_allclose(losses(tmp_path), losses(undisturbed), rtol=1e-6)
    final = [checkpoint.load(str(output), 40)[0] for output in (tmp_path, undisturbed)]
    for name, tensor in final[0]["student"].items():
        np.testing.assert_allclose(tensor.numpy(), final[1]["student"][name].numpy(), rtol=1e-4, atol=1e-7, err_msg=name)


def test_a_signal_ends_the_run_with_a_checkpoint_to_go_on_from(dataset: str, undisturbed: Path, tmp_path: Path) -> None:
    process = torchrun(
        1, f"dataset={dataset}", f"output={tmp_path}", *SMALL, "checkpoint_every=1000", "loader.workers=1", start_new_session=True
    )
    deadline = time.monotonic() + 120
    line = ""
    while "3/40" not in line and time.monotonic() < deadline and process.poll() is None:
        line += os.read(process.stdout.fileno(), 4096).decode()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    done = checkpoint.steps(str(tmp_path))
    assert len(done) == 1
    assert 3 <= done[0] < 40
    assert json.loads((tmp_path / "state.json").read_text()) == {"step": done[0], "steps": 40, "requeue": True}
    np.testing.assert_allclose(losses(tmp_path), losses(undisturbed)[: done[0]], rtol=1e-6)


def test_a_scheduler_may_signal_all_of_a_run(dataset: str, tmp_path: Path) -> None:
    """SIGUSR1 to the process group, the loader's worker too."""
    words = [f"dataset={dataset}", f"output={tmp_path}", *SMALL, "checkpoint_every=1000", "loader.workers=1"]
    process = subprocess.Popen([sys.executable, "training/train.py", *words], cwd=REPOSITORY, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    assert process.stdout is not None
    printed, deadline = "", time.monotonic() + 120
    while "2/40" not in printed and time.monotonic() < deadline and process.poll() is None:
        printed += os.read(process.stdout.fileno(), 4096).decode()
    os.killpg(process.pid, signal.SIGUSR1)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed + rest.decode()
    (done,) = checkpoint.steps(str(tmp_path))
    assert json.loads((tmp_path / "state.json").read_text()) == {"step": done, "steps": 40, "requeue": True}


def test_the_loss_falls_further_than_with_shuffled_supervision(dataset: str, tmp_path: Path) -> None:
    """Uncentred: what centres the targets moves the least that the loss can be."""
    found = {}
    for name in ("none", "shuffle"):
        run(config(dataset, tmp_path / name, "until=24", f"supervision.control={name}", "head.centring=none", "allow_unstable=true"))
        found[name] = read_metrics(str(tmp_path / name))
    fall = {name: np.mean([m["loss"] for m in one[:5]]) - np.mean([m["loss"] for m in one[-10:]]) for name, one in found.items()}
    cosine = {name: np.mean([m["cosine"] for m in one[-10:]]) for name, one in found.items()}
    assert fall["none"] > max(fall["shuffle"], 0)
    assert cosine["none"] > cosine["shuffle"] + 0.05


def test_the_three_ways_to_supervise_give_the_same_losses(dataset: str, undisturbed: Path, tmp_path: Path) -> None:
    for mode, close in (("live", 1e-6), ("operators", 1e-5)):  # cached operators hold half-precision values
        run(config(dataset, tmp_path / mode, "until=8", f"supervision.mode={mode}"))
        np.testing.assert_allclose(losses(tmp_path / mode), losses(undisturbed)[:8], rtol=close)


@pytest.fixture(scope="module")
def free_columns(dataset: str) -> tuple[str, str]:
    """The names of two columns of `dataset`: half of its Gaussians as if they belonged to no pixel, and the operators made from them."""
    table = Table.open(dataset, ["windows", "masks"])
    frames, windows, note = table.frames, table.windows, Column(dataset, "frames").provenance()
    made = {"name": "half of depth's"}
    gaussians, operators = Column(dataset, "free"), Column(dataset, "free-operators")
    provenance = gaussians_provenance(windows, frames, note, made, {})
    gaussians.declare(provenance)
    of = {"frames": frames.sha256, "windows": windows.sha256}
    plan = windows_plan(windows, provenance)
    for shard in plan:
        rows = []
        for row in table.rows_of_shard(shard.number):
            context = row.context(depth=True)
            cloud = DepthReconstructor(0.4).reconstruct(context)
            half = cloud.take(np.random.default_rng(0).permutation(len(cloud))[::2])
            rows.append((row.key, encode_gaussians(half, [view.camera for view in context])))
        gaussians.commit(shard, rows, provenance.fingerprint)
    sources = {**table.columns, "free": gaussians.write_index(plan, of)}
    fingerprints = {name: index.provenance for name, index in sources.items()}
    pins = {name: index.sha256 for name, index in sources.items()}
    provenance = operators_provenance(fingerprints, "masks", note, made, (6, 9), "all", "f16", SplatConfig(), {})
    operators.declare(provenance)
    how = (provenance.fingerprint, "all", "f16", pins, 14, SplatConfig())
    maker = OperatorsMaker(dataset, "windows", "masks", "free", {}, "free-operators", *how)
    plan = windows_plan(windows, provenance, [sources["masks"]], [sources["free"]])
    for shard in plan:
        operators.commit(shard, maker.make(shard.number)["free-operators"].rows, provenance.fingerprint)
    operators.write_index(plan, pins)
    return gaussians.name, operators.name


def test_gaussians_of_no_pixel_supervise_in_all_three_ways(
    dataset: str, free_columns: tuple[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    columns = [f"supervision.gaussians={free_columns[0]}", f"supervision.operators={free_columns[1]}", "loader.workers=1"]
    for mode in ("on_the_fly", "live", "operators"):
        run(config(dataset, tmp_path / mode, "until=4", f"supervision.mode={mode}", *columns))
    first = losses(tmp_path / "on_the_fly")
    np.testing.assert_allclose(losses(tmp_path / "live"), first, rtol=1e-6)
    np.testing.assert_allclose(losses(tmp_path / "operators"), first, rtol=1e-5)
    assert first[0] != pytest.approx(losses(undisturbed)[0], rel=1e-6)
    kept, kept_by_all = (sum(m["kept_tokens"] for m in read_metrics(str(o))[:4]) for o in (tmp_path / "live", undisturbed))
    assert kept > 0.7 * kept_by_all


def test_without_blending_and_with_a_frozen_teacher(dataset: str, undisturbed: Path, tmp_path: Path) -> None:
    run(config(dataset, tmp_path / "no-blending", "until=2", "supervision.blend=1"))
    run(config(dataset, tmp_path / "frozen", "until=2", "teacher.mode=frozen"))
    assert losses(tmp_path / "no-blending")[0] != pytest.approx(losses(undisturbed)[0], rel=1e-6)
    # Before the first step the teacher is the backbone itself, so cached tokens (half precision) give the same supervision.
    assert losses(tmp_path / "frozen")[0] == pytest.approx(losses(undisturbed)[0], rel=1e-3)


def test_parts_of_a_step_give_the_losses_of_one(dataset: str, undisturbed: Path, tmp_path: Path) -> None:
    run(config(dataset, tmp_path, "until=8", "accumulate=2", "loader.workers=2"))
    np.testing.assert_allclose(losses(tmp_path), losses(undisturbed)[:8], rtol=1e-4)
    first, whole = read_metrics(str(tmp_path))[0], read_metrics(str(undisturbed))[0]
    assert first["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert first["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)


def test_options_of_the_step_change_it(dataset: str, tmp_path: Path) -> None:
    """None is ignored: the first loss, the gradient or what follows is another."""
    short = ("until=3", "backbone.blocks=1", "trained.blocks=1")
    run(config(dataset, tmp_path / "plain", *short))
    wanted = read_metrics(str(tmp_path / "plain"))
    for word, differs in (
        ("precision=bf16", "loss"),
        ("loss.kind=cosine head.centring=none", "loss"),
        ("loss.koleo=0.1", "loss"),
        ("head.centring=sinkhorn", "loss"),
        ("head.centre_momentum=0.1", "next"),
        ("teacher.half_lives=40", "next"),
        ("trained.part=all", "grad_norm"),
        ("trained.part=last_blocks", "grad_norm"),
        ("optimizer.clip=0.001", "next"),
        ("optimizer.lr=null", "next"),
    ):
        run(config(dataset, tmp_path / word, *short, *word.split()))
        found = read_metrics(str(tmp_path / word))
        assert np.isfinite([found[2]["loss"], found[2]["grad_norm"]]).all(), word
        if differs == "next":
            assert found[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=1e-6), word
            assert found[2]["loss"] != pytest.approx(wanted[2]["loss"], rel=1e-7), word
        else:
            assert found[0][differs] != pytest.approx(wanted[0][differs], rel=1e-6), word
    bf16 = read_metrics(str(tmp_path / "precision=bf16"))
    assert bf16[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=0.02)
    reach = read_metrics(str(tmp_path / "optimizer.lr=null"))
    assert reach[1]["lr"] / wanted[1]["lr"] == pytest.approx(0.01 * (2 / 40) ** 0.5 / 0.001)


@pytest.mark.slow
def test_every_preset_trains(dataset: str, tmp_path: Path) -> None:
    """Ten steps. Where a preset reads operators they are built here, by its own rule."""
    small = ("backbone=demo", "batch=2", "until=10", "head.hidden=16", "head.bottleneck=8", "head.prototypes=64", "loader.workers=0",
             "checkpoint_every=1000", "picture_every=1000", "device=cpu", "supervision.masks=masks")  # fmt: skip
    for name in presets("experiment"):
        mode = load(TrainConfig, ["dataset=x", "output=y", f"experiment={name}"]).supervision.mode
        words = ["supervision.mode=on_the_fly"] if mode is SupervisionMode.operators else []
        run(load(TrainConfig, [f"dataset={dataset}", f"output={tmp_path / name}", f"experiment={name}", *small, *words]))
        found = read_metrics(str(tmp_path / name))
        assert len(found) == 10, name
        assert all(np.isfinite(m["loss"]) and m["kept_tokens"] > 0 for m in found), name


def test_blocks_and_whole_backbones_are_trained_and_exported(dataset: str, tmp_path: Path) -> None:
    for part, moved in (("last_blocks", {"1", "2"}), ("all", {"0", "1", "2"})):
        output = tmp_path / part
        run(config(dataset, output, "until=3", "backbone.blocks=3", f"trained.part={part}", "trained.blocks=2"))
        export(load(ExportConfig, [f"run={output}", f"output={output}", "network=student"]))
        base = load_weights(config(dataset, output, "backbone.blocks=3").backbone)
        exported = torch.load(output / "dinov2_small_snd.pth", weights_only=True)
        changed = {name for name, tensor in base.items() if not torch.equal(exported[name], tensor)}
        assert {name.split(".")[1] for name in changed if name.startswith("blocks.")} == moved
        assert "norm.weight" in changed
        assert ("patch_embed.proj.weight" in changed) == (part == "all")
        assert "pos_embed" not in changed


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_blocks_give_the_same_losses(dataset: str, undisturbed: Path, tmp_path: Path) -> None:
    run(config(dataset, tmp_path, "until=4", "compile=true"))
    np.testing.assert_allclose(losses(tmp_path), losses(undisturbed)[:4], rtol=1e-4)
    assert set(checkpoint.load(str(tmp_path), 4)[0]["student"]) == set(checkpoint.load(str(undisturbed), 40)[0]["student"])


def test_checkpoints_in_the_background_and_what_a_scheduler_reads(dataset: str, undisturbed: Path, tmp_path: Path) -> None:
    run(config(dataset, tmp_path, "until=4", "checkpoint_every=1", "checkpoint_background=true"))
    assert checkpoint.steps(str(tmp_path)) == [1, 2, 3, 4]
    assert json.loads((tmp_path / "state.json").read_text()) == {"step": 4, "steps": 40, "requeue": False}
    state, wanted = checkpoint.load(str(tmp_path), 4)[0], losses(undisturbed)[:4]
    np.testing.assert_array_equal(losses(tmp_path), wanted)
    assert state["centre"]["mean"].any()


def test_a_sharp_teacher_that_moves_uncentred_is_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"head.teacher_temperature=0.05 sharpens a teacher that moves.*allow_unstable=true"):
        config(dataset, tmp_path, "head.centring=none")
    for word in ("allow_unstable=true", "head.teacher_temperature=1", "teacher.mode=frozen", "loss.kind=cosine"):
        config(dataset, tmp_path, "head.centring=none", word)


def test_fewer_rows_than_one_batch_and_the_end_of_an_epoch(dataset: str, tmp_path: Path) -> None:
    """Six windows: a batch of eight takes some twice, each with a target of its own; workers and a cache change no loss."""
    few = ("batch=8", "until=2", "supervision.mode=operators")
    run(config(dataset, tmp_path / "plain", *few))
    cached = (*few, "loader.workers=1", f"loader.cache={tmp_path}/cache", "loader.prefetch=1")
    for name in ("first", "second"):
        run(config(dataset, tmp_path / name, *cached))
        np.testing.assert_array_equal(losses(tmp_path / name), losses(tmp_path / "plain"))
    first, second = (read_metrics(str(tmp_path / name)) for name in ("first", "second"))
    assert [m["cache_hits"] < 1 for m in first] == [True, True]
    assert [m["cache_hits"] for m in second] == [1.0, 1.0]
    assert [m["requests_per_row"] for m in second] == [0.0, 0.0]
    assert all(m["requests_per_row"] <= 4 and m["rows_per_s"] > 0 for m in first)


def test_another_run_in_the_same_place_is_refused(dataset: str, undisturbed: Path) -> None:
    with pytest.raises(ConfigError, match=r"a run with other settings is there \(config.seed: there 42, here 43\); choose another output"):
        run(config(dataset, undisturbed, "seed=43"))


@pytest.mark.parametrize("override", ["checkpoint_every=0", "teacher.every=0", "batch=0", "supervision.blend=2", "optimizer.lr=0"])
def test_settings_that_cannot_be_are_refused_first(override: str) -> None:
    with pytest.raises(ConfigError, match=override.replace(".", r"\.")):
        run(config("nowhere", "nowhere", override))


def test_cached_tokens_of_other_weights_are_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="column 'features' was made with other weights"):
        run(config(dataset, tmp_path, "teacher.mode=frozen", "backbone.seed=1"))


@pytest.mark.parametrize("content", [b"", b"half of", bytes(100), b"<html>", b"{}"])
def test_a_broken_checkpoint_is_named(dataset: str, tmp_path: Path, content: bytes) -> None:
    location.write_bytes(f"{tmp_path}/checkpoints/step-000000001.pt", content)
    with pytest.raises(ConfigError, match=r"step-000000001\.pt: not a checkpoint of training/train\.py .* remove it"):
        run(config(dataset, tmp_path))
