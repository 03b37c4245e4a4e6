"""The 10-byte Gaussian: what comes back, how far off it is, and what is refused."""

import numpy as np
import pytest

from storage.domain import Camera, Gaussians
from storage.gaussians import decode_gaussians, encode_gaussians, transparent_gaussians

WIDTH, HEIGHT = 40, 24


def cameras() -> list[Camera]:
    K = np.array([[38.0, 0, 20.5], [0, 41.0, 11.0], [0, 0, 1]])
    turned = np.eye(4)
    angle = np.radians(20)
    turned[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    turned[:3, 3] = [0.4, -0.1, 0.2]
    return [Camera(np.eye(4), K, WIDTH, HEIGHT), Camera(turned, K, WIDTH, HEIGHT)]


def scene(seed: int, offsets: float = 0.45) -> Gaussians:
    """Pixel-aligned Gaussians as a network gives them: any rotation, scales of 0.1 to 3 pixels, sub-pixel offsets."""
    rng = np.random.default_rng(seed)
    means, scales = [], []
    for camera in cameras():
        shift = rng.uniform(-offsets, offsets, (HEIGHT, WIDTH, 2)) / camera.K[[0, 1], [0, 1]]
        rays = camera.rays()
        rays[..., :2] += shift
        depth = rng.uniform(0.8, 6.0, (HEIGHT, WIDTH, 1))
        means.append((rays * depth) @ camera.c2w[:3, :3].T + camera.c2w[:3, 3])
        scales.append(np.exp(rng.uniform(np.log(0.1), np.log(3.0), (HEIGHT, WIDTH, 3))) * depth / 40)
    quats = rng.normal(size=(2 * WIDTH * HEIGHT, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    arrays = (np.concatenate(means).reshape(-1, 3), quats, np.concatenate(scales).reshape(-1, 3), rng.random(len(quats)))
    return Gaussians(*(a.astype(np.float32) for a in arrays))


@pytest.mark.parametrize("seed", range(3))
def test_ten_bytes_hold_a_gaussian(seed: int) -> None:
    true = scene(seed)
    members = encode_gaussians(true, cameras())
    assert len(members["gaussians.bin"]) == 10 * len(true)
    assert encode_gaussians(true, cameras()) == members
    got = decode_gaussians(members, cameras())
    distance = np.linalg.norm(true.means.reshape(2, -1, 3) - np.array([c.c2w[:3, 3] for c in cameras()])[:, None], axis=-1).ravel()
    assert (np.linalg.norm(got.means - true.means, axis=1) / distance).max() < 0.05 / 38  # a twentieth of a pixel
    assert np.abs(np.log(got.scales / true.scales)).max() < 0.01
    assert np.degrees(2 * np.arccos(np.minimum(1, np.abs((got.quats * true.quats).sum(1))))).max() < 1.5
    assert np.abs(got.opacities - true.opacities).max() < 0.5 / 255 + 1e-6
    again = decode_gaussians(encode_gaussians(got, cameras()), cameras())
    assert np.abs(again.means - got.means)[got.opacities > 0].max() < 1e-3


def test_equal_values_are_stored_once() -> None:
    true = scene(0, offsets=0.0)
    plain = Gaussians(true.means, np.tile(np.float32([1, 0, 0, 0]), (len(true), 1)), true.scales, np.ones(len(true), np.float32))
    members = encode_gaussians(plain, cameras())
    assert len(members["gaussians.bin"]) == (2 + 3) * len(true) + 1 + 3 + 1
    got = decode_gaussians(members, cameras())
    np.testing.assert_allclose(got.means, true.means, atol=4e-4)
    np.testing.assert_array_equal(got.quats, plain.quats)
    np.testing.assert_array_equal(got.opacities, plain.opacities)


def test_a_pair_without_reconstruction_takes_a_few_bytes() -> None:
    members = encode_gaussians(transparent_gaussians(cameras()), cameras())
    assert len(members["gaussians.bin"]) == 10
    got = decode_gaussians(members, cameras())
    assert len(got) == 2 * WIDTH * HEIGHT
    assert not got.opacities.any()


def test_transparent_gaussians_may_lie_anywhere() -> None:
    true = scene(1)
    true.means[7] += 5.0
    true.opacities[7] = 0.0
    got = decode_gaussians(encode_gaussians(true, cameras()), cameras())
    assert got.opacities[7] == 0
    assert np.isfinite(got.means).all()
    transparent = Gaussians(true.means, true.quats, true.scales, np.zeros(len(true), np.float32))
    assert not decode_gaussians(encode_gaussians(transparent, cameras()), cameras()).opacities.any()


def test_what_does_not_fit_is_refused() -> None:
    true = scene(2)
    with pytest.raises(ValueError, match="1919 Gaussians for 1920 context pixels"):
        encode_gaussians(Gaussians(true.means[1:], true.quats[1:], true.scales[1:], true.opacities[1:]), cameras())
    members = encode_gaussians(true, cameras())
    with pytest.raises(ValueError, match="this code reads 'pixel-aligned-1'"):
        decode_gaussians({**members, "gaussians.json": members["gaussians.json"].replace(b"aligned-1", b"aligned-9")}, cameras())
    with pytest.raises(ValueError, match="1920 Gaussians stored, but the cameras have 960 pixels"):
        decode_gaussians(members, cameras()[:1])
    true.means[3] += 1.0
    with pytest.raises(ValueError, match="Gaussian 3 lies off its pixel's ray"):
        encode_gaussians(true, cameras())
