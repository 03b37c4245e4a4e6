"""What LoRA's dropout drops changes with the row's seed and with the layer, and with nothing else."""

from __future__ import annotations

import torch

from configs import load
from configs.schema import LoraConfig, TrainConfig
from tests.training.conftest import CONTEXT, HEIGHT, WIDTH
from training.data.loader import StepSampler
from training.data.rows import open_rows
from training.model.head import DinoHead
from training.model.lora import RowDropout, add_lora, seed_rows
from training.model.network import build_networks
from training.model.registry import find_spec
from training.model.weights import load_weights
from training.objective.distill import distill, supervise


def test_every_layer_of_a_network_drops_something_else() -> None:
    blocks = [torch.nn.ModuleDict({name: torch.nn.Linear(64, 64) for name in ("qkv", "proj")}) for _ in range(3)]
    bare = torch.nn.Sequential(*blocks)
    bare.spec = find_spec("vit_small_patch14_dinov2")  # says which layers take LoRA
    model = add_lora(bare, LoraConfig(rank=2, dropout=0.5), seed=0)
    seed_rows(model, [7, 8])
    dropouts = [module for module in model.modules() if isinstance(module, RowDropout)]
    assert len(dropouts) == 6
    dropped = [dropout.train()(torch.ones(2, 64)) for dropout in dropouts]
    assert len({tuple(row.tolist()) for rows in dropped for row in rows}) == 12
    again = [dropout(torch.ones(2, 64)) for dropout in dropouts]
    assert torch.equal(torch.stack(again), torch.stack(dropped))


def config(*more: str) -> TrainConfig:
    return load(TrainConfig, ["output=x", "backbone=demo", "loader.workers=0", "head.hidden=16", "head.prototypes=16", *more])


def test_tokens_of_an_image_change_with_its_seed_alone() -> None:
    own = config("dataset=x", "teacher.dropout=true", "lora.dropout=0.5")
    for network in build_networks(own, load_weights(own.backbone), HEIGHT, WIDTH):
        for name, parameter in network.named_parameters():
            if "lora_B" in name:  # zero at the start: nothing that is dropped would show
                torch.nn.init.normal_(parameter.data, std=0.1, generator=torch.Generator().manual_seed(0))
        images = torch.full((3, 3, HEIGHT, WIDTH), 0.5)
        with torch.no_grad():
            first, same, other = network.tokens(images, [5, 5, 6])
        torch.testing.assert_close(same, first)
        assert (other - first).abs().max() > 0.01


def test_student_and_teacher_get_the_seeds_of_the_rows_and_of_the_views(tiny: str) -> None:
    views: list[int] = []

    class Teacher:
        head = DinoHead(8, 4, 4, 4)

        def tokens(self, images: torch.Tensor, seeds: list[int]) -> torch.Tensor:
            assert len(images) == len(seeds)
            views.extend(seeds)
            return torch.zeros(len(images), 2, 3, 8)

    rows = open_rows(config(f"dataset={tiny}"))
    for choices in StepSampler(len(rows), seed=0, batch=2, steps=range(3), rank=0, world=1):
        batch = rows.decode(rows.fetch(choices))
        supervision = supervise(rows.config, Teacher(), batch)  # type: ignore[arg-type]
        assert distill(rows.config, lambda images, seeds, *_: seeds, Teacher(), batch, supervision, None) == batch.seeds  # type: ignore[arg-type]
    assert len(set(views)) == len(views) == 3 * 2 * len(CONTEXT)
