"""A row of a `gaussians` column: a context's Gaussians in a few bytes each, given the cameras of the context's frames.

Two members:

    gaussians.json   format, count, and for each plane of numbers: rows stored (1 where all are equal) and its range
    gaussians.bin    the planes one after the other, little-endian

Format `pixel-aligned-1`, 10 bytes: one Gaussian per context pixel in the order view, row, column. Each sits on its pixel's ray, so its mean
is a distance and an offset of at most half a pixel. Format `free-1`, 13 bytes: any number anywhere, in the order given, without those of
opacity 0. The planes:

    distance    u16      metres from the pixel's camera, or (free) from the middle between the cameras, logarithmic within its range
    offset      u8       from the pixel's centre in 16ths of a pixel: x in the low 4 bits, y in the high ones, both signed
    direction   2 x u16  (free, instead of the offset) in the world frame: the unit vector's octahedral map, a square from -1 to 1
    scales      3 x u8   standard deviations over (distance x mean of 1/fx, 1/fy), logarithmic within their range; (free) the distance here
                         is never below 0.2 m
    rotation    3 x u8   unit quaternion: the largest component's index (2 bits), the other three (7 bits each)
    opacity     u8       255ths

What it costs in accuracy is measured by tests/storage/test_gaussians.py and tests/bench/bench_gaussians.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from storage import codec
from storage.domain import Camera, Gaussians

FORMAT_VERSION = 1
MEMBERS = ("gaussians.json", "gaussians.bin")

_SHAPE = {"scales": ("u1", 3), "rotation": ("u1", 3), "opacity": ("u1", 1)}
_ALIGNED, _FREE = "pixel-aligned-1", "free-1"
_PLANES = {
    _ALIGNED: {"distance": ("<u2", 1), "offset": ("u1", 1), **_SHAPE},
    _FREE: {"distance": ("<u2", 1), "direction": ("<u2", 2), **_SHAPE},
}
_STRAY = 0.5 + 1e-2  # pixels; beyond it a Gaussian is not its pixel's
_NEAREST = 0.2  # metres; free Gaussians nearer than that to the middle have the footprint they would have there
_DOT = 1e-2  # pixels; what is narrower than that shows as if it were that wide


def encode_gaussians(gaussians: Gaussians, cameras: Sequence[Camera]) -> dict[str, bytes]:
    """The members of a row. `cameras` are the context views', whose pixels the Gaussians belong to where they are pixel-aligned.

    Raises ValueError for values that are not finite; where pixel-aligned Gaussians are not one per pixel, or one that is not transparent
    lies off its pixel's ray; where free ones are all transparent.
    """
    visible = gaussians.opacities != 0
    quats = gaussians.quats[visible]
    if not (np.isfinite(gaussians.opacities).all() and np.isfinite(quats).all() and quats.any(axis=1).all()):
        raise ValueError("opacities must be finite, and quaternions finite and not zero")
    if gaussians.pixel_aligned:
        return _encode_aligned(gaussians, cameras)
    seen = np.rint(gaussians.opacities * 255) > 0
    if not seen.any():
        raise ValueError(f"all {len(gaussians)} Gaussians are transparent")
    centre, unit = _middle(cameras)
    ray = gaussians.means[seen] - centre
    if not np.isfinite(ray).all():
        raise ValueError("means must be finite")
    distance = np.maximum(np.linalg.norm(ray, axis=1), 1e-6)
    planes = {"direction": _pack_directions(ray)}
    return _members(_FREE, gaussians.take(seen), distance, np.maximum(distance, _NEAREST) * unit, planes)


def _encode_aligned(gaussians: Gaussians, cameras: Sequence[Camera]) -> dict[str, bytes]:
    centres, pixels, unit = _pixels(cameras)
    if len(gaussians) != len(pixels):
        raise ValueError(f"{len(gaussians)} Gaussians for {len(pixels)} context pixels; this format holds one each")
    distance, offset = _along_rays(gaussians.means.astype(np.float64), cameras, centres, pixels)
    seen = gaussians.opacities > 0
    stray = seen & ((np.abs(offset).max(axis=1) > _STRAY) | ~(distance > 0))
    if stray.any():
        raise ValueError(f"Gaussian {int(stray.argmax())} lies off its pixel's ray; this format holds pixel-aligned Gaussians")
    distance, offset = np.where(seen, distance, 1.0), np.where(seen[:, None], offset, 0.0)
    sixteenths = np.clip(np.rint(offset * 16), -8, 7).astype(np.int8) & 15
    planes = {"offset": (sixteenths[:, 0] | sixteenths[:, 1] << 4).astype(np.uint8)[:, None]}
    return _members(_ALIGNED, gaussians, distance, distance * unit, planes)


def transparent_gaussians(cameras: Sequence[Camera]) -> Gaussians:
    """What stands for a context that could not be reconstructed, whatever its cameras say: one Gaussian per pixel, of opacity 0."""
    n = _n_pixels(cameras)
    quats = np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1))
    return Gaussians(np.zeros((n, 3), np.float32), quats, np.full((n, 3), 1e-3, np.float32), np.zeros(n, np.float32))


def decode_gaussians(members: Mapping[str, bytes], cameras: Sequence[Camera]) -> Gaussians:
    """The Gaussians of a row, in float32. Raises ValueError for another format, or for cameras of another size."""
    header = codec.decode_json(members["gaussians.json"])
    if header["format"] not in _PLANES:
        known = ", ".join(map(repr, _PLANES))
        raise ValueError(f"gaussians of format {header['format']!r}, this code reads {known}; build the column again")
    count = header["count"]
    planes, start = {}, 0
    for name, (dtype, width) in _PLANES[header["format"]].items():
        rows = header["rows"][name]
        plane = np.frombuffer(members["gaussians.bin"], dtype, rows * width, start).reshape(rows, width)
        planes[name] = np.broadcast_to(plane, (count, width))
        start += plane.nbytes
    pixel_aligned = header["format"] == _ALIGNED
    if pixel_aligned and count != _n_pixels(cameras):
        raise ValueError(f"{count} Gaussians stored, but the cameras have {_n_pixels(cameras)} pixels")
    if not planes["opacity"].any():
        return transparent_gaussians(cameras)
    distance = _exponential(planes["distance"][:, 0], header["ranges"]["distance"], 65535)
    if pixel_aligned:
        centres, pixels, unit = _pixels(cameras)
        metres_per_pixel = distance * unit
        nibbles = np.stack([planes["offset"][:, 0] & 15, planes["offset"][:, 0] >> 4], axis=1).astype(np.int8)
        directions = _directions(pixels + np.where(nibbles > 7, nibbles - 16, nibbles) / 16, cameras)
    else:
        centres, unit = _middle(cameras)
        metres_per_pixel = np.maximum(distance, _NEAREST) * unit
        directions = _unpack_directions(planes["direction"])
    scales = _exponential(planes["scales"], header["ranges"]["scales"], 255) * metres_per_pixel[:, None]
    return Gaussians(
        means=(centres + directions * distance[:, None]).astype(np.float32),
        quats=_unpack_rotations(planes["rotation"]),
        scales=scales.astype(np.float32),
        opacities=(planes["opacity"][:, 0] / np.float32(255)).astype(np.float32),
        pixel_aligned=pixel_aligned,
    )


def _members(
    form: str, gaussians: Gaussians, distance: np.ndarray, metres_per_pixel: np.ndarray, position_planes: Mapping[str, np.ndarray]
) -> dict[str, bytes]:
    """distance, metres_per_pixel [N]: where each Gaussian is; position_planes: the planes of this format alone."""
    seen = gaussians.opacities > 0
    footprint = np.where(seen[:, None], gaussians.scales / metres_per_pixel[:, None], 1.0)
    if (footprint < 0).any():
        raise ValueError("scales must not be negative")
    ranges: dict[str, list[float]] = {}
    ranges["distance"], distance_plane = _logarithmic(distance, seen, 65535, "<u2")
    ranges["scales"], scales_plane = _logarithmic(np.maximum(footprint, _DOT), seen, 255, "u1")
    planes = {
        **position_planes,
        "distance": distance_plane[:, None],
        "scales": scales_plane,
        "rotation": _pack_rotations(np.where(seen[:, None], gaussians.quats, np.array([1, 0, 0, 0], np.float32))),
        "opacity": np.rint(np.clip(gaussians.opacities, 0, 1) * 255).astype(np.uint8)[:, None],
    }
    stored = {name: plane[:1] if (plane == plane[0]).all() else plane for name, plane in planes.items()}
    header = {"format": form, "count": len(gaussians), "rows": {name: len(plane) for name, plane in stored.items()}, "ranges": ranges}
    binary = b"".join(np.ascontiguousarray(stored[name], dtype).tobytes() for name, (dtype, _) in _PLANES[form].items())
    return {"gaussians.json": codec.encode_json(header), "gaussians.bin": binary}


def _n_pixels(cameras: Sequence[Camera]) -> int:
    return sum(camera.width * camera.height for camera in cameras)


def _middle(cameras: Sequence[Camera]) -> tuple[np.ndarray, np.ndarray]:
    """The point between the cameras [3], and the mean of their 1/fx and 1/fy []."""
    centre = np.mean([camera.c2w[:3, 3] for camera in cameras], axis=0)
    return centre, np.mean([1 / camera.K[i, i] for camera in cameras for i in (0, 1)])


def _pixels(cameras: Sequence[Camera]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every pixel of every view: the camera's centre [N,3], the pixel's centre [N,2], and the mean of 1/fx and 1/fy [N]."""
    centres, pixels, units = [], [], []
    for camera in cameras:
        x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
        pixels.append(np.stack([x.ravel(), y.ravel()], axis=1))
        centres.append(np.broadcast_to(camera.c2w[:3, 3], (x.size, 3)))
        units.append(np.full(x.size, (1 / camera.K[0, 0] + 1 / camera.K[1, 1]) / 2))
    return np.concatenate(centres), np.concatenate(pixels), np.concatenate(units)


