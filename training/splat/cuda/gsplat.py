"""The splat on CUDA: gsplat 1.5.3, called so that its result is the one defined in `rasterize`. gsplat is imported on first use."""

from __future__ import annotations

import torch
from torch import Tensor

from training.splat.types import RasterOptions, Splats, Views

ALPHA_CLAMP = 0.999  # compiled into gsplat 1.5.3
_CHANNEL_CHUNK = 128  # one of the widths that gsplat is compiled for: 384 and 768 split into whole chunks


def rasterize_gsplat(
    splats: Splats, views: Views, options: RasterOptions, colors: Tensor, backgrounds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`rasterize` of a checked float32 scene. Where covars are given, gsplat ignores quats and scales.

    Raises ValueError for what gsplat 1.5.3 cannot do, RuntimeError where gsplat or its compiled kernels are missing.
    """
    dtype, clamp = splats.means.dtype, options.alpha_clamp
    if dtype != torch.float32:
        raise ValueError(f"means: dtype {dtype}; gsplat renders float32 only. Convert, or move the tensors to the CPU for float64")
    if clamp != ALPHA_CLAMP:
        raise ValueError(f"alpha_clamp: {clamp}; gsplat 1.5.3 has {ALPHA_CLAMP} compiled in. Use it, or move the tensors to the CPU")
    features, alpha, _ = _backend().rasterization(
        means=splats.means,
        quats=splats.quats,
        scales=splats.scales,
        opacities=splats.opacities,
        colors=colors,
        viewmats=views.viewmats,
        Ks=views.Ks,
        width=views.width,
        height=views.height,
        near_plane=options.near_plane,
        far_plane=options.far_plane,
        eps2d=options.eps2d,
        packed=False,
        backgrounds=backgrounds,
        rasterize_mode=options.rasterize_mode,
        channel_chunk=_CHANNEL_CHUNK,
        covars=splats.covars,
    )
    return features, alpha


def footprints_gsplat(splats: Splats, view: Views, options: RasterOptions) -> tuple[Tensor, Tensor]:
    """In the one view, in pixels: each Gaussian's centre [N,2], and the half extents [N,2] of what gsplat draws of it, 0 if nothing."""
    radii, centres, *_ = _backend().fully_fused_projection(
        means=splats.means,
        covars=splats.covars,
        quats=splats.quats,
        scales=splats.scales,
        viewmats=view.viewmats,
        Ks=view.Ks,
        width=view.width,
        height=view.height,
        eps2d=options.eps2d,
        near_plane=options.near_plane,
        far_plane=options.far_plane,
        packed=False,
        opacities=splats.opacities,
    )
    return centres[0], radii[0]


def gsplat_works() -> bool:
    """Whether gsplat and its kernels are there; compiles them."""
    try:
        _backend()
    except RuntimeError:
        return False
    return True


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
