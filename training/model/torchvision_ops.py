"""Lets timm and peft be imported where torchvision's compiled operators cannot be loaded: beside a CPU build of torch.

The registry's torchvision links CUDA, so beside CPU torch its `_C.so` stays out, and `import torchvision` stops at "operator
torchvision::nms does not exist". Nothing here uses those operators; declaring them is enough. Where they load, nothing is declared. Import
this before timm or peft.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_declared: torch.library.Library | None = None


def _declare_missing_operators() -> None:
    global _declared
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return  # timm says what is missing better than we could
    for compiled in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(compiled))
            return
        except OSError:
            continue
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_declare_missing_operators()
