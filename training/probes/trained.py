"""Heads that are trained on frozen tokens, in two tiers.

`cached`: tokens of every training image and its mirror image are computed once and kept in fp16, standardised by channel; a short course of
its own trains a linear head of fewer bins in minutes on a CPU, and images keep their size. `reference`: the protocol's own head, course,
sizes and augmentations, tokens computed anew for every batch. Each is told by one seed.

    task = make_task("depth", PROTOCOLS["clean"], data)
    result = train_probe(task, features, tier="cached", seed=0)
    result.last.metrics["rmse"]      # of each test frame
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from configs import ConfigError
from training.objective.schedule import one_cycle
from training.probes import schedules
from training.probes.data.base import ProbeFrame
from training.probes.features import FeatureMap, Features, stack_maps
from training.probes.heads import Probe, make_head
from training.probes.preprocess import as_batch, mirror
from training.probes.protocol import NormalsProtocol, Optimisation
from training.probes.segmentation import segmentation_scores
from training.probes.tasks import ProbeTask

TIERS = ("cached", "reference")
_CHECKS = 10  # of the validation groups, in a course that has them


@dataclass(frozen=True)
class CachedCourse:
    """The cached tier's course: one cycle of AdamW, and how much smaller its head is."""

    steps: int = 300
    batch: int = 8
    lr: float = 1e-2
    every: int = 2
    """The loss is taken at every so many pixels in x and y."""
    early: float = 0.1
    """Share of the steps with depth's simpler loss; as published it would take most of this course."""
    bins: int = 64
    """At most, of depth."""
    upsample: int = 2
    """At most, inside the head."""

    def shrink(self, task: ProbeTask) -> ProbeTask:
        """The task with this tier's head; and normals with the plain loss: in a short course the uncertainty-aware one gives up what weak
        features do not see at once (mean angles of 80 degrees where the plain one gives 46)."""
        head = task.head
        head = replace(head, kind="linear", bins=min(head.bins, self.bins), upsample=min(head.upsample, self.upsample))
        choices = replace(task.choices, head=head)
        return replace(task, choices=replace(choices, uncertainty=False) if isinstance(choices, NormalsProtocol) else choices)


@dataclass(frozen=True)
class Judged:
    """Scores of one state of a head on the test frames.

    metrics: [N] for each name, NaN where an image has nothing to judge. summary: their means, or the scores of the summed confusion.
    confusions: int64 [N,classes,classes], of segmentation. predictions: by the frame's number, those that were asked for.
    """

    metrics: dict[str, np.ndarray]
    summary: dict[str, float]
    confusions: np.ndarray | None
    predictions: dict[int, np.ndarray]


@dataclass(frozen=True)
class TrainedResult:
    """last, best: of the head at the end, and where it was best on the validation groups (None: there are none). losses: of each step."""

    task: str
    tier: str
    seed: int
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    last: Judged
    best: Judged | None
    losses: tuple[float, ...]


def train_probe(
    task: ProbeTask,
    features: Features,
    tier: str = "cached",
    seed: int = 0,
    device: str = "cpu",
    course: CachedCourse = CachedCourse(),
    steps: int | None = None,
    keep: Collection[int] | None = (),
    say: Callable[[str], None] = lambda line: None,
) -> TrainedResult:
    """Trains a head on the train split and judges it on the test split.

    Args:
        features: of images on `device`, with the inputs that the task's protocol asks for.
        course: of the cached tier. steps: of the reference tier, instead of the protocol's.
        keep: numbers of the test frames whose predictions are returned; None for all. say: is told how it goes on.
    Raises: ConfigError for an unknown tier, or data without frames.
    """
    if tier not in TIERS:
        raise ConfigError(f"tier={tier}: choose {' or '.join(TIERS)}")
    task = course.shrink(task) if tier == "cached" else task
    train, test = task.data.frames("train"), task.data.frames("test")
    if not len(train) or not len(test):
        raise ConfigError(f"{task.data.name}: {len(train)} frames to train on and {len(test)} to test, both are needed")
    chosen, held_out = _hold_out(train, task.optimisation.validation)
    trainer = (_Cached(task, features, chosen, seed, device, course) if tier == "cached"
               else _Reference(task, features, chosen, seed, device, steps))  # fmt: skip
    losses: list[float] = []
    best: tuple[float, nn.Module] | None = None
    checks = {math.ceil((n + 1) * trainer.steps / _CHECKS) - 1 for n in range(_CHECKS)}
    for step in range(trainer.steps):
        losses.append(trainer.step(step))
        if step in checks:
            now = ""
            if held_out:
                name, sign = task.best.removeprefix("-"), -1 if task.best.startswith("-") else 1
                judged = judge(task, trainer.probe, features, [train[n] for n in held_out], device, tier == "cached", ())
                now, value = f", {name} {judged.summary[name]:.4f} on validation", sign * judged.summary[name]
                if best is None or value < best[0]:
                    best = value, copy.deepcopy(trainer.probe)
            say(f"{task.name}: step {step + 1} of {trainer.steps}, loss {np.mean(losses[-50:]):.4f}{now}")
    states = [judge(task, probe, features, test, device, tier == "cached", keep) for probe in (trainer.probe, best and best[1]) if probe]
    return TrainedResult(
        task.name,
        tier,
        seed,
        tuple(frame.key for frame in test),
        tuple(frame.group for frame in test),
        states[0],
        states[1] if len(states) > 1 else None,
        tuple(losses),
    )


