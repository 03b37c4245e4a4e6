"""MVSplat behind the seam that every reconstructor stands behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from configs import ConfigError
from configs.fields import REQUIRED, check_above
from pipeline.reconstruct.base import BadContext, Reconstructor, check_pair, choose_device
from storage.domain import Camera, Frame, Gaussians
from training.model.weights import hash_weights
from training.reconstruct.mvsplat.checkpoint import RULE, load_encoder
from training.reconstruct.mvsplat.encoder import MULTIPLE
from training.splat.window import OPERATOR_PATCH

_BOTH = 112  # the least common multiple of MULTIPLE and OPERATOR_PATCH


@dataclass
class Config:
    """MVSplat: from two images alone, no depth needed. Image sizes: multiples of 16 (multiples of 112 suit the ViT too)."""

    checkpoint: str = REQUIRED
    """Path or URL of the MVSplat authors' re10k.ckpt; `rule`: dummy weights whose Gaussians mean nothing."""

    near: float = 1.0
    """Metres; depths are searched from here, evenly in 1/metres. 1 and 100 are what the weights were trained with."""

    far: float = 100.0
    """Metres; to here."""

    batch: int = 1
    """Pairs in one pass: more fill a GPU, and its memory; a CPU gains nothing."""

    device: str = "auto"
    """`auto`: a CUDA device where there is one; cpu, cuda, cuda:N."""

    def __post_init__(self) -> None:
        if not 0 < self.near < self.far < float("inf"):
            raise ConfigError(f"near={self.near}, far={self.far}: must be 0 < near < far, in metres")
        check_above(self, 0, "batch")


def make(config: Config) -> MVSplatReconstructor:
    return MVSplatReconstructor(config.checkpoint, config.near, config.far, config.batch, config.device)


class MVSplatReconstructor(Reconstructor):
    """Arguments as in `Config`."""

    needs_depth = False
    views = 2

    def __init__(self, checkpoint: str, near: float, far: float, batch: int = 1, device: str = "auto") -> None:
        self.device, self.batch = choose_device(device), batch
        self.uses_gpu = device != "cpu"  # the actor may stand on another machine than the one that asks
        self.near, self.far, self.dummy = near, far, checkpoint == RULE
        self.encoder = load_encoder(checkpoint, self.device)

    def describe(self) -> dict[str, Any]:
        return {
            "name": "mvsplat",
            "weights": "rule: made up, the Gaussians mean nothing" if self.dummy else "checkpoint",  # binds
            "weights_sha256": hash_weights(self.encoder.state_dict()),
            "near": self.near,
            "far": self.far,
            "batch": self.batch,  # kernels are chosen by shape, so the last bits hang on it
        }

    def check_size(self, height: int, width: int) -> None:
        if height < MULTIPLE or width < MULTIPLE or height % MULTIPLE or width % MULTIPLE:
            fitting = " x ".join(str(max(1, round(size / _BOTH)) * _BOTH) for size in (height, width))
            raise ConfigError(
                f"reconstructor=mvsplat: images of {height} x {width} pixels; height and width must be multiples of {MULTIPLE}, and "
                f"multiples of {_BOTH} suit a ViT's {OPERATOR_PATCH}-pixel patches too: build the frames at {fitting}"
            )

    def reconstruct(self, views: Sequence[Frame]) -> Gaussians:
        """One Gaussian per pixel; opacity 0 where the context pixel is not valid. Raises BadContext for what the network cannot take."""
        (made,) = self.reconstruct_batch([views])
        if isinstance(made, BadContext):
            raise made
        return made

    def reconstruct_batch(self, pairs: Sequence[Sequence[Frame]]) -> list[Gaussians | BadContext]:
        """In one pass all pairs that the network can take."""
        refusals = [self._refusal(views) for views in pairs]
        made = iter(self._encode([views for views, refusal in zip(pairs, refusals, strict=True) if refusal is None]))
        return [next(made) if refusal is None else refusal for refusal in refusals]

    def _refusal(self, views: Sequence[Frame]) -> BadContext | None:
        try:
            check_pair(views)
            self.check_size(*views[0].image.shape[:2])
        except BadContext as refusal:
            return refusal
        except ConfigError as error:
            return BadContext(str(error))
        return None

    def _encode(self, pairs: Sequence[Sequence[Frame]]) -> list[Gaussians | BadContext]:
        """Of pairs that passed the checks, in one pass."""
        if not pairs:
            return []
        image = torch.from_numpy(np.stack([[view.image for view in views] for views in pairs])).to(self.device)
        c2w, K = (
            torch.from_numpy(np.stack([[of(view.camera) for view in views] for views in pairs])).float().to(self.device)
            for of in (lambda camera: camera.c2w, _normalised)
        )
        near, far = (c2w.new_full((len(pairs), 2), value) for value in (self.near, self.far))
        with torch.inference_mode():
            made = self.encoder(image.permute(0, 1, 4, 2, 3).float() / 255, c2w, K, near, far, harmonics=False)
        arrays = (x.cpu().numpy() for x in (made.means, made.quats, made.scales, made.opacities))
        return [_gaussians(views, *of_pair) for views, *of_pair in zip(pairs, *arrays, strict=True)]


def _gaussians(
    views: Sequence[Frame], means: np.ndarray, quats: np.ndarray, scales: np.ndarray, opacities: np.ndarray
) -> Gaussians | BadContext:
    if not all(np.isfinite(x).all() for x in (means, quats, scales, opacities)):
        return BadContext(f"frames {views[0].name}, {views[1].name}: the network gave values that are not finite")
    valid = np.concatenate([view.valid.reshape(-1) for view in views])
    return Gaussians(means, quats, scales, np.where(valid, opacities, np.float32(0)))


def _normalised(camera: Camera) -> np.ndarray:
    """K with the image's width and height as units, [3,3]."""
    return camera.K / np.array([[camera.width], [camera.height], [1]])
