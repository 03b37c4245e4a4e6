"""The distillation step: the teacher's tokens of the context views, splatted into a third view, supervise a student that sees only that
view.

    targets = supervise(config, teacher, batch)       # lift, splat, blend, down-sample: no gradient
    result = distillation_loss(config, student, teacher, batch, targets)

Source: Splat and Distill (ICLR 2026), section 3, with the published code's slips mended where they are slips; `configs/train.yaml` names
each switch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from configs.schema import TrainConfig
from training.backbone import PATCH, StateDict, build_backbone, grid_size, patch_tokens
from training.data.batch import Batch
from training.data.order import mix
from training.lora import add_lora, seed_rows
from training.model.head import DinoHead, token_cross_entropy
from training.splat import render_token_targets
from training.splat.apply import apply_operators


class Network(torch.nn.Module):
    """Backbone with LoRA, and head: the student, and with the same shape the teacher."""

    backbone: Any

    def __init__(self, config: TrainConfig, state: StateDict, height: int, width: int) -> None:
        super().__init__()
        self.backbone = add_lora(build_backbone(config.backbone.architecture, state, height, width), config.lora, config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = DinoHead.from_config(self.backbone.num_features, config.head)

    def forward(self, images_b3hw: torch.Tensor, seeds: Sequence[int], keep_bhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B,3,H,W] in [0,1] -> patch tokens [B,h,w,C] and the head's logits [M,K] of the M tokens that `keep_bhw` [B,h,w] marks."""
        seed_rows(self.backbone, seeds)
        tokens = patch_tokens(self.backbone, images_b3hw)
        return tokens, self.head(tokens[keep_bhw])

    def trained(self) -> dict[str, torch.Tensor]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def build_networks(config: TrainConfig, state: StateDict, height: int, width: int) -> tuple[Network, Network]:
    """Student and teacher, equal at the start. The teacher takes no gradient; its LoRA dropout is off unless `teacher.dropout`."""
    student, teacher = (Network(config, state, height, width) for _ in range(2))
    teacher.load_state_dict(student.state_dict())
    return student.train(), teacher.train(config.teacher.dropout).requires_grad_(False)


@dataclass
class Targets:
    """What the student is to match in a step. tokens: [B,h,w,C]; keep: [B,h,w] bool, the tokens that have supervision."""

    tokens: torch.Tensor
    keep: torch.Tensor


@torch.no_grad()
def supervise(config: TrainConfig, teacher: Network, batch: Batch) -> Targets:
    """The teacher's context tokens (made here, or read where the teacher is frozen), lifted, splatted into the target view, blended,
    down-sampled.

    A token is kept where the splat's accumulated alpha reaches `supervision.min_coverage` and no pixel of its patch is invalid.
    """
    rows, views = len(batch.keys), batch.views
    h, w = grid_size(*batch.target_images.shape[-2:])
    context = batch.context_tokens
    if context is None:
        assert batch.context_images is not None
        images = batch.context_images.flatten(0, 1).float() / 255
        seed_rows(teacher.backbone, [int(mix(seed, view)) >> 1 for seed in batch.seeds for view in range(views)])
        context = patch_tokens(teacher.backbone, images).unflatten(0, (rows, views))
    if batch.operators is not None:
        tokens = apply_operators(batch.operators, context.flatten(1, 3), config.supervision.blend).unflatten(1, (h, w))
        coverage = batch.operators.alpha.view(rows, h, w)
    else:
        tokens, coverage = _splat_live(batch, context, config.supervision.blend)
    keep = (coverage >= config.supervision.min_coverage) & _patches_all_valid(batch.target_valid, h, w)
    targets = Targets(tokens, keep)
    return _shuffled(targets, batch.seeds) if config.supervision.shuffle else targets


def _splat_live(batch: Batch, context: torch.Tensor, blend: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Every channel of the context tokens [B,V,h,w,C], splatted at full resolution: targets [B,h,w,C] and accumulated alpha [B,h,w]."""
    assert batch.context_labels is not None
    assert batch.target_labels is not None
    assert batch.viewmats is not None
    assert batch.Ks is not None
    rendered = [
        render_token_targets(
            batch.means[b],
            quats=batch.quats[b],
            scales=batch.scales[b],
            opacities=batch.opacities[b],
            tokens=context[b],
            context_masks=batch.context_labels[b],
            lift=batch.lifts[b],
            target_mask=batch.target_labels[b],
            viewmat=batch.viewmats[b],
            K=batch.Ks[b],
            blend=blend,
        )
        for b in range(len(batch.keys))
    ]
    return torch.stack([r.features for r in rendered]), torch.stack([r.alpha for r in rendered])


@dataclass
class StepResult:
    """Sums over this rank's kept tokens; `distillation_loss` says how they become means over all ranks."""

    loss: torch.Tensor
    cosine: torch.Tensor


def distillation_loss(config: TrainConfig, student: torch.nn.Module, teacher: Network, batch: Batch, targets: Targets) -> StepResult:
    """The sum over the kept tokens of the head's cross-entropy, and of the cosine between student token and target. Divide by the count of
    all ranks."""
    tokens, logits = student(batch.target_images.float() / 255, batch.seeds, targets.keep)
    wanted = targets.tokens[targets.keep]
    with torch.no_grad():
        teacher_logits = teacher.head(wanted)
        cosine = F.cosine_similarity(tokens[targets.keep].float(), wanted.float(), dim=-1).sum()
    losses = token_cross_entropy(logits, teacher_logits, config.head.student_temperature, config.head.teacher_temperature)
    return StepResult(losses.sum(), cosine)


def _patches_all_valid(valid_bhw: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """[B,H,W] bool -> [B,h,w] bool: whether every pixel of the token's patch is valid."""
    resized = F.interpolate(valid_bhw[:, None].float(), (h * PATCH, w * PATCH), mode="area")
    return F.avg_pool2d(resized, PATCH)[:, 0] > 1 - 1e-6


def _shuffled(targets: Targets, seeds: Sequence[int]) -> Targets:
    """The kept tokens of each row in another order: same values, wrong places."""
    shuffled = targets.tokens.clone()
    for tokens, keep, seed in zip(shuffled, targets.keep, seeds, strict=True):
        kept = tokens[keep]
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
        tokens[keep] = kept[order.to(kept.device)]
    return Targets(shuffled, targets.keep)
