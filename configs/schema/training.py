"""The keys of training/train.py."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from configs.errors import ConfigError
from configs.fields import REQUIRED, check_above, check_one_of, check_share, key
from configs.schema.common import BackboneConfig
from configs.schema.network import CentringKind, HeadConfig, LoraConfig, TrainedConfig
from configs.schema.supervision import SupervisionConfig


class TeacherMode(Enum):
    """Whether the teacher moves."""

    ema = "ema"
    frozen = "frozen"


@dataclass
class TeacherConfig:
    """Whose tokens are splatted."""

    mode: TeacherMode = TeacherMode.ema
    """`ema`: follows the student; `frozen`: its tokens are read from the `features` column."""

    momentum: float = 0.999
    """Share of the teacher that an update keeps; unless `half_lives` says it."""

    half_lives: float | None = key(None, before=None)
    """How often, over the whole run, the teacher forgets half of what it was (published: 43); whatever the number of steps. null:
    `momentum` holds."""

    every: int = 10
    """Steps from one update to the next."""

    dropout: bool = False
    """LoRA dropout in the teacher too, as the published code has it."""

    def __post_init__(self) -> None:
        check_share(self, "momentum")
        check_above(self, 0, "every")
        if self.half_lives is not None:
            check_above(self, 0, "half_lives")


class LossKind(Enum):
    """How a token is compared with its supervision."""

    cross_entropy = "cross_entropy"
    cosine = "cosine"


@dataclass
class LossConfig:
    """What is minimised."""

    kind: LossKind = key(LossKind.cross_entropy, before=LossKind.cross_entropy)
    """`cross_entropy` between distributions over prototypes, through both heads; `cosine`, one less it, of the tokens without a head."""

    koleo: float = key(0.0, before=0.0)
    """Weight of KoLeo, which spreads an image's tokens evenly."""

    def __post_init__(self) -> None:
        if self.koleo < 0:
            raise ConfigError(f"koleo={self.koleo}: must be 0 or above")


@dataclass
class OptimizerConfig:
    """Adam, with one cosine cycle."""

    lr: float | None = 2.0e-5
    """Peak of the cycle. null: `reach` says it."""

    reach: float = key(0.01, before=0.01)
    """With lr=null the peak is reach * sqrt(batch / steps), so that runs of any length and batch move the weights about equally far.
    Published: 2e-5 at batch 1 and 300,001 steps, which is 0.011."""

    warmup: float = 0.01
    """Share of the steps."""

    clip: float | None = key(None, before=None)
    """Largest norm of the gradient; null: no limit."""

    def __post_init__(self) -> None:
        check_above(self, 0, "reach")
        for name in ("lr", "clip"):
            if getattr(self, name) is not None:
                check_above(self, 0, name)
        check_share(self, "warmup")


@dataclass
class LoaderConfig:
    """How rows are read."""

    workers: int = 2
    """Processes a rank."""

    prefetch: int = 4
    """Batches that each worker reads at the same time."""

    cache: str | None = None
    """A folder of this node, shared by its processes, that keeps what was read from the store."""

    cache_gb: float = 100.0
    """At most so much in it, in GB."""

    skip_withdrawn: bool = False
    """True: rows of scenes withdrawn since the run pinned its dataset are replaced by others; false: they end the run."""

    def __post_init__(self) -> None:
        check_above(self, -1, "workers")
        check_above(self, 0, "prefetch", "cache_gb")


@dataclass
class MonitorConfig:
    """Held-out frames by which a training is judged while it runs: matches between views, effective rank, blur, use of the prototypes."""

    dataset: str | None = key(None, before=None)
    """URL of a dataset of scenes that the training does not see, with depth; null: the training is not judged."""

    every: int = key(50, before=50)
    """Steps from one judgement to the next, from before the first step to after the last. Each takes seconds on a CPU."""

    scenes: int = key(2, before=2)
    """So many of its scenes."""

    frames: int = key(8, before=8)
    """Of each scene, evenly spaced."""

    masks: str = key("masks", before="masks")
    """The column whose ids say which tokens belong to one object."""

    def __post_init__(self) -> None:
        check_above(self, 0, "every", "scenes")
        check_above(self, 1, "frames")


