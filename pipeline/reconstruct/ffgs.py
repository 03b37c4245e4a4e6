"""Models of the `ffgs` package (extra `ffgs`), which loads feed-forward reconstructors of several authors in one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from configs import ConfigError
from pipeline.reconstruct.reconstructor import BadPair, Reconstructor, check_pair, choose_device
from storage.domain import Camera, Frame, Gaussians
from storage.gaussians import encode_gaussians
from training import torchvision_ops  # noqa: F401  (before ffgs, which imports torchvision)
from training.backbone import hash_weights

_UNALIGNED = ("anysplat", "c3g", "tokengs")  # voxels, or a set of free tokens; known before their weights are fetched
_REMEDY = "set reconstructor.pixel_aligned=false, which takes any Gaussians"


class FfgsReconstructor(Reconstructor):
    """`model`: the model type under which ffgs knows it: built in, or of an installed package with an entry point in `ffgs.models`.
    `weights`: a folder written by its `save_pretrained`, a name in its zoo, or a hub repository. `pixel_aligned`: whether the model puts
    one Gaussian on the ray of each context pixel; if not, features reach its Gaussians by where they show in the context (`SparseLift`).
    `processor`: settings of the model's processor that shall differ. `device`: as for mvsplat."""

    needs_depth = False

    def __init__(
        self, model: str, weights: str, pixel_aligned: bool, processor: Mapping[str, Any] | None = None, device: str = "auto"
    ) -> None:
        try:
            import ffgs
        except ImportError as error:
            raise ConfigError(f"reconstructor=ffgs: {error}; install the extra: pip install 'splat-and-distill-at-scale[ffgs]'") from error
        if pixel_aligned and model in _UNALIGNED:
            raise ConfigError(f"reconstructor.model={model}: its Gaussians are not one per context pixel; {_REMEDY}")
        try:
            ffgs.get_model_spec(model)
        except KeyError as error:
            raise ConfigError(f"reconstructor.model={model}: {error.args[0]}") from error
        self.model, self.pixel_aligned = model, pixel_aligned
        self.device, self.uses_gpu = choose_device(device), device != "cpu"
        self.pipeline = ffgs.GSPipeline.from_pretrained(
            weights, model_type=model, device=self.device, processor_overrides=dict(processor or {})
        )

    def describe(self) -> dict[str, Any]:
        return {
            "name": "ffgs",
            "ffgs_version": version("ffgs"),
            "model": self.model,
            "pixel_aligned": self.pixel_aligned,
            "weights_sha256": hash_weights(self.pipeline.model.state_dict()),
            "processor": self.pipeline.processor.to_dict(),
        }

    def check_size(self, height: int, width: int) -> None:
        """No ffgs model says whether it is pixel-aligned, so one that shall be is asked: what does it make of a pair of noise?"""
        from ffgs import ImageFitConfig

        if not self.pixel_aligned:
            return  # its processor fits any size; and a model that predicts cameras rightly refuses those of noise
        config = self.pipeline.processor.config
        if isinstance(config, ImageFitConfig) and config.image_shape != [height, width]:
            fitting = " x ".join(map(str, config.image_shape))
            raise ConfigError(
                f"reconstructor.model={self.model}: images of {height} x {width} pixels, which it would resize or crop to {fitting}, away "
                f"from the stored pixels; build the frames at {fitting}, or {_REMEDY}"
            )
        try:
            self.reconstruct(_noise(height, width))
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"reconstructor.model={self.model}: tried on a pair of {height} x {width} pixels: {error}; {_REMEDY}"
            ) from error

    def reconstruct(self, views: Sequence[Frame]) -> Gaussians:
        """In the world frame of the cameras; if pixel-aligned, of opacity 0 where the context pixel is not valid. Raises BadPair for a pair
        that the model refuses, or whose Gaussians are not pixel-aligned where they should be."""
        from ffgs import Views

        check_pair(views)
        cameras = [view.camera for view in views]
        images = torch.from_numpy(np.stack([view.image for view in views])).permute(0, 3, 1, 2).float() / 255
        K, c2w = (torch.from_numpy(np.stack(arrays)).float() for arrays in ([c.K for c in cameras], [c.c2w for c in cameras]))
        try:
            cloud = self.pipeline(Views(images.to(self.device), K.to(self.device), c2w.to(self.device))).to_world().gaussians
        except ValueError as error:
            raise BadPair(f"frames {views[0].name}, {views[1].name}: {error}") from error
        means, quats, scales, opacities = (x[0].float().cpu().numpy() for x in (cloud.means, cloud.quats, cloud.scales, cloud.opacities))
        names = f"frames {views[0].name}, {views[1].name}"
        if not all(np.isfinite(x).all() for x in (means, quats, scales, opacities)):
            raise BadPair(f"{names}: the network gave values that are not finite")
        if not self.pixel_aligned:
            return Gaussians(means, quats, scales, opacities, pixel_aligned=False)
        valid = np.concatenate([view.valid.reshape(-1) for view in views])
        if len(means) != len(valid):
            raise BadPair(f"{names}: {len(means)} Gaussians for {len(valid)} context pixels")
        gaussians = Gaussians(means, quats, scales, np.where(valid, opacities, np.float32(0)))
        try:
            encode_gaussians(gaussians, cameras)
        except ValueError as error:
            raise BadPair(f"{names}: {error}") from error
        return gaussians


def _noise(height: int, width: int) -> list[Frame]:
    """Two cameras side by side, 30 cm apart, before noise."""
    random = np.random.default_rng(0)
    K = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
    views = []
    for place in range(2):
        c2w = np.eye(4)
        c2w[0, 3] = 0.3 * place
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        size = (height, width)
        views.append(Frame(f"noise {place}", Camera(c2w, K, width, height), image, np.zeros(size, np.uint16), np.ones(size, bool)))
    return views
