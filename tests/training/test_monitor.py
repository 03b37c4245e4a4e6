"""The monitor of a run: what is judged while it trains, what is kept of it, and what is warned of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs import ConfigError, load
from configs.schema import MonitorConfig, TrainConfig
from pipeline.plan.windows import PlannedWindow
from tests.datasets import Scene, write_dataset
from tests.training.conftest import CONTEXT, TARGETS, tiny_frames
from training.metrics import read_metrics
from training.probes import monitor
from training.probes.monitor import Monitor
from training.train import run

SMALL = ("backbone=demo", "device=cpu", "batch=2", "steps=4", "loader.workers=0", "head.hidden=16", "head.bottleneck=8",
         "head.prototypes=32", "optimizer.lr=0.01", "checkpoint_every=2", "monitor.every=2", "monitor.frames=3")  # fmt: skip


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two rooms that the training does not see, with views far enough apart to be matched."""
    root = str(tmp_path_factory.mktemp("held-out"))
    scenes = [Scene(name, tiny_frames(spacing=0.5), [PlannedWindow(CONTEXT, TARGETS)]) for name in ("attic", "cellar")]
    write_dataset(root, scenes)
    return root


def trained(dataset: str, output: Path, *words: str) -> list[dict]:
    run(load(TrainConfig, [f"dataset={dataset}", f"output={output}", *SMALL, *words]))
    return monitor.read(str(output))


def test_a_run_is_judged_before_its_first_step_and_ever_so_often_also_where_it_was_stopped_between(
    tiny: str, held_out: str, tmp_path: Path
) -> None:
    whole = trained(tiny, tmp_path / "whole", f"monitor.dataset={held_out}")
    assert [one["step"] for one in whole] == [0, 2, 4]
    assert all(one["effective_rank"] >= 1 and 0 < one["inside_variance"] <= 1 and 0 <= one["head_entropy"] <= 1 for one in whole)
    assert all(0 <= one["match"] <= 1 for one in whole)
    assert whole[0]["inside_variance"] != whole[2]["inside_variance"], "the student changes"
    trained(tiny, tmp_path / "parts", f"monitor.dataset={held_out}", "until=2")
    assert trained(tiny, tmp_path / "parts", f"monitor.dataset={held_out}") == whole
    assert list((tmp_path / "whole" / "tensorboard").iterdir())


def test_judgements_of_another_course_or_of_other_frames_are_forgotten(tiny: str, held_out: str, tmp_path: Path) -> None:
    before = trained(tiny, tmp_path, f"monitor.dataset={held_out}")
    Path(tmp_path, "checkpoints", "step-000000004.pt").unlink()
    after = trained(tiny, tmp_path, f"monitor.dataset={held_out}", "steps=12", "until=4")
    assert after[:2] == before[:2]
    assert after[2]["head_entropy"] != before[2]["head_entropy"], "steps=12 has another learning rate at step 3"
    other = trained(tiny, tmp_path, f"monitor.dataset={held_out}", "steps=12", "until=6", "monitor.scenes=1")
    assert [one["step"] for one in other] == [4, 6]
    assert {one["frames"] for one in other}.isdisjoint(one["frames"] for one in before)


def test_judging_does_not_change_what_is_judged(tiny: str, held_out: str, tmp_path: Path) -> None:
    trained(tiny, tmp_path / "judged", f"monitor.dataset={held_out}", "lora.dropout=0.3")
    assert trained(tiny, tmp_path / "not", "lora.dropout=0.3") == []
    losses = [[m["loss"] for m in read_metrics(str(tmp_path / name))] for name in ("judged", "not")]
    assert losses[0] == losses[1]


def test_frames_of_another_size_and_scenes_of_the_training_are_refused(tiny: str) -> None:
    with pytest.raises(ConfigError, match=r"monitor\.dataset=.*: frames of 28 x 42 pixels, the training's are of 56 x 84; build it"):
        Monitor(MonitorConfig(tiny), 14, (56, 84))
    with pytest.raises(ConfigError, match=r"monitor\.dataset=.*: the training sees scene loft too; give a dataset of other scenes"):
        Monitor(MonitorConfig(tiny), 14, (28, 42), {"loft", "den"})


class Blind(torch.nn.Module):
    """Tokens of which all are alike, and a head that always chooses the first of four prototypes."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.head = torch.nn.Module()
        self.head.last_layer = torch.nn.Module()
        self.head.last_layer.weight_g = torch.nn.Parameter(torch.ones(4, 1))
        self.head.forward = lambda tokens: torch.tensor([100.0, 0, 0, 0]).expand(len(tokens), 4)  # type: ignore[method-assign]

    def tokens(self, images: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        return torch.full((1, 2, 3, 8), self.value)


def test_what_cannot_be_told_is_left_out_and_what_is_no_number_ends_the_run(tiny: str) -> None:
    judge = Monitor(MonitorConfig(tiny, frames=3), 14, (28, 42))  # its views lie too close to be matched
    found = judge.judge(Blind(1.0), 1.0, torch.device("cpu"))  # type: ignore[arg-type]
    assert found.keys() == {"effective_rank", "head_entropy"}
    assert found["head_entropy"] < 1e-6
    assert found["effective_rank"] == 1
    with pytest.raises(FloatingPointError, match=r"lower optimizer\.lr"):
        judge.judge(Blind(float("nan")), 1.0, torch.device("cpu"))  # type: ignore[arg-type]


def test_what_a_person_is_warned_of() -> None:
    sound = {"step": 0, "match": 0.4, "effective_rank": 20.0, "inside_variance": 0.3, "head_entropy": 0.9}
    assert monitor.warnings(sound, {**sound, "step": 50, "inside_variance": 0.21}) == []
    (line,) = monitor.warnings(sound, {**sound, "step": 50, "inside_variance": 0.19})
    assert line.startswith("step 50: the variance inside objects fell from 0.300 to 0.190: the model blurs; choose")
    (line,) = monitor.warnings(sound, {**sound, "step": 50, "head_entropy": 0.1})
    assert "it collapses; choose teacher.mode=frozen" in line
