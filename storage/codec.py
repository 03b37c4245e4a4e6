"""Bytes of one member of a record: images as JPEG, ids and depth as PNG, arrays as `.npy` or safetensors, the rest as JSON.

Equal input gives equal bytes, of one zlib. Nothing here unpickles: arrays are read with `allow_pickle=False`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import safetensors
import safetensors.numpy
from PIL import Image

_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}  # 4:4:4 keeps 41+ dB on rooms at a third of PNG's size
_JPEG_END = b"\xff\xd9"


def encode_jpeg(image_hw3: np.ndarray) -> bytes:
    """[H,W,3] uint8 RGB -> JPEG."""
    _expect(image_hw3, np.uint8, 3)
    stream = io.BytesIO()
    Image.fromarray(image_hw3).save(stream, **_JPEG)
    return stream.getvalue()


def decode_jpeg(data: bytes) -> np.ndarray:
    """JPEG as `encode_jpeg` wrote it -> [H,W,3] uint8 RGB. The EXIF orientation is not applied; a truncated file raises OSError.

    The pixels that Pillow gives, in four fifths of its time. OpenCV fills what is cut off with grey, so the end is looked for.
    """
    whole = data[-2:] == _JPEG_END
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION) if whole else None
    if image is None:
        raise OSError(f"no whole JPEG ({len(data)} bytes)")
    return image


def encode_ids(ids_hw: np.ndarray) -> bytes:
    """[H,W] uint16 ids -> 16-bit grey PNG."""
    _expect(ids_hw, np.uint16, 2)
    return _png(ids_hw, cv2.IMWRITE_PNG_FILTER_UP)


def decode_ids(data: bytes) -> np.ndarray:
    """16-bit PNG -> [H,W] uint16."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image).astype(np.uint16)


def encode_valid(valid_hw: np.ndarray) -> bytes:
    """[H,W] bool -> 1-bit PNG."""
    _expect(valid_hw, np.bool_, 2)
    return _png(valid_hw.astype(np.uint8), cv2.IMWRITE_PNG_FILTER_NONE, bilevel=True)


def decode_valid(data: bytes) -> np.ndarray:
    """1-bit PNG -> [H,W] bool."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image).astype(bool)


def encode_depth(depth_hw: np.ndarray) -> bytes:
    """[H,W] float metres, 0 = no surface -> 16-bit PNG of millimetres, the official unit. Beyond 65.534 m counts as no surface."""
    millimetres = np.rint(np.asarray(depth_hw, np.float64) * 1000)
    millimetres[~(millimetres <= 65534)] = 0  # 65535 means "no measurement" to some readers
    return _png(millimetres.astype(np.uint16), cv2.IMWRITE_PNG_FILTER_PAETH)


def decode_depth(data: bytes) -> np.ndarray:
    """16-bit PNG of millimetres -> [H,W] float32 metres."""
    return decode_ids(data).astype(np.float32) / np.float32(1000)


def encode_array(array: np.ndarray) -> bytes:
    """Any plain numeric array -> little-endian, C-ordered `.npy`."""
    stream = io.BytesIO()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(stream, little, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def decode_array(data: bytes) -> np.ndarray:
    """`.npy` -> array. A pickled object inside raises ValueError."""
    return np.load(io.BytesIO(data), allow_pickle=False)


def encode_arrays(arrays: Mapping[str, np.ndarray], header: Any) -> bytes:
    """Named plain numeric arrays and a JSON value as one safetensors file: for records that are read whole."""
    little = {name: np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("<")) for name, a in arrays.items()}
    return safetensors.numpy.save(little, {"header": encode_json(header).decode()})  # one key: several have no fixed order


def decode_arrays(data: bytes) -> tuple[dict[str, np.ndarray], Any]:
    """The inverse of `encode_arrays`. A damaged file raises ValueError."""
    try:
        arrays = safetensors.numpy.load(data)
        length = int.from_bytes(data[:8], "little")  # the file begins with the length of its own header, which is JSON
        return arrays, decode_json(decode_json(data[8 : 8 + length])["__metadata__"]["header"])
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"not an intact file of arrays ({error})") from error


def encode_json(value: Any) -> bytes:
    """Sorted keys, no spaces, no NaN: one value has one spelling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode_json(data: bytes) -> Any:
    return json.loads(data)


def seal(value: Any) -> bytes:
    """A JSON value with its own checksum: any changed bit is noticed by `unseal`."""
    body = encode_json(value)
    return b'{"sha256":"%s","value":%s}' % (hashlib.sha256(body).hexdigest().encode(), body)


def unseal(data: bytes) -> Any:
    """The inverse of `seal`. Raises ValueError where a byte is not what `seal` wrote."""
    head = len(b'{"sha256":"","value":') + 64
    body = data[head:-1]
    if data != b'{"sha256":"%s","value":%s}' % (hashlib.sha256(body).hexdigest().encode(), body):
        raise ValueError("it differs from its own checksum")
    try:
        return decode_json(body)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def is_unsealed(data: bytes, name: str) -> bool:
    """Whether the bytes are a plain JSON object with that name at its top: what was written before anything was sealed."""
    try:
        value = decode_json(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and name in value


def _png(pixels_hw: np.ndarray, row_filter: int, bilevel: bool = False) -> bytes:
    """[H,W] uint8 or uint16 -> grey PNG. One filter for all rows leaves zlib what repeats from row to row, and needs no search."""
    options = {
        cv2.IMWRITE_PNG_COMPRESSION: 6,
        cv2.IMWRITE_PNG_STRATEGY: cv2.IMWRITE_PNG_STRATEGY_FILTERED,  # behind the level, which sets it back
        cv2.IMWRITE_PNG_FILTER: row_filter,
        cv2.IMWRITE_PNG_BILEVEL: int(bilevel),
    }
    return cv2.imencode(".png", pixels_hw, [number for option in options.items() for number in option])[1].tobytes()


def _expect(array: np.ndarray, dtype: type, ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(f"expected a {ndim}-d array of {np.dtype(dtype)}, got {array.dtype} with shape {array.shape}")
