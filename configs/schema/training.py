"""The keys of training/train.py."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from configs.errors import ConfigError
from configs.fields import REQUIRED, check_above, check_one_of, check_share, key
from configs.schema.common import BackboneConfig


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
    """Share of the teacher that an update keeps."""

    every: int = 10
    """Steps from one update to the next."""

    dropout: bool = False
    """LoRA dropout in the teacher too, as the published code has it."""

    def __post_init__(self) -> None:
        check_share(self, "momentum")
        check_above(self, 0, "every")


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

    def __post_init__(self) -> None:
        check_above(self, 0, "hidden", "bottleneck", "prototypes", "student_temperature", "teacher_temperature")


class SupervisionMode(Enum):
    """Where the splat comes from."""

    operators = "operators"
    on_the_fly = "on_the_fly"
    live = "live"


class Control(Enum):
    """Supervision from which no geometry can be learnt."""

    none = "none"
    no_geometry = "no_geometry"
    shuffle = "shuffle"


@dataclass
class SupervisionConfig:
    """What the student is to match."""

    mode: SupervisionMode = SupervisionMode.operators
    """`operators`: read from their column; `on_the_fly`: built by the loader from the Gaussians; `live`: all channels splatted."""

    masks: str = "masks"
    """The column of `on_the_fly` and `live`, whose labels the lift and the blend go by."""

    gaussians: str = "gaussians"
    """The column of `on_the_fly` and `live`."""

    operators: str = "operators"
    """The column of operators."""

    blend: float = 0.5
    """Weight of the splatted feature against its mask's mean; 1: without blending."""

    min_coverage: float = 0.5
    """A token whose accumulated alpha is lower has no supervision."""

    context_as_target: bool = True
    """The target may be one of the context frames (2 draws in 9)."""

    control: Control = Control.none
    """What a training is compared with. `no_geometry`: every supervised token's target is the teacher's own token there, of the image that
    the student sees; `shuffle`: the splatted tokens, permuted over the image."""

    def __post_init__(self) -> None:
        check_share(self, "blend", "min_coverage")
        if self.control is Control.no_geometry and self.blend < 1:
            raise ConfigError(f"blend={self.blend}: control=no_geometry has no splatted token to blend; set blend to 1")


@dataclass
class OptimizerConfig:
    """Adam, with one cosine cycle."""

    lr: float = 2.0e-5
    """Peak of the cycle."""

    warmup: float = 0.01
    """Share of the steps."""

    def __post_init__(self) -> None:
        check_above(self, 0, "lr")
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

    backbone: BackboneConfig = key(BackboneConfig, presets="backbone")

    teacher: TeacherConfig = key(TeacherConfig)

    lora: LoraConfig = key(LoraConfig)

    head: HeadConfig = key(HeadConfig)

    supervision: SupervisionConfig = key(SupervisionConfig)

    optimizer: OptimizerConfig = key(OptimizerConfig)

    loader: LoaderConfig = key(LoaderConfig)

    monitor: MonitorConfig = key(MonitorConfig)

    checkpoint_every: int = 1000
    """Steps."""

    picture_every: int = 1000
    """Steps from one PCA panel of supervision and student to the next."""

    def __post_init__(self) -> None:
        check_above(self, 0, "steps", "batch", "checkpoint_every", "picture_every")
        check_one_of(self, "device", ("auto", "cpu", "cuda"))
        if self.until is not None and self.until < 1:
            raise ConfigError(f"until={self.until}: must be at least 1, or null")
