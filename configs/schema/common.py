"""Keys that several commands share."""

from __future__ import annotations

from dataclasses import dataclass

from configs.errors import ConfigError
from configs.fields import check_above, check_one_of, key


@dataclass
class RayConfig:
    """The cluster that a command works on."""

    address: str | None = None
    """Of the cluster; null: that of RAY_ADDRESS or of the submitted job, else a local one on the loopback."""

    workers: int = 0
    """Actors or tasks at a time; 0: one a CPU."""


@dataclass
class ActorConfig:
    """What each actor that runs a network reserves."""

    cpus: float = 1
    """CPUs, which are also its threads."""

    gpus: float = 1
    """GPUs, where the cluster has any; 0.5: two actors share one."""


@dataclass
class BackboneConfig:
    """The vision transformer that is frozen, and distilled into."""

    architecture: str = "vit_small_patch14_dinov2"
    """A timm name."""

    weights: str = "pretrained"
    """`pretrained`: timm's hub checkpoint; `random`: a substitute; or the URL of a state dict (.pth, .safetensors)."""

    seed: int = 0
    """Of `random` weights."""

    blocks: int | None = key(None, before=None)
    """The first so many blocks alone; null: all. The last blocks of some weights are worse teachers."""


@dataclass
class WindowsConfig:
    """Which frames make a window: its context, and its candidate targets between."""

    rule: str = "gap"
    """`gap`: the context's ends stand `gap` file numbers apart; `baseline`: the end is the first frame `min_baseline` away."""

    gap: int = 8
    """File numbers from the context's first frame to its last, as the paper samples them (`baseline`: at most so many)."""

    stride: int = 4
    """File numbers from one window's start to the next."""

    views: int = 2
    """Context frames: both ends, further ones evenly between."""

    min_baseline: float = 0.03
    """Metres between the ends, at least."""

    max_baseline: float = 0.6
    """Metres between the ends, at most."""

    max_rotation: float = 25.0
    """Degrees between the ends, at most."""

    held_out: bool = False
    """True: windows over the held-out frames instead of the others."""

    def __post_init__(self) -> None:
        check_one_of(self, "rule", ("gap", "baseline"))
        check_above(self, 0, "gap", "stride")
        if self.views < 2:
            raise ConfigError(f"views={self.views}: a context has at least 2 views")


@dataclass
class SplatConfig:
    """How the context's tokens come to the Gaussians, and how these are drawn."""

    upsample_grid: str = key("half_pixel", before="align_corners")
    """Where tokens sit in their image: `half_pixel`, in the middle of their patches; `align_corners`, the outermost on the outermost
    pixels, as published."""

    no_neighbour: str = key("nearest_same_label", before="zero")
    """What a pixel gets that has none of its label's tokens beside it: the nearest of that label (`nearest_same_label`), what its
    neighbours give whatever their label (`plain_bilinear`), or nothing (`zero`, as published)."""

    mask_aware: bool = key(True, before=True)
    """A pixel gets tokens of its own label alone; false: of all beside it."""

    footprint: str = key("covariance", before="covariance")
    """`covariance`; `published`: variances taken for standard deviations, which makes dots of the Gaussians."""

    def __post_init__(self) -> None:
        check_one_of(self, "upsample_grid", ("half_pixel", "align_corners"))
        check_one_of(self, "no_neighbour", ("nearest_same_label", "plain_bilinear", "zero"))
        check_one_of(self, "footprint", ("covariance", "published"))