@torch.no_grad()
def judge(
    task: ProbeTask,
    probe: nn.Module,
    features: Features,
    frames: Sequence[ProbeFrame],
    device: str = "cpu",
    whole: bool = True,
    keep: Collection[int] | None = (),
) -> Judged:
    """Scores a trained probe on frames. whole: segmentation sees whole images of their own size, without a window that slides."""
    probe.eval()

    def model(images: torch.Tensor) -> tuple[FeatureMap, torch.Tensor]:
        found = features(images.to(device))
        return found, probe(found)

    rows, confusions, predictions = [], [], {}
    for n, frame in enumerate(frames):
        frame = task.prepare(frame, train=False)
        prediction = task.predict(model, frame, whole).cpu()
        scores, confusion = task.score(prediction, frame)
        rows.append(scores)
        if confusion is not None:
            confusions.append(confusion)
        if keep is None or n in keep:
            predictions[n] = prediction.numpy()
    metrics = {name: np.array([row[name] for row in rows]) for name in task.scores}
    if confusions:
        return Judged(metrics, segmentation_scores(torch.stack(confusions).sum(dim=0)), torch.stack(confusions).numpy(), predictions)
    means = {name: float(np.nanmean(values)) if np.isfinite(values).any() else math.nan for name, values in metrics.items()}
    return Judged(metrics, means, None, predictions)


class _Cached:
    """Batches of stored tokens; those of one batch have one size."""

    def __init__(
        self, task: ProbeTask, features: Features, frames: Sequence[ProbeFrame], seed: int, device: str, course: CachedCourse
    ) -> None:
        self.task, self.course, self.device, self.steps = task, course, device, course.steps
        self.maps: list[FeatureMap] = []
        self.truths: list[tuple[torch.Tensor, ...]] = []
        sizes: dict[tuple[int, ...], list[int]] = {}
        for frame in frames:
            prepared = task.prepare(frame, train=True)
            for seen in (prepared, mirror(prepared)):
                with torch.no_grad():
                    found = features(as_batch([seen.image]).to(device))
                sizes.setdefault(seen.image.shape, []).append(len(self.maps))
                cls = None if found.cls is None else found.cls.half().cpu()
                self.maps.append(replace(found, patch=found.patch.half().cpu(), cls=cls))
                self.truths.append(task.truth([seen]))
        self.of_one_size = [np.array(members) for members in sizes.values()]
        self.rng = np.random.default_rng([seed, 0])
        self.probe = Probe(_seeded_head(task, self.maps[0], seed), self.maps).to(device)
        self.optimiser = torch.optim.AdamW(self.probe.parameters(), lr=course.lr)

    def step(self, step: int) -> float:
        shares = np.array([len(members) for members in self.of_one_size], float)
        members = self.of_one_size[self.rng.choice(len(shares), p=shares / shares.sum())]
        batch = self.rng.choice(members, min(self.course.batch, len(members)), replace=False)
        maps = stack_maps([self.maps[n] for n in batch], self.device)
        truth = tuple(torch.cat(parts).to(self.device) for parts in zip(*(self.truths[n] for n in batch), strict=True))
        rate = one_cycle(step, self.steps, self.course.lr, 0.3)
        early = step < self.course.early * self.steps
        self.probe.train()
        loss = self.task.loss(self.probe(maps), maps, truth, early, self.course.every)
        return _descend(self.optimiser, loss, rate, self.probe, None)


