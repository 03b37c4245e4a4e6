"""Extractors that know what they look at: features made of the truth, or of nothing, for rooms whose every image they have seen before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from tests.training.probes.rooms import CLASSES, Rooms
from training.probes.data.base import ProbeFrame
from training.probes.features import FeatureMap, Features
from training.probes.preprocess import mirror
from training.probes.protocol import PROTOCOLS
from training.probes.tasks import DepthTask, ProbeTask, make_task

PATCH = 7
DEEPEST = 6.5


def depth_code(frame: ProbeFrame) -> np.ndarray:
    """Soft bins of depth, [H,W,24]."""
    position = frame.depth / DEEPEST * 23
    return np.maximum(0, 1 - np.abs(np.arange(24) - position[..., None])).astype(np.float32)


def normal_code(frame: ProbeFrame) -> np.ndarray:
    return frame.normals


def class_code(frame: ProbeFrame) -> np.ndarray:
    return np.eye(len(CLASSES), dtype=np.float32)[frame.labels]


def position_code(frame: ProbeFrame) -> np.ndarray:
    """Where in the image, and nothing of it."""
    y, x = np.mgrid[: frame.image.shape[0], : frame.image.shape[1]] / 100
    return np.stack([np.sin(3 * x), np.cos(3 * x), np.sin(3 * y), np.cos(3 * y), x, y], axis=-1).astype(np.float32)


def constant_code(frame: ProbeFrame) -> np.ndarray:
    return np.ones((*frame.image.shape[:2], 4), np.float32)


def random_code(frame: ProbeFrame) -> np.ndarray:
    """The same for the same image; PATCH times larger than wanted noise, since patches average it."""
    seed = int(frame.image.astype(np.int64).sum())
    return PATCH * np.random.default_rng(seed).normal(size=(*frame.image.shape[:2], 16)).astype(np.float32)


def oracle(data: Rooms, code: Callable[[ProbeFrame], np.ndarray], shuffled: bool = False, size: int = PATCH) -> Features:
    """Mean codes of patches, for images of the data and their mirror images; the class token is the mean of the map.

    shuffled: each image of a split gets the map of the one before. size: of a patch, in pixels.
    """
    maps: dict[bytes, torch.Tensor] = {}
    for split in ("train", "test"):
        frames = data.frames(split)
        for turned in (lambda frame: frame, mirror):
            seen = [turned(frame) for frame in frames]
            codes = [_patches(code(frame), size) for frame in seen]
            for n, frame in enumerate(seen):
                maps[frame.image.tobytes()] = codes[n - 1 if shuffled else n]

    def features(images: torch.Tensor) -> FeatureMap:
        pixels = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        patch = torch.stack([maps[image.tobytes()] for image in pixels])
        return FeatureMap(patch, patch.mean((2, 3)), (0, 0), size)

    return features


def patch_colours(images: torch.Tensor) -> FeatureMap:
    """Mean and variance of each patch's colours: needs no data to know, so images may be augmented."""
    size = 2 * PATCH
    h, w = images.shape[-2] // size, images.shape[-1] // size
    cells = images[..., : h * size, : w * size].unflatten(-1, (w, size)).unflatten(-3, (h, size))
    patch = torch.cat([cells.mean((-3, -1)), cells.var((-3, -1))], dim=1)
    return FeatureMap(patch, patch.mean((2, 3)), (0, 0), size)


@lru_cache
def small_rooms() -> Rooms:
    return Rooms(train=10, test=5, views_each=4, height=84, width=112, orbit=())


def small_task(name: str, data: Rooms) -> ProbeTask:
    """`clean`, with a head that costs less: a test of the evaluation, not of a network."""
    task = make_task(name, PROTOCOLS["clean"], data)
    head = replace(task.head, class_token=False, bins=64, upsample=1)
    choices = replace(task.choices, gradient="off") if isinstance(task, DepthTask) else task.choices
    return replace(task, choices=replace(choices, head=head, optimisation=replace(task.optimisation, validation=0.0)))


def _patches(code: np.ndarray, size: int) -> torch.Tensor:
    h, w = code.shape[0] // size, code.shape[1] // size
    mean = code[: h * size, : w * size].reshape(h, size, w, size, -1).mean((1, 3))
    return torch.from_numpy(np.ascontiguousarray(mean, np.float32)).permute(2, 0, 1)
