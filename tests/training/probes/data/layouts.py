"""Writes files as the public layouts have them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from configs.errors import ConfigError
from storage.location import StorageError

INDOOR = (480, 640)


def noise(seed: int, *shape: int, most: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, shape).astype(dtype)


def write_image(path: Path, array: np.ndarray, orientation: int | None = None) -> np.ndarray:
    """Writes an image in the format of the suffix. Returns the pixels that are in the file: JPEG changes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG" if path.suffix.lower() == ".jpg" else "PNG", exif=exif)
    path.write_bytes(stream.getvalue())
    return np.array(Image.open(stream))


def write_palette(path: Path, indices: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(indices, "P")
    image.putpalette([n * 37 % 256 for n in range(768)])
    image.save(path)


def millimetres(seed: int, *shape: int, unit: float = 1000.0, farthest: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Raw uint16 depth between 1 m and `farthest`, a tenth of it unknown, and the same in metres."""
    random = np.random.default_rng(seed)
    raw = (random.uniform(1, farthest, shape) * unit).astype(np.uint16)
    raw[random.random(shape) < 0.1] = 0
    return raw, raw.astype(np.float32) / np.float32(unit)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def mat_level5(arrays: dict[str, np.ndarray], compressed: bool = True) -> bytes:
    """A MATLAB file of level 5, written from MathWorks' description of the format."""
    classes = {"f8": (6, 9), "f4": (7, 7), "u1": (9, 2), "i2": (10, 3), "u2": (11, 4), "i4": (12, 5)}
    parts = [b"MATLAB 5.0 MAT-file".ljust(124), struct.pack("<HH", 0x0100, 0x4D49)]
    for name, array in arrays.items():
        kind, number = classes[array.dtype.str[1:]]
        dims = array.shape if array.ndim > 1 else (1, *array.shape)
        body = b"".join(
            (
                _element(6, struct.pack("<II", kind, 0)),
                _element(5, struct.pack(f"<{len(dims)}i", *dims)),
                _element(1, name.encode()),
                _element(number, array.astype(array.dtype.newbyteorder("<")).tobytes("F")),
            )
        )
        element = struct.pack("<II", 14, len(body)) + body
        if compressed:
            packed = zlib.compress(element)
            element = struct.pack("<II", 15, len(packed)) + packed
        parts.append(element)
    return b"".join(parts)


def _element(kind: int, data: bytes) -> bytes:
    if len(data) <= 4:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def one_line(error: StorageError | ConfigError, *named: str) -> None:
    """A refusal is one line that names these things."""
    text = str(error)
    assert "\n" not in text
    for name in named:
        assert name in text, text
