"""From a frame to what a probe sees: sizes, padding, colours, and training augmentations.

Every augmentation takes its own random generator: the same seed gives the same picture.

Sources: DINOv2's, FiT3D's and SnD's depth and segmentation pipelines, Probe3D's for normals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch

from training.probes.data.base import IGNORED, ProbeFrame
from training.probes.depth import kitti_window

_HUE = 18  # of OpenCV's 180, in segmentation's distortion


def padded_size(height: int, width: int, patch: int, rule: str = "centre") -> tuple[int, int, int, int]:
    """How far an image is padded, or cropped, to whole patches.

    Args:
        rule: `centre` pads each side to the next multiple; `probe3d` gives a side that is one already a whole patch more, if the other is
            not; `crop` cuts to the multiple below. What is odd goes to the bottom and right.
    Returns: rows and columns of the result, rows and columns before the image (below 0: cut off). Zeros are padded, after normalisation.
    """
    if rule == "crop":
        sides = [side // patch * patch for side in (height, width)]
        return sides[0], sides[1], -((height - sides[0]) // 2), -((width - sides[1]) // 2)
    missing = [-height % patch, -width % patch]
    if rule == "probe3d" and any(missing):
        missing = [patch - height % patch, patch - width % patch]
    elif rule not in ("centre", "probe3d"):
        raise ValueError(f"padding={rule}: choose centre, probe3d or crop")
    return height + missing[0], width + missing[1], missing[0] // 2, missing[1] // 2


def pad(images: torch.Tensor, patch: int, rule: str = "centre") -> tuple[torch.Tensor, tuple[int, int]]:
    """Normalised images [B,3,H,W] padded or cropped by `padded_size`, and the offset that a `FeatureMap` of them has."""
    height, width = images.shape[-2:]
    rows, columns, top, left = padded_size(height, width, patch, rule)
    return torch.nn.functional.pad(images, (left, columns - width - left, top, rows - height - top)), (top, left)


def normalise(images: torch.Tensor, statistics: tuple[Sequence[float], Sequence[float]]) -> torch.Tensor:
    """Images [B,3,H,W] in [0,1], less the mean, over the standard deviation."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in statistics)
    return (images - mean) / std


def as_batch(images: Sequence[np.ndarray]) -> torch.Tensor:
    """Images of one size, [H,W,3] in 0..255, as [B,3,H,W] float32 in [0,1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def keep_ratio_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same ratio whose longer side is at most scale[0] and whose shorter at most scale[1], rounded half up."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize(frame: ProbeFrame, height: int, width: int) -> ProbeFrame:
    """The frame at another size: image bilinear, all else nearest, so that a hole stays a hole; K with it."""
    old_h, old_w = frame.image.shape[:2]
    if (old_h, old_w) == (height, width):
        return frame
    scale = np.diag([width / old_w, height / old_h, 1.0])
    return replace(
        frame,
        image=cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_LINEAR),
        K=None if frame.K is None else scale @ frame.K,
        **_each(frame, lambda truth: resize_nearest(truth, height, width)),
    )


def resize_nearest(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H,W,...] at another size: of each pixel the one in which its centre lies."""
    rows = ((np.arange(height) + 0.5) * image.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * image.shape[1] / width).astype(int)
    return image[rows[:, None], columns]


def cut(frame: ProbeFrame, rows: slice, columns: slice) -> ProbeFrame:
    """A part of the frame; K with it."""
    top, left = rows.start or 0, columns.start or 0
    shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]])
    return replace(
        frame,
        image=frame.image[rows, columns],
        K=None if frame.K is None else shift @ frame.K,
        **_each(frame, lambda truth: truth[rows, columns]),
    )


def centre_cut(frame: ProbeFrame, height: int, width: int) -> ProbeFrame:
    """The middle of the frame, at most of this size."""
    old_h, old_w = frame.image.shape[:2]
    height, width = min(height, old_h), min(width, old_w)
    top, left = (old_h - height) // 2, (old_w - width) // 2
    return cut(frame, slice(top, top + height), slice(left, left + width))


