"""The files of public layouts: read, decoded, and refused in one line where they are not what the layout says.

Lists and annotations are data from outside: no name in them leads out of the root that a user gave.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from configs.errors import ConfigError
from storage import location
from storage.location import NotFound, StorageError
from training.probes.data.base import IGNORED

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_NEAREST_MEDIAN = 1 / 200  # of the largest depth: no image of a room or a street has its median depth below that


def inside(root: str, path: str, named_by: str) -> str:
    """The URL of `path` below `root`.

    named_by: the file that names it. Raises StorageError for a path that is absolute or leads out of the root.
    """
    parts = path.split("/")
    if not path.isprintable() or {"", ".", ".."} & set(parts) or "\\" in path or "::" in path:
        raise StorageError(f"{named_by}: {path!r} is no path below {root}; name files relative to it, without '..'")
    return location.join(root, path)


def at(root: str, name: str) -> str:
    """The URL of a file that a key names: below `root`, unless it is an absolute path or a URL."""
    return name if name.startswith("/") or "://" in name else location.join(root, name)


def local_file(url: str, remedy: str) -> str:
    """The path of a file that is read in place. Raises StorageError where it is missing or not on a local disk."""
    path = location.local_path(url)
    if path is None:
        raise StorageError(f"{url}: is read in place; copy it to a local disk")
    if not os.path.isfile(path):
        raise StorageError(f"{url}: not found; {remedy}")
    return path


def first_present(root: str, names: Sequence[str], remedy: str) -> str:
    """The first of several files or folders that is there: layouts of one dataset differ in these names."""
    for name in names:
        url = location.join(root, name)
        path = location.local_path(url)
        if os.path.exists(path) if path is not None else location.exists(url):
            return name
    raise StorageError(f"{root}: has no {' or '.join(names)}; {remedy}")


def check_present(urls: Iterable[str], root: str, named_by: str) -> None:
    """Raises StorageError that names the first file that is not there. All of them lie below `root`."""
    start, folder = len(root.rstrip("/")) + 1, location.local_path(root)
    if folder is not None:
        missing = next((url for url in urls if not os.path.isfile(os.path.join(folder, url[start:]))), None)
    else:
        there = location.find_sizes(root)
        missing = next((url for url in urls if url[start:] not in there), None)
    if missing is not None:
        raise StorageError(f"{missing}: not found, but {named_by} names it; fetch the rest of the data or correct the list")


def sizes(urls: Sequence[str], root: str) -> list[int]:
    """Bytes of each file. All of them lie below `root`."""
    paths, folder = [url[len(root.rstrip("/")) + 1 :] for url in urls], location.local_path(root)
    try:
        if folder is not None:
            return [os.stat(os.path.join(folder, path)).st_size for path in paths]
        there = location.find_sizes(root)
        return [there[path] for path in paths]
    except (OSError, KeyError) as error:
        raise StorageError(f"{root}: a file that was listed is no longer there ({error}); fetch the rest of the data") from error


def read(url: str, remedy: str) -> bytes:
    """Raises StorageError with the remedy where there is no such file."""
    try:
        return location.read_bytes(url)
    except NotFound as error:
        raise StorageError(f"{url}: not found; {remedy}") from error


def read_lines(url: str, remedy: str) -> list[str]:
    """The lines of a text file, stripped, without empty ones."""
    try:
        text = read(url, remedy).decode()
    except UnicodeDecodeError as error:
        raise StorageError(f"{url}: no text in UTF-8 ({error.reason}); {remedy}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_json(url: str, remedy: str) -> Any:
    return parse_json(url, read(url, remedy))


def parse_json(url: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise StorageError(f"{url}: no JSON ({error}); fetch the file again") from error


def read_arrays(url: str, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an `.npz`; object arrays, which are pickles, are refused."""
    data = read(url, remedy)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (*_DAMAGED, KeyError, AttributeError, TypeError) as error:
        raise StorageError(f"{url}: not an .npz of plain arrays ({error}); fetch the file again") from error


def optional_package(name: str, needed_by: str) -> Any:
    """Imports a package of the extra `evaluation`. Raises ConfigError that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{needed_by}: {error}; install the extra: pip install 'splat-and-distill-at-scale[evaluation]'") from error


def decode_rgb(url: str, data: bytes, upright: bool = False) -> np.ndarray:
    """[H,W,3] uint8 RGB. upright: turn it as its EXIF orientation says; else the pixels as they lie in the file."""
    with_mode = _open(url, data)
    image = ImageOps.exif_transpose(with_mode) if upright else with_mode
    return np.array(image.convert("RGB"))


def decode_16bit(url: str, data: bytes) -> np.ndarray:
    """16-bit PNG -> [H,W] int64."""
    image = _open(url, data)
    if not image.mode.startswith("I"):
        raise StorageError(f"{url}: mode {image.mode}, not one value of 16 bits a pixel; was it converted, or is it a picture?")
    return np.asarray(image).astype(np.int64)


def decode_depth(url: str, data: bytes, unit: float, depth_range: tuple[float, float]) -> np.ndarray:
    """16-bit PNG -> [H,W] float32 metres, 0 where unknown. unit: of the file, in values a metre."""
    depth = decode_16bit(url, data).astype(np.float32) / np.float32(unit)
    check_depth(url, depth, depth_range)
    return depth


def check_depth(url: str, depth: np.ndarray, depth_range: tuple[float, float]) -> None:
    """Raises StorageError where the median of what is known cannot be metres of this data: a mistaken unit."""
    known, most = depth[depth > 0], depth_range[1]
    if not known.size:
        return
    least, median = most * _NEAREST_MEDIAN, float(np.median(known))
    if not least <= median <= most:
        raise StorageError(f"{url}: median depth {median:.4g} m, expected {least:g} to {most:g} m; is the depth unit right?")


def decode_labels(url: str, data: bytes, classes: int, zero_is_ignored: bool) -> np.ndarray:
    """Indices of an 8-bit or palette PNG -> [H,W] uint8 classes, `IGNORED` for 255.

    zero_is_ignored: raw 0 is ignored too, and every other id is one above its class.
    """
    image = _open(url, data)
    if image.mode not in ("L", "P") and not image.mode.startswith("I"):
        raise StorageError(f"{url}: mode {image.mode}, not one index a pixel; keep the indices of the labels, not their colours")
    raw = np.asarray(image).astype(np.int64)
    labels = raw - 1 if zero_is_ignored else raw
    ignored = (raw == IGNORED) | (labels < 0)
    wrong = raw[~ignored & (labels >= classes)]
    if wrong.size:
        ids = f"{1 if zero_is_ignored else 0}..{classes - 1 + zero_is_ignored}"
        raise StorageError(f"{url}: label {wrong[0]} is none of the {classes} classes (ids {ids}, {IGNORED} ignored); map the labels first")
    return np.where(ignored, IGNORED, labels).astype(np.uint8)


def check_size(url: str, array: np.ndarray, image_url: str, image: np.ndarray) -> None:
    """Raises StorageError where an image and what is true of it differ in size."""
    if array.shape[:2] != image.shape[:2]:
        raise StorageError(
            f"{url}: {array.shape[0]}x{array.shape[1]}, but {image_url} is {image.shape[0]}x{image.shape[1]}; "
            "bring both to one size (depth and labels: nearest)"
        )


def _open(url: str, data: bytes) -> Image.Image:
    # A switch for the whole process that other packages turn on; with it a cut file decodes to grey without a word.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except _DAMAGED as error:
        raise StorageError(f"{url}: damaged or no image ({error}); fetch the file again") from error
    return image
