"""The commands: one evaluates a model beside baselines, one compares what was found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs import ConfigError, load
from configs.schema import CompareConfig, EvaluateConfig, SupervisedTokensConfig
from storage import codec
from storage.location import NotFound, StorageError
from storage.table import Table
from tests.conftest import command
from training.compare import compare as comparison
from training.compare import run as compare
from training.evaluate import run as evaluate
from training.probes.data.dataset import make
from training.probes.extractor import open_model
from training.probes.supervision import SupervisionModel

SMALL = ("backbone=demo", "backbone.blocks=1", "data.pairs_per_scene=6", "device=cpu")


def result(output: Path, name: str, train: str, test: str, *words: str) -> dict[str, Any]:
    evaluate(load(EvaluateConfig, [f"data.train={train}", f"data.test={test}", f"output={output}", f"name={name}", *SMALL, *words]))
    found: dict[str, Any] = json.loads((output / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def output(train_rooms: str, test_rooms: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one network, of itself again, and of another."""
    folder = tmp_path_factory.mktemp("results")
    result(folder, "one", train_rooms, test_rooms)
    result(folder, "again", train_rooms, test_rooms, "pictures=0")
    result(folder, "other", train_rooms, test_rooms, "backbone.seed=1", "pictures=0", "baselines=false", "label=trained")
    result(folder, "third", train_rooms, test_rooms, "backbone.seed=2", "pictures=0", "baselines=false", "label=trained")
    return folder


def read(output: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / f"{name}.json").read_text())
    return found


def test_a_result_says_what_was_judged_and_how(output: Path) -> None:
    found = read(output, "one")
    assert (found["kind"], found["schema"], found["protocol"], found["tier"]) == ("splat-and-distill/evaluation", 1, "clean", "closed")
    assert len(found["model"]["weights_sha256"]) == 64
    assert found["data"]["frames"]["test"][:2] == ["barn-0", "barn-1"]
    assert found["data"]["pairs"]
    assert found["machine"]["torch"]
    assert set(found["tasks"]) == {"depth", "normals", "segmentation", "correspondence", "consistency"}
    depth = found["tasks"]["depth"]
    assert set(depth["rooms"]) == {"barn", "shed"}
    assert len(depth["records"]) == 10
    assert depth["metrics"]["rmse"] == pytest.approx(np.mean([record["rmse"] for record in depth["records"]]))
    assert depth["intervals"]["rmse"] == [None, None], "two rooms say too little"
    assert set(found["baselines"]) == {"constant", "position", "colour", "random network", "oracle"}
    assert found["baselines"]["oracle"]["depth"]["metrics"]["rmse"] < 0.5 * found["baselines"]["constant"]["depth"]["metrics"]["rmse"]


def test_the_same_model_gives_the_same_numbers_and_baselines_are_judged_once(output: Path) -> None:
    one, again = read(output, "one"), read(output, "again")
    assert one["tasks"] == again["tasks"]
    assert one["baselines"] == again["baselines"]
    assert len(list((output / "baselines").iterdir())) == 4 + 4  # an oracle for each task