def _directions(pixels: np.ndarray, cameras: Sequence[Camera]) -> np.ndarray:
    """Unit world directions [N,3] through image points [N,2], views one after the other."""
    directions, start = [], 0
    for camera in cameras:
        part = pixels[start : start + camera.width * camera.height]
        start += len(part)
        ray = np.concatenate([(part - camera.K[:2, 2]) / camera.K[[0, 1], [0, 1]], np.ones((len(part), 1))], axis=1)
        directions.append(ray / np.linalg.norm(ray, axis=1, keepdims=True) @ camera.c2w[:3, :3].T)
    return np.concatenate(directions)


def _along_rays(means: np.ndarray, cameras: Sequence[Camera], centres: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances [N] from the cameras (negative behind them) and offsets [N,2] in pixels from the pixels' centres."""
    offsets, signs, start = [], [], 0
    for camera in cameras:
        part = slice(start, start + camera.width * camera.height)
        start = part.stop
        with np.errstate(divide="ignore", invalid="ignore"):
            projected, depth = camera.project(means[part])
        offsets.append(np.nan_to_num(projected - pixels[part], nan=np.inf))
        signs.append(np.where(depth > 0, 1.0, -1.0))
    return np.linalg.norm(means - centres, axis=1) * np.concatenate(signs), np.concatenate(offsets)


def _logarithmic(values: np.ndarray, seen: np.ndarray, levels: int, dtype: str) -> tuple[list[float], np.ndarray]:
    """The range [low, high] of the seen values, and all values as levels between their logarithms; those out of range at its ends."""
    if not (values > 0).all() or not np.isfinite(values).all():
        raise ValueError("distances and scales must be positive and finite")
    low, high = (float(edge(values[seen])) if seen.any() else 1.0 for edge in (np.min, np.max))
    span = max(np.log(high / low), 1e-9)
    return [low, high], np.rint(np.clip(np.log(values / low) / span, 0, 1) * levels).astype(dtype)


def _exponential(levels_plane: np.ndarray, low_high: list[float], levels: int) -> np.ndarray:
    low, high = low_high
    return low * np.exp(levels_plane.astype(np.float64) / levels * max(np.log(high / low), 1e-9))


def _pack_directions(vectors_n3: np.ndarray) -> np.ndarray:
    """Vectors of any length -> [N,2] u16: on the octahedron |x| + |y| + |z| = 1, whose lower half is folded outwards."""
    x, y, z = (vectors_n3 / np.maximum(np.abs(vectors_n3).sum(axis=1, keepdims=True), 1e-12)).T
    square = np.stack([np.where(z < 0, _folded(x, y), x), np.where(z < 0, _folded(y, x), y)], axis=1)
    return np.rint((square + 1) / 2 * 65535).astype("<u2")


def _unpack_directions(packed_n2: np.ndarray) -> np.ndarray:
    """Unit vectors [N,3]."""
    x, y = (packed_n2 / 65535 * 2 - 1).T
    z = 1 - np.abs(x) - np.abs(y)
    vectors = np.stack([np.where(z < 0, _folded(x, y), x), np.where(z < 0, _folded(y, x), y), z], axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _folded(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The coordinate x of what (x, y) is mirrored to in the edge of its quadrant of the octahedron; its own inverse."""
    return (1 - np.abs(y)) * np.where(x < 0, -1, 1)


def _pack_rotations(quats: np.ndarray) -> np.ndarray:
    """Unit quaternions [N,4] -> [N,3] u8: the largest component, made positive, is left out; the others lie within +-sqrt(1/2)."""
    unit = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    largest = np.abs(unit).argmax(axis=1)
    unit = unit * np.sign(np.take_along_axis(unit, largest[:, None], axis=1))
    others = unit[np.arange(4) != largest[:, None]].reshape(-1, 3)
    levels = np.rint(others * (63 * np.sqrt(2))).astype(np.int64) + 63  # 0..126, 63 is exactly 0
    word = largest | levels[:, 0] << 2 | levels[:, 1] << 9 | levels[:, 2] << 16
    return np.stack([word & 255, word >> 8 & 255, word >> 16], axis=1).astype(np.uint8)


def _unpack_rotations(packed: np.ndarray) -> np.ndarray:
    byte = packed.astype(np.int64)
    word = byte[:, 0] | byte[:, 1] << 8 | byte[:, 2] << 16
    others = (np.stack([word >> shift & 127 for shift in (2, 9, 16)], axis=1) - 63) / (63 * np.sqrt(2))
    quats = np.empty((len(word), 4))
    left_out = np.arange(4) == (word & 3)[:, None]
    quats[~left_out] = others.ravel()
    quats[left_out] = np.sqrt(np.maximum(0, 1 - (others**2).sum(axis=1)))
    return (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32)
