"""ADE20K, segmentation into 150 classes: `ADEChallengeData2016/{images,annotations}/{training,validation}`, each image a scene of its own.

Source: the scene-parsing challenge of 2016. Raw label 0 is "other" and ignored, as 255 is.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.fields import REQUIRED
from training.probes.data.classes import ADE150
from training.probes.data.frames import Decoder, ListedData, Listing, label_folders


@dataclass
class Config:
    """The keys of this data."""

    root: str = REQUIRED
    """The folder `ADEChallengeData2016`."""


def make(config: Config) -> ListedData:
    def listing() -> Listing:
        train, test = (
            label_folders(config.root, f"images/{split}", f"annotations/{split}", ".jpg", photos=True)
            for split in ("training", "validation")
        )
        return Listing(train, test)

    return ListedData("ade20k", config, listing, Decoder(classes=len(ADE150)), frozenset({"segmentation"}), classes=ADE150)
