"""Building an operator with a renderer that can only render and differentiate: stock gsplat on CUDA, by the coloured cotangent.

The gradient of sum(V * render(colors)) with respect to the colors [N,C] is W^T V: how much of image V each Gaussian sees, with W the
weights [pixels,N] that no renderer hands out. One-hot images of the masks give R, up to the lift. For S, each token's bilinear footprint
should be a channel of its own; but a Gaussian narrower than the distance of two tokens meets only one of them, so tokens far enough apart
share a channel, and which of them a Gaussian met follows from where it lies. With patches of 14 pixels and Gaussians up to 13 pixels from
centre to outline, four channels do.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from storage.records.operators import SparseRows
from training.splat.lift import Lift
from training.splat.sampling import Matrices, Sampling
from training.splat.types import RasterOptions, Splats, Views

_CHANNELS = 128  # per render: N x channels gradients are held at once
_SLACK = 0.05  # pixels, for the renderer's rounding


class Renderer(Protocol):
    """One view of N Gaussians."""

    def footprints(self) -> tuple[Tensor, Tensor]:
        """Centres [N,2] and half extents [N,2] (x and y, pixels) beyond which a Gaussian is not visible; 0 for one that nowhere is."""

    def render(self, colors: Tensor) -> tuple[Tensor, Tensor]:
        """Features [H,W,C] of colors [N,C], differentiable, and alpha [H,W]."""


def matrices_by_gsplat(
    splats: Splats, view: Views, options: RasterOptions, lift: Lift, sampling: Sampling, grid: tuple[int, int]
) -> Matrices:
    """S, R and alpha of one checked CUDA view. In saturated pixels gsplat's backward leaves weights with a relative error up to 3e-4."""
    from training.splat.cuda.gsplat import footprints_gsplat, rasterize_gsplat

    class Gsplat:
        def footprints(self) -> tuple[Tensor, Tensor]:
            return footprints_gsplat(splats, view, options)

        def render(self, colors: Tensor) -> tuple[Tensor, Tensor]:
            features, alpha = rasterize_gsplat(splats, view, options, colors)
            return features[0], alpha[0, ..., 0]

    return matrices_by_cotangents(Gsplat(), lift.to(splats.means.device), sampling, (view.height, view.width), grid)


