"""The keys of the commands that look at a dataset or a run, or clean up."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from configs.fields import REQUIRED, key


@dataclass
class DescribeConfig:
    """What a dataset holds."""

    dataset: str = REQUIRED
    """URL of the dataset."""


@dataclass
class VerifyConfig:
    """Whether a dataset is sound."""

    dataset: str = REQUIRED
    """URL of the dataset."""

    decode: bool = True
    """Decode every member, beside re-hashing every file."""

    set_aside: bool = False
    """Move what is broken to DATASET/set-aside, so that the next build makes exactly that anew."""


class Deletion(Enum):
    """What a deletion takes away."""

    retired = "retired"
    column = "column"
    dataset = "dataset"


@dataclass
class DeleteConfig:
    """Takes away what a dataset no longer needs."""

    dataset: str = REQUIRED
    """URL of the dataset."""

    what: Deletion = REQUIRED
    """`retired`: shards and indexes that no current index names, and leftovers."""

    column: str | None = None
    """The column, where what=column."""

    dry_run: bool = True
    """False: really delete."""


@dataclass
class InspectConfig:
    """Pictures of rows."""

    dataset: str = REQUIRED
    """URL of the dataset."""

    windows: str = "windows"
    """The windows table."""

    masks: str = "masks"
    """The column of masks."""

    gaussians: str = "gaussians"
    """The column of Gaussians."""

    output: str = REQUIRED
    """URL of the folder for the pictures."""

    rows: int = 6
    """So many, spread over the dataset."""


@dataclass
class InspectGaussiansConfig:
    """One window's Gaussians beside its real frames."""

    dataset: str = REQUIRED
    """URL of the dataset."""

    windows: str = "windows"
    """The windows table."""

    masks: str = "masks"
    """The column of masks."""

    gaussians: str = "gaussians"
    """The column of Gaussians."""

    key: str = REQUIRED
    """The window: scene and stem of its first context frame, like 5fb5d2dbf2-DSC00012."""

    output: str = REQUIRED
    """URL of the folder for KEY.png and KEY.ply."""

    view: bool = False
    """Open the Gaussians in a browser, served on 127.0.0.1 until Ctrl-C (extra `viewer`)."""


class Network(Enum):
    """One of the two networks of a run."""

    teacher = "teacher"
    student = "student"


@dataclass
class ExportConfig:
    """A run's checkpoint as weights that timm loads."""

    run: str = REQUIRED
    """URL of a run of training/train.py."""

    output: str = REQUIRED
    """URL of the folder for the weights."""

    step: int | None = None
    """Of the checkpoint; null: the last."""

    network: Network = Network.teacher
    """Which of the two."""

    weights: str | None = key(None, before=None)
    """URL of the weights that the run started from, where they lie elsewhere by now; their hash must be the same."""
