"""The loop of a training: its networks are built, its newest checkpoint loaded, then step after step until it is done or stopped."""

from __future__ import annotations

import hashlib
import math
import signal
import time
from typing import Any

import torch
import torch.distributed as dist

from configs import ConfigError
from configs.schema import SupervisionMode, TeacherMode, TrainConfig
from storage import codec, location
from storage.column import Column
from storage.location import join
from training import checkpoint, figures
from training.checkpoint import TrainerState
from training.data.batch import Batch
from training.data.loader import check_share, step_batches
from training.data.pins import pinned_rows
from training.data.rows import WindowRows, few
from training.distributed import Ranks, choose_device
from training.metrics import Metrics, read_metrics
from training.model.backbone import build_backbone, patch_tokens
from training.model.network import build_networks
from training.model.registry import find_spec
from training.model.weights import hash_weights, load_weights
from training.objective.distill import distill, supervise
from training.objective.ema import update_teacher
from training.objective.schedule import one_cycle
from training.probes import monitor
from training.probes.monitor import Monitor


class Trainer:
    """One rank of one training run. What cannot be done is refused while it is built, on all ranks."""

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        with ranks.together():
            self.device = choose_device(config.device)
            check_share(config.batch, ranks.world)
        self.rows = pinned_rows(config, ranks)
        with ranks.together():
            self._build()
        with ranks.together():
            newest = (checkpoint.steps(config.output) or [0])[-1] if ranks.rank == 0 else 0
        newest, identity = ranks.from_rank_0((newest, self.identity))
        with ranks.together():
            checkpoint.check_identity(f"rank {ranks.rank}, beside rank 0's {config.output}", identity, self.identity)
            _check_same_end(ranks, identity["config"], self.identity["config"])
            if newest:
                planned = self.state.load(config.output, newest, self.identity)
                if planned < config.steps and ranks.rank == 0:
                    print(f"{config.output}: goes on to {config.steps} steps instead of {planned}; its learning rate from step {newest} on "
                          "is that of the longer run, so this is not the curve of a run begun with as many", flush=True)  # fmt: skip
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        self.parallel = torch.nn.parallel.DistributedDataParallel(self.state.student, device_ids=device_ids)
        self.signalled = False  # this rank was asked to stop
        self.stopping = False  # all ranks know of it

    def _build(self) -> None:
        config, weights = self.config, load_weights(self.config.backbone)
        weights_hash = hash_weights(weights)
        height, width = self._probe(labels=False).target_images.shape[-2:]
        _check_grids(config, height, width)
        _check_features(config, self.rows, weights_hash)
        self.identity = checkpoint.identity(config, weights_hash, _dataset_hash(self.rows))
        backbone = config.backbone
        if self.ranks.rank == 0:  # for its pictures
            self.untrained = build_backbone(backbone.architecture, weights, height, width, backbone.blocks).eval().to(self.device)
        student, teacher = build_networks(config, weights, height, width)
        student, teacher = student.to(self.device), teacher.to(self.device)
        optimizer = torch.optim.Adam(student.trained().values(), lr=config.optimizer.lr, betas=(0.9, 0.999), eps=1e-8)
        self.state = TrainerState(student, teacher, optimizer)
        self.monitor = None
        if config.monitor.dataset is not None and self.ranks.rank == 0:
            self.monitor = Monitor(config.monitor, find_spec(backbone.architecture).patch, (height, width), self.rows.table.frames.scenes())

    def _probe(self, labels: bool) -> Batch:
        """The rows that the pictures show: those of step 0, at most four; with labels and context images, or as training reads them."""
        config = few(self.config, 4)
        rows = self.rows.with_labels() if labels else self.rows
        return next(iter(step_batches(rows, config, range(1), 0, 1)))

    def train(self) -> None:
        """From the state's step to `steps` or `until`, or to a signal; ends with a checkpoint."""
        config, state, lead = self.config, self.state, self.ranks.rank == 0
        last = config.steps if config.until is None else min(config.until, config.steps)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "signalled", True))
        signal.signal(signal.SIGINT, lambda *_: setattr(self, "signalled", True))
        if lead:
            print(f"{config.output}: steps {state.step} to {last} of {config.steps}, {len(self.rows)} rows, {self.ranks.world} ranks on "
                  f"{self.device.type}, {_backbone_note(config)}", flush=True)  # fmt: skip
        metrics = Metrics(config.output, state.step, last) if lead else None
        if metrics:
            if self.monitor:
                monitor.forget(config.output, state.step, self.monitor.digest)
            self._judge(metrics)
        waiting = began = time.perf_counter()
        steps = range(state.step, last)
        for batch in step_batches(self.rows, config, steps, self.ranks.rank, self.ranks.world, pinned=self.device.type == "cuda"):
            now = time.perf_counter()
            measured = self.train_step(batch, now - waiting, now - began)
            began = now
            if metrics:
                metrics.add(measured)
                if state.step % config.monitor.every == 0 or state.step == last or self.stopping:
                    self._judge(metrics)
                if state.step % config.checkpoint_every == 0 or self.stopping or state.step == last:
                    metrics.write(state.step)
                    checkpoint.save(config.output, state, self.identity)
                if state.step % config.picture_every == 0 or state.step == config.steps:
                    location.write_bytes(join(config.output, "pictures", f"pca-{state.step:09d}.png"), self.picture())
            if self.stopping:
                break
            waiting = time.perf_counter()
        if metrics:
            metrics.close()
            self._report()

    def _judge(self, metrics: Metrics) -> None:
        """Judges the student on the held-out frames, unless it was judged at this step before, and says what a person should know."""
        if self.monitor is None:
            return
        before = monitor.read(self.config.output)
        now = next((one for one in before if one["step"] == self.state.step), None)
        if now is None:
            now = {
                "step": self.state.step,
                "frames": self.monitor.digest,
                **self.monitor.judge(self.state.student, self.config.head.student_temperature, self.device),
            }
            monitor.write(self.config.output, now)
        metrics.judged(now)
        for line in monitor.warnings([*before, now][0], now):
            print(f"{self.config.output}: {line}", flush=True)

    def _report(self) -> None:
        config, step = self.config, self.state.step
        history = read_metrics(config.output)
        if history:
            location.write_bytes(
                join(config.output, "curves.png"),
                figures.to_png(figures.curves(history, monitor.read(config.output), _backbone_note(config))),
            )
        more = "" if step >= config.steps else "; the same command goes on"
        print(f"{config.output}: {step} of {config.steps} steps done{more}", flush=True)

    def train_step(self, batch: Batch, waited: float, spent: float) -> dict[str, Any]:
        """One optimiser step. The loss is the mean over the kept tokens of all ranks, so the world size does not change it.

        waited: seconds for this batch; spent: seconds of the whole step before this one.
        """
        config, state, step = self.config, self.state, self.state.step
        batch = batch.to(self.device)
        supervision = supervise(config, state.teacher, batch)
        own = distill(config, self.parallel, state.teacher, batch, supervision)
        sums = torch.stack([own.kept.double(), own.loss.detach().double(), own.cosine.double(),
                            torch.tensor(float(self.signalled), dtype=torch.float64, device=self.device)])  # fmt: skip
        dist.all_reduce(sums)
        kept, loss, cosine, stop = sums.tolist()
        self.stopping = stop > 0
        state.optimizer.zero_grad(set_to_none=True)
        (own.loss * (self.ranks.world / max(kept, 1.0))).backward()  # DDP averages over ranks; this makes it the mean over all kept tokens
        if config.teacher.mode is TeacherMode.ema and step % config.teacher.every == 0:
            update_teacher(state.teacher, state.student, config.teacher.momentum)
        lr = one_cycle(step, config.steps, config.optimizer.lr, config.optimizer.warmup)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        state.step += 1
        mean = loss / max(kept, 1.0)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"step {step}: the loss is {mean} (rank {self.ranks.rank}, rows {', '.join(batch.keys)}); lower optimizer.lr"
            )
        return {
            "step": step, "loss": mean, "excess_loss": mean - math.log(config.head.prototypes), "cosine": cosine / max(kept, 1.0), "lr": lr,
            "kept_tokens": int(kept), "data_wait_s": round(waited, 4), "rows_per_s": round(config.batch / max(spent, 1e-9), 3),
            "requests_per_row": batch.reads["requests"] / len(batch.keys),
            "cache_hits": batch.reads["hits"] / max(1, batch.reads["hits"] + batch.reads["misses"]),
        }  # fmt: skip

    @torch.no_grad()
    def picture(self) -> bytes:
        """The PCA panel of the rows of step 0 as PNG."""
        config, student = self.config, self.state.student
        batch = self._probe(labels=True).to(self.device)
        images = batch.target_images.float() / 255
        student.eval()
        supervision = supervise(config, self.state.teacher, batch)
        own = student.tokens(images, batch.seeds)
        student.train()
        untrained = patch_tokens(self.untrained, images)
        title = f"step {self.state.step}, blend {config.supervision.blend}, {_backbone_note(config)}"
        return figures.to_png(figures.distillation_panel(batch, supervision, untrained, own, title))


