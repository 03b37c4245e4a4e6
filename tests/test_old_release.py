"""A run and a dataset that release 0.1.0 wrote are gone on with, and mean what they meant; so they do after the next key."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import training.checkpoint
from configs import ConfigError, load
from configs.fields import key, leaves
from configs.schema import ExportConfig, LoraConfig, TrainConfig
from configs.stored import REMOVED, RENAMED, complete
from tests.conftest import command, hashes
from training import export, train
from training.metrics import read_metrics

GOLDEN = Path(__file__).parent / "golden" / "release-0.1.0"
RUN = ("backbone=demo", "batch=2", "loader.workers=0", "head.hidden=16", "head.bottleneck=8", "head.prototypes=64",
       "head.student_temperature=0.1", "head.teacher_temperature=0.05", "lora.rank=1", "lora.alpha=1", "optimizer.lr=0.001",
       "teacher.momentum=0.9", "teacher.every=1", "checkpoint_every=100", "picture_every=100",
       # What that release did, and this one does unless asked otherwise.
       "allow_unstable=true", "supervision.keep_by=alpha", "supervision.splat.upsample_grid=align_corners",
       "supervision.splat.no_neighbour=zero")  # fmt: skip
MADE_AT = 1793491200  # 2026-11-01T00:00:00Z, of the raw files


@dataclass
class LaterLora(LoraConfig):
    """As a next release may have it."""

    bias: bool = key(True, before=False)
    """A key that release 0.1.0 has not heard of."""


@dataclass
class LaterConfig(TrainConfig):
    """As a next release may have it."""

    lora: LaterLora = key(LaterLora)

    gradient_steps: int = key(4, before=1)
    """Another."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "old"))


@pytest.fixture(params=["this release", "the next key"])
def schema(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    later = request.param == "the next key"
    if later:
        monkeypatch.setattr(training.checkpoint, "TrainConfig", LaterConfig)
        monkeypatch.setattr(export, "TrainConfig", LaterConfig)
    return LaterConfig if later else TrainConfig


def config_of(schema: type, old: Path, *more: str) -> Any:
    before = ["gradient_steps=1", "lora.bias=false"] if schema is LaterConfig else []
    return load(schema, [f"dataset={old}/dataset", f"output={old}/run", *RUN, *before, *more])


def test_a_run_is_resumed_extended_and_exported(schema: type, old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.run(config_of(schema, old, "steps=4"))
    expected = [json.loads(line) for line in (GOLDEN / "expected.jsonl").read_text().splitlines()]
    got = read_metrics(f"{old}/run")[2:]
    for name in ("step", "loss", "cosine", "lr", "kept_tokens"):
        assert [m[name] for m in got] == pytest.approx([m[name] for m in expected], rel=1e-4)

    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"run: was begun with steps=4, which may grow but not shrink"):
        train.run(config_of(schema, old, "steps=3"))
    train.run(config_of(schema, old, "steps=6"))
    assert "goes on to 6 steps instead of 4; its learning rate from step 4 on is that of the longer run" in capsys.readouterr().out
    assert [m["step"] for m in read_metrics(f"{old}/run")] == list(range(6))

    export.run(load(ExportConfig, [f"run={old}/run", f"output={old}/weights", "network=student"]))
    import timm

    model = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=False, num_classes=0)
    model.load_state_dict(torch.load(old / "weights" / "dinov2_small_snd.pth", weights_only=True), strict=True)


def test_other_settings_are_named_with_both_values(schema: type, old: Path) -> None:
    with pytest.raises(ConfigError, match=r"a run with other settings is there \(.*lora\.alpha.*1.*2") as caught:
        train.run(config_of(schema, old, "steps=4", "lora.alpha=2"))
    assert "\n" not in str(caught.value)
    if schema is LaterConfig:
        with pytest.raises(ConfigError, match=r"gradient_steps"):
            train.run(config_of(schema, old, "steps=4", "gradient_steps=4"))


