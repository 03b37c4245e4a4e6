"""The 10-byte Gaussian, and the 13-byte one that stands anywhere: what comes back, how far off it is, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.domain import Camera, Gaussians
from storage.records.gaussians import decode_gaussians, encode_gaussians, transparent_gaussians

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
    with pytest.raises(ValueError, match="'pixel-aligned-9', this code reads 'pixel-aligned-1', 'free-1'"):
        decode_gaussians({**members, "gaussians.json": members["gaussians.json"].replace(b"aligned-1", b"aligned-9")}, cameras())
    with pytest.raises(ValueError, match="1920 Gaussians stored, but the cameras have 960 pixels"):
        decode_gaussians(members, cameras()[:1])
    true.means[3] += 1.0
    with pytest.raises(ValueError, match="Gaussian 3 lies off its pixel's ray"):
        encode_gaussians(true, cameras())
    with pytest.raises(ValueError, match="scales must not be negative"):
        encode_gaussians(replace(scene(2), scales=-scene(2).scales), cameras())


def anywhere(seed: int, count: int, reach: float) -> Gaussians:
    """Gaussians all around the cameras, from `1 / reach` to `reach` metres away, of 0.02 to 30 pixels (at 0.2 m where nearer), some of
    them transparent."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions[: count // 4] = np.eye(3)[rng.integers(0, 3, count // 4)] * rng.choice([-1, 1], (count // 4, 1))  # the octahedron's corners
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    distance = reach ** rng.uniform(-1, 1, (count, 1))
    quats = rng.normal(size=(count, 4))
    opacities = np.where(rng.random(count) < 0.2, rng.choice([0.0, 0.001], count), rng.uniform(0.01, 1, count))
    opacities[rng.integers(count)] = 1
    arrays = (
        MIDDLE + directions * distance,
        quats / np.linalg.norm(quats, axis=1, keepdims=True),
        np.exp(rng.uniform(np.log(0.02), np.log(30.0), (count, 3))) * np.maximum(distance, 0.2) / 40,
        opacities,
    )
    return Gaussians(*(a.astype(np.float32) for a in arrays), pixel_aligned=False)


MIDDLE = np.mean([camera.c2w[:3, 3] for camera in cameras()], axis=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from([1.0, 20.0, 1000.0]))
def test_thirteen_bytes_hold_a_gaussian_anywhere(seed: int, count: int, reach: float) -> None:
    true = anywhere(seed, count, reach)
    members = encode_gaussians(true, cameras())
    assert encode_gaussians(true, cameras()) == members
    got = decode_gaussians(members, cameras())
    seen = true.opacities > 0.5 / 255
    assert not got.pixel_aligned
    assert len(got) == seen.sum()
    assert len(members["gaussians.bin"]) <= 13 * len(got)
    ray, true_ray = got.means - MIDDLE, true.means[seen].astype(np.float64) - MIDDLE
    distance = np.linalg.norm(true_ray, axis=1)
    assert np.abs(np.linalg.norm(ray, axis=1) / distance - 1).max() < 2e-4
    sideways = np.linalg.norm(np.cross(ray, true_ray), axis=1) / distance**2
    # Half a step of 2/65535 in x and y, both in z, on the octahedron, whose faces come as near as sqrt(1/3).
    assert sideways.max() < np.sqrt(1 + 1 + 2**2) / 65535 * np.sqrt(3) * 1.02
    assert np.abs(np.log(got.scales / true.scales[seen])).max() < 0.02
    # Three components off by half a step each; where all four are 1/2, the fourth makes twice of it.
    half_angle = np.sqrt(3) * 2 / (126 * np.sqrt(2))
    assert np.arccos(np.minimum(1, np.abs((got.quats * true.quats[seen]).sum(1)))).max() < half_angle * 1.02
    assert np.abs(got.opacities - true.opacities[seen]).max() < 0.5 / 255 + 1e-6


def test_dust_is_stored_as_dots() -> None:
    """What is far below a pixel shows no smaller, and must not cost the others their digits."""
    true = anywhere(5, 100, 3.0)
    true.scales[::2, 0] = 0.0
    got = decode_gaussians(encode_gaussians(true, cameras()), cameras())
    kept = true.scales[true.opacities > 0.5 / 255]
    dust = kept == 0
    assert np.abs(np.log(got.scales[~dust] / kept[~dust])).max() < 0.02
    distance = np.maximum(np.linalg.norm(got.means - MIDDLE, axis=1), 0.2)
    assert (got.scales.min(axis=1) / distance * 38)[dust.any(axis=1)].max() < 0.011


def test_nothing_to_see_is_refused() -> None:
    true = anywhere(1, 7, 2.0)
    with pytest.raises(ValueError, match="all 7 Gaussians are transparent"):
        encode_gaussians(replace(true, opacities=np.full(7, 0.001, np.float32)), cameras())
    true.means[2] = np.nan
    true.opacities[2] = 1
    with pytest.raises(ValueError, match="means must be finite"):
        encode_gaussians(true, cameras())
