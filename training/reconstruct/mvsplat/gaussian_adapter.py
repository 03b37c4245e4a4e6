"""Raw network output to Gaussians in the world frame (MVSplat, ECCV 2024, section 3.2; the parametrisation is pixelSplat's).

The 84 raw channels: 0-1 offset of the ray in its pixel (x,y), 2-4 scales, 5-8 quaternion (x,y,z,w), 9-83 spherical harmonics, 25 for each
of R, G, B.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCALE_CHANNELS, QUAT_CHANNELS, SH_CHANNELS = slice(2, 5), slice(5, 9), slice(9, 84)
SHAPE_CHANNELS = SH_CHANNELS.start  # without colour

_MIN_SCALE, _MAX_SCALE = 0.5, 15.0
_DEGREE = 4
_EPS = 1e-8


@dataclass(frozen=True)
class WorldGaussians:
    """One Gaussian per pixel of one view, row-major, P = H*W. World frame, metres.

    means [P,3]; covariances [P,3,3]; scales [P,3] (standard deviations) and quats [P,4] (w,x,y,z; unit length), which make the covariances;
    harmonics [P,3,25] (colour, then degree and order), None where the raw channels have none.
    """

    means: Tensor
    covariances: Tensor
    scales: Tensor
    quats: Tensor
    harmonics: Tensor | None


def adapt(raw_chw: Tensor, depth_hw: Tensor, c2w_44: Tensor, K_33: Tensor) -> WorldGaussians:
    """The Gaussians of one view. raw [84,H,W] or [9,H,W]; depth [H,W]; camera-to-world, OpenCV; K normalised by the image size."""
    height, width = depth_hw.shape
    raw = raw_chw.permute(1, 2, 0)
    rotation, centre = c2w_44[:3, :3], c2w_44[:3, 3]

    directions = _directions(raw[..., :2].sigmoid() - 0.5, K_33) @ rotation.T
    # The sweep finds depth along z, but it is laid off along the ray: as published.
    means = directions * depth_hw[..., None] + centre

    pixel = K_33.new_tensor([1 / width, 1 / height])
    scale_per_metre = 0.1 * (torch.linalg.inv(K_33[:2, :2].double()).float() @ pixel).sum()
    scales = (_MIN_SCALE + (_MAX_SCALE - _MIN_SCALE) * raw[..., SCALE_CHANNELS].sigmoid()) * (depth_hw[..., None] * scale_per_metre)

    quats = raw[..., QUAT_CHANNELS]
    quats = quats / (quats.norm(dim=-1, keepdim=True) + _EPS)
    axes = (rotation @ rotation_matrices(quats)) * scales[..., None, :]

    harmonics = None
    if raw.shape[-1] > SHAPE_CHANNELS:
        harmonics = raw[..., SH_CHANNELS].unflatten(-1, (3, -1)).flatten(0, 1) @ sh_transform(rotation).T
    return WorldGaussians(
        means.flatten(0, 1), (axes @ axes.mT).flatten(0, 1), scales.flatten(0, 1), _world_quats(quats, rotation).flatten(0, 1), harmonics
    )


def _directions(offset_hw2: Tensor, K_33: Tensor) -> Tensor:
    """Unit vectors [H,W,3] in the camera frame through the pixel centres, moved by `offset` pixels (x,y)."""
    height, width = offset_hw2.shape[:2]
    y, x = torch.meshgrid(*(torch.arange(s, device=K_33.device) + 0.5 for s in (height, width)), indexing="ij")
    points = (torch.stack([x, y], dim=-1) + offset_hw2) / offset_hw2.new_tensor([width, height])
    rays = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1) @ torch.linalg.inv(K_33.double()).float().T
    return rays / rays.norm(dim=-1, keepdim=True)


def rotation_matrices(quats_xyzw: Tensor) -> Tensor:
    """[...,4] (x,y,z,w) -> [...,3,3]. The identity for the quaternion zero."""
    x, y, z, w = quats_xyzw.unbind(-1)
    two = 2 / (quats_xyzw.square().sum(-1) + _EPS)
    return torch.stack(
        [
            1 - two * (y * y + z * z), two * (x * y - z * w), two * (x * z + y * w),
            two * (x * y + z * w), 1 - two * (x * x + z * z), two * (y * z - x * w),
            two * (x * z - y * w), two * (y * z + x * w), 1 - two * (x * x + y * y),
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))  # fmt: skip


def rotation_quat(rotation_33: Tensor) -> Tensor:
    """The unit quaternion (w,x,y,z) [4] float64 of a rotation matrix, which may be a rotation only nearly: the eigenvector of the largest
    eigenvalue of Bar-Itzhack's matrix (J. Guidance 23(6), 2000)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation_33.double().tolist()
    matrix = torch.tensor(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, yx + xy, zx + xz],
            [xz - zx, yx + xy, yy - xx - zz, zy + yz],
            [yx - xy, zx + xz, zy + yz, zz - xx - yy],
        ],
        dtype=torch.float64,
    )
    quat = torch.linalg.eigh(matrix).eigenvectors[:, -1]
    return (quat * (1 if quat[0] >= 0 else -1)).to(rotation_33.device)


