"""From what a row holds to its operators: the Gaussians of a context, and the frames that they are splatted into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from configs.schema import SplatConfig
from storage.domain import Frame, Gaussians
from storage.records.operators import TokenOperator
from training.splat.lift import Lift
from training.splat.operator import build_token_operator
from training.splat.parity import published_footprints
from training.splat.types import Splats, Views


def window_lift(gaussians: Gaussians, context: Sequence[Frame], grid: tuple[int, int], rule: SplatConfig | None = None) -> Lift:
    """From the context's tokens, a grid (h,w) in each view, to its Gaussians; on the CPU. Where these are pixel-aligned each takes its
    pixel's feature, else the mean of the valid context pixels in which it is visible, and none where it is visible in none."""
    rule = rule or SplatConfig()
    how: dict[str, Any] = {"no_neighbour": rule.no_neighbour, "upsample_grid": rule.upsample_grid}
    masks = torch.from_numpy(np.stack([_labels(view) for view in context]))
    if not rule.mask_aware:
        masks.zero_()
    if gaussians.pixel_aligned:
        return Lift.from_masks(masks, grid, **how)
    height, width = masks.shape[1:]
    viewmats, Ks = (
        torch.from_numpy(np.stack(matrices).astype(np.float32))
        for matrices in ([view.camera.w2c for view in context], [view.camera.K for view in context])
    )
    valid = torch.from_numpy(np.stack([view.valid for view in context]))
    return Lift.from_visibility(Splats.from_record(gaussians), Views(viewmats, Ks, width, height), masks, grid, context_valid=valid, **how)


OPERATOR_PATCH = 14  # pixels of a token's side, where nothing else is asked for


class WindowSplat:
    """The Gaussians of one context with their lift, made once, to be splatted into as many targets as one likes.

    Gaussians that belong to no pixel, and have no feature because no valid context pixel shows them, are made transparent: opaque, they
    would make zero the target of tokens that nobody can say anything about. patch: pixels of a token's side, the backbone's; rule: how
    tokens come to the Gaussians, and how these are drawn.
    """

    def __init__(
        self, gaussians: Gaussians, context: Sequence[Frame], patch: int = OPERATOR_PATCH, rule: SplatConfig | None = None
    ) -> None:
        height, width = context[0].valid.shape
        self.grid, self.rule = (height // patch, width // patch), rule or SplatConfig()
        self.lift = window_lift(gaussians, context, self.grid, self.rule)
        if not gaussians.pixel_aligned:
            visible = self.lift.offsets.diff().numpy() > 0
            gaussians = replace(gaussians, opacities=np.where(visible, gaussians.opacities, np.float32(0)))
        self.gaussians = gaussians

    def operator(self, target: Frame, with_blend: bool = True, source_hash: str = "") -> TokenOperator:
        """The operator into `target`, whose tokens lie on the same grid as the context's."""
        camera = target.camera
        return build_token_operator(
            drawn_as(Splats.from_record(self.gaussians), self.rule),
            lift=self.lift,
            target_mask=torch.from_numpy(_labels(target)),
            viewmat=torch.from_numpy(camera.w2c.astype(np.float32)),
            K=torch.from_numpy(camera.K.astype(np.float32)),
            grid=self.grid,
            with_blend=with_blend,
            source_hash=source_hash,
        )


def drawn_as(splats: Splats, rule: SplatConfig) -> Splats:
    """The Gaussians with the footprints that a rule asks for."""
    return published_footprints(splats) if rule.footprint == "published" else splats


def _labels(frame: Frame) -> np.ndarray:
    """[H,W] int32."""
    if frame.labels is None:
        raise ValueError(f"frame {frame.name}: its labels were not read; the splat is lifted and blended by them")
    return frame.labels.astype(np.int32)
