"""The networks that are trained: a backbone, by LoRA or some of its own parameters, and the head of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from configs import ConfigError
from configs.schema import LossKind, TrainConfig, TrainedConfig, TrainedPart
from training.model.backbone import StateDict, build_backbone, patch_tokens
from training.model.head import DinoHead
from training.model.lora import add_lora, seed_rows
from training.objective.loss import PrototypeTargets, koleo, prototype_cross_entropy


class Targets(NamedTuple):
    """What a step's M kept tokens should be. tokens: [M,C], the supervision; distributions: over the prototypes, None without a head."""

    tokens: torch.Tensor
    distributions: PrototypeTargets | None


class LossSums(NamedTuple):
    """Sums over the kept tokens of one forward pass: they may be added up over parts and ranks, and divided by `kept` at the end."""

    loss: torch.Tensor  # with gradient
    cosine: torch.Tensor  # cosine between the student's token and its supervision, without gradient
    kept: torch.Tensor  # kept tokens
    target_entropy: torch.Tensor  # of the targets, nats
    usage: torch.Tensor  # [K], of the student's distributions; [0] without a head


class Network(torch.nn.Module):
    """Backbone and head: what the teacher is, and what the student trains."""

    backbone: Any

    def __init__(self, config: TrainConfig, state: StateDict, height: int, width: int) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone.architecture, state, height, width, config.backbone.blocks)
        if config.trained.part is TrainedPart.lora:
            add_lora(self.backbone, config.lora, config.seed)
        else:
            _thaw(self.backbone, config.trained)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = DinoHead.from_config(self.backbone.num_features, config.head)
        self.head.requires_grad_(config.loss.kind is LossKind.cross_entropy)
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


def _thaw(backbone: Any, config: TrainedConfig) -> None:
    """Gives the parameters that are to be trained memory of their own, and a gradient."""
    whole = config.part is TrainedPart.all
    if not whole and config.blocks > len(backbone.blocks):
        raise ConfigError(f"trained.blocks={config.blocks}: the backbone has {len(backbone.blocks)}; choose fewer, or trained.part=all")
    parts = backbone if whole else torch.nn.ModuleList([*backbone.blocks[-config.blocks :], backbone.norm])
    for module in parts.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name != "pos_embed":  # it was resampled to the images' grid
                setattr(module, name, torch.nn.Parameter(parameter.detach().clone()))


class Student(Network):
    """The network whose forward pass is the loss, so that DDP wraps loss and network as one."""

    def __init__(self, config: TrainConfig, state: StateDict, height: int, width: int) -> None:
        super().__init__(config, state, height, width)
        self.temperature, self.koleo = config.head.student_temperature, config.loss.koleo

    def forward(
        self,
        images_b3hw: torch.Tensor,
        seeds: Sequence[int],
        targets: Targets,
        keep_bhw: torch.Tensor,
        holes_bhw: torch.Tensor | None = None,
        carry: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> LossSums:
        """The loss of a batch, as sums over its kept tokens.

        Args:
            images_b3hw: what the student sees, in [0,1].
            seeds: one for each image, from which its dropout is drawn.
            targets: what the M kept tokens should be, in the order of `keep_bhw`.
            keep_bhw: bool, the tokens that count.
            holes_bhw: bool, those of them that are set to 0; None for none.
            carry: from the tokens of the images to those that are judged; None where they are the same.
        """
        maps = self.tokens(images_b3hw, seeds)
        if carry is not None:
            maps = carry(maps)
        if holes_bhw is not None:
            maps = maps.masked_fill(holes_bhw[..., None], 0)
        tokens = maps[keep_bhw]
        cosine = F.cosine_similarity(tokens.float(), targets.tokens.float(), dim=-1)
        if targets.distributions is None:
            nothing = cosine.new_zeros(())
            loss, entropy, usage = (1 - cosine).sum(), nothing, cosine.new_zeros(0)
        else:
            points, prototypes = self.head.points(tokens), self.head.last_layer.rows()
            loss, entropy, usage = prototype_cross_entropy(points, prototypes, targets.distributions, self.temperature)
        if self.koleo:
            spread = keep_bhw if holes_bhw is None else keep_bhw & ~holes_bhw
            loss = loss + self.koleo * sum(koleo(one[keep]) for one, keep in zip(maps, spread, strict=True))
        return LossSums(loss, cosine.detach().sum(), keep_bhw.sum(), entropy, usage)


def build_networks(config: TrainConfig, state: StateDict, height: int, width: int) -> tuple[Student, Network]:
    """Student and teacher, equal at the start. The teacher takes no gradient; its LoRA dropout is off unless `teacher.dropout`."""
    student, teacher = Student(config, state, height, width), Network(config, state, height, width)
    teacher.load_state_dict(student.state_dict())
    if config.compile:
        for block in (*student.backbone.blocks, *teacher.backbone.blocks):
            block.compile()
    return student.train(), teacher.train(config.teacher.dropout).requires_grad_(False)
