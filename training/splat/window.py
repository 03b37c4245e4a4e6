"""From what a row holds to its operators: the Gaussians of a context pair, and the frames that they are splatted into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from storage.domain import Frame, Gaussians
from storage.operator import TokenOperator
from training.backbone import grid_size
from training.splat.lift import TokenLift
from training.splat.operator import build_token_operator


class WindowSplat:
    """The Gaussians of one context pair with their lift, made once, to be splatted into as many targets as one likes."""

    def __init__(self, gaussians: Gaussians, context: Sequence[Frame]) -> None:
        self.gaussians = gaussians
        masks = torch.from_numpy(np.stack([view.labels for view in context]).astype(np.int32))
        self.grid = grid_size(*masks.shape[1:])
        self.lift = TokenLift.from_masks(masks, self.grid)

    def operator(self, target: Frame, with_blend: bool = True, source_hash: str = "") -> TokenOperator:
        """The operator into `target`, whose tokens lie on the same grid as the context's."""
        camera = target.camera
        return build_token_operator(
            torch.from_numpy(self.gaussians.means),
            quats=torch.from_numpy(self.gaussians.quats),
            scales=torch.from_numpy(self.gaussians.scales),
            opacities=torch.from_numpy(self.gaussians.opacities),
            lift=self.lift,
            target_mask=torch.from_numpy(target.labels.astype(np.int32)),
            viewmat=torch.from_numpy(camera.w2c.astype(np.float32)),
            K=torch.from_numpy(camera.K.astype(np.float32)),
            grid=self.grid,
            with_blend=with_blend,
            source_hash=source_hash,
        )
