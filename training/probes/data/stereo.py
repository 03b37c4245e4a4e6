"""Rectified stereo pairs with the disparity of the left image: correspondence on real photographs.

`stereo.json` in the root is one object for each pair, alone or in a list:

    {"name": "motorcycle", "left": "left.png", "right": "right.png", "disparity": "disparity.npy",
     "fx": 994.978, "cx": 311.318, "cy": 255.002, "doffs": 31.086, "baseline": 0.193001}

The pixel x of the left image is x - disparity in the right one; depth = baseline * fx / (disparity + doffs). Lengths in pixels, the
baseline in metres. `fy`: of both images, default fx. `cx`, `cy`: of the left image, pixel centres at +0.5 (OpenCV's value plus 0.5); the
right image has cx + doffs. Disparity: `.npy`, `.pfm`, or a 16-bit `.png` with `scale` values a pixel; 0, below 0 or not finite: unknown.
`python -m training.probes.data.prepare.motorcycle FOLDER` writes such a folder.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.fields import REQUIRED, check_above
from storage import location
from storage.location import StorageError
from training.probes.data import files
from training.probes.data.base import Pair, ProbeFrame
from training.probes.data.frames import ListedData, Listing

INDEX = "stereo.json"
_REMEDY = f"give a folder with {INDEX} as root; python -m training.probes.data.prepare.motorcycle FOLDER makes one"


@dataclass
class Config:
    """The keys of this data."""

    root: str = REQUIRED
    """The folder that holds `stereo.json`."""

    farthest: float = 100.0
    """Largest depth in metres that is used and judged."""

    def __post_init__(self) -> None:
        check_above(self, 0, "farthest")


@dataclass(frozen=True)
class Rectified:
    """One pair. Fields as in `stereo.json`; files are URLs."""

    name: str
    left: str
    right: str
    disparity: str
    fx: float
    fy: float
    cx: float
    cy: float
    doffs: float
    baseline: float
    scale: float


@dataclass(frozen=True)
class _Entry:
    key: str
    pair: Rectified
    is_right: bool

    @property
    def urls(self) -> tuple[str, ...]:
        return self.pair.right if self.is_right else self.pair.left, self.pair.disparity


def make(config: Config) -> ListedData:
    depth_range = (0.001, config.farthest)
    return ListedData(
        "stereo", config, lambda: _listing(config.root), lambda entry: _frame(entry, depth_range), frozenset({"correspondence"}),
        depth_range=depth_range,
    )  # fmt: skip


def _listing(root: str) -> Listing:
    url = location.join(root, INDEX)
    found = files.read_json(url, _REMEDY)
    rectified = [_rectified(root, url, item) for item in (found if isinstance(found, list) else [found])]
    test = [_Entry(f"{pair.name}/{side}", pair, side == "right") for pair in rectified for side in ("left", "right")]
    files.check_present((path for pair in rectified for path in (pair.left, pair.right, pair.disparity)), root, url)
    return Listing(test=test, pairs=[Pair(2 * n, 2 * n + 1) for n in range(len(rectified))], annotations=(url,))


def _rectified(root: str, url: str, item: Any) -> Rectified:
    try:
        name = str(item["name"])
        left, right, disparity = (files.inside(root, item[key], url) for key in ("left", "right", "disparity"))
        fx, cx, cy, doffs, baseline = (float(item[key]) for key in ("fx", "cx", "cy", "doffs", "baseline"))
        fy, scale = float(item.get("fy", fx)), float(item.get("scale", 1))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{url}: no stereo pair ({type(error).__name__}: {error}); see training/probes/data/stereo.py") from error
    if not all(map(math.isfinite, (fx, fy, cx, cy, doffs, baseline, scale))) or min(fx, fy, baseline, scale) <= 0:
        raise StorageError(f"{url}: {name}: fx, fy, baseline and scale must be numbers above 0; see training/probes/data/stereo.py")
    return Rectified(name, left, right, disparity, fx, fy, cx, cy, doffs, baseline, scale)


def _frame(entry: _Entry, depth_range: tuple[float, float]) -> ProbeFrame:
    pair = entry.pair
    url = pair.right if entry.is_right else pair.left
    image, data = location.read_many([url, pair.disparity])
    pixels = files.decode_rgb(url, image)
    disparity = decode_disparity(pair.disparity, data, pair.scale)
    files.check_size(pair.disparity, disparity, url, pixels)
    if entry.is_right:
        disparity = disparity_of_right(disparity)
    known = np.isfinite(disparity) & (disparity + pair.doffs > 0)
    depth = np.where(known, pair.baseline * pair.fx / np.where(known, disparity + pair.doffs, 1), 0).astype(np.float32)
    files.check_depth(pair.disparity, depth, depth_range)
    depth[depth > depth_range[1]] = 0
    K = np.array([[pair.fx, 0, pair.cx + entry.is_right * pair.doffs], [0, pair.fy, pair.cy], [0, 0, 1]])
    c2w = np.eye(4)
    c2w[0, 3] = entry.is_right * pair.baseline
    return ProbeFrame(entry.key, pair.name, pixels, depth=depth, K=K, c2w=c2w)


def decode_disparity(url: str, data: bytes, scale: float) -> np.ndarray:
    """[H,W] float64 pixels; NaN where unknown."""
    if url.endswith(".npy"):
        try:
            found = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StorageError(f"{url}: no plain array ({error}); save it with numpy.save") from error
    elif url.endswith(".pfm"):
        found = _pfm(url, data)
    else:
        found = files.decode_16bit(url, data)
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise StorageError(f"{url}: {found.dtype} of shape {found.shape}, not one number a pixel; save the disparity alone")
    found = found.astype(np.float64) / scale
    return np.where(np.isfinite(found) & (found > 0), found, np.nan)


def _pfm(url: str, data: bytes) -> np.ndarray:
    """Rows lie from the bottom up; a scale below 0 means the small end first."""
    head = re.match(rb"(P[fF])\s+(\d+)\s+(\d+)\s+([-+.\deE]+)\s", data)
    if head is None or head[1] != b"Pf":
        raise StorageError(f"{url}: no PFM file of one channel; save the disparity alone")
    try:
        kind, width, height = "<f4" if float(head[4]) < 0 else ">f4", int(head[2]), int(head[3])
        return np.frombuffer(data, kind, width * height, head.end()).reshape(height, width)[::-1]
    except ValueError as error:
        raise StorageError(f"{url}: damaged ({error}); fetch the file again") from error


def disparity_of_right(disparity: np.ndarray) -> np.ndarray:
    """Disparity of the left image [H,W], NaN where unknown -> of the right image: which left pixel lies that far to the right.

    Between two neighbours of one surface it is interpolated, so that it belongs to the pixel's centre; where surfaces overlap, the nearer
    one counts. NaN where the left image does not see the point.
    """
    height, width = disparity.shape
    found = np.full((height, width), -np.inf)
    start, end = disparity[:, :-1], disparity[:, 1:]
    row, column = np.nonzero(np.abs(end - start) < 1)  # a surface goes on; False where one is NaN
    d0, slope = start[row, column], (end - start)[row, column]
    first = column - d0  # where the two neighbours lie in the right image, 1 - slope apart
    for step in range(2):
        target = np.ceil(first) + step
        share = (target - first) / (1 - slope)
        good = (share <= 1) & (target >= 0) & (target < width)
        np.maximum.at(found, (row[good], target[good].astype(int)), (d0 + share * slope)[good])
    return np.where(np.isfinite(found), found, np.nan)