def mirror(frame: ProbeFrame) -> ProbeFrame:
    """The frame as a mirror shows it: normals have their x turned with it. Without K and pose, which no camera has any more."""
    flipped = _each(frame, lambda truth: truth[:, ::-1].copy())
    if "normals" in flipped:
        flipped["normals"] = flipped["normals"] * np.array([-1, 1, 1], np.float32)
    return replace(frame, image=frame.image[:, ::-1].copy(), K=None, c2w=None, **flipped)


def colour(image: np.ndarray, gamma: float, brightness: float, channels: Sequence[float] | np.ndarray) -> np.ndarray:
    """Depth's change of colours [H,W,3]: 0..255 to the power gamma, as it is, times brightness, times each channel's factor; clipped."""
    return np.clip(image.astype(np.float64) ** gamma * brightness * np.asarray(channels), 0, 255)


def depth_cut(frame: ProbeFrame, source: str) -> ProbeFrame:
    """The part of a training image that is used: without the white frame of `nyuv2`, the benchmark's part of `kitti`, all of others."""
    if source == "nyuv2":
        return cut(frame, slice(45, 472), slice(43, 608))
    return cut(frame, *kitti_window(*frame.image.shape[:2])) if source == "kitti" else frame


def augment_depth(
    frame: ProbeFrame, rng: np.random.Generator, crop: tuple[int, int] | None = (416, 544), brightness: float = 0.25
) -> ProbeFrame:
    """Rotation by up to 2.5 degrees, mirror, random crop, colours; each but the crop half of the time. Nothing is resized.

    crop: an image smaller than it is cropped to its own size. brightness: 0.25, for KITTI 0.1.
    """
    if rng.random() < 0.5:
        frame = _rotate(frame, rng.uniform(-2.5, 2.5))
    if rng.random() < 0.5:
        frame = mirror(frame)
    if crop is not None:
        frame = _random_cut(frame, rng, *crop)
    if rng.random() < 0.5:
        gamma, factor = rng.uniform(0.9, 1.1), rng.uniform(1 - brightness, 1 + brightness)
        frame = replace(frame, image=colour(frame.image, gamma, factor, rng.uniform(0.9, 1.1, 3)).astype(np.uint8))
    return frame


