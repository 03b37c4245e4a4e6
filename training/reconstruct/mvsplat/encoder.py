"""MVSplat's encoder: two posed images to one 3D Gaussian per pixel, in one pass ("MVSplat: Efficient 3D Gaussian Splatting from Sparse
Multi-View Images", ECCV 2024), in the configuration of the published `re10k.ckpt`.

Written from a description of the network, not from its source; parameter names, shapes and order are those of the checkpoint. What differs
is how it is computed: attention without score matrices, a plane sweep without warped feature volumes, full-size heads in strips of rows.
Inference only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.reconstruct.mvsplat.cnn import DOWNSCALE, MatchingCNN
from training.reconstruct.mvsplat.depth_predictor import RAW_CHANNELS, DepthPredictor
from training.reconstruct.mvsplat.gaussian_adapter import SHAPE_CHANNELS, adapt
from training.reconstruct.mvsplat.transformer import MultiViewTransformer
from training.reconstruct.mvsplat.unet import VIEWS

MULTIPLE = 4 * DOWNSCALE  # the U-Nets halve four times in all


@dataclass(frozen=True)
class EncodedGaussians:
    """One Gaussian per pixel in the order view, row, column; G = V*H*W. World frame of the cameras, in their unit of length.

    means [B,G,3]; covariances [B,G,3,3]; scales [B,G,3] (standard deviations) and quats [B,G,4] (w,x,y,z, unit length), which make the
    covariances; opacities [B,G]; harmonics [B,G,3,25], None where they were not asked for; depths [B,V,H,W], the distance from the camera
    centre to the mean.
    """

    means: Tensor
    covariances: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    harmonics: Tensor | None
    depths: Tensor


class Backbone(nn.Module):
    """[2B,3,H,W] in [0,1], view-major -> features of the transformer and of the CNN, each [2B,128,H/4,W/4]."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MatchingCNN()
        self.transformer = MultiViewTransformer()

    def forward(self, image_n3hw: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(image_n3hw)
        return self.transformer(features), features


class MVSplatEncoder(nn.Module):
    """The whole network, frozen. 471 parameters; no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.depth_predictor = DepthPredictor()
        self.requires_grad_(False)
        self.eval()

    def forward(
        self, image: Tensor, c2w: Tensor, K_normalised: Tensor, near: Tensor, far: Tensor, harmonics: bool = True
    ) -> EncodedGaussians:
        """image [B,2,3,H,W] float32 RGB in [0,1], H and W multiples of 16; c2w [B,2,4,4] OpenCV camera-to-world; K_normalised [B,2,3,3]
        with row 0 divided by the width and row 1 by the height in pixels; near, far [B,2] in the unit of the poses.

        Without `harmonics` the colours are left out, and a tenth of the work with them.
        """
        b, v, _, height, width = image.shape
        if v != VIEWS or height % MULTIPLE or width % MULTIPLE:
            raise ValueError(f"image {tuple(image.shape)}: [B,{VIEWS},3,H,W] with H and W multiples of {MULTIPLE}")
        flat = image.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        K, closest, farthest = (x.transpose(0, 1).flatten(0, 1) for x in (K_normalised, near, far))
        features, cnn = self.backbone(flat)
        maps = self.depth_predictor(flat, features, cnn, c2w, K, closest, farthest, RAW_CHANNELS if harmonics else SHAPE_CHANNELS)
        depths, densities = (x.unflatten(0, (v, b)).transpose(0, 1) for x in (maps.depth, maps.density))
        views = [
            adapt(maps.raw[view * b + item], depths[item, view], c2w[item, view], K_normalised[item, view])
            for item in range(b)
            for view in range(v)
        ]
        del maps

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(view, name) for view in views]).unflatten(0, (b, -1))

        return EncodedGaussians(
            means=joined("means"),
            covariances=joined("covariances"),
            scales=joined("scales"),
            quats=joined("quats"),
            # The published mapping of density to opacity is the identity in this configuration.
            opacities=densities.flatten(1),
            harmonics=joined("harmonics") if harmonics else None,
            depths=depths,
        )
