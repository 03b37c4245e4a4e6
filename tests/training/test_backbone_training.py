"""Every family of the registry is trained, goes on, and comes out as weights that timm loads."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from configs import ConfigError, load
from configs.schema import BackboneConfig, CacheGaussiansConfig, ExportConfig, SplatConfig, TrainConfig
from pipeline.cache_gaussians import run as cache_gaussians
from pipeline.columns.features import FeaturesMaker, features_plan, features_provenance
from pipeline.columns.operators import OperatorsMaker
from pipeline.plan.windows import PlannedWindow
from pipeline.reconstruct.depth import DepthReconstructor
from storage.column import Column
from storage.records.operators import OPERATOR_MEMBERS, decode_operator, operator_member, operator_source
from storage.table import Table
from tests.datasets import Scene, write_dataset
from tests.training.test_window import SIZE, before_a_wall
from training import checkpoint
from training.export import file_name
from training.export import run as export
from training.metrics import read_metrics
from training.model.backbone import preprocess
from training.model.network import Network
from training.model.registry import find_spec
from training.model.weights import hash_weights, load_weights
from training.train import run as train

FAMILIES = ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb",
            "vit_base_patch16_siglip_224.v2_webli", "vit_base_patch16_224.mae", "vit_tiny_patch16_224"]  # fmt: skip
SMALL = ("backbone=demo", "backbone.blocks=2", "batch=2", "steps=3", "head.hidden=32", "head.prototypes=64", "head.student_temperature=0.1",
         "loader.workers=0", "optimizer.lr=0.01", "picture_every=1000", "device=cpu")  # fmt: skip


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The same three frames twice, with operators for patches of 14 and of 16 pixels."""
    roots = {}
    for patch in (14, 16):
        roots[patch] = str(tmp_path_factory.mktemp(f"patch{patch}"))
        scene = Scene("wall", before_a_wall(), [PlannedWindow((0, 2), (0, 1, 2))])
        write_dataset(roots[patch], [scene], DepthReconstructor(0.5).reconstruct, operators=True, patch=patch)
    return roots


def config_of(name: str, dataset: str, output: Path, *more: str) -> TrainConfig:
    return load(TrainConfig, [f"dataset={dataset}", f"output={output}", *SMALL, f"backbone.architecture={name}", *more])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_resumes_and_is_exported(datasets: dict[int, str], tmp_path: Path, name: str) -> None:

    spec = find_spec(name, 2)
    for until in (1, 2):
        config = config_of(name, datasets[spec.patch], tmp_path / "run", f"until={until}")
        train(config)
    history = read_metrics(config.output)
    assert [line["step"] for line in history] == [0, 1]
    assert all(line["kept_tokens"] > 0 for line in history)
    state, _ = checkpoint.load(config.output, 2)
    assert all(tensor.any() for part, tensor in state["student"].items() if "lora_B" in part), "a layer's LoRA took no gradient"

    export(load(ExportConfig, [f"run={config.output}", f"output={tmp_path}", "network=student"]))
    weights = torch.load(tmp_path / file_name(config), weights_only=True)
    note = json.loads((tmp_path / file_name(config)).with_suffix(".json").read_text())
    model = timm.create_model(**note["timm"]).eval()
    model.load_state_dict(weights, strict=True)
    network = Network(config, load_weights(config.backbone), *spec.pretrained_size).eval()
    network.load_trained(state["student"])
    image = torch.rand(1, 3, *spec.pretrained_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = network.tokens(image, [0]).flatten(1, 2)
        got = model.forward_features(preprocess(spec, image))[:, model.num_prefix_tokens :]
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()  # folding LoRA in rounds differently


@pytest.mark.parametrize("mode", ["on_the_fly", "live"])
def test_the_loader_lifts_on_the_backbones_grid(datasets: dict[int, str], tmp_path: Path, mode: str) -> None:
    """Whatever the operators' grid: they are not read."""
    losses = []
    for way, dataset in (("operators", datasets[16]), (mode, datasets[14])):
        config = config_of("vit_tiny_patch16_224", dataset, tmp_path / way, "until=1", f"supervision.mode={way}")
        train(config)
        losses.append(read_metrics(config.output)[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_operators_of_another_grid_are_refused_before_work(datasets: dict[int, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'operators' has 4 x 4 tokens .*vit_tiny_patch16_224 3 x 3: .*operators\.patch=16") as refused:
        train(config_of("vit_tiny_patch16_224", datasets[14], tmp_path / "run"))
    assert "\n" not in str(refused.value)
    assert not checkpoint.steps(str(tmp_path / "run"))


def test_lora_is_where_the_spec_says(datasets: dict[int, str], tmp_path: Path) -> None:
    config = config_of("vit_tiny_patch16_224", datasets[16], tmp_path, "lora.patch_embed=false")
    network: Any = Network(config, load_weights(config.backbone), 48, 48)
    layers = {name.split(".lora_")[0].split(".")[-1] for name in network.trained() if ".lora_" in name}
    assert layers == set(network.backbone.spec.lora)
    assert not any("patch_embed" in name for name in network.trained())


def add_features(root: str, backbone: BackboneConfig) -> None:
    """The column `features` of all frames, as the pipeline makes it."""
    frames = Table.open(root, []).frames
    note, pins = Column(root, "frames").provenance(), {"frames": frames.sha256}
    made = features_provenance(backbone, hash_weights(load_weights(backbone)), "all", frames, note, {})
    assert made.settings.get("blocks") == backbone.blocks
    column, plan = Column(root, "features"), features_plan(frames, made, None)
    column.declare(made)
    maker = FeaturesMaker(root, backbone, SIZE, SIZE, None, pins)
    for shard in plan:
        column.commit(shard, maker.make(shard.number)["features"].rows, made.fingerprint)
    column.write_index(plan, pins)


def test_a_frozen_teachers_tokens_must_be_of_the_same_grid_and_weights(datasets: dict[int, str], tmp_path: Path) -> None:
    root = shutil.copytree(datasets[16], tmp_path / "data")
    add_features(str(root), BackboneConfig("vit_tiny_patch16_224", "random", 0, 2))
    train(config_of("vit_tiny_patch16_224", str(root), tmp_path / "run", "until=1", "teacher.mode=frozen"))
    wrong = (
        (
            "vit_small_patch14_dinov2",
            "supervision.mode=live",
            r"'features' has 3 x 3 tokens .*dinov2 4 x 4: build it with",
        ),
        ("vit_tiny_patch16_224", "backbone.blocks=1", "'features' was made with other weights"),
    )
    for name, asked, message in wrong:
        with pytest.raises(ConfigError, match=message):
            train(config_of(name, str(root), tmp_path / "wrong", "teacher.mode=frozen", asked))


def test_the_column_of_operators_is_made_on_the_grid_that_is_asked_for(datasets: dict[int, str]) -> None:
    table = Table.open(datasets[14], ["masks", "windows", "gaussians"])
    for patch, grid in ((14, (4, 4)), (16, (3, 3))):
        maker = OperatorsMaker(
            datasets[14], "windows", "masks", "gaussians", {}, "operators", "made", "all", "f16", table.pins(), patch, SplatConfig()
        )
        ((_, members),) = maker.make(0)["operators"].rows
        source = operator_source("made", table.windows.key(0), table.frames.key(0))
        assert decode_operator({OPERATOR_MEMBERS[0]: members[operator_member(0)]}, source).grid == grid
    with pytest.raises(ConfigError, match=r"operators\.patch=0: must be above 0"):
        cache_gaussians(load(CacheGaussiansConfig, [f"dataset={datasets[14]}", "operators.patch=0"]))
