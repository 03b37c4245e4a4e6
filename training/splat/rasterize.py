"""Splatting N-dimensional features: one function, one definition, on CPU (our kernel) and CUDA (gsplat)."""

from __future__ import annotations

import torch
from torch import Tensor

from training.splat.types import DEFAULT, RasterOptions, Splats, Views, check_scene


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
    near_plane: float = DEFAULT.near_plane,
    far_plane: float = DEFAULT.far_plane,
    eps2d: float = DEFAULT.eps2d,
    backgrounds: Tensor | None = None,
    rasterize_mode: str = DEFAULT.rasterize_mode,
    alpha_clamp: float = DEFAULT.alpha_clamp,
) -> tuple[Tensor, Tensor]:
    """Renders features that ride on 3D Gaussians: F(pixel) = sum_i f_i alpha_i T_i + T background. Semantics of gsplat 1.5.3, pinhole.

    The result is not divided by the accumulated alpha. There are no gradients (geometry is frozen, the teacher is not trained): it runs
    under `no_grad`, whatever its inputs require. Called as gsplat's `rasterization` is.

    Args, all on one device and of one dtype, float32 or (CPU only) float64:
        means, opacities, and either covars or both of quats and scales: see `Splats`.
        colors: [N,C] features, any C >= 1, any sign. Not searched for NaN: one shows as NaN where its Gaussian does.
        viewmats, Ks, width, height: see `Views`.
        near_plane, far_plane, eps2d, rasterize_mode, alpha_clamp: see `RasterOptions`.
        backgrounds: [V,C]; none is 0.

    Returns: features [V,H,W,C] and alpha = 1 - T [V,H,W,1], of the inputs' dtype and device.

    Raises ValueError, naming the argument, for wrong shapes, counts, dtypes or devices, for non-finite geometry, for indefinite
    covariances and for cameras that are no pinhole.
    """
    splats, views = Splats(means, opacities, covars, quats, scales), Views(viewmats, Ks, width, height)
    options = RasterOptions(near_plane, far_plane, eps2d, rasterize_mode, alpha_clamp)
    check_scene(splats, views, colors, backgrounds)
    return render(splats, views, options, colors, backgrounds)


def render(
    splats: Splats, views: Views, options: RasterOptions, colors: Tensor, backgrounds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`rasterize`, of a scene that was checked."""
    if len(splats) == 0:
        features = colors.new_zeros(len(views), views.height, views.width, colors.shape[1])
        if backgrounds is not None:
            features += backgrounds[:, None, None, :]
        return features, colors.new_zeros(len(views), views.height, views.width, 1)
    if splats.means.is_cuda:
        from training.splat.cuda.gsplat import rasterize_gsplat

        return rasterize_gsplat(splats, views, options, colors, backgrounds)

    from training.splat.cpu.tiles import Geometry, rasterize_cpu

    backgrounds = colors.new_zeros(len(views), colors.shape[1]) if backgrounds is None else backgrounds
    arrays = (tensor.detach().contiguous().numpy() for tensor in (colors, backgrounds))
    features, alpha = (torch.from_numpy(array) for array in rasterize_cpu(Geometry.of(splats, views, options), *arrays))
    return features, alpha
