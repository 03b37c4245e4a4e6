"""What a source of masks gives: one label per pixel of a frame.

A source is a file in this folder (or an entry point in `splat_and_distill.mask_sources`) with a dataclass `Config` and a function
`make(config)`, which gives a `MaskSource`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from pipeline.readers.base import Scene
from storage.domain import Frame


class MaskSource(Protocol):
    """Labels the pixels of frames; made once in each actor.

    needs_scene: True where labels come from raw files, so that they are made in the pass that reads the raw frames. False where the
    image is enough: then they are made from stored frames, and raw scenes need not be there any more.
    """

    needs_scene: bool

    def labels(self, frame: Frame, scene: Scene | None) -> np.ndarray:
        """The labels of one frame.

        Args:
            frame: as the reader gave it where `needs_scene`, else as it is stored, without labels and depth.
            scene: the opened raw scene where `needs_scene`, else None.

        Returns:
            [H,W] integers from 0 to 65535, 0 where nothing is labelled; the same number is the same object at least within the frame.

        Raises:
            StorageError: there is nothing to take labels from. The shard fails, and nothing of it is kept: frames do not depend on masks.
        """
        ...

    def describe(self) -> Mapping[str, Any]:
        """Every setting that decides about the labels, as plain JSON values; weights by their hash. They bind in the provenance."""
        ...
