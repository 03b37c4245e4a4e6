"""What is splatted, into which views, and how: the types that every part of the splat takes, and the one place that checks them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from storage.domain import Gaussians

_PSD_TOLERANCE = 1e-5  # of the covariance's trace: what rounding in float32 may leave


@dataclass(frozen=True)
class Splats:
    """N Gaussians as tensors, all on one device and of one dtype. Their footprints are either `covars`, or both of `quats` and `scales`.

    means: [N,3] in the world frame, any unit of length. opacities: [N] in [0,1]. covars: [N,3,3] world-frame covariances.
    quats: [N,4] (w,x,y,z), of any length but zero. scales: [N,3] standard deviations.
    """

    means: Tensor
    opacities: Tensor
    covars: Tensor | None = None
    quats: Tensor | None = None
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        quats, scales = self.quats is not None, self.scales is not None
        if (self.covars is None) == (not (quats and scales)) or quats != scales:
            raise ValueError("covars: give either covars or both of quats and scales")

    @classmethod
    def from_record(cls, gaussians: Gaussians) -> Splats:
        """The Gaussians of a record, on the CPU, sharing its memory."""
        return cls(**{name: torch.from_numpy(getattr(gaussians, name)) for name in ("means", "opacities", "quats", "scales")})

    def __len__(self) -> int:
        return len(self.means)

    def to(self, device: torch.device | str) -> Splats:
        """The same Gaussians on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})

    def covariances(self) -> Tensor:
        """World-frame covariances [N,3,3] in float64, whichever form was given."""
        if self.covars is not None:
            return self.covars.double()
        assert self.quats is not None
        assert self.scales is not None
        if self.quats.is_cuda:
            return gaussian_covariances(self.quats.double(), self.scales.double())
        from training.splat.cpu.kernels import covariances

        quats, scales = (x.detach().double().contiguous().numpy() for x in (self.quats, self.scales))
        return torch.from_numpy(covariances(quats, scales))


