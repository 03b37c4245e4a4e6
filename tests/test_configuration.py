"""Configuration: every key in one place, values as typed, and nonsense refused in one line before anything starts."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import ConfigError, load
from configs.compose import HERE, presets
from configs.fields import REQUIRED, Choice, binding, key, keys, leaves, plain
from configs.help import as_yaml, help_text
from configs.schema import (
    BuildShardsConfig,
    CacheGaussiansConfig,
    CompareConfig,
    DeleteConfig,
    DescribeConfig,
    EvaluateConfig,
    ExportConfig,
    InspectConfig,
    InspectGaussiansConfig,
    MakeRoomsConfig,
    PlanWindowsConfig,
    TrainConfig,
    VerifyConfig,
    WindowsConfig,
    WithdrawConfig,
)
from pipeline.reconstruct.base import make_reconstructor
from tests.conftest import REPOSITORY, command

COMMANDS = {
    "pipeline/make_rooms.py": (MakeRoomsConfig, ["root=x"]),
    "pipeline/build_shards.py": (BuildShardsConfig, ["root=x", "dataset=y"]),
    "pipeline/plan_windows.py": (PlanWindowsConfig, ["dataset=y", "name=wide"]),
    "pipeline/cache_gaussians.py": (CacheGaussiansConfig, ["dataset=y"]),
    "pipeline/inspect_rows.py": (InspectConfig, ["dataset=y", "output=z"]),
    "pipeline/inspect_gaussians.py": (InspectGaussiansConfig, ["dataset=y", "key=k", "output=z"]),
    "training/train.py": (TrainConfig, ["dataset=y", "output=z"]),
    "training/export.py": (ExportConfig, ["run=z", "output=w"]),
    "training/evaluate.py": (EvaluateConfig, ["data.train=x", "data.test=y", "output=z", "name=n"]),
    "training/compare.py": (CompareConfig, ["results=[a,b]"]),
    "storage/describe.py": (DescribeConfig, ["dataset=y"]),
    "storage/verify.py": (VerifyConfig, ["dataset=y"]),
    "pipeline/withdraw.py": (WithdrawConfig, ["dataset=y", "scene=s"]),
    "storage/delete.py": (DeleteConfig, ["dataset=y", "what=retired"]),
}
NEEDED = ["dataset=y", "output=z"]
LISTING = REPOSITORY / "tests" / "golden" / "command_line.txt"


@pytest.mark.parametrize("name", COMMANDS)
def test_required_keys_are_asked_for(name: str) -> None:
    schema, required = COMMANDS[name]
    assert isinstance(load(schema, required), schema)
    with pytest.raises(ConfigError, match=r"^no value for .*: give [\w.]+=\.\.\.$"):
        load(schema, [])


def test_every_command_is_here() -> None:
    entries = [path for floor in ("pipeline", "training", "storage") for path in (REPOSITORY / floor).glob("*.py")]
    found = {str(path.relative_to(REPOSITORY)) for path in entries if re.search(r"^    command\(", path.read_text(), re.M)}
    assert found == set(COMMANDS)


def listing() -> str:
    """Every key of every command, a line each."""
    lines = []
    for name, (schema, _) in COMMANDS.items():
        lines.append(name)
        lines += [line for line in help_text(schema).splitlines() if re.match(r"( *with )?[\w.=|]+[:=]", line)]
    return "\n".join(lines) + "\n"


def test_the_command_line_is_the_one_agreed_on() -> None:
    """A new key or default is a decision: write the listing anew with `python -m tests.test_configuration`, and give the reason."""
    assert listing() == LISTING.read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_key_says_what_it_means(name: str) -> None:
    schema, _ = COMMANDS[name]
    assert [one.path for one in leaves(schema) if not one.doc] == []


def test_help_lists_keys_groups_and_choices() -> None:
    printed = command("pipeline/cache_gaussians.py", "--help").stdout
    assert "Adds the columns of a windows table: `gaussians`" in printed
    assert "column: str = gaussians" in printed
    assert "reconstructor=depth|ffgs|mvsplat" in printed
    assert "with reconstructor=depth: reconstructor.footprint: float = 0.4" in printed
    assert f"backbone={'|'.join(presets('backbone'))}|PATH.yaml" in help_text(TrainConfig)


def test_the_configuration_can_be_seen_before_anything_starts(tmp_path: Path) -> None:
    printed = command("training/train.py", f"dataset={tmp_path}/none", "output=2024_01", "backbone=demo", "--cfg", "job").stdout
    (tmp_path / "mine.yaml").write_text(printed)
    assert load(TrainConfig, [f"experiment={tmp_path}/mine.yaml"]) == load(
        TrainConfig, [f"dataset={tmp_path}/none", "output=2024_01", "backbone=demo"]
    )


TYPED = ["2024_01", "1e3", "1.50", "~/runs/a", "/mnt/lr=0.1", "/mnt/Drive (me)", "/mnt/a,b", "/mnt/a#b", "/mnt/büro",
         "${oc.env:HOME}", "null", "'quoted'", "???x", ""]  # fmt: skip


@pytest.mark.parametrize("text", TYPED)
def test_text_is_taken_as_typed(text: str) -> None:
    assert load(TrainConfig, ["dataset=x", f"output={text}"]).output == text


@given(st.text())
def test_any_text_is_taken_as_typed(text: str) -> None:
    config = load(CacheGaussiansConfig, [f"dataset={text}", "reconstructor=mvsplat", f"reconstructor.checkpoint={text}"])
    if text != REQUIRED:
        assert (config.dataset, config.reconstructor.config.checkpoint) == (text, text)


def test_other_values_are_read_by_their_type() -> None:
    config = load(TrainConfig, [*NEEDED, "optimizer.lr=1e-4", "steps=7", "teacher.mode=frozen", "until=null", "lora.patch_embed=false"])
    assert (config.optimizer.lr, config.steps, config.teacher.mode.value, config.until, config.lora.patch_embed) == (
        1e-4, 7, "frozen", None, False)  # fmt: skip
    assert load(TrainConfig, [*NEEDED, "loader.cache=null"]).loader.cache is None
    assert load(MakeRoomsConfig, ["root=x", "defects=[nan_pose,bad_jpeg]"]).defects == ["nan_pose", "bad_jpeg"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("outptu=z", r"unknown key 'outptu'; did you mean 'output'\?"),
        ("+lora.rnk=3", r"unknown key 'lora.rnk'; did you mean 'lora.rank'\?"),
        ("steps.many=3", "unknown key 'steps.many': steps has no keys of its own"),
        ("steps=many", "^steps=many: must be a whole number"),
        ("steps=[1,", "steps=.*: not a value"),
        ("steps=${oc.env:HOME}", r"^steps=\$\{oc\.env:HOME\}: must be a whole number"),
        ("lora.patch_embed=${x}", "must be true or false"),
        ("teacher.mode=${x}", "must be one of ema, frozen"),
        ("head=512", r"^head: has keys of its own; give head\.KEY=VALUE"),
        ("steps=0", "^steps=0: must be above 0"),
        ("head.student_temperature=nan", "^head.student_temperature=nan: must be above 0"),
        ("supervision.blend=1.5", "^supervision.blend=1.5: must lie between 0 and 1"),
        ("teacher.mode=moving", "^teacher.mode=moving: must be one of ema, frozen"),
        ("device=tpu", "^device=tpu: choose auto, cpu or cuda"),
        ("backbone=vit_huge", "^backbone=vit_huge: choose one of .*demo, "),
        ("experiment=none", "^experiment=none: choose one of .*short.*, or give the path"),
        ("experiment=/nowhere/mine.yaml", "^experiment=/nowhere/mine.yaml: no such file"),
        ("--steps", "give KEY=VALUE"),
    ],
)
def test_nonsense_is_refused_in_one_line(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(TrainConfig, [*NEEDED, word])
    assert "\n" not in str(caught.value)


def test_ids_of_scenes_are_text_though_they_look_like_numbers(tmp_path: Path) -> None:
    """Else such a scene would not be held out, and nobody would be told."""
    needed = ["root=x", "dataset=y"]
    ids = ["5e10232380", "0123456789", "1234567890", "true", "null"]
    assert load(BuildShardsConfig, [*needed, f"held_out.scenes=[{', '.join(ids)}]"]).held_out.scenes == ids
    with pytest.raises(ConfigError, match="must be a list of texts"):
        load(BuildShardsConfig, [*needed, "held_out.scenes=5e10232380"])
    (tmp_path / "mine.yaml").write_text("held_out: {scenes: [5e10232380, 1234567890]}")
    with pytest.raises(ConfigError, match=r"held_out\.scenes: 1234567890 is not text; put it into quotes"):
        load(BuildShardsConfig, [*needed, f"experiment={tmp_path}/mine.yaml"])


def test_a_key_wins_over_its_group_wherever_they_stand(tmp_path: Path) -> None:
    backbone = load(TrainConfig, [*NEEDED, "backbone.seed=3", "backbone=demo"]).backbone
    assert (backbone.weights, backbone.seed) == ("random", 3)
    asked = ["dataset=y", "reconstructor.checkpoint=rule", "reconstructor=mvsplat"]
    assert load(CacheGaussiansConfig, asked).reconstructor.config.checkpoint == "rule"
    (tmp_path / "mine.yaml").write_text("backbone.seed: 3\nbackbone: demo\n")
    words = [*NEEDED, f"experiment={tmp_path}/mine.yaml"]
    assert load(TrainConfig, words).backbone == backbone
    assert load(TrainConfig, [*words, "backbone=mae_vitb16"]).backbone == load(TrainConfig, [*NEEDED, "backbone=mae_vitb16"]).backbone


TOY = '''
from dataclasses import dataclass


@dataclass
class Config:
    size: int = 3
    """Of the toy, metres."""


def make(config):
    return ("toy", config.size)
'''


def test_another_package_brings_a_reconstructor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_reconstructor.py").write_text(TOY)
    (tmp_path / "toys-1.0.dist-info").mkdir()
    (tmp_path / "toys-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    entries = "[splat_and_distill.reconstructors]\ntoy = toy_reconstructor\ndepth = os\n"
    (tmp_path / "toys-1.0.dist-info" / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(tmp_path))
    toy = load(CacheGaussiansConfig, ["dataset=y", "reconstructor=toy", "reconstructor.size=4"]).reconstructor
    assert make_reconstructor(toy) == ("toy", 4)
    assert "with reconstructor=toy: reconstructor.size: int = 3" in help_text(CacheGaussiansConfig)
    assert load(CacheGaussiansConfig, ["dataset=y"]).reconstructor.config.footprint == 0.4, "no package takes the place of ours"


def test_choices_are_registered_names_with_keys_of_their_own() -> None:
    config = load(CacheGaussiansConfig, ["dataset=y", "reconstructor.footprint=0.6"])
    assert config.reconstructor.name == "depth"
    assert config.reconstructor.config.footprint == 0.6
    for word, message in (
        ("reconstructor=nothing", "reconstructor=nothing: choose one of .*depth, .*mvsplat.*, or install"),
        ("reconstructor=os.system", "reconstructor=os.system: choose one of"),
        ("reconstructor.footprnt=1", "unknown key 'reconstructor.footprnt'; did you mean 'reconstructor.footprint'"),
        ("reconstructor._target_=os.system", "unknown key 'reconstructor._target_'"),
        ("reconstructor.footprint=0", "^reconstructor.footprint=0.0: must be above 0"),
        ("reconstructor=mvsplat", "no value for reconstructor.checkpoint"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(CacheGaussiansConfig, ["dataset=y", word])


@pytest.mark.parametrize("group", sorted(path.name for path in HERE.iterdir() if list(path.glob("*.yaml"))))
def test_every_preset_composes(group: str) -> None:
    schema, needed = next((c for c in COMMANDS.values() if group in {one.name for one in keys(c[0])}), (TrainConfig, NEEDED))
    for name in presets(group):
        assert load(schema, [*needed, f"{group}={name}"]) != load(schema, needed) or name == "dinov2_vits14"


def test_an_experiment_extends_another(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    mine.write_text("extends: snd\nsupervision: {blend: 0.7}\n")
    own, base = (load(TrainConfig, [*NEEDED, f"experiment={name}"]) for name in (mine, "snd"))
    assert (own.supervision.blend, base.supervision.blend) == (0.7, 0.5)
    own.supervision.blend = 0.5
    assert own == base
    mine.write_text(f"extends: {other}\n")
    other.write_text(f"extends: {mine}\n")
    with pytest.raises(ConfigError, match=f"experiment={other}: extends {mine}, which extends it; take one of the two lines out"):
        load(TrainConfig, [*NEEDED, f"experiment={mine}"])


def test_an_experiment_of_the_users_own_lies_anywhere(tmp_path: Path) -> None:
    mine = tmp_path / "my run.yaml"
    mine.write_text("backbone: demo\noptimizer: {lr: 3e-3}\nsteps: 9\noutput: ${oc.env:HOME}\n")
    config = load(TrainConfig, ["dataset=y", "steps=11", f"experiment={mine}"])
    assert (config.backbone.weights, config.optimizer.lr, config.steps, config.output) == ("random", 3e-3, 11, "${oc.env:HOME}")
    for text, message in (
        ("stepps: 9", rf"experiment={mine}: unknown key 'stepps'; did you mean 'steps'"),
        ("lora: {rnk: 9}", "unknown key 'lora.rnk'; did you mean 'lora.rank'"),
        ("head: 512", r"head: has keys of its own; give head\.KEY=VALUE"),
        ("lora: {rank: 0}", "lora.rank=0: must be above 0"),
        ("backbone: {weights: 5}", "backbone.weights: 5 is not text"),
        ("steps: many", "steps=many: must be a whole number"),
        ("output: 2024", "output: 2024 is not text"),
        ("- steps", "not a mapping"),
        ("steps: [", "cannot be read as YAML"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ):
        mine.write_text(text)
        with pytest.raises(ConfigError, match=message) as caught:
            load(TrainConfig, [*NEEDED, f"experiment={mine}"])
        assert "\n" not in str(caught.value)


def test_a_key_that_came_later_changes_no_provenance_until_it_is_used() -> None:
    @dataclass
    class Later(WindowsConfig):
        overlap: float = key(0.25, before=0.0)
        """A key of the future."""

    assert "overlap" not in binding(Later(overlap=0.0))
    assert binding(Later(overlap=0.0)) == binding(WindowsConfig()) == plain(WindowsConfig())
    assert binding(Later())["overlap"] == 0.25
    assert "blocks" not in binding(load(TrainConfig, NEEDED).backbone)
    assert {"layout", "masks"} & set(binding(load(BuildShardsConfig, ["root=x", "dataset=y"]))) == set()


def test_what_destroys_says_first_what_it_would_destroy() -> None:
    assert load(DeleteConfig, ["dataset=y", "what=dataset"]).dry_run
    with pytest.raises(ConfigError, match="what=all: must be one of retired, column, dataset"):
        load(DeleteConfig, ["dataset=y", "what=all"])
    assert not load(VerifyConfig, ["dataset=y"]).set_aside


def test_an_unknown_key_ends_the_command_with_one_line() -> None:
    result = command("training/train.py", "dataset=nowhere", "output=nowhere", "stepps=4", check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines() == ["error: configuration: unknown key 'stepps'; did you mean 'steps'? (--help lists the keys)"]


def test_a_missing_column_ends_the_command_with_one_line(tmp_path: Path) -> None:
    result = command("training/train.py", f"dataset={tmp_path}/none", f"output={tmp_path}/run", "backbone=demo", check=False)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert lines == [f"error: {tmp_path}/none/frames: no finished column 'frames' here; "
                     "build it with: python pipeline/build_shards.py, and let it finish"]  # fmt: skip


@pytest.mark.parametrize("name", ["plan_windows", "withdraw", "cache_gaussians", "inspect_rows"])
def test_commands_on_a_dataset_that_is_not_there_end_with_one_line(name: str, tmp_path: Path) -> None:
    _, required = COMMANDS[f"pipeline/{name}.py"]
    words = [f"dataset={tmp_path}/none", *(r for r in required if not r.startswith("dataset="))]
    result = command(f"pipeline/{name}.py", *words, check=False)
    assert result.returncode in (1, 2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in result.stderr
    assert f"{tmp_path}/none" in line


def test_a_configuration_is_seen_whole() -> None:
    config = load(CacheGaussiansConfig, ["dataset=y", "reconstructor=mvsplat", "reconstructor.checkpoint=rule"])
    assert isinstance(config.reconstructor, Choice)
    assert "name: mvsplat\n  checkpoint: rule\n" in as_yaml(config)
    assert {one.name for one in keys(CacheGaussiansConfig)} == {field.name for field in fields(config)}


if __name__ == "__main__":
    LISTING.write_text(listing())
