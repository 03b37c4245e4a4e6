"""The keys of training/evaluate.py and training/compare.py."""

from __future__ import annotations

from dataclasses import dataclass

from configs.errors import ConfigError
from configs.fields import REQUIRED, Choice, check_above, check_one_of, check_share, choice, key
from configs.registry import Registry
from configs.schema.common import BackboneConfig
from configs.schema.tools import Network

PROBE_DATA = Registry(
    "data",
    "training.probes.data",
    "splat_and_distill.probe_data",
    shared=("base", "classes", "files", "frames", "matlab", "prepare", "prepared"),
)
PROBE_PROTOCOLS = ("snd", "fit3d", "probe3d@2024", "probe3d@2025-11", "clean")
PROBE_TASKS = ("depth", "normals", "segmentation", "correspondence")


@dataclass
class FeaturesConfig:
    """Which tokens of a network are judged."""

    layer: int | None = None
    """Number of the block whose output is taken, from 0; null: the last that the network has."""

    norm: bool = True
    """After the network's final norm."""

    class_token: bool = False
    """The class token beside every patch token, as one longer feature."""

    concatenate: bool = False
    """The tokens of the network that the model started from beside its own, as FiT3D is judged."""

    padding: str = "centre"
    """Sides that are no multiple of the patch: `centre` pads with zeros to the next, half on each side; `crop` cuts to the one before;
    `probe3d` pads as Probe3D does. Tiers with trained heads go by their protocol."""

    def __post_init__(self) -> None:
        check_one_of(self, "padding", ("centre", "crop", "probe3d"))


@dataclass
class SupervisedTokensConfig:
    """The supervision itself, judged as if it were the features of the frames that it is splatted into."""

    operators: str | None = None
    """The column of operators, in each dataset of `data`, that carry the network's tokens of context frames into a frame; null: judge the
    network's own tokens."""

    windows: str = "windows"
    """The windows table."""

    blend: float = 0.5
    """Weight of the splatted feature against its mask's mean; 1: without blending."""

    keep_by: str = "coverage"
    """What `min_coverage` is compared with: `coverage` or `alpha`, as in training."""

    min_coverage: float = 0.5
    """A token with less is left out of fitting and judging."""

    def __post_init__(self) -> None:
        check_share(self, "blend", "min_coverage")
        check_one_of(self, "keep_by", ("coverage", "alpha"))


@dataclass
class EvaluateConfig:
    """How much a frozen network's features know of depth, normals, classes and of the same point in another view."""

    data: Choice = choice(PROBE_DATA, "dataset")
    """What the probes are fitted and judged on: a file in training/probes/data."""

    output: str = REQUIRED
    """URL of the folder for NAME.json, its pictures and the baselines, which are kept for the next model."""

    name: str = REQUIRED
    """Of the result's files."""

    label: str | None = None
    """The row that the result belongs to: several seeds of one training share it; null: the name."""

    backbone: BackboneConfig = key(BackboneConfig, presets="backbone")

    export: str | None = None
    """URL of weights that training/export.py wrote; the note beside them says the architecture."""

    run: str | None = None
    """URL of a run of training/train.py: one of its checkpoints is judged."""

    network: Network = Network.student
    """Which of the run's two."""

    step: int | None = None
    """Of the run's checkpoint; null: the last."""

    base: str | None = None
    """URL of the weights that the run or the export started from, where they lie elsewhere by now."""

    features: FeaturesConfig = key(FeaturesConfig)

    supervision: SupervisedTokensConfig = key(SupervisedTokensConfig)

    tasks: list[str] = key(["depth", "normals", "segmentation", "correspondence"])
    """Of these, those that the data can judge."""

    protocol: str = "clean"
    """How heads are made and judged: snd, fit3d, probe3d@2024, probe3d@2025-11 or clean; tier `closed` has a way of its own, `clean`."""

    tier: str = "closed"
    """`closed`: heads in closed or convex form on the tokens, seconds, the same numbers every time; `cached`: trained on stored tokens,
    minutes; `reference`: the protocol's own course, with augmentations, for a GPU."""

    seed: int = 0
    """Of heads that are trained."""

    steps: int | None = None
    """Of tier `reference`, instead of the protocol's."""

    ridge: float | None = None
    """Strength of the ridge, as a share of the features' mean variance; null: chosen by leaving out one training room after the other."""

    baselines: bool = True
    """Judge the baselines too, and print them beside."""

    pictures: int = 4
    """Test frames, and pairs, to draw; 0: none."""

    device: str = "auto"
    """`auto`: cuda where there is one, else cpu; `cpu`; `cuda`. The heads of tier `closed` are always fitted on the CPU."""

    def __post_init__(self) -> None:
        check_one_of(self, "tier", ("closed", "cached", "reference"))
        check_one_of(self, "protocol", PROBE_PROTOCOLS)
        if self.tier == "closed" and self.protocol != "clean":
            raise ConfigError(f"protocol={self.protocol}: its heads are trained; give tier=cached or tier=reference")
        if self.tier != "closed" and self.supervision.operators is not None:
            raise ConfigError(f"supervision.operators: judged in tier=closed alone, not in tier={self.tier}")
        if self.steps is not None and self.tier != "reference":
            raise ConfigError(f"steps={self.steps}: of tier=reference alone")
        check_one_of(self, "device", ("auto", "cpu", "cuda"))
        check_above(self, -1, "pictures")
        if self.ridge is not None:
            check_above(self, 0, "ridge")
            if self.tier != "closed":
                raise ConfigError(f"ridge={self.ridge}: of tier=closed alone")
        if self.tier != "closed" and (self.features.class_token or not self.features.norm):
            raise ConfigError(f"features.class_token, features.norm: of tier=closed alone; in tier={self.tier} the protocol says them")
        if self.run is None and (self.step is not None or self.network is not Network.student):
            raise ConfigError("network, step: of a run; give run=URL")
        if self.base is not None and self.run is None and self.export is None:
            raise ConfigError("base: of a run or an export; give run=URL or export=URL")
        for task in self.tasks:
            if task not in PROBE_TASKS:
                raise ConfigError(f"tasks: no task {task!r}; choose of {', '.join(PROBE_TASKS)}")
        if self.run is not None and self.export is not None:
            raise ConfigError("run and export: give one of them")


@dataclass
class CompareConfig:
    """Differences between results, with intervals over rooms and seeds."""

    results: list[str] = REQUIRED
    """URLs of NAME.json of training/evaluate.py; the first, and those that share its label, is what the others are compared with."""

    output: str | None = None
    """URL of a folder for comparison.json and pictures; null: print alone."""

    samples: int = 10000
    """Of the bootstrap."""

    confidence: float = 0.95
    """Of the intervals."""

    def __post_init__(self) -> None:
        check_above(self, 0, "samples")
        check_share(self, "confidence")
