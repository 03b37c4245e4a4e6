"""Semantic segmentation as it is judged and learnt: labels 0..C-1, IGNORED where a pixel counts for nothing.

Sources: Long et al. 2015 (metrics), mmsegmentation's definitions as DINOv2's, FiT3D's and SnD's evaluation uses them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from training.probes.data.base import IGNORED


def confusion_matrix(pred: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """How many pixels of each true class (row) were given each class (column), where the label is not IGNORED.

    Matrices of images add up: the published mIoU is that of their sum.

    Args: pred, labels of one shape, whole numbers below `classes` (labels: or IGNORED).
    Returns: int64 [classes,classes].
    Raises: ValueError for a label or a prediction out of range.
    """
    known = labels != IGNORED
    p, t = pred[known].long(), labels[known].long()
    if p.numel() and max(int(p.max()), int(t.max())) >= classes:
        raise ValueError(f"{classes} classes, from 0, but a label {int(t.max())}, a prediction {int(p.max())}: check label reduction")
    return torch.bincount(t * classes + p, minlength=classes * classes).reshape(classes, classes)


def segmentation_scores(confusion: torch.Tensor) -> dict[str, float]:
    """aAcc, mIoU and mAcc of a confusion matrix, as shares; classes that are in neither labels nor predictions count for nothing."""
    confusion = confusion.double()
    return {
        "mIoU": float(class_iou(confusion).nanmean()),
        "mAcc": float(class_accuracy(confusion).nanmean()),
        "aAcc": float(confusion.diagonal().sum() / confusion.sum()),
    }


def class_iou(confusion: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each class [C]; NaN for a class in neither labels nor predictions."""
    both = confusion.diagonal().double()
    return both / (confusion.sum(dim=0) + confusion.sum(dim=1) - both)


def class_accuracy(confusion: torch.Tensor) -> torch.Tensor:
    """Share of each class's pixels that were given it [C]; NaN for a class that no pixel has."""
    return confusion.diagonal().double() / confusion.sum(dim=1)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, over_all: bool = True) -> torch.Tensor:
    """Cross-entropy of valid pixels.

    Args:
        logits: [B,C,H,W]. labels: whole numbers [B,H,W]. over_all: divides by all pixels, ignored ones too, as mmsegmentation does; else by
            the valid ones.
    Returns: a scalar.
    """
    total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / (labels.numel() if over_all else (labels != IGNORED).sum().clamp(min=1))


def slide_inference(
    network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> torch.Tensor:
    """Logits of images by windows: where windows overlap, the mean. The last window of a row or column is moved back to fit.

    Args:
        network: [B,3,h,w] -> logits [B,C,h,w]. images: [B,3,H,W]. window, stride: rows and columns; a smaller image is its own window.
    Returns: [B,C,H,W].
    """
    height, width = images.shape[-2:]
    total: torch.Tensor | None = None
    count = torch.zeros(1, 1, height, width)
    for rows in _windows(height, window[0], stride[0]):
        for columns in _windows(width, window[1], stride[1]):
            logits = network(images[..., rows, columns])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[..., rows, columns] += logits
            count[..., rows, columns] += 1
    assert total is not None
    return total / count.to(total)


def _windows(length: int, window: int, stride: int) -> list[slice]:
    count = max(length - window + stride - 1, 0) // stride + 1
    ends = [min(n * stride + window, length) for n in range(count)]
    return [slice(max(end - window, 0), end) for end in ends]