def _dataset_hash(rows: WindowRows) -> str:
    return hashlib.sha256(codec.encode_json(rows.pins)).hexdigest()


def _check_same_end(ranks: Ranks, first: dict[str, Any], own: dict[str, Any]) -> None:
    """What is free from one start of a run to the next is not free between its ranks: they would wait for each other at the end."""
    for name in ("steps", "until"):
        if own[name] != first[name]:
            raise ConfigError(
                f"rank {ranks.rank}: {name}={own[name]}, but rank 0 has {name}={first[name]}; start all ranks with the same keys"
            )


def _check_grids(config: TrainConfig, height: int, width: int) -> None:
    """The tokens of the backbone, and those of the operators and features that are read, must lie on one grid."""
    spec, grids = find_spec(config.backbone.architecture), {}
    if config.supervision.mode is SupervisionMode.operators:
        name = config.supervision.operators
        h, w = Column(config.dataset, name).provenance().settings["grid"]
        grids[name] = (h, w), f"build another with operators.patch={spec.patch}"
    if config.teacher.mode is TeacherMode.frozen:
        made_by = Column(config.dataset, "features").provenance().settings["architecture"]
        grids["features"] = find_spec(made_by).grid(height, width), f"build it with {spec.name}"
    for column, (grid, remedy) in grids.items():
        if grid != spec.grid(height, width):
            raise ConfigError(
                f"{config.dataset}: column {column!r} has {grid[0]} x {grid[1]} tokens an image, backbone.architecture={spec.name} "
                f"{' x '.join(map(str, spec.grid(height, width)))}: {remedy}, or choose a backbone with the column's patch"
            )


def _check_features(config: TrainConfig, rows: WindowRows, weights_hash: str) -> None:
    """A frozen teacher's cached tokens must come from the very weights that the student starts from."""
    if config.teacher.mode is TeacherMode.frozen:
        cached = Column(config.dataset, "features").provenance().settings["weights_sha256"]
        if cached != weights_hash:
            raise ConfigError(
                f"{config.dataset}: column 'features' was made with other weights ({str(cached)[:12]}) than backbone has "
                f"({weights_hash[:12]}); build the column with this backbone, or choose teacher.mode=ema"
            )


def _backbone_note(config: TrainConfig) -> str:
    substitute = " (random substitute weights)" if config.backbone.weights == "random" else ""
    return f"{config.backbone.architecture}{substitute}"
