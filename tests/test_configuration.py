"""Configuration: what the schema and the YAML say agree, and nonsense is refused in one line before anything starts."""

import pytest

from configs import ConfigError, load
from configs.schema import (
    BuildShardsConfig,
    CacheGaussiansConfig,
    DeleteConfig,
    DescribeConfig,
    ExportConfig,
    InspectConfig,
    InspectGaussiansConfig,
    MakeRoomsConfig,
    PlanWindowsConfig,
    TrainConfig,
    VerifyConfig,
    WithdrawConfig,
)
from tests.conftest import REPOSITORY, command

COMMANDS = {
    "make_rooms": (MakeRoomsConfig, ["root=x"]),
    "build_shards": (BuildShardsConfig, ["root=x", "dataset=y"]),
    "plan_windows": (PlanWindowsConfig, ["dataset=y", "name=wide"]),
    "cache_gaussians": (CacheGaussiansConfig, ["dataset=y"]),
    "inspect_rows": (InspectConfig, ["dataset=y", "output=z"]),
    "inspect_gaussians": (InspectGaussiansConfig, ["dataset=y", "key=k", "output=z"]),
    "train": (TrainConfig, ["dataset=y", "output=z"]),
    "export": (ExportConfig, ["run=z", "output=w"]),
    "describe": (DescribeConfig, ["dataset=y"]),
    "verify": (VerifyConfig, ["dataset=y"]),
    "withdraw": (WithdrawConfig, ["dataset=y", "scene=s"]),
    "delete": (DeleteConfig, ["dataset=y", "what=retired"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_key_of_the_schema_has_a_value(name: str) -> None:
    schema, required = COMMANDS[name]
    assert isinstance(load(name, schema, required), schema)
    with pytest.raises(ConfigError, match=r"^no value for .*: give \w+=\.\.\.$"):
        load(name, schema, [])


def test_every_command_is_here() -> None:
    assert {path.stem for path in (REPOSITORY / "configs").glob("*.yaml")} == set(COMMANDS)


def test_what_destroys_says_first_what_it_would_destroy() -> None:
    assert load("delete", DeleteConfig, ["dataset=y", "what=dataset"]).dry_run
    with pytest.raises(ConfigError, match=r"what: Invalid value 'all', expected one of \[retired, column, dataset\]"):
        load("delete", DeleteConfig, ["dataset=y", "what=all"])
    assert not load("verify", VerifyConfig, ["dataset=y"]).set_aside


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("outptu=z", r"unknown key 'outptu'; did you mean 'output'\?"),
        ("+lora.rnk=3", r"unknown key 'lora.rnk'; did you mean 'rank'\?"),
        ("steps=many", "steps: Value 'many' of type 'str' could not be converted to Integer"),
        ("teacher.mode=moving", r"teacher.mode: Invalid value 'moving', expected one of \[ema, frozen\]"),
        ("backbone=vit_huge", "Could not find 'backbone/vit_huge'"),
    ],
)
def test_nonsense_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load("train", TrainConfig, ["dataset=y", "output=z", override])
    assert "\n" not in str(caught.value)


def test_an_unknown_key_ends_the_command_with_one_line() -> None:
    result = command("training/train.py", "dataset=nowhere", "output=nowhere", "stepps=4", check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines() == ["error: configuration: unknown key 'stepps'; did you mean 'steps'? (--help lists the keys)"]


def test_a_missing_column_ends_the_command_with_one_line(tmp_path) -> None:
    result = command("training/train.py", f"dataset={tmp_path}/none", f"output={tmp_path}/run", "backbone=demo", check=False)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert lines == [f"error: {tmp_path}/none/frames: no finished column 'frames' here; "
                     "build it with: python pipeline/build_shards.py, and let it finish"]  # fmt: skip


@pytest.mark.parametrize("name", ["plan_windows", "withdraw", "cache_gaussians", "inspect_rows"])
def test_commands_on_a_dataset_that_is_not_there_end_with_one_line(name: str, tmp_path) -> None:
    _, required = COMMANDS[name]
    given = [f"dataset={tmp_path}/none", *(r for r in required if not r.startswith("dataset="))]
    result = command(f"pipeline/{name}.py", *given, check=False)
    assert result.returncode in (1, 2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in result.stderr
    assert f"{tmp_path}/none" in line


def test_help_lists_the_keys() -> None:
    result = command("pipeline/cache_gaussians.py", "--help")
    assert "column: gaussians" in result.stdout
    assert "Adds the columns of a windows table: `gaussians`" in result.stdout
