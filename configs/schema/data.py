"""The keys of the commands that make a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from configs.errors import ConfigError
from configs.fields import REQUIRED, Choice, check_above, check_one_of, choice, key
from configs.registry import Registry
from configs.schema.common import ActorConfig, BackboneConfig, RayConfig, SplatConfig, WindowsConfig

RECONSTRUCTORS = Registry("reconstructor", "pipeline.reconstruct", "splat_and_distill.reconstructors")
MASK_SOURCES = Registry("masks", "pipeline.masks", "splat_and_distill.mask_sources")
READERS = Registry("layout", "pipeline.readers", "splat_and_distill.readers", shared=("base", "lens", "undistort"))


@dataclass
class MakeRoomsConfig:
    """Synthetic rooms in the official ScanNet++ layout."""

    root: str = REQUIRED
    """URL of the folder to fill."""

    rooms: int = 8
    """How many."""

    frames: int = 64
    """DSLR frames a room."""

    scale: float = 0.25
    """Of the official 1752 x 1168 pixels."""

    seed: int = 0
    """Of everything in the rooms."""

    val: int = 1
    """So many of the rooms go to nvs_sem_val, the others to nvs_sem_train."""

    defects: list[str] = key([])
    """Planted in every room, for tests of the ingestion: see pipeline/synthetic/spec.py."""

    walk_step: int = key(1, before=1)
    """Poses of the hand-held walk (1.8 cm, 1.2 degrees each) from one frame to the next. 3 gives windows the parallax of real captures."""

    ray: RayConfig = key(RayConfig)

    def __post_init__(self) -> None:
        check_above(self, 0, "walk_step")
        if not 0 <= self.val <= self.rooms:
            raise ConfigError(f"val={self.val}: of {self.rooms} rooms, between 0 and {self.rooms} can be held out")


@dataclass
class HeldOutConfig:
    """Frames that no training window names; each frame says whether it is one."""

    scenes: list[str] = key([])
    """Of the split, by id."""

    part: float = 0.0
    """And the last share of every scene's frames."""

    def __post_init__(self) -> None:
        if not 0 <= self.part < 1:
            raise ConfigError(f"part={self.part}: the share of each scene that is held out, from 0 to below 1")


@dataclass
class BuildShardsConfig:
    """Raw scenes to the tables of a dataset."""

    root: str = REQUIRED
    """URL of the raw scenes; scannetpp: the folder with splits/, data/<scene>/dslr, data/<scene>/scans."""

    dataset: str = REQUIRED
    """URL of the dataset; its tables `frames`, `masks`, `features` and `windows` go below."""

    layout: Choice = choice(READERS, "scannetpp", before={"name": "scannetpp"})
    """How the raw scenes lie: a reader in pipeline/readers."""

    split: str = "nvs_sem_train"
    """Which of the root's lists of scenes."""

    width: int = 448
    """Of the stored image, pixels; multiples of 112 suit ViT/14 and MVSplat alike."""

    height: int = 336
    """Of the stored image, pixels."""

    keep_bad: bool = False
    """Keep frames that the scene marks is_bad."""

    min_kept_share: float = 0.8
    """The run fails where fewer of the listed frames survive."""

    frames_per_shard: int = 64
    """Neighbours in one scene."""

    held_out: HeldOutConfig = key(HeldOutConfig)

    masks: Choice = choice(MASK_SOURCES, "mesh", before={"name": "mesh"})
    """A source in pipeline/masks. `mesh` fills the column `masks`, another NAME the column `masks-NAME` beside it."""

    windows: WindowsConfig = key(WindowsConfig)

    features: str = "all"
    """`all`, `context` or `none`: the frozen backbone's tokens of all frames, or of the context frames of `windows` (all that
    teacher.mode=frozen reads)."""

    backbone: BackboneConfig = key(BackboneConfig, presets="backbone")

    source: str = "scannetpp"
    """Kept in every column's provenance, as the licence is."""

    licence: str = "ScanNet++ terms of use, no redistribution"
    """Of the data."""

    actor: ActorConfig = key(ActorConfig)

    ray: RayConfig = key(RayConfig)

    plan_only: bool = False
    """Print what would be made, with bytes and CPU-hours from timed samples; nothing is written."""

    def __post_init__(self) -> None:
        check_above(self, 0, "width", "height", "frames_per_shard")
        check_one_of(self, "features", ("all", "context", "none"))


@dataclass
class PlanWindowsConfig:
    """Another index of windows over the frames of a dataset."""

    dataset: str = REQUIRED
    """URL of a dataset with a `frames` table."""

    name: str = REQUIRED
    """Of the windows table."""

    windows: WindowsConfig = key(WindowsConfig)


@dataclass
class OperatorsConfig:
    """The splat into a target view as a sparse matrix over tokens: kilobytes instead of megabytes, no splat in training."""

    targets: str = "all"
    """`none`, `all` or a number: for how many of a window's targets, spread evenly over it."""

    column: str = "operators"
    """That they go into."""

    values: str = "f16"
    """`f16`, or `u8` (60 % of the bytes, ten times the rounding)."""

    patch: int = key(14, before=14)
    """Pixels of a token's side, of the backbone that trains from them."""

    splat: SplatConfig = key(SplatConfig)

    def __post_init__(self) -> None:
        if self.targets not in ("none", "all") and not (self.targets.isdecimal() and int(self.targets) > 0):
            raise ConfigError(f"targets={self.targets}: choose none, all, or a number above 0")
        check_one_of(self, "values", ("f16", "u8"))
        check_above(self, 0, "patch")


@dataclass
class CacheGaussiansConfig:
    """The columns of a windows table."""

    dataset: str = REQUIRED
    """URL of a dataset with the tables `frames`, `masks` and `windows`."""

    windows: str = "windows"
    """The windows table."""

    masks: str = "masks"
    """The column of masks that the operators lift and blend by."""

    column: str = "gaussians"
    """Of the result; another reconstructor goes into another column beside it."""

    keep_gaussians: bool = True
    """False: the operators are built straight from the reconstructor, and are all that is kept."""

    operators: OperatorsConfig = key(OperatorsConfig)

    reconstructor: Choice = choice(RECONSTRUCTORS, "depth")
    """What makes the Gaussians: a file in pipeline/reconstruct."""

    actor: ActorConfig = key(ActorConfig)

    ray: RayConfig = key(RayConfig)

    plan_only: bool = False
    """Print what would be made, with bytes and CPU-hours from timed samples; nothing is written."""

    def __post_init__(self) -> None:
        if self.operators.targets == "none" and not self.keep_gaussians:
            raise ConfigError("keep_gaussians=false with operators.targets=none leaves nothing to build; set operators.targets=all")


@dataclass
class WithdrawConfig:
    """Takes a scene out of a dataset."""

    dataset: str = REQUIRED
    """URL of the dataset."""

    scene: str = REQUIRED
    """Id of the scene that must go."""

    dry_run: bool = False
    """Say what would go; nothing is changed."""
