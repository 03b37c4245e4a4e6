"""The keys of training/train.py that say what is trained: parts of the backbone, and the head."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from configs.fields import check_above, check_share, key


class TrainedPart(Enum):
    """Which parameters of the backbone are trained."""

    lora = "lora"
    last_blocks = "last_blocks"
    all = "all"


@dataclass
class TrainedConfig:
    """What of the backbone is trained; the head always is."""

    part: TrainedPart = key(TrainedPart.lora, before=TrainedPart.lora)
    """`lora`: updates of low rank, see `lora`; `last_blocks`: its last `blocks` and final norm; `all`: all but the position embedding."""

    blocks: int = key(4, before=4)
    """So many, of `last_blocks`."""

    def __post_init__(self) -> None:
        check_above(self, 0, "blocks")


@dataclass
class LoraConfig:
    """The low-rank updates that are trained in the backbone."""

    rank: int = 8
    """Of an update's two factors."""

    alpha: int = 8
    """Scale of an update, times 1/rank."""

    dropout: float = 0.1
    """Share of an update's inputs that is left out."""

    patch_embed: bool = True
    """Also on the patch embedding, as the published code has it."""

    def __post_init__(self) -> None:
        check_above(self, 0, "rank")
        check_share(self, "dropout")


class CentringKind(Enum):
    """How the teacher's distributions are kept from collapsing."""

    none = "none"
    mean = "mean"
    sinkhorn = "sinkhorn"


@dataclass
class HeadConfig:
    """The projection head, through which tokens become distributions over prototypes."""

    hidden: int = 2048
    """Width of its hidden layers."""

    bottleneck: int = 256
    """Width before the prototypes."""

    prototypes: int = 65536
    """How many."""

    student_temperature: float = 1.0
    """Of the student's softmax."""

    teacher_temperature: float = 1.0
    """Of the teacher's softmax; below 1 sharpens."""

    centring: CentringKind = key(CentringKind.none, before=CentringKind.none)
    """Of the teacher's distributions: `mean`, a moving mean is taken off its logits, as in DINO; `sinkhorn`, each step's tokens use all
    prototypes alike, as in DINOv2."""

    centre_momentum: float = key(0.9, before=0.9)
    """Share of the mean that a step keeps."""

    sinkhorn_iterations: int = key(3, before=3)
    """Each costs the teacher's logits twice."""

    def __post_init__(self) -> None:
        check_above(self, 0, "hidden", "bottleneck", "prototypes", "student_temperature", "teacher_temperature", "sinkhorn_iterations")
        check_share(self, "centre_momentum")