class _Reference:
    """Batches of augmented images, in shuffled epochs; the last incomplete batch of each is dropped."""

    def __init__(
        self, task: ProbeTask, features: Features, frames: Sequence[ProbeFrame], seed: int, device: str, steps: int | None
    ) -> None:
        self.task, self.features, self.frames, self.device = task, features, frames, device
        self.optimisation = task.optimisation
        self.batch = min(self.optimisation.batch, len(frames))
        self.steps = steps or self.optimisation.steps or (self.optimisation.epochs or 1) * (len(frames) // self.batch)
        self.rng = np.random.default_rng([seed, 0])
        self.order: list[int] = []
        maps, _ = self._batch([0])
        self.probe = Probe(_seeded_head(task, maps, seed)).to(device)
        self.optimiser = torch.optim.AdamW(
            self.probe.parameters(), lr=self.optimisation.lr, weight_decay=self.optimisation.weight_decay, betas=(0.9, 0.999)
        )

    def step(self, step: int) -> float:
        if len(self.order) < self.batch:
            self.order = self.rng.permutation(len(self.frames)).tolist()
        maps, truth = self._batch([self.order.pop() for _ in range(self.batch)])
        rate, beta1 = scheduled(self.optimisation, step, self.steps)
        self.optimiser.param_groups[0]["betas"] = (beta1, 0.999)
        self.probe.train()
        loss = self.task.loss(self.probe(maps), maps, truth, step < self.task.warm_up)
        return _descend(self.optimiser, loss, rate, self.probe, self.optimisation.clip)

    @torch.no_grad()
    def _batch(self, members: Sequence[int]) -> tuple[FeatureMap, tuple[torch.Tensor, ...]]:
        frames = [self.task.augment(self.task.prepare(self.frames[n], train=True), self.rng) for n in members]
        if len({frame.image.shape for frame in frames}) > 1:
            raise ConfigError(f"{self.task.data.name}: images of different sizes in one batch: resize them, or use tier=cached")
        maps = self.features(as_batch([frame.image for frame in frames]).to(self.device))
        return maps, tuple(part.to(self.device) for part in self.task.truth(frames))


def scheduled(optimisation: Optimisation, step: int, steps: int) -> tuple[float, float]:
    """The learning rate and Adam's beta1 of a step of the reference tier. Warm-ups are as long as published, in steps or in epochs."""
    if optimisation.schedule == "cosine":
        return schedules.cosine_rate(step, steps, optimisation.lr), schedules.cycled_beta1(step, steps)
    if optimisation.schedule == "poly":
        return schedules.poly_rate(step, steps, optimisation.lr), 0.9
    warm_up = round(steps * 1.5 / (optimisation.epochs or 10))
    return optimisation.lr * schedules.quarter_cosine_factor(step, steps, warm_up), 0.9


def _descend(optimiser: torch.optim.Optimizer, loss: torch.Tensor, rate: float, probe: nn.Module, clip: float | None) -> float:
    if not torch.isfinite(loss):
        raise ConfigError(
            f"the head's loss is {float(loss)} at a learning rate of {rate:.3g}: features without a finite value, or too high a rate"
        )
    optimiser.param_groups[0]["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(probe.parameters(), clip)
    optimiser.step()
    return loss.item()


def _seeded_head(task: ProbeTask, features: FeatureMap, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_head(task.head, features, task.outputs)


def _hold_out(frames: Sequence[ProbeFrame], share: float) -> tuple[list[ProbeFrame], list[int]]:
    """Frames to train on, and numbers of those held out: whole groups, the last by name; none where there is one group alone."""
    groups = sorted({frame.group for frame in frames})
    count = max(1, round(share * len(groups))) if share and len(groups) > 1 else 0
    held = set(groups[len(groups) - count :])
    return [frame for frame in frames if frame.group not in held], [n for n, frame in enumerate(frames) if frame.group in held]
