"""The loop of a training: its networks are built, its newest checkpoint loaded, then step after step until it is done or stopped."""

from __future__ import annotations

import hashlib
import itertools
import math
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from configs.schema import LossKind, SupervisionMode, TeacherMode, TrainConfig
from storage import codec, location
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
from training.model.network import LossSums, build_networks
from training.model.registry import find_spec
from training.model.weights import hash_weights, load_weights
from training.objective.centring import MeanCentring, make_centring
from training.objective.distill import distill, supervise
from training.objective.ema import update_momentum, update_teacher
from training.objective.schedule import one_cycle, peak_rate
from training.preconditions import check_features, check_grids, check_same_end, check_splat
from training.probes import monitor
from training.probes.consistency import entropy_share
from training.probes.monitor import Monitor
from training.splat.cuda.gsplat import gsplat_works


class Trainer:
    """One rank of one training run. What cannot be done is refused while it is built, on all ranks."""

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        with ranks.together():
            self.device = choose_device(config.device)
            check_share(config.batch, ranks.world, config.accumulate)
        self.config = config = _resolved(config, self.device)
        self.rows = pinned_rows(config, ranks)
        with ranks.together():
            self._build()
        with ranks.together():
            newest = (checkpoint.steps(config.output) or [0])[-1] if ranks.rank == 0 else 0
        newest, identity = ranks.from_rank_0((newest, self.identity))
        with ranks.together():
            checkpoint.check_identity(f"rank {ranks.rank}, beside rank 0's {config.output}", identity, self.identity)
            check_same_end(ranks, identity["config"], self.identity["config"])
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
        check_grids(config, height, width)
        check_splat(config)
        check_features(config, self.rows, weights_hash)
        self.identity = checkpoint.identity(config, weights_hash, _dataset_hash(self.rows))
        backbone = config.backbone
        if self.ranks.rank == 0:  # for its pictures
            self.untrained = build_backbone(backbone.architecture, weights, height, width, backbone.blocks).eval().to(self.device)
        student, teacher = build_networks(config, weights, height, width)
        student, teacher = student.to(self.device), teacher.to(self.device)
        cuda = self.device.type == "cuda"
        if cuda:
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = config.tf32
            self.rows.live |= config.supervision.mode is SupervisionMode.on_the_fly and gsplat_works()
        optimizer = torch.optim.Adam(student.trained().values(), lr=peak_rate(config), betas=(0.9, 0.999), eps=1e-8, fused=cuda)
        self.centring = make_centring(config.head, dist.all_reduce)
        centre = self.centring.to(self.device) if isinstance(self.centring, MeanCentring) else None
        self.state = TrainerState(student, teacher, optimizer, centre=centre)
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
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(one, lambda *_: setattr(self, "signalled", True))
        if lead:
            print(f"{config.output}: steps {state.step} to {last} of {config.steps}, {len(self.rows)} rows, {self.ranks.world} ranks on "
                  f"{self.device.type} in {config.precision}, {_backbone_note(config)}", flush=True)  # fmt: skip
        metrics = Metrics(config.output, state.step, last) if lead else None
        writer = checkpoint.Writer(config.output, self.identity, config.checkpoint_background)
        if metrics:
            self._note(requeue=True)  # holds where this process is killed
            if self.monitor:
                monitor.forget(config.output, state.step, self.monitor.digest)
            self._judge(metrics)
        waiting = began = time.perf_counter()
        pinned = self.device.type == "cuda"
        parts = iter(step_batches(self.rows, config, range(state.step, last), self.ranks.rank, self.ranks.world, pinned))
        while batches := list(itertools.islice(parts, config.accumulate)):
            now = time.perf_counter()
            measured = self.train_step(batches, now - waiting, now - began)
            began = now
            if metrics:
                metrics.add(measured)
                if state.step % config.monitor.every == 0 or state.step == last or self.stopping:
                    self._judge(metrics)
                if state.step % config.checkpoint_every == 0 or self.stopping or state.step == last:
                    metrics.write(state.step)
                    writer.save(state)
                    self._note(requeue=True)
                if state.step % config.picture_every == 0 or state.step == config.steps:
                    location.write_bytes(join(config.output, "pictures", f"pca-{state.step:09d}.png"), self.picture())
            if self.stopping:
                break
            waiting = time.perf_counter()
        if metrics:
            writer.finish()
            metrics.close()
            self._note(requeue=self.stopping and state.step < last)
            self._report()

    def _note(self, requeue: bool) -> None:
        """Says in the run's folder where it is, and whether the same command is to be started again: torchrun does not say."""
        note = {"step": self.state.step, "steps": self.config.steps, "requeue": requeue}
        location.write_bytes(join(self.config.output, "state.json"), codec.encode_json(note))

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
                **self.monitor.judge(self.state.student, self._temperature(), self.device),
            }
            monitor.write(self.config.output, now)
        metrics.judged(now)
        for line in monitor.warnings([*before, now][0], now):
            print(f"{self.config.output}: {line}", flush=True)

    def _temperature(self) -> float | None:
        """Of the student's distributions, where it is trained by them."""
        return self.config.head.student_temperature if self.config.loss.kind is LossKind.cross_entropy else None

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

    def train_step(self, batches: Sequence[Batch], waited: float, spent: float) -> dict[str, Any]:
        """One optimiser step. The loss is the mean over the kept tokens of all ranks and parts, so that their number does not change it.

        batches: the parts of this rank's share; waited: seconds for them; spent: seconds of the whole step before this one.
        """
        config, state, step = self.config, self.state, self.state.step
        state.optimizer.zero_grad(set_to_none=True)
        own = [self._backward(batch, last=number == len(batches) - 1) for number, batch in enumerate(batches)]
        signalled = torch.tensor(float(self.signalled), dtype=torch.float64, device=self.device)
        parts = [torch.stack([one.kept.double(), one.loss.double(), one.cosine.double(), one.target_entropy.double()]) for one in own]
        sums = torch.cat([torch.stack(parts).sum(0), signalled[None], torch.stack([one.usage.double() for one in own]).sum(0)])
        dist.all_reduce(sums)
        kept, loss, cosine, target_entropy, stop = sums[:5].tolist()
        self.stopping = stop > 0
        mean = loss / max(kept, 1.0)
        gradients = [parameter.grad for group in state.optimizer.param_groups for parameter in group["params"]]
        # DDP averages sums over ranks; this makes of it the mean over all kept tokens.
        torch._foreach_mul_(gradients, self.ranks.world / max(kept, 1.0))
        norm = torch.nn.utils.get_total_norm(gradients)
        if not (math.isfinite(mean) and math.isfinite(float(norm))):
            if self.ranks.rank == 0:
                self._note(requeue=False)  # it would come to the same
            rows = ", ".join(key for batch in batches for key in batch.keys)
            raise FloatingPointError(
                f"step {step}: the loss is {mean}, the norm of its gradient {float(norm)} (rank {self.ranks.rank}, rows {rows}); lower "
                "optimizer.lr"
            )
        if config.optimizer.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(state.student.trained().values(), config.optimizer.clip, norm)
        if self.centring is not None:  # by the prototypes that its points lay among
            self.centring.update(state.teacher.head.last_layer.rows())
        if config.teacher.mode is TeacherMode.ema and step % config.teacher.every == 0:
            update_teacher(state.teacher, state.student, update_momentum(config))
        lr = one_cycle(step, config.steps, peak_rate(config), config.optimizer.warmup)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        state.step += 1
        most = math.log(config.head.prototypes) if config.loss.kind is LossKind.cross_entropy else 0.0
        entropies = {}
        if most and kept:
            entropies = {"target_entropy": target_entropy / kept / most, "head_entropy": entropy_share(sums[5:])}
        return {
            "step": step, "loss": mean, "excess_loss": mean - most, "cosine": cosine / max(kept, 1.0), "lr": lr,
            "grad_norm": float(norm), **entropies,
            "kept_tokens": int(kept), "data_wait_s": round(waited, 4), "rows_per_s": round(config.batch / max(spent, 1e-9), 3),
            **_reads(batches),
        }  # fmt: skip

    def _backward(self, batch: Batch, last: bool) -> LossSums:
        """The sums of a part of a step, whose gradients are added up. last: then those of all ranks are averaged."""
        batch = batch.to(self.device)
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"),
            nullcontext() if last else self.parallel.no_sync(),
        ):
            supervision = supervise(self.config, self.state.teacher, batch)
            own = distill(self.config, self.parallel, self.state.teacher, batch, supervision, self.centring)
            own.loss.backward()
        return LossSums(*(part.detach() for part in own))

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


def _resolved(config: TrainConfig, device: torch.device) -> TrainConfig:
    """With the precision that this device has: what a run began with binds it."""
    cuda = device.type == "cuda"
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return replace(config, precision=precision, tf32=config.tf32 and cuda)


def _reads(batches: Sequence[Batch]) -> dict[str, float]:
    """What a step asked of the store."""
    requests, hits, misses = (sum(batch.reads[name] for batch in batches) for name in ("requests", "hits", "misses"))
    return {"requests_per_row": requests / sum(len(batch.keys) for batch in batches), "cache_hits": hits / max(1, hits + misses)}


def _dataset_hash(rows: WindowRows) -> str:
    return hashlib.sha256(codec.encode_json(rows.pins)).hexdigest()


def _backbone_note(config: TrainConfig) -> str:
    substitute = " (random substitute weights)" if config.backbone.weights == "random" else ""
    return f"{config.backbone.architecture}{substitute}"
