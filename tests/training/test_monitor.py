"""The monitor of a run: what is judged while it trains, kept, shown and warned of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from configs import ConfigError, load
from configs.schema import MonitorConfig, TrainConfig
from training.metrics import read_metrics
from training.probes import monitor
from training.probes.monitor import Monitor
from training.train import run

SMALL = ("backbone=demo", "device=cpu", "batch=2", "steps=4", "loader.workers=0", "head.hidden=16", "head.bottleneck=8",
         "head.prototypes=32", "optimizer.lr=0.01", "checkpoint_every=2", "monitor.every=2", "monitor.frames=3")  # fmt: skip


def trained(dataset: str, output: Path, *words: str) -> list[dict]:
    run(load(TrainConfig, [f"dataset={dataset}", f"output={output}", *SMALL, *words]))
    return monitor.read(str(output))


def test_a_run_is_judged_before_its_first_step_and_ever_so_often_also_where_it_was_stopped_between(tiny: str, tmp_path: Path) -> None:
    whole = trained(tiny, tmp_path / "whole", f"monitor.dataset={tiny}")
    assert [one["step"] for one in whole] == [0, 2, 4]
    assert all(one["effective_rank"] >= 1 and 0 <= one["inside_variance"] <= 1 and 0 <= one["head_entropy"] <= 1 for one in whole)
    assert whole[0]["inside_variance"] != whole[2]["inside_variance"], "the student changes"
    trained(tiny, tmp_path / "parts", f"monitor.dataset={tiny}", "until=2")
    assert trained(tiny, tmp_path / "parts", f"monitor.dataset={tiny}") == whole
    assert list((tmp_path / "whole" / "tensorboard").iterdir())


def test_judging_does_not_change_what_is_judged(tiny: str, tmp_path: Path) -> None:
    trained(tiny, tmp_path / "judged", f"monitor.dataset={tiny}", "lora.dropout=0.3")
    assert trained(tiny, tmp_path / "not", "lora.dropout=0.3") == []
    losses = [[m["loss"] for m in read_metrics(str(tmp_path / name))] for name in ("judged", "not")]
    assert losses[0] == losses[1]


def test_frames_of_another_size_and_without_a_dataset_are_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"monitor\.dataset=.*: frames of 28 x 42 pixels, the training's are of 56 x 84; build it"):
        Monitor(MonitorConfig(tiny), 14, (56, 84))


def test_what_a_person_is_warned_of() -> None:
    sound = {"step": 0, "match": 0.4, "effective_rank": 20.0, "inside_variance": 0.3, "head_entropy": 0.9}
    assert monitor.warnings(sound, {**sound, "step": 50, "inside_variance": 0.21}) == []
    (line,) = monitor.warnings(sound, {**sound, "step": 50, "inside_variance": 0.19})
    assert line.startswith("step 50: the variance inside objects fell from 0.300 to 0.190: the model blurs; choose")
    (line,) = monitor.warnings(sound, {**sound, "step": 50, "head_entropy": 0.1})
    assert "it collapses; choose teacher.mode=frozen" in line


def test_a_head_that_maps_all_to_one_prototype_has_no_entropy(tiny: str) -> None:
    class Constant(torch.nn.Module):
        """Tokens of one kind, and a head that always chooses the first of four prototypes."""

        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Module()
            self.head.last_layer = torch.nn.Module()
            self.head.last_layer.weight_g = torch.nn.Parameter(torch.ones(4, 1))
            self.head.forward = lambda tokens: torch.tensor([100.0, 0, 0, 0]).expand(len(tokens), 4)  # type: ignore[method-assign]

        def tokens(self, images: torch.Tensor, seeds: list[int]) -> torch.Tensor:
            return torch.ones(1, 2, 3, 8)

    found = Monitor(MonitorConfig(tiny, frames=3), 14, (28, 42)).judge(Constant(), 1.0, torch.device("cpu"))  # type: ignore[arg-type]
    assert found["head_entropy"] < 1e-6
    assert found["effective_rank"] == 1
    assert json.loads(json.dumps(found)) == found