def augment_segmentation(frame: ProbeFrame, rng: np.random.Generator, crop: int = 512, scale: tuple[int, int] = (2048, 512)) -> ProbeFrame:
    """Size by a factor of 0.5 to 2, a random crop that no class fills by three quarters, mirror, colours, black below and to the right."""
    factor = rng.uniform(0.5, 2.0)
    height, width = frame.image.shape[:2]
    frame = resize(frame, *keep_ratio_size(height, width, (int(scale[0] * factor), int(scale[1] * factor))))
    for _ in range(11):
        chosen = _random_cut(frame, rng, crop, crop)
        assert chosen.labels is not None
        counts = np.bincount(chosen.labels[chosen.labels != IGNORED])
        if np.count_nonzero(counts) > 1 and counts.max() < 0.75 * counts.sum():
            break
    if rng.random() < 0.5:
        chosen = mirror(chosen)
    image, labels = distort(chosen.image, rng), chosen.labels
    assert labels is not None
    below = ((0, crop - labels.shape[0]), (0, crop - labels.shape[1]))
    # Only what segmentation reads is padded; the image with its mean, the zero of normalised images.
    grey = np.array([124, 116, 104], np.uint8)
    padded = np.where(np.pad(np.ones(labels.shape, bool), below)[..., None], np.pad(image, (*below, (0, 0))), grey)
    return ProbeFrame(frame.key, frame.group, padded, labels=np.pad(labels, below, constant_values=IGNORED))


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Segmentation's change of colours: brightness +-32, contrast, saturation 0.5-1.5, hue +-18 of 180; each half of the time. uint8."""

    def linear(image: np.ndarray, factor: float = 1.0, plus: float = 0.0) -> np.ndarray:
        return np.clip(image.astype(np.float32) * factor + plus, 0, 255).astype(np.uint8)

    if rng.random() < 0.5:
        image = linear(image, plus=rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    if contrast_first and rng.random() < 0.5:
        image = linear(image, rng.uniform(0.5, 1.5))
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    if rng.random() < 0.5:
        hsv[..., 1] = linear(hsv[..., 1], rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        hsv[..., 0] = (hsv[..., 0].astype(int) + rng.integers(-_HUE, _HUE)) % 180
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first and rng.random() < 0.5:
        image = linear(image, rng.uniform(0.5, 1.5))
    return image


def augment_normals(frame: ProbeFrame, rng: np.random.Generator) -> ProbeFrame:
    """Colour jitter of 0.2 (4 of 5 times), and half of the time a random square of 50-100 % of the area, back at the full size, nearest."""
    if rng.random() < 0.8:
        frame = replace(frame, image=_jitter(frame.image, rng))
    if rng.random() < 0.5:
        height, width = frame.image.shape[:2]
        side = int(math.sqrt(rng.uniform(0.5, 1.0) * min(height, width) ** 2))
        part = _random_cut(frame, rng, side, side)
        frame = replace(
            part,
            image=resize_nearest(part.image, height, width),
            K=None,
            **_each(part, lambda truth: resize_nearest(truth, height, width)),
        )
    return frame


def _jitter(image: np.ndarray, rng: np.random.Generator, amount: float = 0.2) -> np.ndarray:
    """Brightness, contrast, saturation and hue, in a random order."""
    x = image.astype(np.float32) / 255
    for change in rng.permutation(4):
        factor = rng.uniform(1 - amount, 1 + amount)
        grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)
        if change == 0:
            x = x * factor
        elif change == 1:
            x = grey.mean() + (x - grey.mean()) * factor
        elif change == 2:
            x = grey[..., None] + (x - grey[..., None]) * factor
        else:
            hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0] + 360 * (factor - 1)) % 360
            x = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)
        x = np.clip(x, 0, 1)
    return (255 * x + 0.5).astype(np.uint8)


def _rotate(frame: ProbeFrame, degrees: float) -> ProbeFrame:
    """About the middle; what comes from outside is 0, of labels IGNORED. Normals turn with the image."""
    height, width = frame.image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned: dict[str, Any] = {}
    for name, value in _truths(frame).items():
        outside = IGNORED if name == "labels" else 0
        turned[name] = cv2.warpAffine(value, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=outside)
    if "normals" in turned:
        rotation = np.eye(3, dtype=np.float32)
        rotation[:2, :2] = matrix[:, :2]
        turned["normals"] = turned["normals"] @ rotation.T
    image = cv2.warpAffine(frame.image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return replace(frame, image=image, K=None, c2w=None, **turned)


def _random_cut(frame: ProbeFrame, rng: np.random.Generator, height: int, width: int) -> ProbeFrame:
    old_h, old_w = frame.image.shape[:2]
    height, width = min(height, old_h), min(width, old_w)
    top, left = int(rng.integers(old_h - height + 1)), int(rng.integers(old_w - width + 1))
    return cut(frame, slice(top, top + height), slice(left, left + width))


def _each(frame: ProbeFrame, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """What a change makes of all that lies beside the image."""
    return {name: change(truth) for name, truth in _truths(frame).items()}


def _truths(frame: ProbeFrame) -> dict[str, np.ndarray]:
    """What lies beside the image, pixel for pixel."""
    found = {name: getattr(frame, name) for name in ("depth", "normals", "labels", "instances")}
    return {name: value for name, value in found.items() if value is not None}
