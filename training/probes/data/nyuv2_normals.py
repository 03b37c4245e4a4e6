"""Surface normals of NYU Depth v2: GeoNet's frames for training, the 654 official test images with Ladicky's normals.

`train/`: GeoNet's `.mat` files, one a frame, with `img`, `depth` and `norm`. `test/`: what
`python -m training.probes.data.prepare.normals PICKLE ROOT/test` makes of the pickle in which the test set is passed on; the pickle itself
is not read here, since reading a pickle runs what is in it. Axes are as published, in both splits the same: nobody says which they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.fields import REQUIRED
from storage import location
from storage.location import StorageError
from training.probes.data import files, matlab
from training.probes.data.base import ProbeFrame
from training.probes.data.frames import INDOOR_SIZE, ListedData, Listing

DEPTH_RANGE = (0.001, 10.0)
ARRAYS = {"images": "u1", "depths": "f4", "snorms": "f4"}  # of the test folder, with their types
INDEX = "test.json"
DROPPED = (21181, 6919)  # of GeoNet's frames in alphabetical order, from 0: Probe3D leaves these two out of its split
MEAN = np.array([122.175, 116.169, 103.508])
_MAT_REMEDY = "GeoNet's frames have img, depth and norm"
CONVERT = "python -m training.probes.data.prepare.normals PICKLE ROOT/test"


@dataclass
class Config:
    """The keys of this data."""

    root: str = REQUIRED
    """The folder that holds `train` (GeoNet's .mat files) and `test` (the converted test set)."""


@dataclass(frozen=True)
class _Entry:
    """urls: of a .mat file, or of the arrays of the test set. index: in these arrays; None for a .mat file."""

    key: str
    group: str
    urls: tuple[str, ...]
    index: int | None = None


def make(config: Config) -> ListedData:
    reader = _Reader(config.root)
    return ListedData("nyuv2_normals", config, reader.listing, reader.frame, frozenset({"normals"}), depth_range=DEPTH_RANGE)


class _Reader:
    def __init__(self, root: str) -> None:
        self.root = root
        self._test: dict[str, np.ndarray] = {}

    def listing(self) -> Listing:
        folder = location.join(self.root, "train")
        names = sorted(name for name in location.list_sizes(folder) if name.endswith(".mat"))
        if not names:
            raise StorageError(f"{folder}: holds no .mat files; put GeoNet's frames of NYU there")
        if len(names) > max(DROPPED):  # positions mean something in the whole release only
            names = [name for position, name in enumerate(names) if position not in DROPPED]
        train = [_Entry(name.removesuffix(".mat"), _room(name), (location.join(folder, name),)) for name in names]
        index = self._index()
        arrays = tuple(self._array_url(name) for name in ARRAYS)
        test = [_Entry(f"{n:04d}", index["scene_types"][n], arrays, n) for n in index["test_indices"]]
        return Listing(train, test, annotations=(location.join(self.root, "test", INDEX),))

    def _index(self) -> Mapping[str, Any]:
        url, remedy = location.join(self.root, "test", INDEX), f"convert the pickle of the test set: {CONVERT}"
        index = files.read_json(url, remedy)
        count = len(self._arrays()["images"])
        try:
            right = len(index["scene_types"]) == count and all(0 <= int(n) < count for n in index["test_indices"])
        except (TypeError, KeyError, ValueError):
            right = False
        if not right:
            raise StorageError(f"{url}: does not fit the arrays beside it; {remedy}")
        return index

    def _array_url(self, name: str) -> str:
        return location.join(self.root, "test", f"{name}.npy")

    def _arrays(self) -> Mapping[str, np.ndarray]:
        """The arrays of the test set, memory-mapped."""
        if not self._test:
            opened: dict[str, np.ndarray] = {}
            for name, kind in ARRAYS.items():
                path = files.local_file(self._array_url(name), f"convert the pickle of the test set: {CONVERT}")
                try:
                    opened[name] = np.load(path, mmap_mode="r", allow_pickle=False)
                except ValueError as error:
                    raise StorageError(f"{path}: no plain array ({error}); convert the pickle again") from error
                shape, array = INDOOR_SIZE if name == "depths" else (3, *INDOOR_SIZE), opened[name]
                if array.dtype != np.dtype(kind) or array.shape[1:] != shape:
                    raise StorageError(f"{path}: {array.dtype} {array.shape}, not N times {kind} {shape}; convert the pickle again")
            self._test = opened
        return self._test

    def frame(self, entry: _Entry) -> ProbeFrame:
        if entry.index is None:
            return _geonet(entry)
        url = f"{location.join(self.root, 'test')}, image {entry.key}"
        image, depth, normals = (np.array(self._arrays()[name][entry.index]) for name in ("images", "depths", "snorms"))
        return _checked(entry, url, image.transpose(1, 2, 0), depth, normals.transpose(1, 2, 0))


def _geonet(entry: _Entry) -> ProbeFrame:
    url = entry.urls[0]
    arrays = matlab.read_level5(url, ("img", "depth", "norm"), _MAT_REMEDY)
    height, width = INDOOR_SIZE
    for name, channels in (("img", (3,)), ("depth", ()), ("norm", (3,))):
        shape = arrays[name].shape
        if len(shape) != 2 + len(channels) or shape[0] < height or shape[1] < width or shape[2:] != channels:
            raise StorageError(f"{url}: {name} has shape {shape}, not at least 480x640; {_MAT_REMEDY}")
    # Stored less the mean, twice.
    image = (arrays["img"][:height, :width] + 2 * MEAN).astype(np.uint8)
    return _checked(entry, url, image, arrays["depth"][:height, :width], arrays["norm"][:height, :width])


def _checked(entry: _Entry, url: str, image: np.ndarray, depth: np.ndarray, normals: np.ndarray) -> ProbeFrame:
    depth, normals = depth.astype(np.float32), normals.astype(np.float64)
    depth[~np.isfinite(depth)] = 0
    files.check_depth(url, depth, DEPTH_RANGE)
    depth[depth > DEPTH_RANGE[1]] = 0
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    known = np.isfinite(length) & (length > 0)
    if known.any() and abs(float(np.median(length[known])) - 1) > 0.1:
        raise StorageError(f"{url}: normals of length {np.median(length[known]):.3g}, not 1; are they stored as colours?")
    unit = np.where(known, normals / np.where(known, length, 1), 0).astype(np.float32)
    return ProbeFrame(entry.key, entry.group, np.ascontiguousarray(image), depth=depth, normals=unit)


def _room(name: str) -> str:
    """The prefix of a file's name, without the number of the frame at its end."""
    stem = name.removesuffix(".mat")
    return re.sub(r"[-_]*\d+$", "", stem) or stem
