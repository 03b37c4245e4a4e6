"""PASCAL VOC 2012, segmentation into 21 classes with the background: `{JPEGImages,SegmentationClass}`, lists in `ImageSets/Segmentation`.

The train list is the one of 1,464 images, not the augmented one; `val.txt` is the test split. Labels are palette indices; 255 is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.fields import REQUIRED
from training.probes.data import files
from training.probes.data.classes import VOC21
from training.probes.data.frames import Decoder, FrameFiles, ListedData, Listing


@dataclass
class Config:
    """The keys of this data."""

    root: str = REQUIRED
    """The folder `VOC2012`."""


def make(config: Config) -> ListedData:
    def split(name: str) -> list[FrameFiles]:
        url = files.at(config.root, f"ImageSets/Segmentation/{name}.txt")
        found = [
            FrameFiles(
                stem, stem,
                files.inside(config.root, f"JPEGImages/{stem}.jpg", url),
                labels=files.inside(config.root, f"SegmentationClass/{stem}.png", url),
            )
            for stem in files.read_lines(url, "give the folder VOC2012 as root")
        ]  # fmt: skip
        files.check_present((path for frame in found for path in (frame.image, frame.labels or "")), config.root, url)
        return found

    decode = Decoder(classes=len(VOC21), zero_is_ignored=False)
    return ListedData(
        "voc2012", config, lambda: Listing(split("train"), split("val")), decode, frozenset({"segmentation"}), classes=VOC21
    )  # fmt: skip
