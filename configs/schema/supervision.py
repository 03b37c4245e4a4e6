"""The keys of `supervision` of training/train.py: what the student is to match."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from configs.errors import ConfigError
from configs.fields import check_one_of, check_share, key
from configs.schema.common import SplatConfig


class SupervisionMode(Enum):
    """Where the splat comes from."""

    operators = "operators"
    on_the_fly = "on_the_fly"
    live = "live"


class TargetFrames(Enum):
    """Which of a window's frames may be its target."""

    all = "all"
    between = "between"
    context = "context"


class Control(Enum):
    """Supervision from which no geometry can be learnt."""

    none = "none"
    no_geometry = "no_geometry"
    shuffle = "shuffle"


@dataclass
class SupervisionConfig:
    """What the student is to match."""

    mode: SupervisionMode = SupervisionMode.operators
    """`operators`: read from their column; `on_the_fly`: built from the Gaussians, by the loader or, where there is one, on the GPU;
    `live`: all channels splatted."""

    masks: str = "masks"
    """The column of `on_the_fly` and `live`, whose labels the lift and the blend go by."""

    gaussians: str = "gaussians"
    """The column of `on_the_fly` and `live`."""

    operators: str = "operators"
    """The column of operators."""

    blend: float = 0.5
    """Weight of the splatted feature against its mask's mean; 1: without blending."""

    splat: SplatConfig = key(SplatConfig)

    keep_by: str = key("coverage", before="alpha")
    """What `min_coverage` is compared with: `coverage`, the weight of the tokens that were carried there; `alpha`, accumulated, of which a
    part may carry nothing; `published`, of `live` alone: a token is kept unless alpha is 0 at its patch's top-left pixel."""

    min_coverage: float = 0.5
    """A token with less is a hole."""

    holes: str = key("exclude", before="exclude")
    """`exclude`: the loss is the mean over the other tokens; `zero`, as published: both sides are 0 there, and they count."""

    normalise: bool = key(False, before=False)
    """Divide each token by what tokens of ones would give there, so that none shrinks where the splat is thin."""

    downsample: str = key("bilinear", before="bilinear")
    """From the splat's pixels to tokens: `bilinear`, the four in the middle of a patch, as published; `area`, of `live` alone: all."""

    blend_unlabelled: bool = key(True, before=True)
    """Label 0 is blended as if it were an object, as published; false, of `live` alone: it is not blended."""

    targets: TargetFrames = TargetFrames.all
    """Which of a window's frames may be the target: `all`, `between`, none of the context, or `context` (2 of 9), those alone."""

    direct: bool = key(False, before=False)
    """The other way round: the student sees the context, and its own tokens, splatted into the target view, are held to the teacher's
    tokens of that view. What the paper seems to mean by direct feature rendering."""

    control: Control = Control.none
    """What a training is compared with. `no_geometry`: every supervised token's target is the teacher's own token there, of the image that
    the student sees; `shuffle`: the splatted tokens, permuted over the image."""

    def __post_init__(self) -> None:
        check_share(self, "blend", "min_coverage")
        check_one_of(self, "keep_by", ("coverage", "alpha", "published"))
        check_one_of(self, "holes", ("exclude", "zero"))
        check_one_of(self, "downsample", ("bilinear", "area"))
        if self.mode is not SupervisionMode.live:
            for name, value in (("keep_by", "published"), ("downsample", "area"), ("blend_unlabelled", False)):
                if getattr(self, name) == value:
                    raise ConfigError(f"{name}={value}: an operator does not hold what it takes; set supervision.mode=live")
        if self.direct and (self.mode is SupervisionMode.live or self.control is not Control.none):
            raise ConfigError("direct=true: takes neither mode=live, through which no gradient goes, nor a control; leave one of them out")
        if self.control is Control.no_geometry and self.blend < 1:
            raise ConfigError(f"blend={self.blend}: control=no_geometry has no splatted token to blend; set blend to 1")
