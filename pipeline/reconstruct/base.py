"""The seam that every reconstructor stands behind.

A reconstructor is a file in this folder (or an entry point in `splat_and_distill.reconstructors`) with a dataclass `Config`, its keys,
and a function `make(config)`, which gives a `Reconstructor`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from configs import ConfigError
from configs.fields import Choice
from configs.schema.data import RECONSTRUCTORS
from storage.domain import Frame, Gaussians

if TYPE_CHECKING:
    import torch

_RIGID = 1e-3
_MIN_BASELINE = 1e-4


class BadContext(ValueError):
    """This context cannot be reconstructed. The message says why; the row stays, with Gaussians of opacity 0."""


class Reconstructor(ABC):
    """Frozen: the same views give the same Gaussians."""

    needs_depth: bool
    """Whether the frames must carry depth."""

    uses_gpu: bool
    """Whether an actor that runs it should reserve one where the cluster has any."""

    views: int | None = None
    """How many frames its context has; None: any number."""

    batch: int = 1
    """How many contexts the stage hands to `reconstruct_batch` at a time."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Every setting that decides about the Gaussians, as plain JSON values; weights by their hash. They bind in the provenance, where
        the name by which the reconstructor was chosen is put beside them."""

    @abstractmethod
    def check_size(self, height: int, width: int) -> None:
        """Raises ConfigError where images of that size cannot be taken, before any work."""

    @abstractmethod
    def reconstruct(self, views: Sequence[Frame]) -> Gaussians:
        """The Gaussians of one context, in the world frame of its cameras. Raises BadContext."""

    def reconstruct_batch(self, contexts: Sequence[Sequence[Frame]]) -> list[Gaussians | BadContext]:
        """For each context, all of one image size, its Gaussians or why there are none: one after the other, unless a reconstructor can do
        better. Anything but a BadContext is a fault, and ends the shard."""
        return [self._or_why_not(views) for views in contexts]

    def _or_why_not(self, views: Sequence[Frame]) -> Gaussians | BadContext:
        try:
            return self.reconstruct(views)
        except BadContext as refusal:
            return refusal


def make_reconstructor(choice: Choice) -> Reconstructor:
    """The reconstructor that a configuration chose."""
    reconstructor: Reconstructor = RECONSTRUCTORS.get(choice.name).make(choice.config)
    return reconstructor


def choose_device(name: str) -> torch.device:
    """`auto` (a CUDA device where there is one), `cpu`, `cuda`, `cuda:1` as a device that is here."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"reconstructor.device={name}: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"reconstructor.device={name}: no CUDA device here; use auto or cpu")
    return device


def check_pair(views: Sequence[Frame]) -> None:
    """`check_views`, for a network that is made for two."""
    if len(views) != 2:
        raise BadContext(f"{len(views)} context views; a pair is 2")
    check_views(views)


def check_views(views: Sequence[Frame]) -> None:
    """Raises BadContext, by the frame's name, for what no network that triangulates can take."""
    for view in views:
        camera = view.camera
        size = (camera.height, camera.width)
        if view.image.shape != (*size, 3) or view.image.dtype != np.uint8 or view.valid.shape != size:
            raise BadContext(
                f"frame {view.name}: image {view.image.shape} {view.image.dtype} and mask {view.valid.shape} where the camera says {size} "
                "(height, width); the image is uint8 RGB"
            )
        if not (np.isfinite(camera.c2w).all() and np.isfinite(camera.K).all()):
            raise BadContext(f"frame {view.name}: the camera holds values that are not finite")
        if not (camera.K[0, 0] > 0 and camera.K[1, 1] > 0):
            raise BadContext(f"frame {view.name}: focal lengths {camera.K[0, 0]:g} and {camera.K[1, 1]:g} pixels; both must be above 0")
        if not np.allclose(camera.K[2], [0, 0, 1]):
            raise BadContext(f"frame {view.name}: the last row of K is {camera.K[2].tolist()}, expected 0, 0, 1")
        rotation = camera.c2w[:3, :3]
        skewed = np.abs(rotation.T @ rotation - np.eye(3)).max()
        if skewed > _RIGID or np.linalg.det(rotation) < 0 or not np.allclose(camera.c2w[3], [0, 0, 0, 1]):
            raise BadContext(f"frame {view.name}: the pose is not rigid (c2w is no rotation and translation; off by {skewed:.2g})")
    first = views[0]
    for view in views:
        if first.image.shape != view.image.shape:
            raise BadContext(f"frames {first.name}, {view.name}: images of different sizes, {first.image.shape} and {view.image.shape}")
    baseline = max(float(np.linalg.norm(first.camera.c2w[:3, 3] - view.camera.c2w[:3, 3])) for view in views)
    if baseline < _MIN_BASELINE:
        raise BadContext(f"{frame_names(views)}: the cameras stand {baseline:g} m apart; without parallax there is no depth")


def frame_names(views: Sequence[Frame]) -> str:
    """`frames a.jpg, b.jpg`: what a refusal begins with."""
    return f"frames {', '.join(view.name for view in views)}"
