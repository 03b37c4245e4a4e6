"""Models of the `ffgs` package (extra `ffgs`), which loads feed-forward reconstructors of several authors in one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from configs import ConfigError
from configs.fields import REQUIRED
from pipeline.reconstruct.base import BadContext, Reconstructor, check_views, choose_device, frame_names
from storage.domain import Camera, Frame, Gaussians
from storage.records.gaussians import encode_gaussians
from training.model.weights import hash_weights

if TYPE_CHECKING:
    from ffgs import ModelFrame

_UNALIGNED = ("anysplat", "c3g", "tokengs")  # voxels, or a set of free tokens; known before their weights are fetched
# Of cameras that a model predicts against the given ones, once its frame is fitted to them: degrees, and share of the cameras' extent.
_MAX_ROTATION, _MAX_OFFSET = 2.0, 0.1
_WHOLE = 0.99  # share of an image; what is missing of more is not worth a word
_REMEDY = "set reconstructor.pixel_aligned=false, which takes any Gaussians"


@dataclass
class Config:
    """A model of the `ffgs` package (extra `ffgs`; its wheel holds parts under non-commercial licences, and its models have their own).

    What a model crops away of the images gets no Gaussians: anysplat takes 448 x 448 unless reconstructor.processor says another
    image_shape. anysplat predicts cameras: contexts where they are far from the given ones are refused. c3g knows no scale: its baseline
    is taken to be right.
    """

    model: str = REQUIRED
    """Model type: anysplat, c3g, tokengs, or that of an installed package with an entry point in `ffgs.models`."""

    weights: str = REQUIRED
    """Folder written by its save_pretrained, name in its zoo (anysplat/default), or hub repository."""

    pixel_aligned: bool = False
    """One Gaussian on the ray of each context pixel, in 10 bytes instead of 13, lifted to as MVSplat's are."""

    processor: dict[str, Any] | None = None
    """Settings of its processor that shall differ: {image_shape: [336, 448]}."""

    device: str = "auto"
    """`auto`: a CUDA device where there is one; cpu, cuda, cuda:N."""


def make(config: Config) -> FfgsReconstructor:
    return FfgsReconstructor(config.model, config.weights, config.pixel_aligned, config.processor, config.device)


class FfgsReconstructor(Reconstructor):
    """Arguments as in `Config`."""

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
        try:
            self.pipeline = ffgs.GSPipeline.from_pretrained(
                weights, model_type=model, device=self.device, processor_overrides=dict(processor or {})
            )
        except Exception as error:  # the hub's client, file systems and each model's own reader raise what they like
            raise ConfigError(
                f"reconstructor.weights={weights}, reconstructor.processor={processor}: ffgs cannot load {model} "
                f"({type(error).__name__}: {' '.join(str(error).split())})"
            ) from error

    def describe(self) -> dict[str, Any]:
        return {
            "ffgs_version": version("ffgs"),
            "model": self.model,
            "pixel_aligned": self.pixel_aligned,
            "weights_sha256": hash_weights(self.pipeline.model.state_dict()),
            "processor": self.pipeline.processor.to_dict(),
        }

    def check_size(self, height: int, width: int) -> None:
        """No ffgs model says whether it is pixel-aligned, so one that shall be is asked: what does it make of a pair of noise?"""
        from ffgs import ImageFitConfig

        config = self.pipeline.processor.config
        fits = isinstance(config, ImageFitConfig)
        fitting = " x ".join(map(str, config.image_shape)) if fits else ""
        asked = f"reconstructor.model={self.model}: images of {height} x {width} pixels"
        if not self.pixel_aligned:
            # Any size will do; and one that predicts cameras rightly refuses those of noise.
            if fits and config.crop_mode == "crop":
                share = config.image_shape[0] * width / (config.image_shape[1] * height)
                kept = min(share, 1 / share)
                if kept < _WHOLE:
                    remedy = "reconstructor.processor can say another image_shape"
                    print(f"{asked} are cropped to {fitting}, and {1 - kept:.0%} of them get no Gaussians; {remedy}", flush=True)
            return
        if fits and config.image_shape != [height, width]:
            raise ConfigError(
                f"{asked}, which it would resize or crop to {fitting}, away from the stored pixels; build the frames at {fitting}, "
                f"or {_REMEDY}"
            )
        try:
            self.reconstruct(_noise(height, width))
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"reconstructor.model={self.model}: tried on a pair of {height} x {width} pixels: {error}; {_REMEDY}"
            ) from error

    def reconstruct(self, views: Sequence[Frame]) -> Gaussians:
        """In the world frame of the cameras; if pixel-aligned, of opacity 0 where the context pixel is not valid. Raises BadContext for a
        context that the model refuses, or whose Gaussians are not pixel-aligned where they should be."""
        from ffgs import Views

        check_views(views)
        cameras = [view.camera for view in views]
        images = torch.from_numpy(np.stack([view.image for view in views])).permute(0, 3, 1, 2).float() / 255
        K, c2w = (torch.from_numpy(np.stack(arrays)).float() for arrays in ([c.K for c in cameras], [c.c2w for c in cameras]))
        names = frame_names(views)
        try:
            output = self.pipeline(Views(images.to(self.device), K.to(self.device), c2w.to(self.device))).to_world()
            self._check_fit(output.frame)
            cloud = output.gaussians
            means, quats, scales, opacities = (
                x[0].float().cpu().numpy() for x in (cloud.means, cloud.quats, cloud.scales, cloud.opacities)
            )
            made = Gaussians(means, quats, scales, opacities, self.pixel_aligned)
        except ValueError as error:
            raise BadContext(f"{names}: {error}") from error
        if not all(np.isfinite(x).all() for x in (made.means, made.quats, made.scales, made.opacities)):
            raise BadContext(f"{names}: the network gave values that are not finite")
        if not self.pixel_aligned:
            return made
        valid = np.concatenate([view.valid.reshape(-1) for view in views])
        if len(made) != len(valid):
            raise BadContext(f"{names}: {len(made)} Gaussians for {len(valid)} context pixels")
        made = replace(made, opacities=np.where(valid, made.opacities, np.float32(0)))
        try:
            encode_gaussians(made, cameras)
        except ValueError as error:
            raise BadContext(f"{names}: {error}") from error
        return made

    def _check_fit(self, frame: ModelFrame | None) -> None:
        """Where the model predicts the cameras, its Gaussians stand right only if these are the given ones."""
        fit = None if frame is None else frame.residuals
        if fit is None:
            return
        rotation, offset = float(fit.rotation_deg.max()), float(fit.relative_center_error.max())
        if rotation > _MAX_ROTATION or offset > _MAX_OFFSET:
            raise ValueError(
                f"the model's own cameras are {rotation:.1f} degrees and {offset:.0%} of their distance off the given ones; at most "
                f"{_MAX_ROTATION:g} and {_MAX_OFFSET:.0%} will do"
            )


def _noise(height: int, width: int) -> list[Frame]:
    """Two cameras side by side, 30 cm apart, before noise."""
    random = np.random.default_rng(0)
    K = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
    views = []
    for view in range(2):
        c2w = np.eye(4)
        c2w[0, 3] = 0.3 * view
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        size = (height, width)
        views.append(Frame(f"noise {view}", Camera(c2w, K, width, height), image, np.zeros(size, np.uint16), np.ones(size, bool)))
    return views
