"""One rank's rows of one step, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from training.splat.apply import OperatorBatch
from training.splat.lift import Lift


@dataclass
class Batch:
    """B rows with V context views, images of H x W pixels; Gaussians differ in number from row to row, so they are lists.

    What this configuration's step does not use is None, or an empty list. seeds: what is random about each row in this step (its dropout).
    viewmats: world-to-camera of the target; Ks: pixels. reads: what was asked of the store for this batch (requests, bytes, cache hits and
    misses).
    """

    keys: list[str]
    seeds: list[int]
    target_images: torch.Tensor  # [B,3,H,W] uint8
    target_valid: torch.Tensor  # [B,H,W] bool
    context_images: torch.Tensor | None  # [B,V,3,H,W] uint8; None where the teacher's tokens are read
    context_tokens: torch.Tensor | None  # [B,V,h,w,C] float32; None where the teacher makes them
    operators: OperatorBatch | None = None  # the splat as a matrix; None where it is done live
    context_labels: torch.Tensor | None = None  # [B,V,H,W] int32
    target_labels: torch.Tensor | None = None  # [B,H,W] int32
    viewmats: torch.Tensor | None = None  # [B,4,4] float32
    Ks: torch.Tensor | None = None  # [B,3,3] float32
    means: list[torch.Tensor] = field(default_factory=list)  # [N,3]; the Gaussians are there where the splat is done live
    quats: list[torch.Tensor] = field(default_factory=list)  # [N,4]
    scales: list[torch.Tensor] = field(default_factory=list)  # [N,3]
    opacities: list[torch.Tensor] = field(default_factory=list)  # [N]
    lifts: list[Lift | None] = field(default_factory=list)  # from tokens to Gaussians; None where they are pixel-aligned
    reads: dict[str, int] = field(default_factory=dict)

    @property
    def views(self) -> int:
        """V: how many frames a context has."""
        context = self.context_images if self.context_images is not None else self.context_tokens
        assert context is not None
        return context.shape[1]

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""

        def move(value: object) -> object:
            if isinstance(value, (torch.Tensor, OperatorBatch, Lift)):
                return value.to(device, non_blocking=True)
            return [move(part) for part in value] if isinstance(value, list) else value

        return Batch(**{name: move(value) for name, value in vars(self).items()})  # type: ignore[arg-type]

    def pin_memory(self) -> Batch:
        """What a DataLoader that pins calls: copies to a GPU then run beside the computation."""

        def pin(value: object) -> object:
            if isinstance(value, (torch.Tensor, OperatorBatch, Lift)):
                return value.pin_memory()
            return [pin(part) for part in value] if isinstance(value, list) else value

        return Batch(**{name: pin(value) for name, value in vars(self).items()})  # type: ignore[arg-type]
