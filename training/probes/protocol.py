"""Every choice of a protocol, and the protocols by name: whoever compares two numbers compares two of these first.

    PROTOCOLS["snd"].depth.head.bins

Sources: SnD at 4a31521, FiT3D at 43a48e7, Probe3D before and from ac00369 and fbe0cd2 (2025-11: the depth gradient acts on rows and
columns, and heads interpolate with corners aligned). `clean` is SnD's setting without what is known to be wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # (123.675, 116.28, 103.53) and (58.395, 57.12, 57.375) of 255
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Inputs:
    """How an image becomes tokens."""

    final_norm: bool = False
    """The network's last layer norm is applied to the tokens."""
    with_base: bool = False
    """Tokens of the untouched network stand before those of the model, on channels; of class tokens there is the untouched one alone."""
    layers: int = 1
    """The last so many of: one; or four, evenly spaced, on channels."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = IMAGENET
    """Mean and standard deviation of colours in [0,1]; None for those of the backbone."""
    padding: str = "centre"
    """`centre`, `probe3d` (a whole patch more on a side that divides, where the other does not) or `crop`, to whole patches."""
    stretch: bool = True
    """The map of the padded image is taken for that of the image; else the border is cut off."""


@dataclass(frozen=True)
class Head:
    """What is trained on tokens."""

    kind: str = "linear"
    """`linear` or `dpt`."""
    class_token: bool = False
    """Every token has the class token beside it, on channels."""
    upsample: int = 4
    """Of the map, bilinearly, before the classifier."""
    align_corners: bool = False
    """Of interpolation inside the head."""
    batch_norm: bool = False
    """Before the classifier, whose weights then start at N(0, 0.01)."""
    width: int = 512
    """Of a DPT head."""
    bins: int = 256
    """Of depth."""
    nearest: bool = False
    """A DPT head enlarges by nearest neighbour."""


@dataclass(frozen=True)
class Optimisation:
    """AdamW and its course. Steps are `steps`, or those of `epochs`."""

    lr: float
    weight_decay: float
    batch: int
    schedule: str
    """`cosine` (depth), `poly` (segmentation) or `quarter_cosine` (Probe3D), see `schedules`."""
    steps: int | None = None
    epochs: int | None = None
    clip: float | None = None
    """Largest norm of the gradient."""
    validation: float = 0.0
    """Share of training groups that choose the best state; 0: there is the last state alone."""


@dataclass(frozen=True)
class DepthProtocol:
    inputs: Inputs
    head: Head
    optimisation: Optimisation
    siglog_weight: float = 1.0
    bessel: bool = True
    """The loss's variance has Bessel's correction."""
    gradient_weight: float = 0.5
    gradient: str = "published"
    """`published` (along batch and channel: zero for two images), `spatial` or `off`."""
    warm_up: int = 100
    """Steps without the variance in the loss."""
    crop: tuple[int, int] | None = (416, 544)
    """Of training images."""
    flip: bool = True
    """Test time: the mean with the mirrored image's prediction."""
    metric: str = "usual"
    """`usual` or `probe3d`."""


@dataclass(frozen=True)
class NormalsProtocol:
    inputs: Inputs
    head: Head
    optimisation: Optimisation
    uncertainty: bool = True
    crop: tuple[int, int] | None = (480, 480)
    """In the middle of the image, in training and test."""
    bicubic: bool = True
    """From the head to the image, with corners aligned; else bilinear, corners not aligned."""
    empty_scores_zero: bool = True
    """An image without a valid pixel; else it counts for nothing."""
    farthest: float = 10.0
    """Metres: normals beyond are not judged."""


@dataclass(frozen=True)
class SegmentationProtocol:
    inputs: Inputs
    head: Head
    optimisation: Optimisation
    over_all: bool = True
    """Cross-entropy over the number of all pixels, ignored ones too."""
    crop: int = 512
    scale: tuple[int, int] = (2048, 512)
    """The longer and the shorter side that images are fitted into, keeping their ratio."""
    window: int = 512
    stride: int = 341
    """Test time, in pixels of the fitted image."""


@dataclass(frozen=True)
class CorrespondenceProtocol:
    inputs: Inputs
    size: tuple[int, int] | None = (480, 640)
    """Images are resized to it; None leaves them."""
    step: int = 4
    """Pixels between points."""
    matches: int = 1000
    unit: float = 0.25
    """Thresholds are in pixels of an image smaller by this factor; 1 for those of the image itself."""
    thresholds: tuple[float, ...] = (5.0, 10.0, 20.0)
    headline: float = 10.0
    """The threshold by rotation bin."""