@dataclass(frozen=True)
class Views:
    """V pinhole cameras that see images of one size.

    viewmats: [V,4,4] world-to-camera, OpenCV axes (x right, y down, z forward). Ks: [V,3,3] in pixels, pixel centres at +0.5, principal
    point anywhere, no skew. width, height: of the images, pixels.
    """

    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        for name, size in (("width", self.width), ("height", self.height)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: {size!r}, expected a positive int")

    def __len__(self) -> int:
        return len(self.viewmats)

    def to(self, device: torch.device | str) -> Views:
        """The same cameras on `device`."""
        return replace(self, viewmats=self.viewmats.to(device), Ks=self.Ks.to(device))


@dataclass(frozen=True)
class RasterOptions:
    """How Gaussians are drawn. Source: gsplat 1.5.3, whose names and defaults these are, but for its near plane of 0.01.

    near_plane, far_plane: Gaussians with z outside are dropped (unit of the world).
    eps2d: added to both variances of the projection (pixels squared).
    rasterize_mode: "classic", or "antialiased": opacity times the square root of the ratio of areas without and with eps2d.
    alpha_clamp: the largest alpha of one Gaussian. CUDA takes no other than gsplat's 0.999; the INRIA rasteriser has 0.99.
    """

    near_plane: float = 0.2
    far_plane: float = 1e10
    eps2d: float = 0.3
    rasterize_mode: str = "classic"
    alpha_clamp: float = 0.999

    def __post_init__(self) -> None:
        if not 0.0 < self.near_plane < self.far_plane:
            raise ValueError(f"near_plane, far_plane: {self.near_plane}, {self.far_plane}, expected 0 < near_plane < far_plane")
        if not 0.0 <= self.eps2d < math.inf:
            raise ValueError(f"eps2d: {self.eps2d}, expected a finite number >= 0")
        if self.rasterize_mode not in ("classic", "antialiased"):
            raise ValueError(f"rasterize_mode: {self.rasterize_mode!r}, expected 'classic' or 'antialiased'")
        if not 1.0 / 255.0 <= self.alpha_clamp < 1.0:
            raise ValueError(f"alpha_clamp: {self.alpha_clamp}, expected 1/255 <= alpha_clamp < 1")


DEFAULT = RasterOptions()


def gaussian_covariances(quats: Tensor, scales: Tensor) -> Tensor:
    """R diag(scales^2) R^T [N,3,3] of quaternions [N,4] (w,x,y,z; normalised here) and standard deviations [N,3]."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rotation = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    variances = scales.square().unbind(-1)
    covars = torch.empty(len(quats), 3, 3, dtype=quats.dtype, device=quats.device)
    for i in range(3):
        for j in range(i + 1):
            covars[:, i, j] = sum(rotation[i][k] * rotation[j][k] * variances[k] for k in range(3))
            covars[:, j, i] = covars[:, i, j]
    return covars


def check_scene(splats: Splats, views: Views, colors: Tensor | None = None, backgrounds: Tensor | None = None) -> None:
    """Raises ValueError, naming the argument, for shapes, counts, dtypes, devices and values that cannot be splatted.

    colors: [N,C] and backgrounds: [V,C], where there are any.
    """
    tensors: dict[str, tuple[Tensor | None, tuple[str | int, ...]]] = {
        "means": (splats.means, ("N", 3)), "covars": (splats.covars, ("N", 3, 3)), "quats": (splats.quats, ("N", 4)),
        "scales": (splats.scales, ("N", 3)), "opacities": (splats.opacities, ("N",)), "colors": (colors, ("N", "C")),
        "viewmats": (views.viewmats, ("V", 4, 4)), "Ks": (views.Ks, ("V", 3, 3)), "backgrounds": (backgrounds, ("V", "C")),
    }  # fmt: skip
    _check_layout({name: (tensor, shape) for name, (tensor, shape) in tensors.items() if tensor is not None})
    _check_values(splats, views, backgrounds)


def _check_layout(tensors: dict[str, tuple[Tensor, tuple[str | int, ...]]]) -> None:
    """Shapes (a letter stands for the same number wherever it is), dtypes and devices."""
    means = tensors["means"][0]
    sizes: dict[str | int, int] = {}
    for name, (tensor, shape) in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name}: {type(tensor).__name__}, expected a torch tensor")
        expected = tuple(sizes.get(size, size) for size in shape)
        known = [(e, actual) for e, actual in zip(expected, tensor.shape, strict=False) if isinstance(e, int)]
        if tensor.ndim != len(shape) or any(e != actual for e, actual in known):
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected ({', '.join(map(str, expected))})")
        sizes.update({size: actual for size, actual in zip(shape, tensor.shape, strict=True) if isinstance(size, str)})
        if 0 in tensor.shape[(shape[0] == "N") :]:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, only the number of Gaussians may be 0")
        if tensor.dtype != means.dtype or tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name}: dtype {tensor.dtype}; all tensors must be float32, or all float64 (means: {means.dtype})")
        if tensor.device != means.device or tensor.device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"{name}: on {tensor.device}; all tensors must be on the CPU, or all on one CUDA device (means: {means.device})"
            )


def _check_values(splats: Splats, views: Views, backgrounds: Tensor | None) -> None:
    """Finite numbers, opacities that are opacities, covariances that are covariances, pinhole cameras. One wait for the device in all."""
    means, opacities, viewmats, Ks = splats.means, splats.opacities, views.viewmats, views.Ks
    fx, fy = Ks[:, 0, 0], Ks[:, 1, 1]
    affine = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=means.dtype, device=means.device)
    checks = {
        "means: not finite": means.isfinite().all(),
        "opacities: not all in [0,1]": ((opacities >= 0) & (opacities <= 1)).all(),
        "viewmats: not finite": viewmats.isfinite().all(),
        "viewmats: last row is not (0,0,0,1)": (viewmats[:, 3] == affine).all(),
        "Ks: not finite": Ks.isfinite().all(),
        "Ks: focal lengths must be positive": ((fx > 0) & (fy > 0)).all(),
        "Ks: last row is not (0,0,1)": (Ks[:, 2] == affine[1:]).all(),
        "Ks: skew is not supported": ((Ks[:, 0, 1] == 0) & (Ks[:, 1, 0] == 0)).all(),
    }
    if splats.covars is not None:
        checks["covars: not finite"] = splats.covars.isfinite().all()
        checks["covars: not symmetric"], checks["covars: not positive semi-definite"] = _covariance_checks(splats.covars)
    elif splats.quats is not None and splats.scales is not None:
        norms = splats.quats.square().sum(dim=-1)
        checks["quats: not finite or of zero length"] = (norms.isfinite() & (norms > 0)).all()
        checks["scales: not finite or negative"] = (splats.scales.isfinite() & (splats.scales >= 0)).all()
    if backgrounds is not None:
        checks["backgrounds: not finite"] = backgrounds.isfinite().all()
    for problem, passed in zip(checks, torch.stack(list(checks.values())).tolist(), strict=True):
        if not passed:
            raise ValueError(problem)


def _covariance_checks(covars: Tensor) -> tuple[Tensor, Tensor]:
    """Whether all are symmetric, and whether none has a principal minor below zero; both up to a fraction of the trace."""
    trace = covars.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(torch.finfo(covars.dtype).tiny)
    a, b, c, b2, d, e, c2, e2, f = (covars / trace[:, None, None]).flatten(1).unbind(1)
    symmetric = (torch.stack([b - b2, c - c2, e - e2]).abs() <= _PSD_TOLERANCE).all()
    minors = (a, d, f, a * d - b * b, a * f - c * c, d * f - e * e, a * (d * f - e * e) - b * (b * f - c * e) + c * (b * e - c * d))
    return symmetric, (torch.stack(minors) >= -_PSD_TOLERANCE).all()
