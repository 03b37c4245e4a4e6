"""The lift for Gaussians that belong to no pixel: each takes the mean of the context's pixels, weighed as it shows in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from training.splat.lift import TokenLift
from training.splat.rasterize import check_inputs, cpu_geometry


@dataclass(frozen=True)
class SparseLift:
    """A linear map from the tokens of V views to one feature per Gaussian, with any number of entries each; used as a `TokenLift` is.

    Gaussian g gets the sum of weights[e] * tokens[indices[e]] over offsets[g] <= e < offsets[g+1]; nothing where there is no entry.

    offsets: [N+1] int64. indices: [nnz] int32, below V*h*w. weights: [nnz] float32, > 0; a row sums to 1 at most.
    """

    offsets: Tensor
    indices: Tensor
    weights: Tensor
    grid: tuple[int, int, int]  # (V,h,w) of the tokens
    options: Mapping[str, str] = field(default_factory=dict)  # the rule that the matrix follows

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def gaussians(self) -> int:
        return len(self.offsets) - 1

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """The matrix by rows: offsets [N+1] int64; token [nnz] int32 and weight [nnz] float32 of each entry."""
        return self.offsets, self.indices, self.weights

    @classmethod
    @torch.no_grad()
    def from_transposed_weights(
        cls,
        means: Tensor,
        *,
        covars: Tensor | None = None,
        quats: Tensor | None = None,
        scales: Tensor | None = None,
        opacities: Tensor,
        context_masks: Tensor,
        context_valid: Tensor | None = None,
        grid: tuple[int, int],
        viewmats: Tensor,
        Ks: Tensor,
        no_neighbour: str = "zero",
        upsample_grid: str = "align_corners",
        near_plane: float = 0.2,
        eps2d: float = 0.3,
        rasterize_mode: str = "classic",
        alpha_clamp: float = 0.999,
    ) -> SparseLift:
        """(W^T F) / (W^T 1), with W the weights of the Gaussians in the context's pixels and F the tokens upsampled to those pixels.

        Args:
            means, covars or (quats, scales), opacities: N Gaussians, however they came about; see `rasterize`.
            context_masks: [V,H,W] integer labels of the context views, at the resolution to render.
            context_valid: [V,H,W] bool, the pixels that count at all; all of them by default.
            grid: (h,w), tokens per view. no_neighbour, upsample_grid: see `TokenLift.from_masks`.
            viewmats: [V,4,4] world-to-camera and Ks: [V,3,3] pixels of the context views. The rest: see `rasterize`.

        Gaussians that show in no pixel get the zero vector, as do pixels without a neighbour, which count in the mean. Computed on the CPU;
        the lift is on the device of `means`. Source: LUDVIG, uplifting by aggregation of 2D features.
        """
        pixels = TokenLift.from_masks(context_masks.cpu(), grid, no_neighbour=no_neighbour, upsample_grid=upsample_grid)
        views, height, width = context_masks.shape
        if len(viewmats) != views:
            raise ValueError(f"viewmats: {len(viewmats)} cameras for {views} context_masks")
        if context_valid is None:
            context_valid = torch.ones(context_masks.shape, dtype=torch.bool)
        if context_valid.shape != context_masks.shape:
            raise ValueError(f"context_valid: shape {tuple(context_valid.shape)}, expected that of the masks, {tuple(context_masks.shape)}")
        scene = (means, covars, quats, scales, opacities, viewmats, Ks, width, height, near_plane, 1e10, eps2d, rasterize_mode)
        check_inputs(*scene, alpha_clamp)
        on_cpu = tuple(part.cpu() if isinstance(part, Tensor) else part for part in scene)
        gaussian, token, weight = _weigh(on_cpu, alpha_clamp, pixels, context_valid.cpu().numpy().ravel(), len(means))
        offsets = np.searchsorted(gaussian, np.arange(len(means) + 1))
        options = {**pixels.options, "lift": "transposed_weights"}
        arrays = (offsets.astype(np.int64), token.astype(np.int32), weight.astype(np.float32))
        offsets_t, indices_t, weights_t = (torch.from_numpy(array).to(means.device) for array in arrays)
        return cls(offsets_t, indices_t, weights_t, pixels.grid, options)

    def apply(self, tokens: Tensor) -> Tensor:
        """Lifts tokens [V*h*w,C] to features [N,C], of the tokens' dtype (the sums are float32 or wider)."""
        if tokens.ndim != 2 or len(tokens) != self.tokens:
            raise ValueError(f"tokens: shape {tuple(tokens.shape)}, expected ({self.tokens}, C)")
        if not tokens.is_floating_point():
            raise ValueError(f"tokens: dtype {tokens.dtype}, expected a floating-point type")
        wide = tokens if tokens.dtype == torch.float64 else tokens.float()
        weights = self.weights.to(wide.dtype)
        lifted = embedding_bag(self.indices.long(), wide, self.offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
        return lifted.to(tokens.dtype)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SparseLift:
        parts = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in ("offsets", "indices", "weights")}
        return replace(self, **parts)

    def pin_memory(self) -> SparseLift:
        """What a loader with pinned memory calls."""
        return replace(self, offsets=self.offsets.pin_memory(), indices=self.indices.pin_memory(), weights=self.weights.pin_memory())


def _weigh(
    scene: tuple, alpha_clamp: float, pixels: TokenLift, valid: np.ndarray, gaussians: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian, token and weight of each entry, ascending. valid: [V*H*W] bool. No bit depends on the number of threads."""
    from training.splat.cpu import composite_row_of_tiles, on_threads, tile_view
    from training.splat.kernels import TILE
    from training.splat.operator_kernel import weigh_tokens

    geometry = cpu_geometry(*scene)
    views, n_context = range(len(geometry.viewmats)), pixels.tokens
    tiled = on_threads(lambda view: tile_view(geometry, view), views)
    offsets, tokens, weights = (part.numpy() for part in pixels.rows())

    def row_of_tiles(at: int) -> tuple[np.ndarray, np.ndarray]:
        view, row = divmod(at, geometry.tiles[1])
        place = np.full(n_context, -1, np.int32)
        found = [(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0))]
        for box, contributions, _ in composite_row_of_tiles(geometry, tiled[view], row, alpha_clamp, lambda tile: [tile]):
            y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1].reshape(2, -1)
            pixel, slots = (view * geometry.height + y) * geometry.width + x, (y - box.y0) * TILE + x - box.x0
            pixel, slots = pixel[valid[pixel]], slots[valid[pixel]]
            found.append(weigh_tokens(pixel, slots, *contributions, offsets, tokens, weights, place))
        gaussian, token, value = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return gaussian.astype(np.int64) * (n_context + 1) + token, value

    done = on_threads(row_of_tiles, range(len(views) * geometry.tiles[1]))
    keys, values = (np.concatenate(arrays) for arrays in zip(*done, strict=True))
    order = np.argsort(keys, kind="stable")
    keys, first = np.unique(keys[order], return_index=True)
    sums = np.add.reduceat(values[order], first) if len(keys) else values
    gaussian, token = np.divmod(keys, n_context + 1)
    total = np.ones(gaussians)
    is_total = token == n_context
    total[gaussian[is_total]] = sums[is_total]
    gaussian, token, sums = gaussian[~is_total], token[~is_total], sums[~is_total]
    return gaussian, token, sums / total[gaussian]