@dataclass(frozen=True)
class Protocol:
    """One protocol; a task that its source does not have is None."""

    name: str
    commit: str
    depth: DepthProtocol | None = None
    normals: NormalsProtocol | None = None
    segmentation: SegmentationProtocol | None = None
    correspondence: CorrespondenceProtocol | None = None


_DEPTH = DepthProtocol(
    Inputs(),
    Head(class_token=True),
    Optimisation(lr=1e-4, weight_decay=0.01, batch=2, schedule="cosine", steps=307_200, clip=35.0),
)
_SEGMENTATION = SegmentationProtocol(
    Inputs(final_norm=True),
    Head(upsample=1),
    Optimisation(lr=1e-3, weight_decay=1e-4, batch=2, schedule="poly", steps=320_000),
)
_PROBE3D_INPUTS = Inputs(padding="probe3d")
_PROBE3D_OPTIMISATION = Optimisation(lr=5e-4, weight_decay=0.01, batch=8, schedule="quarter_cosine", epochs=10)
_NORMALS = NormalsProtocol(_PROBE3D_INPUTS, Head(), _PROBE3D_OPTIMISATION)
_CORRESPONDENCE = CorrespondenceProtocol(replace(_PROBE3D_INPUTS, normalisation=HALF))

_SND = Protocol("snd", "davidshavin4/Splat-and-Distill@4a31521", _DEPTH, _NORMALS, _SEGMENTATION, _CORRESPONDENCE)


def _fit3d() -> Protocol:
    """Batches are those of 8 GPUs, and so are the steps: the same number of images."""
    depth = replace(
        _DEPTH, inputs=replace(_DEPTH.inputs, with_base=True), optimisation=replace(_DEPTH.optimisation, batch=16, steps=38_400)
    )
    segmentation = replace(
        _SEGMENTATION,
        inputs=replace(_SEGMENTATION.inputs, with_base=True),
        head=replace(_SEGMENTATION.head, batch_norm=True),
        optimisation=replace(_SEGMENTATION.optimisation, batch=16, steps=40_000),
    )
    return Protocol("fit3d", "ywyue/FiT3D@43a48e7", depth, segmentation=segmentation)


def _probe3d(name: str, commit: str, mended: bool) -> Protocol:
    """Its depth task is only known by its losses and metric; it has the training of its normals here."""
    head = Head(kind="dpt", class_token=True, align_corners=mended, nearest=not mended)
    inputs = replace(_PROBE3D_INPUTS, layers=4)
    depth = DepthProtocol(
        inputs,
        head,
        _PROBE3D_OPTIMISATION,
        siglog_weight=10.0,
        bessel=False,
        gradient="spatial" if mended else "published",
        warm_up=0,
        crop=None,
        flip=False,
        metric="probe3d",
    )
    return Protocol(name, commit, depth, replace(_NORMALS, inputs=inputs, head=head), correspondence=_CORRESPONDENCE)


def _without_border(inputs: Inputs) -> Inputs:
    return replace(inputs, padding="centre", stretch=False)


def _clean() -> Protocol:
    """Whole patches without a border, losses over what is valid, the last state beside the best on training groups that were held out."""
    depth = replace(
        _DEPTH,
        inputs=_without_border(_DEPTH.inputs),
        gradient="spatial",
        optimisation=replace(_DEPTH.optimisation, validation=0.1),
    )
    normals = replace(
        _NORMALS,
        inputs=_without_border(_NORMALS.inputs),
        bicubic=False,
        empty_scores_zero=False,
        crop=None,
        optimisation=replace(_NORMALS.optimisation, validation=0.1),
    )
    segmentation = replace(
        _SEGMENTATION,
        inputs=_without_border(_SEGMENTATION.inputs),
        over_all=False,
        optimisation=replace(_SEGMENTATION.optimisation, validation=0.1),
    )
    correspondence = CorrespondenceProtocol(
        Inputs(normalisation=None, stretch=False), size=None, unit=1.0, thresholds=(20.0, 40.0, 80.0), headline=40.0
    )
    return Protocol("clean", "", depth, normals, segmentation, correspondence)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        _SND,
        _fit3d(),
        _probe3d("probe3d@2024", "mbanani/probe3d before ac00369", mended=False),
        _probe3d("probe3d@2025-11", "mbanani/probe3d@fbe0cd2", mended=True),
        _clean(),
    )
}