def test_pictures_show_something(output: Path) -> None:
    for what in ("predictions", "matches", "angles"):
        pixels = np.asarray(Image.open(output / f"one-{what}.png").convert("RGB"))
        assert pixels.shape[0] > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_comparison_pairs_rooms_and_puts_seeds_into_one_row(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    urls = ",".join(str(output / f"{name}.json") for name in ("one", "again", "other", "third"))
    compare(load(CompareConfig, [f"results=[{urls}]", f"output={tmp_path}", "samples=500"]))
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["reference"] == "one"
    rmse = found["tasks"]["depth"]["rmse"]
    assert (rmse["again"]["difference"], rmse["again"]["low"], rmse["again"]["high"], rmse["again"]["better_rooms"]) == (0, None, None, 0)
    values = [read(output, name)["tasks"]["depth"]["metrics"]["rmse"] for name in ("one", "other", "third")]
    rooms = [read(output, name)["tasks"]["depth"]["rooms"] for name in ("one", "other", "third")]
    better = [(other[room]["rmse"][0] + third[room]["rmse"][0]) / 2 < one[room]["rmse"][0] for one, other, third in [rooms] for room in one]
    assert (rmse["trained"]["better_rooms"], rmse["trained"]["rooms"]) == (sum(better), 2)
    assert rmse["trained"]["seeds"] == [1, 2]
    assert rmse["trained"]["value"] == pytest.approx(np.mean(values[1:]))
    assert rmse["trained"]["difference"] == pytest.approx(np.mean(values[1:]) - values[0])
    assert "results of one label: trained 2" in printed
    assert "published" not in printed  # another protocol
    assert (tmp_path / "angles.png").exists()


def test_less_is_better_where_it_is() -> None:
    def record(rmse: float, d1: float) -> dict[str, Any]:
        rooms = {f"room {n}": {"rmse": [rmse + n, 1], "d1": [d1 - n / 10, 1]} for n in range(8)}
        metrics = {name: sum(room[name][0] for room in rooms.values()) / 8 for name in ("rmse", "d1")}
        return {"tasks": {"depth": {"rooms": rooms, "metrics": metrics}}}

    config = load(CompareConfig, ["results=[a,b]", "samples=100"])
    found = comparison({"before": [record(2.0, 0.5)], "after": [record(1.9, 0.6)]}, config)["tasks"]["depth"]
    for name, difference in (("rmse", -0.1), ("d1", 0.1)):
        one = found[name]["after"]
        assert one["difference"] == pytest.approx(difference)
        assert (one["better_rooms"], one["rooms"], one["excludes_zero"]) == (8, 8, True)


def test_one_label_holds_seeds_of_one_training_and_each_once(output: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.json").write_text((output / "other.json").read_text())
    with pytest.raises(ConfigError, match=r"two of label 'trained' are of the same weights; give each seed once"):
        compare(load(CompareConfig, [f"results=[{output}/one.json,{output}/other.json,{tmp_path}/copy.json]"]))
    for name, config in (("third", {"seed": 1, "steps": 200}), ("longer", {"seed": 2, "steps": 300})):
        record = json.loads((output / "third.json").read_text())
        record["model"] |= {"weights_sha256": name, "trained_with": {"config": config}, "step": config["steps"]}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"label 'trained' has more than seeds of one training \(.*steps"):
        compare(load(CompareConfig, [f"results=[{output}/one.json,{tmp_path}/third.json,{tmp_path}/longer.json]"]))


def test_a_run_is_not_judged_on_the_frames_that_it_was_trained_on(train_rooms: str, test_rooms: str, tmp_path: Path) -> None:
    note = {"indexes": Table.open(test_rooms, ["masks"]).pins(), "withdrawn": []}
    (tmp_path / "dataset.json").write_bytes(codec.seal(note))
    with pytest.raises(ConfigError, match=f"data.test: {tmp_path} was trained on these very frames; give a dataset of other scenes"):
        result(tmp_path, "x", train_rooms, test_rooms, f"run={tmp_path}")
    with pytest.raises(NotFound, match="no checkpoint"):  # what is asked next
        result(tmp_path, "x", test_rooms, train_rooms, f"run={tmp_path}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tier=cached ridge=1", "ridge=1.0: of tier=closed alone"),
        ("tier=cached features.class_token=true", "in tier=cached the protocol says them"),
        ("step=3", "network, step: of a run; give run=URL"),
        ("base=w.pth", "base: of a run or an export"),
    ],
)
def test_keys_that_would_change_nothing_are_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(EvaluateConfig, ["data.train=a", "data.test=b", "output=c", "name=d", *words.split()])


