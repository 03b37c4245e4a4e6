"""ScanNet++ as prepared for probes: images of 584x876, depth rendered from the mesh in mm up to 20 m, its 100 most frequent classes.

Depth: lists `scannetpp_train.txt` and `scannetpp_val.txt`. Segmentation: `{images,annotations}/{training,validation}`, `.JPG` and `.png`.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.probes.data.classes import SCANNETPP100
from training.probes.data.frames import ListedData
from training.probes.data.prepared import Prepared, PreparedConfig

_PREPARED = Prepared(
    name="scannetpp_probe",
    lists=(("scannetpp_train.txt",), ("scannetpp_val.txt",)),
    folders=(("images/{}", "annotations/{}", ("training", "validation")),),
    suffix=".jpg",
    scene=r"[0-9a-f]{10}",
    classes=SCANNETPP100,
    depth_range=(0.001, 20.0),
)


@dataclass
class Config(PreparedConfig):
    """The keys of this data."""


def make(config: Config) -> ListedData:
    return _PREPARED.make(config)
