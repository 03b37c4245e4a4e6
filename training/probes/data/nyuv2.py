"""NYU Depth v2: depth and segmentation of rooms, 480x640, depth up to 10 m. For surface normals see `nyuv2_normals`.

`part=depth`: the lists used since BTS, `nyu_train.txt` and `nyu_test.txt`, whose lines name an image, a depth PNG in mm and a focal length.
`part=segmentation`: `{nyu_train_rgb,nyuv2_train_class13,nyu_test_rgb,nyuv2_test_class13}`, 13 classes; images and labels of equal names
(rename those of the public archives). `part=labelled`: the official `nyu_depth_v2_labeled.mat` (HDF5) and `splits.mat`, with the depth
of the sensor as it came, 0 where it saw nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from configs.fields import REQUIRED, check_one_of
from storage.location import StorageError
from training.probes.data import files, matlab
from training.probes.data.base import ProbeFrame
from training.probes.data.classes import NYU13
from training.probes.data.frames import INDOOR_SIZE, Decoder, ListedData, Listing, depth_list, label_folders

DEPTH_RANGE = (0.001, 10.0)
LABELLED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
_LABELLED_REMEDY = f"put {LABELLED} and {SPLITS} of NYU's page into root"


@dataclass
class Config:
    """The keys of this data."""

    root: str = REQUIRED
    """The folder of the part: of the two lists, of the four image and label folders, or of the two .mat files."""

    part: str = "depth"
    """`depth`: the published lists; `segmentation`: the folders of 13 classes; `labelled`: depth of the official labelled file."""

    train_list: str = "nyu_train.txt"
    """With part=depth: the list of the train split, below the root or a URL."""

    test_list: str = "nyu_test.txt"
    """The same for the test split."""

    def __post_init__(self) -> None:
        check_one_of(self, "part", ("depth", "segmentation", "labelled"))


@dataclass(frozen=True)
class _Labelled:
    """One frame of the labelled file. index: from 0; urls: of that file."""

    key: str
    index: int
    urls: tuple[str, ...]


def make(config: Config) -> ListedData:
    if config.part == "segmentation":
        decode = Decoder(classes=len(NYU13), size=INDOOR_SIZE)
        return ListedData("nyuv2", config, lambda: _class13(config), decode, frozenset({"segmentation"}), classes=NYU13)
    if config.part == "labelled":
        return ListedData(
            "nyuv2", config, lambda: _labelled(config), lambda entry: _labelled_frame(config, entry), frozenset({"depth"}),
            depth_range=DEPTH_RANGE, depth_crop="indoor",
        )  # fmt: skip
    return ListedData(
        "nyuv2", config, lambda: _lists(config), Decoder(depth_range=DEPTH_RANGE, size=INDOOR_SIZE), frozenset({"depth"}),
        depth_range=DEPTH_RANGE, depth_crop="indoor",
    )  # fmt: skip


def _lists(config: Config) -> Listing:
    train, test = (depth_list(config.root, files.at(config.root, name)) for name in (config.train_list, config.test_list))
    return Listing(train, test)


def _class13(config: Config) -> Listing:
    # Each folder may number its files from 1: a name can stand for two images.
    train, test = (
        [
            replace(frame, key=f"{images}/{frame.key}", group=f"{images}/{frame.group}")
            for frame in label_folders(config.root, images, labels, ".png", photos=True)
        ]
        for images, labels in (("nyu_train_rgb", "nyuv2_train_class13"), ("nyu_test_rgb", "nyuv2_test_class13"))
    )
    return Listing(train, test)


def _labelled(config: Config) -> Listing:
    splits = matlab.read_level5(files.at(config.root, SPLITS), ("trainNdxs", "testNdxs"), _LABELLED_REMEDY)
    with _open(config) as opened:
        count = len(opened["rawDepths"])
    train, test = (splits[name].ravel().astype(int) - 1 for name in ("trainNdxs", "testNdxs"))  # MATLAB counts from 1
    for index in (*train, *test):
        if not 0 <= index < count:
            raise StorageError(f"{files.at(config.root, SPLITS)}: image {index + 1} of {count}; {_LABELLED_REMEDY}")
    entries = [
        [_Labelled(f"{index + 1:04d}", int(index), (files.at(config.root, LABELLED),)) for index in split] for split in (train, test)
    ]
    return Listing(entries[0], entries[1])


def _labelled_frame(config: Config, entry: _Labelled) -> ProbeFrame:
    url = f"{files.at(config.root, LABELLED)}, image {entry.key}"
    with _open(config) as opened:
        try:
            # MATLAB writes the first axis last: [N,3,W,H] and [N,W,H]. A scene's name is a cell: a reference to an array of letters.
            sizes = tuple(opened[name].shape[:0:-1] for name in ("images", "rawDepths"))
            if sizes != ((*INDOOR_SIZE, 3), INDOOR_SIZE):
                raise ValueError(f"images of {sizes[0]} with depth of {sizes[1]}, not 480x640")
            image = np.ascontiguousarray(opened["images"][entry.index].transpose(2, 1, 0))
            depth = np.ascontiguousarray(opened["rawDepths"][entry.index].T.astype(np.float32))
            scene = matlab.read_text(opened, "scenes", (0, entry.index), _LABELLED_REMEDY)
        except StorageError:
            raise
        except (OSError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise StorageError(f"{url}: not laid out as NYU's file ({type(error).__name__}: {error}); {_LABELLED_REMEDY}") from error
    if image.dtype != np.uint8:
        raise StorageError(f"{url}: pixels are {image.dtype}, not uint8; {_LABELLED_REMEDY}")
    files.check_depth(url, depth, DEPTH_RANGE)
    return ProbeFrame(entry.key, scene, image, depth=depth)


def _open(config: Config) -> Any:
    path = files.local_file(files.at(config.root, LABELLED), _LABELLED_REMEDY)
    return matlab.open_hdf5(path, ("images", "rawDepths", "scenes"), "part=labelled")
