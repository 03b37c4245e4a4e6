"""NAVI v1, objects photographed in many places ("wild" sets), with depth and cameras: zero-shot correspondence.

`OBJECT/wild_set/{annotations.json,images/NNN.jpg,depth/NNN.png}`. A depth PNG holds disparity: depth in mm = 655350 / value, 0 beside the
object. A camera is a quaternion (w, x, y, z) and a shift in mm, from the object to the camera, in OpenCV axes; its principal point is the
image's centre. Images are turned upright as their EXIF says.

The protocol is Probe3D's: every 4th image of an object in the order of the names, each with a partner of the same object whose camera is
turned by at most 120 degrees against it, cut to the object and resized to 512x512, nearest. Which partners Probe3D drew is not published;
here they are drawn with `seed` and written out with the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.fields import REQUIRED, check_above
from storage import location
from storage.location import StorageError
from training.probes.data import files
from training.probes.data.base import Pair, ProbeFrame
from training.probes.data.frames import ListedData, Listing

DEPTH_RANGE = (0.001, 10.0)
_MM_TIMES_VALUE = 655350.0
_EVERY = 4
_MOST_DEGREES = 120.0
_REMEDY = "give the folder that holds one folder an object as root"


@dataclass
class Config:
    """The keys of this data."""

    root: str = REQUIRED
    """The folder that holds a folder for each object."""

    size: int = 512
    """Side of the square to which each object is cut and resized."""

    seed: int = 8
    """Of the draw of partners."""

    def __post_init__(self) -> None:
        check_above(self, 0, "size")


@dataclass(frozen=True)
class _Entry:
    key: str
    group: str
    image: str
    depth: str
    K: np.ndarray
    c2w: np.ndarray

    @property
    def urls(self) -> tuple[str, ...]:
        return self.image, self.depth


def make(config: Config) -> ListedData:
    return ListedData(
        "navi", config, lambda: _listing(config), lambda entry: _frame(entry, config.size), frozenset({"correspondence"}),
        depth_range=DEPTH_RANGE,
    )  # fmt: skip


def _listing(config: Config) -> Listing:
    test: list[_Entry] = []
    pairs: list[Pair] = []
    draw = np.random.default_rng(config.seed)
    objects = [name for name in location.list_folders(config.root) if "wild_set" in location.list_folders(location.join(config.root, name))]
    if not objects:
        raise StorageError(f"{config.root}: no folder in it holds a wild_set; {_REMEDY}")
    for name in objects:
        entries = _object(config.root, name)
        index: dict[int, int] = {}

        def test_index(n: int, entries: list[_Entry] = entries, index: dict[int, int] = index) -> int:
            if n not in index:
                index[n] = len(test)
                test.append(entries[n])
            return index[n]

        rotations = np.stack([entry.c2w[:3, :3] for entry in entries])
        for first in range(0, len(entries), _EVERY):
            cosine = (np.einsum("nij,ij->n", rotations, rotations[first]) - 1) / 2
            near = np.flatnonzero(np.degrees(np.arccos(np.clip(cosine, -1, 1))) <= _MOST_DEGREES)
            near = near[near != first]
            if near.size:
                pairs.append(Pair(test_index(first), test_index(int(draw.choice(near)))))
    return Listing(test=test, pairs=pairs, annotations=[_annotations(config.root, name) for name in objects])


def _annotations(root: str, name: str) -> str:
    return location.join(root, name, "wild_set", "annotations.json")


def _object(root: str, name: str) -> list[_Entry]:
    """The wild images of one object, by name."""
    folder, url = location.join(root, name, "wild_set"), _annotations(root, name)
    found = files.read_json(url, _REMEDY)
    try:
        entries = [_entry(folder, name, url, item) for item in found]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{url}: no annotations of NAVI ({type(error).__name__}: {error}); fetch it again") from error
    files.check_present((path for entry in entries for path in (entry.image, entry.depth)), folder, url)
    return sorted(entries, key=lambda entry: entry.key)


def _entry(folder: str, name: str, url: str, item: Any) -> _Entry:
    camera, (height, width) = item["camera"], item["image_size"]
    stem = item["filename"].rsplit(".", 1)[0]
    image = files.inside(folder, f"images/{item['filename']}", url)
    depth = files.inside(folder, f"depth/{stem}.png", url)
    K = np.array([[camera["focal_length"], 0, width / 2], [0, camera["focal_length"], height / 2], [0, 0, 1]], float)
    w2c = np.eye(4)
    w2c[:3, :3], w2c[:3, 3] = _rotation(np.array(camera["q"], float)), np.array(camera["t"], float) / 1000
    if not np.isfinite(w2c).all() or not np.isfinite(K).all() or K[0, 0] <= 0:
        raise ValueError(f"no camera of {item['filename']}")
    return _Entry(f"{name}/{stem}", name, image, depth, K, np.linalg.inv(w2c))


def _rotation(q: np.ndarray) -> np.ndarray:
    """A quaternion (w, x, y, z) of any length -> its rotation [3,3]."""
    length = np.linalg.norm(q)
    if not 0 < length < np.inf:
        raise ValueError("the quaternion of a camera is no rotation")
    w, x, y, z = q / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _frame(entry: _Entry, size: int) -> ProbeFrame:
    data = location.read_many([entry.image, entry.depth])
    image = files.decode_rgb(entry.image, data[0], upright=True)
    values = files.decode_16bit(entry.depth, data[1])
    files.check_size(entry.depth, values, entry.image, image)
    height, width = image.shape[:2]
    if (width / 2, height / 2) != (entry.K[0, 2], entry.K[1, 2]):
        raise StorageError(f"{entry.image}: {height}x{width}, but annotations.json has another size; fetch the object again")
    depth = np.where(values > 0, _MM_TIMES_VALUE / np.maximum(values, 1) / 1000, 0).astype(np.float32)
    files.check_depth(entry.depth, depth, DEPTH_RANGE)
    if not depth.any():
        raise StorageError(f"{entry.depth}: no pixel lies on the object; fetch the object again")
    image, depth, K = _cut(image, depth, entry.K, size)
    return ProbeFrame(entry.key, entry.group, image, depth=depth, K=K, c2w=entry.c2w)


def _cut(image: np.ndarray, depth: np.ndarray, K: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The smallest square around what has depth, centred on it, black where it leaves the image; resized, nearest."""
    rows, columns = np.flatnonzero(depth.any(axis=1)), np.flatnonzero(depth.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(bottom - top, right - left)
    y, x = (top + bottom - side) // 2, (left + right - side) // 2
    above, below, before, after = (max(0, int(n)) for n in (-y, y + side - image.shape[0], -x, x + side - image.shape[1]))
    image = np.pad(image, ((above, below), (before, after), (0, 0)))
    depth = np.pad(depth, ((above, below), (before, after)))
    pixels = np.floor((np.arange(size) + 0.5) * side / size).astype(int)
    window = np.ix_(pixels + y + above, pixels + x + before)
    scaled = np.array([[size / side, 0, 0], [0, size / side, 0], [0, 0, 1]]) @ (K - [[0, 0, x], [0, 0, y], [0, 0, 0]])
    return image[window], depth[window], scaled
