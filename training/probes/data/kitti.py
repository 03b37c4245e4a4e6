"""KITTI, depth in streets: uint16 PNG, 256 values a metre, up to 80 m. Every frame is cut to its bottom 352 rows and central 1216 columns.

Two trees are read. FiT3D's keeps the official folders: `input/<path of the image>` and `gt_depth/<path of the depth>`, lists
`kitti_eigen_{train,test}.txt`. Splat and Distill's is flat: `images/<name>` and `depth/<name>`, lists `kitti_{train,val}.txt`, of whose
paths the last part counts. Which images the flat lists held is not published; the list that was used goes with the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.fields import REQUIRED
from training.probes.data import files
from training.probes.data.frames import Decoder, FrameFiles, ListedData, Listing, depth_list

DEPTH_RANGE = (0.001, 80.0)
_DRIVE = r"\d{4}_\d\d_\d\d_drive_\d{4}"
_REMEDY = "the layouts are images/ and depth/ (flat), or input/ and gt_depth/ (official folders)"


@dataclass
class Config:
    """The keys of this data."""

    root: str = REQUIRED
    """The folder that holds `images` and `depth`, or `input` and `gt_depth`."""

    train_list: str | None = None
    """A list of `image depth` lines, below the root or a URL; null: the published name of this layout."""

    test_list: str | None = None
    """The same for the test split."""


def make(config: Config) -> ListedData:
    def listing() -> Listing:
        flat = files.first_present(config.root, ("images", "input"), _REMEDY) == "images"
        folders = ("images", "depth") if flat else ("input", "gt_depth")
        names = ("kitti_train.txt", "kitti_val.txt") if flat else ("kitti_eigen_train.txt", "kitti_eigen_test.txt")

        def split(name: str | None, published: str) -> list[FrameFiles]:
            return depth_list(config.root, files.at(config.root, name or published), *folders, flat=flat, scene=_DRIVE)

        return Listing(split(config.train_list, names[0]), split(config.test_list, names[1]))

    decode = Decoder(depth_range=DEPTH_RANGE, unit=256.0, kitti_crop=True)
    return ListedData("kitti", config, listing, decode, frozenset({"depth"}), depth_range=DEPTH_RANGE, depth_crop="kitti")