@dataclass
class TrainConfig:
    """A training run."""

    dataset: str = REQUIRED
    """URL with `frames`, `windows` and `operators` (and `features` for teacher.mode=frozen)."""

    windows: str = "windows"
    """The windows table."""

    output: str = REQUIRED
    """URL of the run: checkpoints, curves, pictures; a run that is there already is resumed."""

    steps: int = 300001
    """Of the whole run. May grow when a run goes on; its learning rates from there on are those of the longer run."""

    until: int | None = None
    """Stop after this step with a checkpoint; the same command without it goes on."""

    batch: int = 8
    """Rows a step over all ranks; every world size that divides it sees the same rows."""

    seed: int = 42
    """Of the order of rows, the draws of targets, the new parameters and dropout."""

    device: str = "auto"
    """`auto`: cuda where there is one, else cpu; `cpu`; `cuda`."""

    accumulate: int = key(1, before=1)
    """Parts in which a rank takes its rows of a step, one after the other; the gradient is that of all."""

    precision: str = key("auto", before="fp32")
    """Of the networks: `bf16` (autocast; softmax, sums, supervision and weights stay float32), `fp32`, or `auto`, bf16 on a GPU that has
    it."""

    tf32: bool = key(True, before=False)
    """Matrix products of float32 on a GPU in TF32, as published."""

    compile: bool = key(False, before=False)
    """The backbone's blocks through torch.compile: minutes at the start, steps faster after."""

    allow_unstable: bool = key(False, before=True)
    """Train with settings that are known to collapse."""

    backbone: BackboneConfig = key(BackboneConfig, presets="backbone")

    trained: TrainedConfig = key(TrainedConfig)

    teacher: TeacherConfig = key(TeacherConfig)

    lora: LoraConfig = key(LoraConfig)

    head: HeadConfig = key(HeadConfig)

    loss: LossConfig = key(LossConfig)

    supervision: SupervisionConfig = key(SupervisionConfig)

    optimizer: OptimizerConfig = key(OptimizerConfig)

    loader: LoaderConfig = key(LoaderConfig)

    monitor: MonitorConfig = key(MonitorConfig)

    checkpoint_every: int = 1000
    """Steps."""

    checkpoint_background: bool = key(False, before=False)
    """Write them while training goes on; each then takes twice its memory for a while."""

    picture_every: int = 1000
    """Steps from one PCA panel of supervision and student to the next."""

    def __post_init__(self) -> None:
        check_above(self, 0, "steps", "batch", "accumulate", "checkpoint_every", "picture_every")
        check_one_of(self, "device", ("auto", "cpu", "cuda"))
        check_one_of(self, "precision", ("auto", "fp32", "bf16"))
        if self.until is not None and self.until < 1:
            raise ConfigError(f"until={self.until}: must be at least 1, or null")
        if self.supervision.direct and self.teacher.mode is TeacherMode.frozen:
            raise ConfigError("supervision.direct=true: the student needs the context's images, which teacher.mode=frozen does not read; "
                              "set teacher.mode=ema")  # fmt: skip
        if self.head.centring is CentringKind.sinkhorn and self.accumulate > 1:
            raise ConfigError(
                f"accumulate={self.accumulate}: head.centring=sinkhorn needs all tokens of a step at once; choose accumulate=1 or "
                "head.centring=mean"
            )
        if self.head.centring is not CentringKind.none and self.loss.kind is LossKind.cosine:
            raise ConfigError(f"head.centring={self.head.centring.value}: loss.kind=cosine has no head; set head.centring=none")
        sharp = self.head.teacher_temperature < 1 and self.loss.kind is LossKind.cross_entropy
        if sharp and self.teacher.mode is TeacherMode.ema and self.head.centring is CentringKind.none and not self.allow_unstable:
            raise ConfigError(
                f"head.teacher_temperature={self.head.teacher_temperature} sharpens a teacher that moves, and nothing centres it: the head "
                "collapses onto a few prototypes; set head.centring=sinkhorn or mean, teacher.mode=frozen, head.teacher_temperature=1, or "
                "allow_unstable=true"
            )