def _world_quats(quats_xyzw: Tensor, rotation_33: Tensor) -> Tensor:
    """The camera's rotation times those of the Gaussians, (w,x,y,z)."""
    x, y, z, w = quats_xyzw.unbind(-1)
    w = torch.where((quats_xyzw == 0).all(-1), 1.0, w)
    a, b, c, d = rotation_quat(rotation_33).tolist()
    world = torch.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ],
        dim=-1,
    )  # fmt: skip
    return world / world.norm(dim=-1, keepdim=True)


def sh_transform(rotation_33: Tensor) -> Tensor:
    """What the 25 raw coefficients of a colour are multiplied by, [25,25]: damped by degree, then rotated from the camera to the world.

    The rotation is e3nn's, polar axis y, though renderers of Gaussians evaluate the harmonics around z: as published.
    """
    blocks = [torch.ones(1, 1, dtype=torch.float64, device=rotation_33.device)]
    blocks += [0.1 * 0.25**degree * sh_rotation(rotation_33, degree) for degree in range(1, _DEGREE + 1)]
    return torch.block_diag(*blocks).to(rotation_33.dtype)


def sh_rotation(rotation_33: Tensor, degree: int) -> Tensor:
    """D [2l+1,2l+1] float64 with Y(R p) = D Y(p) for every unit vector p: solved from more points than there are unknowns, hence exact."""
    points = _sphere_points().to(rotation_33.device)
    before, after = (real_harmonics(p, degree) for p in (points, points @ rotation_33.double().T))
    return torch.linalg.lstsq(before, after).solution.T


@functools.cache
def _sphere_points() -> Tensor:
    """60 points [60,3] float64 spread over the sphere on a golden spiral, in no symmetry."""
    k = torch.arange(60, dtype=torch.float64)
    z, angle = 1 - (2 * k + 1) / 60, k * math.pi * (3 - math.sqrt(5))
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=-1)


def real_harmonics(points_p3: Tensor, degree: int) -> Tensor:
    """The real spherical harmonics of one degree, 1 to 4, [P,2l+1] in the order m = -l..l, without Condon-Shortley phase, up to a common
    factor. Polar axis y."""
    Y, Z, X = points_p3.unbind(-1)  # in the textbook's formulas the polar axis is Z
    XX, YY, ZZ = X * X, Y * Y, Z * Z
    root = math.sqrt
    match degree:
        case 1:
            terms = [Y, Z, X]
        case 2:
            terms = [root(3) * X * Y, root(3) * Y * Z, (3 * ZZ - 1) / 2, root(3) * X * Z, root(3) / 2 * (XX - YY)]
        case 3:
            terms = [
                root(5 / 8) * Y * (3 * XX - YY), root(15) * X * Y * Z, root(3 / 8) * Y * (5 * ZZ - 1), Z * (5 * ZZ - 3) / 2,
                root(3 / 8) * X * (5 * ZZ - 1), root(15) / 2 * Z * (XX - YY), root(5 / 8) * X * (XX - 3 * YY),
            ]  # fmt: skip
        case 4:
            terms = [
                root(35) / 2 * X * Y * (XX - YY), root(35 / 8) * Y * Z * (3 * XX - YY), root(5) / 2 * X * Y * (7 * ZZ - 1),
                root(5 / 8) * Y * Z * (7 * ZZ - 3), (35 * ZZ * ZZ - 30 * ZZ + 3) / 8, root(5 / 8) * X * Z * (7 * ZZ - 3),
                root(5) / 4 * (XX - YY) * (7 * ZZ - 1), root(35 / 8) * X * Z * (XX - 3 * YY),
                root(35) / 8 * (XX * XX - 6 * XX * YY + YY * YY),
            ]  # fmt: skip
        case _:
            raise ValueError(f"degree {degree}: 1 to {_DEGREE}")
    return torch.stack(terms, dim=-1)
