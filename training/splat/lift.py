"""From the context's tokens to the Gaussians: one sparse matrix, however its entries came about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from training.splat.types import DEFAULT, RasterOptions, Splats, Views, check_scene

NO_NEIGHBOUR = ("zero", "plain_bilinear", "nearest_same_label")
UPSAMPLE_GRID = ("align_corners", "half_pixel")
_PIXELS_AT_ONCE = 1 << 12  # of the search for the nearest token of a label


@dataclass(frozen=True)
class Lift:
    """A linear map from the tokens of V views to one feature per Gaussian, as a sparse matrix by rows (CSR).

    Gaussian g gets the sum of weights[e] * tokens[indices[e]] over offsets[g] <= e < offsets[g+1]; zero where that names no entry.
    Tokens are in the order view, row, column; so are pixel-aligned Gaussians.

    offsets: [N+1] int32. indices: [nnz] int32, below V*h*w. weights: [nnz] float32, >= 0; a row sums to 1 at most.
    """

    offsets: Tensor
    indices: Tensor
    weights: Tensor
    grid: tuple[int, int, int]  # (V,h,w) of the tokens
    options: Mapping[str, str] = field(default_factory=dict)  # the rule that the matrix follows

    @property
    def tokens(self) -> int:
        """V*h*w."""
        return math.prod(self.grid)

    @property
    def gaussians(self) -> int:
        """N."""
        return len(self.offsets) - 1

    def apply(self, tokens: Tensor) -> Tensor:
        """Lifts tokens [V*h*w,C] to features [N,C], of the tokens' dtype (the sums are float32 or wider)."""
        if tokens.ndim != 2 or len(tokens) != self.tokens:
            raise ValueError(f"tokens: shape {tuple(tokens.shape)}, expected ({self.tokens}, C)")
        if not tokens.is_floating_point():
            raise ValueError(f"tokens: dtype {tokens.dtype}, expected a floating-point type")
        wide = tokens if tokens.dtype == torch.float64 else tokens.float()
        weights = self.weights.to(wide.dtype)
        # Offsets and indices are of one type: of two, torch would first copy both to int64.
        lifted = embedding_bag(self.indices, wide, self.offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
        return lifted.to(tokens.dtype)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Lift:
        """The same lift on `device`."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in _TENSORS})

    def pin_memory(self) -> Lift:
        """What a loader with pinned memory calls."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS})

    @classmethod
    def from_masks(cls, masks: Tensor, grid: tuple[int, int], *, no_neighbour: str = "zero", upsample_grid: str = "align_corners") -> Lift:
        """For pixel-aligned Gaussians: bilinear between those of the four surrounding tokens that carry the pixel's own label.

        A token's label is the mask's label at the pixel nearest to the token's position (exact halves to the even pixel).

        Args:
            masks: [V,H,W] integer labels of the context views, at the resolution of the Gaussians. Every value is a label, 0 too.
            grid: (h,w), tokens per view.
            no_neighbour: for pixels with no such token among the four: "zero" gives the zero vector (published code); "plain_bilinear"
                ignores the labels; "nearest_same_label" takes the view's nearest token of that label, and plain bilinear for labels that
                no token carries.
            upsample_grid: where tokens sit: "align_corners", the outermost on the outermost pixels (published code), or "half_pixel", in
                the middle of their patches.

        Four entries per pixel, some of weight 0; all four where no token may speak. Source: Splat and Distill, mask-aware upsampling.
        """
        _check(masks, grid, no_neighbour, upsample_grid)
        views, height, width = masks.shape
        y0, y1, fraction_y, label_rows = _axis(height, grid[0], upsample_grid)
        x0, x1, fraction_x, label_columns = _axis(width, grid[1], upsample_grid)

        rows = torch.stack([y0, y0, y1, y1], dim=-1)[:, None, :]
        columns = torch.stack([x0, x1, x0, x1], dim=-1)[None, :, :]
        nodes_hw4 = (rows * grid[1] + columns).to(masks.device)
        weight_y = torch.stack([1 - fraction_y, 1 - fraction_y, fraction_y, fraction_y], dim=-1)[:, None, :]
        weight_x = torch.stack([1 - fraction_x, fraction_x, 1 - fraction_x, fraction_x], dim=-1)[None, :, :]
        bilinear_hw4 = (weight_y * weight_x).to(masks.device)

        labels_vn = masks[:, label_rows.to(masks.device)][:, :, label_columns.to(masks.device)].flatten(1)
        same_vhw4 = labels_vn[:, nodes_hw4] == masks[..., None]
        weights = bilinear_hw4 * same_vhw4
        total = weights.sum(dim=-1, keepdim=True)
        silent = total[..., 0] == 0
        weights = weights / torch.where(total == 0, 1, total)
        first_token = torch.arange(views, device=masks.device)[:, None, None, None] * (grid[0] * grid[1])
        indices = (nodes_hw4 + first_token).to(torch.int32)
        if no_neighbour != "zero":
            weights[silent] = bilinear_hw4.expand_as(weights)[silent]
        if no_neighbour == "nearest_same_label":
            view, y, x = silent.nonzero(as_tuple=True)
            where = (label_rows.to(masks.device), label_columns.to(masks.device))
            node = _nearest_same_label(masks[view, y, x], labels_vn, view, y, x, *where)
            found = node >= 0
            view, y, x, node = view[found], y[found], x[found], node[found]
            indices[view, y, x] = (node + view * (grid[0] * grid[1])).to(torch.int32)[:, None]
            weights[view, y, x] = torch.tensor([1.0, 0.0, 0.0, 0.0], device=masks.device)
        options = {"lift": "masks", "no_neighbour": no_neighbour, "upsample_grid": upsample_grid}
        offsets = torch.arange(0, indices.numel() + 1, indices.shape[-1], dtype=torch.int32, device=indices.device)
        return cls(offsets, indices.flatten(), weights.flatten(), (views, *grid), options)

    @classmethod
    @torch.no_grad()
    def from_visibility(
        cls,
        splats: Splats,
        views: Views,
        context_masks: Tensor,
        grid: tuple[int, int],
        *,
        context_valid: Tensor | None = None,
        no_neighbour: str = "zero",
        upsample_grid: str = "align_corners",
        options: RasterOptions = DEFAULT,
    ) -> Lift:
        """For unstructured Gaussians: each takes the mean of the context's pixels, weighed as it is visible in them.

        (W^T F) / (W^T 1), with W the weights of the Gaussians in the context's pixels and F the tokens upsampled to those pixels.

        Args:
            splats: N Gaussians, however they came about.
            views: the V context views, for images of the size of the masks.
            context_masks: [V,H,W] integer labels of the context views, at the resolution to render.
            grid: (h,w), tokens per view.
            context_valid: [V,H,W] bool, the pixels that count at all; all of them by default.
            no_neighbour, upsample_grid: see `from_masks`.
            options: how the Gaussians are drawn.

        Gaussians that are visible in no pixel have no entry. Pixels without a neighbour count in the mean, as zero. Computed on the CPU;
        the lift is on the device of the splats. Source: LUDVIG, uplifting by aggregation of 2D features.
        """
        from training.splat.cpu.tiles import Geometry
        from training.splat.cpu.visibility import gather_tokens

        pixels = cls.from_masks(context_masks.cpu(), grid, no_neighbour=no_neighbour, upsample_grid=upsample_grid)
        if len(views) != len(context_masks):
            raise ValueError(f"viewmats: {len(views)} cameras for {len(context_masks)} context_masks")
        if (views.height, views.width) != context_masks.shape[1:]:
            raise ValueError(f"height, width: {views.height}, {views.width}; context_masks are {tuple(context_masks.shape[1:])}")
        if context_valid is None:
            context_valid = torch.ones(context_masks.shape, dtype=torch.bool)
        if context_valid.shape != context_masks.shape:
            raise ValueError(f"context_valid: shape {tuple(context_valid.shape)}, expected that of the masks, {tuple(context_masks.shape)}")
        check_scene(splats, views)
        geometry = Geometry.of(splats.to("cpu"), views.to("cpu"), options)
        csr = pixels.offsets.numpy(), pixels.indices.numpy(), pixels.weights.numpy()
        gathered = gather_tokens(geometry, csr, pixels.tokens, context_valid.cpu().numpy().ravel())
        offsets, indices, weights = (torch.from_numpy(array).to(splats.means.device) for array in gathered)
        return cls(offsets, indices, weights, pixels.grid, {**pixels.options, "lift": "transposed_weights"})


_TENSORS = ("offsets", "indices", "weights")


def _check(masks: Tensor, grid: tuple[int, int], no_neighbour: str, upsample_grid: str) -> None:
    if masks.ndim != 3 or 0 in masks.shape:
        raise ValueError(f"masks: shape {tuple(masks.shape)}, expected (V, H, W), none of them 0")
    if masks.is_floating_point() or masks.is_complex() or masks.dtype == torch.bool:
        raise ValueError(f"masks: dtype {masks.dtype}, expected integer labels")
    if len(grid) != 2 or not all(1 <= n <= size for n, size in zip(grid, masks.shape[1:], strict=True)):
        raise ValueError(f"grid: {grid}, expected (h, w) between 1 and the masks' size {tuple(masks.shape[1:])}")
    if no_neighbour not in NO_NEIGHBOUR:
        raise ValueError(f"no_neighbour: {no_neighbour!r}, expected one of {NO_NEIGHBOUR}")
    if upsample_grid not in UPSAMPLE_GRID:
        raise ValueError(f"upsample_grid: {upsample_grid!r}, expected one of {UPSAMPLE_GRID}")


def _axis(pixels: int, tokens: int, upsample_grid: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One image axis: for each pixel the tokens on either side and the fraction of the way between; for each token its pixel."""
    pixel, token = torch.arange(pixels, dtype=torch.float64), torch.arange(tokens, dtype=torch.float64)
    if upsample_grid == "align_corners":
        position = torch.linspace(0, tokens - 1, pixels)  # float32, as published: a whole number may come out a hair beside it
        centre = token * (pixels - 1) / max(tokens - 1, 1)
    else:
        position = ((2 * pixel + 1) * tokens / (2 * pixels) - 0.5).clamp(0, tokens - 1).float()
        centre = (2 * token + 1) * pixels / (2 * tokens) - 0.5
    before = position.floor().long()
    after = (before + 1).clamp_max(tokens - 1)
    return before, after, position - before, centre.round().long()  # round: exact halves to even


def _nearest_same_label(labels: Tensor, labels_vn: Tensor, view: Tensor, y: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """For P pixels the nearest token of their view with their label (at ties the first in raster order); -1 where the view has none."""
    nearest = []
    far = torch.iinfo(torch.int64).max
    for part in range(0, len(labels), _PIXELS_AT_ONCE):
        at = slice(part, part + _PIXELS_AT_ONCE)
        distance = ((y[at, None] - rows) ** 2)[:, :, None] + ((x[at, None] - columns) ** 2)[:, None, :]
        distance = torch.where(labels_vn[view[at]] == labels[at, None], distance.flatten(1), far)
        best = distance.argmin(dim=1)
        nearest.append(torch.where(distance.gather(1, best[:, None])[:, 0] == far, -1, best))
    return torch.cat(nearest) if nearest else labels.new_empty(0, dtype=torch.int64)
