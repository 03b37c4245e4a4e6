"""Splatting N-dimensional features: one function, one definition, on CPU (our kernel) and CUDA (gsplat)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from training.splat.cpu import Geometry

_PSD_TOLERANCE = 1e-5  # of the covariance's trace: what rounding in float32 may leave


@torch.no_grad()
def rasterize(
    means: Tensor,
    *,
    covars: Tensor | None = None,
    quats: Tensor | None = None,
    scales: Tensor | None = None,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.2,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    backgrounds: Tensor | None = None,
    rasterize_mode: str = "classic",
    alpha_clamp: float = 0.999,
    reference_compat: bool = False,
) -> tuple[Tensor, Tensor]:
    """Renders features that ride on 3D Gaussians: F(pixel) = sum_i f_i alpha_i T_i + T background. Semantics of gsplat 1.5.3, pinhole.

    The result is not divided by the accumulated alpha. There are no gradients (geometry is frozen, the teacher is not trained): it runs
    under `no_grad`, whatever its inputs require.

    Args, all on one device and of one dtype, float32 or (CPU only) float64:
        means: [N,3], world frame, any unit of length.
        covars: [N,3,3] world-frame covariances; or
        quats, scales: [N,4] (w,x,y,z), of any length but zero, and [N,3] standard deviations.
        opacities: [N] in [0,1].
        colors: [N,C] features, any C >= 1, any sign. Not searched for NaN: one shows as NaN where its Gaussian does.
        viewmats: [V,4,4] world-to-camera, OpenCV axes (x right, y down, z forward).
        Ks: [V,3,3] in pixels, pixel centres at +0.5, principal point anywhere, no skew.
        near_plane, far_plane: Gaussians with z outside are dropped (unit of the world).
        eps2d: added to both variances of the projection (pixels squared).
        backgrounds: [V,C]; none is 0.
        rasterize_mode: "classic", or "antialiased": opacity times the square root of the ratio of areas without and with eps2d.
        alpha_clamp: the largest alpha of one Gaussian. CUDA takes no other than gsplat's 0.999; the INRIA rasteriser has 0.99.
        reference_compat: the published Splat and Distill code hands the eigenvalues of the covariance to the rasteriser as standard
            deviations, so footprints have the covariance V diag(lambda^2) V^T. True reproduces this; for parity runs only.

    Returns: features [V,H,W,C] and alpha = 1 - T [V,H,W,1], of the inputs' dtype and device.

    Raises ValueError, naming the argument, for wrong shapes, counts, dtypes or devices, for non-finite geometry, for indefinite
    covariances and for cameras that are no pinhole.
    """
    check_inputs(
        means, covars, quats, scales, opacities, viewmats, Ks, width, height, near_plane, far_plane, eps2d, rasterize_mode, alpha_clamp,
        colors=colors, backgrounds=backgrounds,
    )  # fmt: skip
    views, channels = len(viewmats), colors.shape[1]
    if len(means) == 0:
        features = colors.new_zeros(views, height, width, channels)
        if backgrounds is not None:
            features += backgrounds[:, None, None, :]
        return features, colors.new_zeros(views, height, width, 1)

    if reference_compat:
        true = _covariances_f64(covars, quats, scales)
        # V diag(lambda^2) V^T is the square of the matrix. Element by element: on CUDA a product of matrices may be set to TF32.
        covars = (true[:, :, :, None] * true[:, None, :, :]).sum(dim=2).to(means.dtype)
    if means.is_cuda:
        from training.splat.gsplat_cuda import rasterize_gsplat

        return rasterize_gsplat(
            means, covars, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, far_plane, eps2d, backgrounds,
            rasterize_mode, alpha_clamp,
        )  # fmt: skip

    from training.splat.cpu import rasterize_cpu

    geometry = cpu_geometry(
        means, covars, quats, scales, opacities, viewmats, Ks, width, height, near_plane, far_plane, eps2d, rasterize_mode
    )  # fmt: skip
    backgrounds = colors.new_zeros(views, channels) if backgrounds is None else backgrounds
    rendered = rasterize_cpu(geometry, colors.detach().contiguous().numpy(), backgrounds.detach().contiguous().numpy(), alpha_clamp)
    return torch.from_numpy(rendered[0]), torch.from_numpy(rendered[1])


def check_inputs(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    eps2d: float,
    rasterize_mode: str,
    alpha_clamp: float,
    *,
    colors: Tensor | None = None,
    backgrounds: Tensor | None = None,
) -> None:
    """Refuses what `rasterize` says it refuses."""
    if (covars is None) == (quats is None or scales is None) or (quats is None) != (scales is None):
        raise ValueError("covars: give either covars or both of quats and scales")
    tensors: dict[str, tuple[Tensor | None, tuple[str | int, ...]]] = {
        "means": (means, ("N", 3)), "covars": (covars, ("N", 3, 3)), "quats": (quats, ("N", 4)), "scales": (scales, ("N", 3)),
        "opacities": (opacities, ("N",)), "colors": (colors, ("N", "C")), "viewmats": (viewmats, ("V", 4, 4)), "Ks": (Ks, ("V", 3, 3)),
        "backgrounds": (backgrounds, ("V", "C")),
    }  # fmt: skip
    _check_layout({name: (tensor, shape) for name, (tensor, shape) in tensors.items() if tensor is not None})
    _check_options(width, height, near_plane, far_plane, eps2d, rasterize_mode, alpha_clamp)
    _check_values(means, covars, quats, scales, opacities, viewmats, Ks, backgrounds)


def cpu_geometry(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    eps2d: float,
    rasterize_mode: str,
) -> Geometry:
    """Checked CPU tensors, as the kernels take them."""
    from training.splat.cpu import Geometry

    return Geometry(
        means=_array_f64(means),
        covars=_array_f64(_covariances_f64(covars, quats, scales)),
        opacities=_array_f64(opacities),
        viewmats=_array_f64(viewmats),
        Ks=_array_f64(Ks),
        width=width,
        height=height,
        near_plane=near_plane,
        far_plane=far_plane,
        eps2d=eps2d,
        antialiased=rasterize_mode == "antialiased",
    )


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


def _covariances_f64(covars: Tensor | None, quats: Tensor | None, scales: Tensor | None) -> Tensor:
    """World-frame covariances [N,3,3] in float64, from whichever form was given."""
    if covars is not None:
        return covars.double()
    assert quats is not None
    assert scales is not None
    if quats.is_cuda:
        return gaussian_covariances(quats.double(), scales.double())
    from training.splat.kernels import covariances

    return torch.from_numpy(covariances(_array_f64(quats), _array_f64(scales)))


def _array_f64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().contiguous().numpy()


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


def _check_options(
    width: int, height: int, near_plane: float, far_plane: float, eps2d: float, rasterize_mode: str, alpha_clamp: float
) -> None:
    for name, size in (("width", width), ("height", height)):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: {size!r}, expected a positive int")
    if not 0.0 < near_plane < far_plane:
        raise ValueError(f"near_plane, far_plane: {near_plane}, {far_plane}, expected 0 < near_plane < far_plane")
    if not 0.0 <= eps2d < math.inf:
        raise ValueError(f"eps2d: {eps2d}, expected a finite number >= 0")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f"rasterize_mode: {rasterize_mode!r}, expected 'classic' or 'antialiased'")
    if not 1.0 / 255.0 <= alpha_clamp < 1.0:
        raise ValueError(f"alpha_clamp: {alpha_clamp}, expected 1/255 <= alpha_clamp < 1")


def _check_values(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    backgrounds: Tensor | None,
) -> None:
    """Finite numbers, opacities that are opacities, covariances that are covariances, pinhole cameras. One wait for the device in all."""
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
    if covars is not None:
        checks["covars: not finite"] = covars.isfinite().all()
        checks["covars: not symmetric"], checks["covars: not positive semi-definite"] = _covariance_checks(covars)
    elif quats is not None and scales is not None:
        norms = quats.square().sum(dim=-1)
        checks["quats: not finite or of zero length"] = (norms.isfinite() & (norms > 0)).all()
        checks["scales: not finite or negative"] = (scales.isfinite() & (scales >= 0)).all()
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
