"""What every probe reads: a map of tokens, and where it lies on the image.

An extractor is a function `features(images [B,3,H,W] in [0,1]) -> FeatureMap`; the tasks know no network beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class FeatureMap:
    """Tokens of a batch of images of one size.

    Token (i, j) covers the pixels from (i*stride - offset[0], j*stride - offset[1]) to one stride further, of the image as it was given:
    a map of a padded image begins above and left of it (offset > 0), one of a cropped image inside (offset < 0).

    patch: [B,C,h,w]; a map of several layers has their channels one after the other. cls: [B,C'] class tokens; None where there are none.
    offset: (rows, columns) in pixels. stride: pixels a token; 1 for a dense map.
    """

    patch: torch.Tensor
    cls: torch.Tensor | None
    offset: tuple[int, int]
    stride: int


Features = Callable[[torch.Tensor], FeatureMap]


def stack_maps(maps: Sequence[FeatureMap], device: str) -> FeatureMap:
    """Maps of images of one size as one, on a device."""
    classes = [m.cls for m in maps if m.cls is not None]
    return replace(maps[0], patch=torch.cat([m.patch for m in maps]).to(device), cls=torch.cat(classes).to(device) if classes else None)
