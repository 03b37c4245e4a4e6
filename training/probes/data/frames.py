"""What every reader of a public layout gives: frames that are decoded as they are asked for, and the lists that name them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from configs.errors import ConfigError
from configs.fields import plain
from storage import location
from storage.location import StorageError
from training.probes.data import files
from training.probes.data.base import Pair, ProbeFrame

INDOOR_SIZE = (480, 640)  # of NYUv2 and ScanNet; the crop of their depth metric is a box in it
KITTI_SIZE = (352, 1216)
_REMEDY = "give the folder of the data as root, laid out as its reader in training/probes/data says"


@dataclass(frozen=True)
class Listing:
    """What frames of both splits are decoded from, each with a `key` and the `urls` of its files, and the pairs of test frames.

    annotations: URLs of small files that say more of the frames than the lists of their names, such as cameras.
    """

    train: Sequence[Any] = ()
    test: Sequence[Any] = ()
    pairs: Sequence[Pair] = ()
    annotations: Sequence[str] = ()


@dataclass(frozen=True)
class FrameFiles:
    """One frame by the URLs of its files."""

    key: str
    group: str
    image: str
    depth: str | None = None
    labels: str | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(url for url in (self.image, self.depth, self.labels) if url is not None)


@dataclass(frozen=True)
class Decoder:
    """Makes a frame of its files.

    unit: of depth files, in values a metre; size: (height, width) that all images must have; kitti_crop: keep the bottom 352 rows and the
    central 1216 columns; zero_is_ignored: see `files.decode_labels`.
    """

    depth_range: tuple[float, float] = (0.001, 10.0)
    unit: float = 1000.0
    classes: int = 0
    zero_is_ignored: bool = True
    size: tuple[int, int] | None = None
    kitti_crop: bool = False

    def __call__(self, entry: FrameFiles) -> ProbeFrame:
        data = dict(zip(entry.urls, location.read_many(entry.urls), strict=True))
        image = files.decode_rgb(entry.image, data[entry.image])
        if self.size is not None and image.shape[:2] != self.size:
            height, width = self.size
            raise StorageError(f"{entry.image}: {image.shape[0]}x{image.shape[1]}, the protocol needs {height}x{width}; resize the data")
        depth = labels = None
        if entry.depth is not None:
            depth = files.decode_depth(entry.depth, data[entry.depth], self.unit, self.depth_range)
            files.check_size(entry.depth, depth, entry.image, image)
        if entry.labels is not None:
            labels = files.decode_labels(entry.labels, data[entry.labels], self.classes, self.zero_is_ignored)
            files.check_size(entry.labels, labels, entry.image, image)
        if self.kitti_crop:
            (rows, columns), (height, width) = KITTI_SIZE, image.shape[:2]
            if height < rows or width < columns:
                raise StorageError(f"{entry.image}: {height}x{width}, smaller than the crop of {rows}x{columns}; is it a KITTI image?")
            left = (width - columns) // 2
            image = image[height - rows :, left : left + columns]
            depth = None if depth is None else depth[height - rows :, left : left + columns]
        return ProbeFrame(entry.key, entry.group, image, depth=depth, labels=labels)


class LazyFrames(Sequence[ProbeFrame]):
    """Frames that are decoded at each access; nothing is kept."""

    def __init__(self, entries: Sequence[Any], decode: Callable[[Any], ProbeFrame]) -> None:
        self._entries, self._decode = entries, decode

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> ProbeFrame: ...
    @overload
    def __getitem__(self, index: slice) -> LazyFrames: ...
    def __getitem__(self, index: int | slice) -> ProbeFrame | LazyFrames:
        if isinstance(index, slice):
            return LazyFrames(self._entries[index], self._decode)
        return self._decode(self._entries[index])

    def __iter__(self) -> Iterator[ProbeFrame]:
        return (self._decode(entry) for entry in self._entries)


@dataclass
class ListedData:
    """A `ProbeData` of frames that lists name. The lists are read and checked once, when they are first needed.

    listing: reads them; decode: makes a frame of an entry; scene: pattern of a scene's name, where the official splits share no scene:
    groups that match it must not be in both. Without it only frames must not: those splits of NYU have rooms in common.
    """

    name: str
    config: Any
    listing: Callable[[], Listing]
    decode: Callable[[Any], ProbeFrame]
    tasks: frozenset[str]
    classes: tuple[str, ...] = ()
    depth_range: tuple[float, float] = (0.001, 10.0)
    depth_crop: str | None = None
    scene: str | None = None

    @cached_property
    def listed(self) -> Listing:
        found = self.listing()
        for split in (found.train, found.test):
            seen: set[str] = set()
            for entry in split:
                if entry.key in seen:
                    raise StorageError(f"{self.config.root}: two frames of one split are called {entry.key}; give the files unique names")
                seen.add(entry.key)
        if not found.test:
            raise StorageError(f"{self.config.root}: no test frames found; {_REMEDY}")
        self._check_apart(found)
        return found

    def _check_apart(self, found: Listing) -> None:
        """Raises StorageError where a head would be judged on what it was trained on."""
        keys = {entry.key for entry in found.train}
        scenes = {entry.group for entry in found.train if re.fullmatch(self.scene, entry.group)} if self.scene else set()
        for entry in found.test:
            shared = f"frame {entry.key}" if entry.key in keys else f"scene {entry.group}" if scenes and entry.group in scenes else None
            if shared:
                raise StorageError(f"{entry.urls[0]}: {shared} is in the train and in the test split; take it out of the train split")

    def frames(self, split: str) -> LazyFrames:
        if split not in ("train", "test"):
            raise ConfigError(f"split={split}: choose train or test")
        return LazyFrames(getattr(self.listed, split), self.decode)

    def pairs(self) -> Sequence[Pair]:
        return self.listed.pairs

    @cached_property
    def _content(self) -> str:
        """SHA-256 of the sizes of all files, by frame, of the annotations and of the points of pairs: other data get another one.

        Sizes, since the bytes of a whole dataset take too long to read.
        """
        listed = self.listed
        entries = {(split, entry.key): entry.urls for split in ("train", "test") for entry in getattr(listed, split)}
        urls = sorted({url for found in entries.values() for url in found})
        sizes = dict(zip(urls, files.sizes(urls, self.config.root), strict=True))
        content = hashlib.sha256(json.dumps(sorted((*name, *(sizes[url] for url in found)) for name, found in entries.items())).encode())
        for url in listed.annotations:
            content.update(hashlib.sha256(files.read(url, _REMEDY)).digest())
        for pair in listed.pairs:
            content.update(b"" if pair.points is None else np.asarray(pair.points, "<f8").tobytes())
        return content.hexdigest()

    def describe(self) -> Mapping[str, Any]:
        listed = self.listed
        keys = {split: [entry.key for entry in getattr(listed, split)] for split in ("train", "test")}
        return {
            "name": self.name,
            "config": plain(self.config),
            "classes": list(self.classes),
            "content": self._content,
            "counts": {**{split: len(found) for split, found in keys.items()}, "pairs": len(listed.pairs)},
            "frames": keys,
            "pairs": [[keys["test"][pair.first], keys["test"][pair.second]] for pair in listed.pairs],
        }


def depth_list(
    root: str, url: str, image_folder: str = "", depth_folder: str = "", flat: bool = False, scene: str = ""
) -> list[FrameFiles]:
    """The frames that a list of `image depth [focal length]` lines names, by image path. A depth of `None` drops its line.

    Args:
        root: folder that the paths start from; a leading slash in a line is tolerated.
        url: of the list.
        image_folder, depth_folder: below the root, before the paths of a line.
        flat: only the last part of each path counts.
        scene: pattern whose match in the image path names the scene; without it the folder of the image does, or its stem.
    """
    found = []
    for number, line in enumerate(files.read_lines(url, _REMEDY), start=1):
        words = line.split()
        if len(words) < 2:
            raise StorageError(f"{url}, line {number}: {line!r} is not 'image depth [focal length]'; correct the list")
        if words[1] == "None":
            continue
        image, depth = (word.lstrip("/").rsplit("/", 1)[-1] if flat else word.lstrip("/") for word in words[:2])
        image_url, depth_url = (
            files.inside(location.join(root, folder) if folder else root, path, url)
            for folder, path in ((image_folder, image), (depth_folder, depth))
        )
        found.append(FrameFiles(image.rsplit(".", 1)[0], scene_of(image, scene), image_url, depth=depth_url))
    files.check_present((path for frame in found for path in (frame.image, frame.depth or "")), root, url)
    return sorted(found, key=lambda frame: frame.image)


def label_folders(root: str, images: str, labels: str, suffix: str, scene: str = "", photos: bool = False) -> list[FrameFiles]:
    """The images anywhere below one folder and the label file of each: the same path below another folder, as PNG.

    suffix: of the images, in any case of letters. scene: see `depth_list`; photos: each image is a scene of its own.
    """
    url = location.join(root, images)
    names = sorted(name for name in location.find_sizes(url) if name.lower().endswith(suffix.lower()))
    if not names:
        raise StorageError(f"{url}: holds no {suffix} files; {_REMEDY}")
    found = []
    for name in names:
        stem = name.rsplit(".", 1)[0]
        group = stem if photos else scene_of(name, scene)
        found.append(FrameFiles(stem, group, location.join(url, name), labels=location.join(root, labels, f"{stem}.png")))
    files.check_present((frame.labels or "" for frame in found), root, f"an image in {url}")
    return found


def scene_of(path: str, pattern: str = "") -> str:
    """The scene that an image belongs to: what the pattern finds in its path, else its folder, else its stem."""
    match = re.search(pattern, path) if pattern else None
    if match:
        return match.group()
    folder, _, name = path.rpartition("/")
    return folder or name.rsplit(".", 1)[0]
