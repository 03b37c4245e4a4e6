"""Sealed JSON and stored JPEGs: what was cut or changed is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from storage import codec


def test_every_changed_bit_of_a_sealed_value_is_noticed() -> None:
    sealed = codec.seal({"keys": ["a", "é"], "number": 1.5})
    assert codec.unseal(sealed) == {"keys": ["a", "é"], "number": 1.5}
    for position in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[position] ^= 1 << bit
            with pytest.raises(ValueError, match="checksum"):
                codec.unseal(bytes(changed))
    for other in (b"", b"{}", sealed[:-1], sealed + b" ", b" " + sealed):
        with pytest.raises(ValueError, match="checksum"):
            codec.unseal(other)


def test_a_jpeg_has_the_pixels_that_pillow_gives() -> None:
    ramp = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3)
    data = codec.encode_jpeg((ramp + np.random.default_rng(0).normal(0, 20, ramp.shape)).clip(0, 255).astype(np.uint8))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(codec.decode_jpeg(data), np.array(image))
    np.testing.assert_array_equal(codec.decode_jpeg(memoryview(data)), codec.decode_jpeg(data))


@pytest.mark.parametrize("kept", [0, 10, 400, -2, -1])
def test_a_cut_jpeg_is_refused(kept: int) -> None:
    data = codec.encode_jpeg(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    with pytest.raises(OSError, match="no whole JPEG"):
        codec.decode_jpeg(data[:kept])