def test_results_of_other_data_or_settings_are_not_compared(output: Path, train_rooms: str, test_rooms: str, tmp_path: Path) -> None:
    few = ("pictures=0", "baselines=false", "tasks=[depth]")
    result(tmp_path, "fewer", train_rooms, test_rooms, *few, "data.frames_per_scene=3")
    result(tmp_path, "stronger", train_rooms, test_rooms, *few, "ridge=1")
    for name, difference in (("fewer", "data.config.frames_per_scene"), ("stronger", "settings.ridge")):
        with pytest.raises(ConfigError, match=rf"{name}\.json and .*one\.json were not judged alike \({difference}") as caught:
            compare(load(CompareConfig, [f"results=[{output}/one.json,{tmp_path}/{name}.json]"]))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="all of one label"):
        compare(load(CompareConfig, [f"results=[{output}/other.json,{output}/third.json]"]))
    other = json.loads((output / "other.json").read_text())
    other["judged"]["supervision"] = {"operators": "operators"}
    (tmp_path / "targets.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match=r"were not judged alike \(judged\.supervision"):
        compare(load(CompareConfig, [f"results=[{output}/one.json,{tmp_path}/targets.json]"]))
    (tmp_path / "broken.json").write_text("[]")
    with pytest.raises(StorageError, match=r"broken\.json: not a result of training/evaluate\.py"):
        compare(load(CompareConfig, [f"results=[{output}/one.json,{tmp_path}/broken.json]"]))


def test_the_supervision_itself_is_judged_where_it_reaches(train_rooms: str, test_rooms: str, tmp_path: Path) -> None:
    few = ("pictures=0", "tasks=[depth,correspondence]")
    found = result(tmp_path, "supervision", train_rooms, test_rooms, *few, "supervision.operators=operators", "supervision.blend=1")
    assert found["model"]["frames_without"] == ["hall-4", "loft-4", "barn-4", "shed-4"]
    images = {record["key"]: record for record in found["tasks"]["depth"]["records"]}
    assert set(images) == {f"{room}-{n}" for room in ("barn", "shed") for n in range(4)}
    assert 0 < images["barn-3"]["pixels"] < images["barn-2"]["pixels"]  # the splat covers a part of what lies beyond the context
    assert set(found["baselines"]) == {"constant", "position", "colour", "random network", "started from", "oracle"}
    assert found["baselines"]["started from"]["depth"]["rooms"]["barn"]["rmse"][1] == 4  # images: it is judged on the same tokens


def test_a_frame_takes_the_window_whose_context_it_is_not_part_of(train_rooms: str, test_rooms: str) -> None:
    config = load(EvaluateConfig, [f"data.train={train_rooms}", f"data.test={test_rooms}", "output=z", "name=n", *SMALL])
    data = make(config.data.config)
    found = SupervisionModel(open_model(config, "cpu"), data, SupervisedTokensConfig(operators="operators")).windows
    chosen = {key: (table.windows.key(row), index) for key, (table, row, index) in found.items() if key.startswith("barn")}
    assert chosen == {"barn-0": ("barn-0", 0), "barn-1": ("barn-0", 1), "barn-2": ("barn-1", 1), "barn-3": ("barn-0", 3)}


def test_supervision_that_cannot_be_is_refused(train_rooms: str, test_rooms: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no finished column 'operators-x' here"):
        result(tmp_path, "a", train_rooms, test_rooms, "supervision.operators=operators-x")
    words = ("backbone.architecture=vit_base_patch16_224.mae", "backbone.weights=random", "supervision.operators=operators")
    with pytest.raises(StorageError, match=r"operators over \(2, 6, 9\) tokens, the network gives .*; build them with operators\.patch=16"):
        result(tmp_path, "a", train_rooms, test_rooms, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("protocol=snd",), "protocol=snd: its heads are trained; give tier=cached or tier=reference"),
        (("tier=quick",), "tier=quick: choose closed, cached or reference"),
        (("tasks=[flow]",), "tasks: no task 'flow'"),
        (("tier=cached", "supervision.operators=operators"), "judged in tier=closed alone"),
        (("ridge=0",), "ridge=0.0: must be above 0"),
        (("data=nowhere",), "data=nowhere: choose one of"),
    ],
)
def test_nonsense_is_refused_before_anything_is_read(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(EvaluateConfig, ["data.train=x", "data.test=y", "output=z", "name=n", *words])


def test_a_task_that_the_data_cannot_judge_is_named(train_rooms: str, test_rooms: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks: data=dataset can judge correspondence, depth, normals alone"):
        result(tmp_path, "a", train_rooms, test_rooms, "data.masks=null", "tasks=[segmentation]")


def test_a_missing_dataset_ends_the_command_with_one_line(tmp_path: Path) -> None:
    words = (f"data.train={tmp_path}/none", f"data.test={tmp_path}/other", f"output={tmp_path}", "name=n")
    ended = command("training/evaluate.py", *words, check=False)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].startswith(f"error: {tmp_path}/none/frames: no finished column 'frames' here")


def test_trained_heads_give_results_of_the_same_form(train_rooms: str, test_rooms: str, tmp_path: Path) -> None:
    words = ("tier=reference", "steps=2", "protocol=clean", "tasks=[normals,correspondence]", "pictures=0", "baselines=false")
    found = result(tmp_path, "trained", train_rooms, test_rooms, *words)
    assert len(found["tasks"]["normals"]["records"]) == 10
    assert found["tasks"]["normals"]["metrics"]["mean"] > 0
    assert set(found["tasks"]["correspondence"]["rooms"]) == {"barn", "shed"}
