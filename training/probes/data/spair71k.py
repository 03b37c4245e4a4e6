"""SPair-71k, key points of one class of things in two images: `Layout/LAYOUT/SPLIT.txt` names pairs, `PairAnnotation/SPLIT/NAME.json` holds
their points, images lie in `JPEGImages/CLASS`. Only the test split is read; no frame has depth or a camera.

An annotated pixel is taken for its centre, so that points lie 0.5 above the published indices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.fields import REQUIRED, check_one_of
from storage import location
from storage.location import StorageError
from training.probes.data import files
from training.probes.data.base import Pair
from training.probes.data.frames import Decoder, FrameFiles, ListedData, Listing

_BLOCK = 256  # annotations of one read; on a local disk all of them are open at once
_REMEDY = "give the folder SPair-71k as root"


@dataclass
class Config:
    """The keys of this data."""

    root: str = REQUIRED
    """The folder `SPair-71k`."""

    layout: str = "large"
    """Which of the published lists of pairs: `large` (12,234 test pairs) or `small`."""

    def __post_init__(self) -> None:
        check_one_of(self, "layout", ("large", "small"))


def make(config: Config) -> ListedData:
    return ListedData("spair71k", config, lambda: _listing(config), Decoder(), frozenset({"correspondence"}))


def _listing(config: Config) -> Listing:
    url = location.join(config.root, "Layout", config.layout, "test.txt")
    names = files.read_lines(url, _REMEDY)
    annotations = [files.inside(config.root, f"PairAnnotation/test/{name}.json", url) for name in names]
    files.check_present(annotations, config.root, url)
    index: dict[str, int] = {}
    test: list[FrameFiles] = []
    pairs = []
    for path, data in zip(annotations, _read(annotations), strict=True):
        kind, images, points = _parse(path, files.parse_json(path, data))
        for image in images:
            key = f"{kind}/{image}"
            if key not in index:
                index[key] = len(test)
                test.append(FrameFiles(key, kind, files.inside(config.root, f"JPEGImages/{key}", path)))
        pairs.append(Pair(index[f"{kind}/{images[0]}"], index[f"{kind}/{images[1]}"], points))
    files.check_present((frame.image for frame in test), config.root, "PairAnnotation/test")
    return Listing(test=test, pairs=pairs)


def _read(urls: list[str]) -> Iterator[bytes]:
    for start in range(0, len(urls), _BLOCK):
        yield from location.read_many(urls[start : start + _BLOCK])


def _parse(url: str, found: Any) -> tuple[str, tuple[str, str], np.ndarray]:
    """Class, the two images, and points [P,4] of an annotation."""
    try:
        kind, images = found["category"], (found["src_imname"], found["trg_imname"])
        ends = [np.array(found[name], float).reshape(-1, 2) for name in ("src_kps", "trg_kps")]
        sizes = [np.array(found[name][:2], float) for name in ("src_imsize", "trg_imsize")]  # width, height
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{url}: no annotation of a pair ({error}); fetch it again") from error
    if not all(isinstance(text, str) and text for text in (kind, *images)) or len(ends[0]) != len(ends[1]) or not len(ends[0]):
        raise StorageError(f"{url}: an annotation needs a category, two images and as many points in one as in the other; fetch it again")
    for points, size in zip(ends, sizes, strict=True):
        if not ((points >= 0) & (points < size)).all():
            raise StorageError(f"{url}: a key point outside its image of {size[0]:g}x{size[1]:g} pixels; fetch it again")
    return kind, images, np.concatenate(ends, axis=1) + 0.5
