"""The seam that every reconstructor stands behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import hydra.utils
from hydra.errors import InstantiationException

from configs import ConfigError
from storage.domain import Frame, Gaussians


class BadPair(ValueError):
    """This context pair cannot be reconstructed. The message says why; the row stays, with Gaussians of opacity 0."""


class Reconstructor(Protocol):
    """Frozen: the same views give the same Gaussians."""

    needs_depth: bool
    """Whether the frames must carry depth."""

    def describe(self) -> dict[str, Any]:
        """What goes into the column's note of what made it: settings, weights hash. Plain JSON."""
        ...

    def check_size(self, height: int, width: int) -> None:
        """Raises ConfigError where images of that size cannot be taken, before any work."""
        ...

    def reconstruct(self, views: Sequence[Frame]) -> Gaussians:
        """One Gaussian per pixel of each view, in the order view, row, column, in the world frame of the cameras."""
        ...


def make_reconstructor(config: dict[str, Any]) -> Reconstructor:
    """The reconstructor that `config` (`_target_` and its arguments) describes."""
    try:
        return hydra.utils.instantiate(config)
    except InstantiationException as error:
        raise ConfigError(f"reconstructor: {' '.join(str(error).split())}") from error
