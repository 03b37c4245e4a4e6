"""The three tasks that train a head, behind one shape: what a frame teaches, what a head's values cost, what they mean, what they score.

task = make_task("depth", PROTOCOLS["snd"], data)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from configs import ConfigError
from training.probes import depth, normals, segmentation
from training.probes.data.base import IGNORED, ProbeData, ProbeFrame
from training.probes.features import FeatureMap
from training.probes.heads import depth_from_bins, to_image
from training.probes.preprocess import (
    as_batch,
    augment_depth,
    augment_normals,
    augment_segmentation,
    centre_cut,
    depth_cut,
    keep_ratio_size,
    resize,
)
from training.probes.protocol import DepthProtocol, Head, Inputs, NormalsProtocol, Optimisation, Protocol, SegmentationProtocol

Model = Callable[[torch.Tensor], tuple[FeatureMap, torch.Tensor]]
"""Images [B,3,H,W] in [0,1] -> their map, and the head's values."""
Truth = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class ProbeTask(ABC):
    """One task on one data set.

    choices: the protocol's, for this task. scores: names of what `score` gives. best: the score of which the least is best (`-` before it:
    the greatest).
    """

    choices: DepthProtocol | NormalsProtocol | SegmentationProtocol
    data: ProbeData
    name: ClassVar[str]
    best: ClassVar[str]

    @property
    def head(self) -> Head:
        return self.choices.head

    @property
    def inputs(self) -> Inputs:
        return self.choices.inputs

    @property
    def optimisation(self) -> Optimisation:
        return self.choices.optimisation

    @property
    def warm_up(self) -> int:
        """Steps of the reference tier that are early."""
        return 0

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Channels of the head."""

    @property
    @abstractmethod
    def scores(self) -> tuple[str, ...]: ...

    @abstractmethod
    def prepare(self, frame: ProbeFrame, train: bool) -> ProbeFrame:
        """The part of the frame that is taught or judged. Raises ConfigError that names a frame without the truth."""

    @abstractmethod
    def augment(self, frame: ProbeFrame, rng: np.random.Generator) -> ProbeFrame:
        """A prepared frame as the reference tier sees it."""

    @abstractmethod
    def truth(self, frames: Sequence[ProbeFrame]) -> Truth:
        """What is true of frames of one size: [B,...,H,W] each."""

    @abstractmethod
    def loss(
        self, values: torch.Tensor, features: FeatureMap, truth: tuple[torch.Tensor, ...], early: bool, every: int = 1
    ) -> torch.Tensor:
        """What a head's values cost.

        early: at the beginning of the course, where the loss of depth is simpler. every: so many pixels in x and y.
        """

    @abstractmethod
    def predict(self, model: Model, frame: ProbeFrame, whole: bool) -> torch.Tensor:
        """What a prepared frame shows: depth [H,W], normals [3,H,W], or labels [H,W]. whole: without a window that slides."""

    @abstractmethod
    def score(self, prediction: torch.Tensor, frame: ProbeFrame) -> tuple[dict[str, float], torch.Tensor | None]:
        """The scores of one prediction; and a confusion matrix, which is summed over images, where the task has one."""


@dataclass(frozen=True)
class DepthTask(ProbeTask):
    choices: DepthProtocol
    name = "depth"
    best = "abs_rel"

    @property
    def warm_up(self) -> int:
        return self.choices.warm_up

    @property
    def outputs(self) -> int:
        return self.choices.head.bins

    @property
    def scores(self) -> tuple[str, ...]:
        return depth.METRICS if self.choices.metric == "usual" else depth.METRICS + depth.PROBE3D_BOTH

    def prepare(self, frame: ProbeFrame, train: bool) -> ProbeFrame:
        _need(frame.depth, frame, "depth")
        kitti = "kitti" if self.data.depth_crop == "kitti" else ""
        return depth_cut(frame, kitti or (self.data.name if train else ""))

    def augment(self, frame: ProbeFrame, rng: np.random.Generator) -> ProbeFrame:
        return augment_depth(frame, rng, self.choices.crop, 0.1 if self.data.depth_crop == "kitti" else 0.25)

    def truth(self, frames: Sequence[ProbeFrame]) -> Truth:
        return (_stack([frame.depth for frame in frames]),)

    def loss(
        self, values: torch.Tensor, features: FeatureMap, truth: tuple[torch.Tensor, ...], early: bool, every: int = 1
    ) -> torch.Tensor:
        (gt,) = truth
        pred = depth_from_bins(values, self.data.depth_range)
        pred = to_image(pred, features, _size(gt), self.inputs.stretch)[:, 0, ::every, ::every]
        gt = gt[:, ::every, ::every]
        choices = self.choices
        loss = choices.siglog_weight * depth.siglog_loss(pred, gt, early, choices.bessel)
        if choices.gradient == "off":
            return loss
        axes = (0, 1) if choices.gradient == "published" else (-2, -1)
        return loss + choices.gradient_weight * depth.gradient_loss(pred[:, None], gt[:, None], axes)

    def predict(self, model: Model, frame: ProbeFrame, whole: bool) -> torch.Tensor:
        images = as_batch([frame.image])
        found = self._depth(model, images)
        return (found + self._depth(model, images.flip(-1)).flip(-1)) / 2 if self.choices.flip else found

    def _depth(self, model: Model, images: torch.Tensor) -> torch.Tensor:
        features, values = model(images)
        found = depth_from_bins(values, self.data.depth_range).clamp(*self.data.depth_range)
        return to_image(found, features, _size(images), self.inputs.stretch)[0, 0]

    def score(self, prediction: torch.Tensor, frame: ProbeFrame) -> tuple[dict[str, float], torch.Tensor | None]:
        (gt,) = self.truth([frame])
        pred = prediction[None].cpu()
        # What `kitti` judges was cut in `prepare` to the size that its crop is made for.
        found = depth.depth_metrics(pred, gt, depth.valid_depth(gt, self.data.depth_range, self.data.depth_crop))
        if self.choices.metric == "probe3d":
            found |= depth.probe3d_both(pred, gt, self.data.depth_crop == "indoor")
        return {name: float(value) for name, value in found.items()}, None


@dataclass(frozen=True)
class NormalsTask(ProbeTask):
    choices: NormalsProtocol
    name = "normals"
    best = "rmse"

    @property
    def outputs(self) -> int:
        return 4

    @property
    def scores(self) -> tuple[str, ...]:
        return normals.METRICS

    def prepare(self, frame: ProbeFrame, train: bool) -> ProbeFrame:
        _need(frame.normals, frame, "normals")
        return centre_cut(frame, *self.choices.crop) if self.choices.crop else frame

    def augment(self, frame: ProbeFrame, rng: np.random.Generator) -> ProbeFrame:
        return augment_normals(frame, rng)

    def truth(self, frames: Sequence[ProbeFrame]) -> Truth:
        gt = _stack([frame.normals for frame in frames]).movedim(-1, 1)
        known = gt.norm(dim=1) > 0
        if all(frame.depth is not None for frame in frames):
            far = _stack([frame.depth for frame in frames])
            near = (far > 0) & (far <= self.choices.farthest)
            # As published, a pixel with a depth and no normal counts as one that is 90 degrees off.
            known = near if self.choices.empty_scores_zero else near & known
        return gt, known

    def loss(
        self, values: torch.Tensor, features: FeatureMap, truth: tuple[torch.Tensor, ...], early: bool, every: int = 1
    ) -> torch.Tensor:
        gt, known = (part[..., ::every, ::every] for part in truth)
        pred = self._normals(values, features, _size(truth[0]))[..., ::every, ::every]
        return normals.angular_loss(pred, gt, known, self.choices.uncertainty)

    def predict(self, model: Model, frame: ProbeFrame, whole: bool) -> torch.Tensor:
        features, values = model(as_batch([frame.image]))
        height, width = frame.image.shape[:2]
        return torch.nn.functional.normalize(self._normals(values, features, (height, width))[0, :3], dim=0)

    def _normals(self, values: torch.Tensor, features: FeatureMap, size: tuple[int, int]) -> torch.Tensor:
        mode = ("bicubic", True) if self.choices.bicubic else ("bilinear", False)
        return to_image(values, features, size, self.inputs.stretch, *mode)

    def score(self, prediction: torch.Tensor, frame: ProbeFrame) -> tuple[dict[str, float], torch.Tensor | None]:
        gt, known = self.truth([frame])
        found = normals.normal_metrics(prediction[None].cpu(), gt, known, 0.0 if self.choices.empty_scores_zero else math.nan)
        return {name: float(value) for name, value in found.items()}, None


@dataclass(frozen=True)
class SegmentationTask(ProbeTask):
    choices: SegmentationProtocol
    name = "segmentation"
    best = "-mIoU"

    @property
    def scores(self) -> tuple[str, ...]:
        return ("mIoU", "mAcc", "aAcc")

    @property
    def outputs(self) -> int:
        return len(self.data.classes)

    def prepare(self, frame: ProbeFrame, train: bool) -> ProbeFrame:
        labels = _need(frame.labels, frame, "labels")
        largest = labels[labels != IGNORED].max(initial=0)
        if largest >= self.outputs:
            raise ConfigError(f"frame {frame.key} has label {largest}, of {self.outputs} classes from 0: check label reduction")
        return frame

    def augment(self, frame: ProbeFrame, rng: np.random.Generator) -> ProbeFrame:
        return augment_segmentation(frame, rng, self.choices.crop, self.choices.scale)

    def truth(self, frames: Sequence[ProbeFrame]) -> Truth:
        return (_stack([frame.labels for frame in frames]),)

    def loss(
        self, values: torch.Tensor, features: FeatureMap, truth: tuple[torch.Tensor, ...], early: bool, every: int = 1
    ) -> torch.Tensor:
        (labels,) = truth
        logits = to_image(values, features, _size(labels), self.inputs.stretch)[..., ::every, ::every]
        return segmentation.cross_entropy(logits, labels[:, ::every, ::every], self.choices.over_all)

    def predict(self, model: Model, frame: ProbeFrame, whole: bool) -> torch.Tensor:
        height, width = frame.image.shape[:2]

        def logits(images: torch.Tensor) -> torch.Tensor:
            features, values = model(images)
            return to_image(values, features, _size(images), self.inputs.stretch)

        if whole:
            return logits(as_batch([frame.image]))[0].argmax(dim=0)
        fitted = resize(replace(frame, instances=None), *keep_ratio_size(height, width, self.choices.scale))
        window, stride = (self.choices.window,) * 2, (self.choices.stride,) * 2
        slid = segmentation.slide_inference(logits, as_batch([fitted.image]), window, stride)
        return torch.nn.functional.interpolate(slid, size=(height, width), mode="bilinear")[0].argmax(dim=0)

    def score(self, prediction: torch.Tensor, frame: ProbeFrame) -> tuple[dict[str, float], torch.Tensor | None]:
        (labels,) = self.truth([frame])
        confusion = segmentation.confusion_matrix(prediction[None].cpu(), labels, self.outputs)
        return segmentation.segmentation_scores(confusion), confusion


def make_task(name: str, protocol: Protocol, data: ProbeData) -> ProbeTask:
    """Raises ConfigError for a task that the protocol or the data does not have."""
    choices = getattr(protocol, name, None)
    if choices is None:
        raise ConfigError(f"the protocol {protocol.name} has no {name}: choose another protocol, or leave the task out")
    if name not in data.tasks:
        raise ConfigError(f"{data.name} cannot judge {name}: it has {', '.join(sorted(data.tasks))}")
    kinds: dict[str, Callable[..., ProbeTask]] = {"depth": DepthTask, "normals": NormalsTask, "segmentation": SegmentationTask}
    return kinds[name](choices, data)


def _need(truth: np.ndarray | None, frame: ProbeFrame, what: str) -> np.ndarray:
    if truth is None:
        raise ConfigError(f"frame {frame.key} has no {what}: leave the task out, or the frame")
    return truth


def _stack(arrays: Sequence[np.ndarray | None]) -> torch.Tensor:
    return torch.from_numpy(np.stack([array for array in arrays if array is not None]))


def _size(images: torch.Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
