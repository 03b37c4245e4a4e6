"""Every PNG that the codec writes is read back to the same pixels, by Pillow and by OpenCV."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from storage import codec

shapes = array_shapes(min_dims=2, max_dims=2, max_side=40)


def by_opencv(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@given(arrays(np.uint16, shapes), st.booleans())
def test_ids_come_back(ids: np.ndarray, transposed: bool) -> None:
    ids = ids.T if transposed else ids
    data = codec.encode_ids(ids)
    assert data == codec.encode_ids(ids.copy())
    for back in (codec.decode_ids(data), by_opencv(data)):
        assert back.dtype == np.uint16
        assert np.array_equal(back, ids)


@given(arrays(np.bool_, shapes), st.booleans())
def test_validity_comes_back(valid: np.ndarray, transposed: bool) -> None:
    valid = valid.T if transposed else valid
    data = codec.encode_valid(valid)
    back = codec.decode_valid(data)
    assert back.dtype == np.bool_
    assert np.array_equal(back, valid)
    assert np.array_equal(by_opencv(data) == 255, valid)


@given(arrays(np.float32, shapes, elements=st.floats(0, np.float32(65.534), width=32)))
def test_depth_comes_back_to_half_a_millimetre(depth: np.ndarray) -> None:
    data = codec.encode_depth(depth)
    np.testing.assert_allclose(codec.decode_depth(data), depth, rtol=0, atol=5.1e-4)  # and float32's own rounding
    assert np.array_equal(by_opencv(data), np.rint(depth.astype(np.float64) * 1000))


def test_what_is_too_far_is_no_surface() -> None:
    depth = np.array([[0.0, 0.0004, 0.001, 65.534, 65.5344], [65.535, 65.536, 1e9, np.inf, np.nan]])
    assert by_opencv(codec.encode_depth(depth)).tolist() == [[0, 0, 1, 65534, 65534], [0, 0, 0, 0, 0]]


def test_the_file_is_a_standard_grey_png() -> None:
    data = codec.encode_ids(np.arange(6, dtype=np.uint16).reshape(2, 3))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    kinds, rest = [], data[8:]
    while rest:
        size, kind = struct.unpack(">I4s", rest[:8])
        assert struct.unpack(">I", rest[8 + size : 12 + size])[0] == zlib.crc32(rest[4 : 8 + size])
        kinds.append(kind)
        rest = rest[12 + size :]
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (3, 2), "I;16")


def test_other_arrays_are_refused() -> None:
    for encode, array in ((codec.encode_ids, np.zeros((2, 2), np.int32)), (codec.encode_valid, np.zeros((2, 2, 1), bool))):
        with pytest.raises(ValueError, match="expected a 2-d array"):
            encode(array)
