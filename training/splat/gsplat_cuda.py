"""The splat on CUDA: gsplat 1.5.3, called so that its result is the one defined in `rasterize`. gsplat is imported on first use."""

from __future__ import annotations

import torch
from torch import Tensor

ALPHA_CLAMP = 0.999  # compiled into gsplat 1.5.3
_CHANNEL_CHUNK = 128  # one of the widths that gsplat is compiled for: 384 and 768 split into whole chunks, nothing is padded


def rasterize_gsplat(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    eps2d: float,
    backgrounds: Tensor | None,
    rasterize_mode: str,
    alpha_clamp: float,
) -> tuple[Tensor, Tensor]:
    """`rasterize` on checked float32 tensors. Where covars are given, quats and scales are ignored.

    Raises ValueError for what gsplat 1.5.3 cannot do, RuntimeError where gsplat or its compiled kernels are missing.
    """
    if means.dtype != torch.float32:
        raise ValueError(f"means: dtype {means.dtype}; gsplat renders float32 only. Convert, or move the tensors to the CPU for float64")
    if alpha_clamp != ALPHA_CLAMP:
        raise ValueError(f"alpha_clamp: {alpha_clamp}; gsplat 1.5.3 has {ALPHA_CLAMP} compiled in. Use it, or move the tensors to the CPU")
    features, alpha, _ = _backend().rasterization(
        means=means,
        quats=quats,
        scales=scales,
        opacities=opacities,
        colors=colors,
        viewmats=viewmats,
        Ks=Ks,
        width=width,
        height=height,
        near_plane=near_plane,
        far_plane=far_plane,
        eps2d=eps2d,
        packed=False,
        backgrounds=backgrounds,
        rasterize_mode=rasterize_mode,
        channel_chunk=_CHANNEL_CHUNK,
        covars=covars,
    )
    return features, alpha


def footprints_gsplat(
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
) -> tuple[Tensor, Tensor]:
    """In the first camera, in pixels: each Gaussian's centre [N,2], and the half extents [N,2] of what gsplat draws of it, 0 if nothing."""
    limits = {"near_plane": near_plane, "far_plane": far_plane, "eps2d": eps2d, "packed": False, "opacities": opacities}
    project = _backend().fully_fused_projection
    radii, centres, *_ = project(means, covars, quats, scales, viewmats[:1], Ks[:1], width, height, **limits)
    return centres[0], radii[0]


def _backend():
    """The gsplat module, with its kernels compiled."""
    remedy = "install gsplat==1.5.3 with a CUDA toolkit (nvcc) that matches torch's CUDA, or move the tensors to the CPU"
    try:
        import gsplat
        from gsplat.cuda._backend import _C  # compiles on first use, and raises whatever the toolchain does
    except Exception as error:
        raise RuntimeError(f"gsplat has no working CUDA backend ({type(error).__name__}: {error}): {remedy}") from error
    if _C is None:
        raise RuntimeError(f"gsplat has no compiled CUDA kernels: {remedy}")
    if gsplat.__version__.split("+")[0] != "1.5.3":
        raise RuntimeError(f"gsplat {gsplat.__version__} may composite differently from 1.5.3 (1.6 clamps alpha at 0.99): {remedy}")
    return gsplat
