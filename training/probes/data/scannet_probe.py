"""ScanNet as prepared for probes: 480x640, depth in mm up to 10 m, the 40 classes of NYU.

Depth: lists `train_index.txt` and `test_index.txt` (FiT3D: `scannet_train.txt`, `scannet_val.txt`). Segmentation:
`{train,test}/{color,label}` (FiT3D: `{images,annotations}/{training,validation}`). The colour images of ScanNet, 968x1296, must have been
resized to their depth.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.probes.data.classes import NYU40
from training.probes.data.frames import INDOOR_SIZE, ListedData
from training.probes.data.prepared import Prepared, PreparedConfig

_PREPARED = Prepared(
    name="scannet_probe",
    lists=(("train_index.txt", "scannet_train.txt"), ("test_index.txt", "scannet_val.txt")),
    folders=(
        ("{}/color", "{}/label", ("train", "test")),
        ("images/{}", "annotations/{}", ("training", "validation")),
    ),
    suffix=".jpg",
    scene=r"scene\d{4}_\d\d",
    classes=NYU40,
    depth_range=(0.001, 10.0),
    depth_crop="indoor",
    size=INDOOR_SIZE,
)


@dataclass
class Config(PreparedConfig):
    """The keys of this data."""


def make(config: Config) -> ListedData:
    return _PREPARED.make(config)