def matrices_by_cotangents(renderer: Renderer, lift: Lift, sampling: Sampling, size: tuple[int, int], grid: tuple[int, int]) -> Matrices:
    """S, R and alpha from renders of W^T V, on the device of the lift; V is an image [H,W,C] of what to look for."""
    device, (height, width) = lift.offsets.device, size
    centres, reach = (x.double() for x in renderer.footprints())
    cell = height / grid[0], width / grid[1]
    phases = [tokens_apart(cell[axis], grid[axis], float(reach[:, 1 - axis].max()) if len(reach) else 0.0) for axis in (0, 1)]
    token_nc = _token_met(centres, cell, grid, phases)

    indices, columns = torch.from_numpy(sampling.taps), len(sampling.columns)
    rows, cols = torch.from_numpy(sampling.rows), torch.from_numpy(sampling.columns)
    taps = (rows[indices // columns] * width + cols[indices % columns]).to(device)
    tap_weights = torch.from_numpy(sampling.weights).float().to(device)
    token = torch.arange(grid[0] * grid[1], device=device)
    channel = token // grid[1] % phases[0] * phases[1] + token % grid[1] % phases[1]
    masks_hw = torch.from_numpy(sampling.masks_hw).to(device).flatten()

    n_tokens, n_masks, n_phases = len(token), len(sampling.pixels), phases[0] * phases[1]
    parts: list[tuple[Tensor, Tensor]] = []
    alpha_hw = torch.zeros(height * width, device=device)
    for first in range(0, n_phases + n_masks, _CHANNELS):
        wanted = torch.arange(first, min(first + _CHANNELS, n_phases + n_masks), device=device)
        looked_for = torch.zeros(height * width, len(wanted), device=device)
        of_token = ((channel >= first) & (channel < first + len(wanted))).nonzero()[:, 0]
        element = taps[of_token] * len(wanted) + channel[of_token, None] - first
        looked_for.view(-1).index_add_(0, element.flatten(), tap_weights[of_token].flatten())
        mask_channel = masks_hw + n_phases - first
        of_mask = ((masks_hw >= 0) & (mask_channel >= 0) & (mask_channel < len(wanted))).nonzero()[:, 0]
        looked_for[of_mask, mask_channel[of_mask].long()] = 1.0

        with torch.enable_grad():
            colors = torch.zeros(len(centres), len(wanted), device=device, requires_grad=True)
            features, alpha = renderer.render(colors)
            (seen_nc,) = torch.autograd.grad(features, colors, looked_for.view(*size, -1))
        alpha_hw = alpha.detach().flatten()
        gaussian, c = (seen_nc > 0).nonzero(as_tuple=True)
        c_all = wanted[c]
        is_mask = c_all >= n_phases
        met = token_nc[gaussian, c_all.clamp_max(n_phases - 1)]
        row = torch.where(is_mask, n_tokens + c_all - n_phases, met)
        parts.append(_through_lift(lift, gaussian, row, seen_nc[gaussian, c]))

    keys, values = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    keys, number = torch.unique(keys, return_inverse=True)
    sums = torch.zeros(len(keys), dtype=torch.float64, device=device).index_add_(0, number, values).cpu().numpy()
    row, column = np.divmod(keys.cpu().numpy(), lift.tokens)
    offsets = np.searchsorted(row, np.arange(n_tokens + n_masks + 1))
    cut = offsets[n_tokens]
    S = SparseRows(offsets[: n_tokens + 1], column[:cut].astype(np.int32), sums[:cut].astype(np.float32))
    means = (sums[cut:] / sampling.pixels[row[cut:] - n_tokens]).astype(np.float32)
    R = SparseRows(offsets[n_tokens:] - cut, column[cut:].astype(np.int32), means)
    return Matrices(S, R, (alpha_hw[taps] * tap_weights).sum(dim=1).clamp(0, 1).cpu().numpy())


def tokens_apart(cell: float, tokens: int, reach: float) -> int:
    """How many tokens apart along an axis two may share a channel: no Gaussian reaching `reach` from its centre meets both.

    cell: pixels per token. tokens: along the axis; so many apart are no two. A token's pixels lie within one pixel of its centre.
    """
    apart = 2
    while apart < tokens and apart * cell / 2 - 1 <= reach + _SLACK:
        apart += 1
    return min(apart, tokens)


def _token_met(centres: Tensor, cell: tuple[float, float], grid: tuple[int, int], phases: list[int]) -> Tensor:
    """[N,channels] int64: of the tokens in each channel the one nearest to each Gaussian's centre."""
    nearest = []
    for axis in (0, 1):
        phase = torch.arange(phases[axis], device=centres.device)
        position = centres[:, 1 - axis, None] / cell[axis] - 0.5
        step = ((position - phase) / phases[axis]).round()
        last = (grid[axis] - 1 - phase) // phases[axis]
        nearest.append(phase + phases[axis] * torch.minimum(step.clamp_min(0), last).long())
    return (nearest[0][:, :, None] * grid[1] + nearest[1][:, None, :]).flatten(1)


def _through_lift(lift: Lift, gaussian: Tensor, row: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Entries (row, Gaussian, weight) as entries in token space: keys row * Nctx + token, and weights in float64."""
    begin = lift.offsets[gaussian].long()
    length = lift.offsets[gaussian + 1] - begin
    source = torch.repeat_interleave(torch.arange(len(gaussian), device=gaussian.device), length)
    entry = torch.arange(len(source), device=gaussian.device) - (length.cumsum(0) - length)[source] + begin[source]
    keys = row[source] * lift.tokens + lift.indices[entry]
    values = weight[source].double() * lift.weights[entry]
    return keys[values > 0], values[values > 0]