def test_weights_may_move_and_nothing_else_may_pass_for_them(old: Path) -> None:
    from training.model.weights import load_weights

    base = load_weights(config_of(TrainConfig, old).backbone)
    moved = old / "moved weights.pth"
    torch.save(base, moved)
    train.run(config_of(TrainConfig, old, "steps=4", f"backbone.weights={moved}"))
    last = old / "elsewhere.pth"
    moved.rename(last)
    asked = [f"run={old}/run", f"output={old}/out", "network=student"]
    with pytest.raises(Exception, match=r"moved weights\.pth"):
        export.run(load(ExportConfig, asked))
    export.run(load(ExportConfig, [*asked, f"weights={last}"]))
    torch.save({name: tensor + 1 for name, tensor in base.items()}, last)
    with pytest.raises(ConfigError, match=r"was trained from other weights"):
        export.run(load(ExportConfig, [*asked, f"weights={last}"]))


def stored() -> dict[str, Any]:
    from training import checkpoint

    config: dict[str, Any] = checkpoint.load(str(GOLDEN / "run"), 2)[1]["config"]
    return config


def test_a_default_of_today_never_fills_a_key_of_yesterday() -> None:
    completed = complete(LaterConfig, stored(), "run")
    assert (completed["gradient_steps"], completed["lora"]["bias"]) == (1, False)
    assert completed["head"]["prototypes"] == 64


def test_every_key_since_the_first_release_says_what_was_before_it() -> None:
    """A key without `before` is one that release 0.1.0 stored: else its runs could not be completed."""

    def dotted(values: dict[str, Any], prefix: str = "") -> set[str]:
        parts = [dotted(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}"} for k, v in values.items()]
        return set().union(*parts)

    then = {RENAMED.get(name, name) for name in dotted(stored())} - set(REMOVED)
    assert {one.path for one in leaves(TrainConfig) if one.before is None} == then


def test_a_shuffled_run_is_a_control_today() -> None:
    values = stored()
    assert complete(TrainConfig, values, "run")["supervision"]["control"] == "none"
    values["supervision"]["shuffle"] = True
    assert complete(TrainConfig, values, "run")["supervision"]["control"] == "shuffle"


def test_renamed_removed_and_unknown_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    values = stored()
    values["lora"]["patch_embedding"] = values["lora"].pop("patch_embed")
    with pytest.raises(ConfigError, match=r"^run: its configuration lacks lora\.patch_embed"):
        complete(TrainConfig, values, "run")
    monkeypatch.setitem(RENAMED, "lora.patch_embedding", "lora.patch_embed")
    assert complete(TrainConfig, values, "run")["lora"]["patch_embed"] is True
    values["teacher"]["warp"] = 9
    with pytest.raises(ConfigError, match=r"keys of another release: teacher\.warp"):
        complete(TrainConfig, values, "run")
    monkeypatch.setitem(REMOVED, "teacher.warp", 9)
    assert "warp" not in complete(TrainConfig, values, "run")["teacher"]
    monkeypatch.setitem(REMOVED, "teacher.warp", 0)
    with pytest.raises(ConfigError, match=r"was made with teacher\.warp=9, which this release no longer does"):
        complete(TrainConfig, values, "run")
    with pytest.raises(ConfigError, match=r"run: .*steps=many: must be a whole number"):
        complete(TrainConfig, {**stored(), "steps": "many"}, "run")


def test_a_dataset_is_as_it_was_and_grows(old: Path, tmp_path: Path) -> None:
    root = tmp_path / "rooms"
    command("pipeline/make_rooms.py", f"root={root}", "rooms=3", "frames=12", "scale=0.0625", "val=1", "seed=3")
    for file in root.rglob("*"):
        if file.is_file():
            os.utime(file, (MADE_AT, MADE_AT))
    split = root / "splits" / "nvs_sem_train.txt"
    scenes = split.read_text().split()
    build = ("pipeline/build_shards.py", f"root={root}", f"dataset={old}/dataset", "width=84", "height=56", "frames_per_shard=6",
             "features=context", "backbone=demo", "windows.gap=4", "windows.stride=2", "source=synthetic-rooms", "licence=MIT")  # fmt: skip
    before = hashes(f"{old}/dataset")
    split.write_text(f"{scenes[0]}\n")
    printed = command(*build).stdout
    assert printed.count("nothing to do") == 3
    assert hashes(f"{old}/dataset") == before
    split.write_text("\n".join(scenes))
    printed = command(*build).stdout
    assert printed.count("building 2 of 4 shards") == 3
    after = hashes(f"{old}/dataset")
    assert {name for name, sha in before.items() if after.get(name) != sha and not name.endswith("current.json")} == set()
