"""The networks that are trained: a frozen backbone with LoRA, and the head of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from configs.schema import TrainConfig
from training.model.backbone import StateDict, build_backbone, patch_tokens
from training.model.head import DinoHead
from training.model.lora import add_lora, seed_rows
from training.objective.loss import token_cross_entropy
from training.objective.teacher_targets import Targets


class LossSums(NamedTuple):
    """Sums over the kept tokens of one forward pass: they may be added up over chunks and ranks, and divided by `kept` at the end."""

    loss: torch.Tensor  # cross-entropy, with gradient
    cosine: torch.Tensor  # cosine between the student's token and its supervision, without gradient
    kept: torch.Tensor  # kept tokens


class Network(torch.nn.Module):
    """Backbone with LoRA, and head: what the teacher is, and what the student trains."""

    backbone: Any

    def __init__(self, config: TrainConfig, state: StateDict, height: int, width: int) -> None:
        super().__init__()
        architecture = config.backbone.architecture
        self.backbone = add_lora(build_backbone(architecture, state, height, width, config.backbone.blocks), config.lora, config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = DinoHead.from_config(self.backbone.num_features, config.head)
        self._trained = [name for name, p in self.named_parameters() if p.requires_grad]

    def tokens(self, images_b3hw: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Patch tokens [B,h,w,C] of images [B,3,H,W] in [0,1]. seeds: one for each image, from which its dropout is drawn."""
        seed_rows(self.backbone, seeds)
        return patch_tokens(self.backbone, images_b3hw)

    def trained(self) -> dict[str, torch.Tensor]:
        """The parameters that training changes, by name; of the teacher too, which takes no gradient."""
        own = dict(self.named_parameters())
        return {name: own[name] for name in self._trained}

    @torch.no_grad()
    def load_trained(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes over the trained parameters. Raises ValueError, and changes nothing, where one is missing, surplus or of another shape."""
        own = self.trained()
        wrong = [f"no {name}" for name in own if name not in state]
        wrong += [f"a surplus {name}" for name in state if name not in own]
        wrong += [
            f"{name} of shape {tuple(state[name].shape)}, not {tuple(p.shape)}"
            for name, p in own.items()
            if name in state and state[name].shape != p.shape
        ]
        if wrong:
            raise ValueError(f"it has {', '.join(wrong[:4])}{', ...' if len(wrong) > 4 else ''}")
        for name, parameter in own.items():
            parameter.copy_(state[name])


class Student(Network):
    """The network whose forward pass is the loss, so that DDP wraps loss and network as one."""

    def __init__(self, config: TrainConfig, state: StateDict, height: int, width: int) -> None:
        super().__init__(config, state, height, width)
        self.temperature = config.head.student_temperature

    def forward(self, images_b3hw: torch.Tensor, seeds: Sequence[int], targets: Targets, keep_bhw: torch.Tensor) -> LossSums:
        """The loss of a batch, as sums over its kept tokens.

        Args:
            images_b3hw: target views, in [0,1].
            seeds: one for each image, from which its dropout is drawn.
            targets: what the M kept tokens should be, in the order of `keep_bhw`.
            keep_bhw: bool, the tokens that have supervision.
        """
        tokens = self.tokens(images_b3hw, seeds)[keep_bhw]
        losses = token_cross_entropy(self.head(tokens), targets.probabilities, self.temperature)
        cosine = F.cosine_similarity(tokens.detach().float(), targets.tokens.float(), dim=-1).sum()
        return LossSums(losses.sum(), cosine, keep_bhw.sum())


def build_networks(config: TrainConfig, state: StateDict, height: int, width: int) -> tuple[Student, Network]:
    """Student and teacher, equal at the start. The teacher takes no gradient; its LoRA dropout is off unless `teacher.dropout`."""
    student, teacher = Student(config, state, height, width), Network(config, state, height, width)
    teacher.load_state_dict(student.state_dict())
    return student.train(), teacher.train(config.teacher.dropout).requires_grad_(False)
