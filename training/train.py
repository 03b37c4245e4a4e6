"""Distils a 3D-aware backbone from the shards of a dataset.

    torchrun --nproc-per-node=2 training/train.py dataset=s3://bucket/rooms output=s3://bucket/runs/with-blending
    torchrun --nproc-per-node=2 training/train.py dataset=s3://bucket/rooms output=s3://bucket/runs/no-blending supervision.blend=1

Stopped by a signal or by `until`, it writes a checkpoint; the same command goes on from the newest one, with the same losses as if
undisturbed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from configs import ConfigError, command
from configs.schema import TeacherMode, TrainConfig
from storage import codec, location
from storage.column import Column
from storage.location import join
from training import checkpoint, figures
from training.backbone import StateDict, hash_weights, load_weights
from training.data.batch import Batch
from training.data.loader import step_batches
from training.data.pins import pinned_rows
from training.data.rows import WindowRows, few
from training.objective.distill import build_networks, distillation_loss, supervise
from training.objective.ema import update_teacher
from training.objective.schedule import one_cycle


class Run:
    """One rank of one training run: its networks, its place in the run, and what it has to report."""

    def __init__(self, config: TrainConfig, rows: WindowRows, weights: StateDict, device: torch.device) -> None:
        self.config, self.rows, self.device = config, rows, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        weights_hash = hash_weights(weights)
        _check_features(config, rows, weights_hash)
        self.identity = checkpoint.identity(config, weights_hash, _dataset_hash(rows))
        height, width = self._probe(labels=False).target_images.shape[-2:]
        student, self.teacher = (network.to(device) for network in build_networks(config, weights, height, width))
        self.student = student
        self.optimizer = torch.optim.Adam(student.trained().values(), lr=config.optimizer.lr, betas=(0.9, 0.999), eps=1e-8)
        self.step = self._resume()
        self.parallel = torch.nn.parallel.DistributedDataParallel(student, device_ids=[device.index] if device.type == "cuda" else None)
        self.metrics: list[dict[str, Any]] = []
        self.signalled = False  # this rank was asked to stop
        self.stopping = False  # all ranks know of it

    def _probe(self, labels: bool) -> Batch:
        """The rows that the pictures show: those of step 0, at most four; with labels and context images, or as training reads them."""
        config = few(self.config, 4)
        rows = self.rows.with_labels() if labels else self.rows
        return next(iter(step_batches(rows, config, range(1), 0, 1)))

    def _resume(self) -> int:
        """Rank 0 says from which step; every rank must reach that checkpoint, and the same dataset."""
        said: list[Any] = [(checkpoint.steps(self.config.output) or [0])[-1], self.identity] if self.rank == 0 else [None, None]
        dist.broadcast_object_list(said)
        checkpoint.check_identity(f"rank {self.rank}, beside rank 0's {self.config.output}", said[1], self.identity)
        if said[0] == 0:
            return 0
        state, who = checkpoint.load(self.config.output, said[0])
        checkpoint.check_identity(self.config.output, who, self.identity)
        for network, name in ((self.student, "student"), (self.teacher, "teacher")):
            own = dict(network.named_parameters())
            for key, tensor in state[name].items():
                own[key].data.copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def save(self) -> None:
        """Rank 0 writes the metrics since the last checkpoint, then the checkpoint."""
        if self.rank == 0:
            lines = "".join(json.dumps(m, sort_keys=True) + "\n" for m in self.metrics)
            location.write_bytes(join(self.config.output, "metrics", f"step-{self.step:09d}.jsonl"), lines.encode())
            names = list(self.student.trained())
            teacher = dict(self.teacher.named_parameters())
            state = {
                "student": {n: p.detach().cpu() for n, p in self.student.trained().items()},
                "teacher": {n: teacher[n].detach().cpu() for n in names},
                "optimizer": self.optimizer.state_dict(),
            }
            checkpoint.save(self.config.output, self.step, state, self.identity)
        self.metrics = []

    def train_step(self, batch: Batch, waited: float, spent: float) -> dict[str, Any]:
        """One optimiser step. The loss is the mean over the kept tokens of all ranks, so the world size does not change it.

        waited: seconds for this batch; spent: seconds of the whole step before this one.
        """
        config, step = self.config, self.step
        batch = batch.to(self.device)
        targets = supervise(config, self.teacher, batch)
        result = distillation_loss(config, self.parallel, self.teacher, batch, targets)
        sums = torch.stack([targets.keep.sum().double(), result.loss.detach().double(), result.cosine.double(),
                            torch.tensor(float(self.signalled), dtype=torch.float64, device=self.device)])  # fmt: skip
        dist.all_reduce(sums)
        kept, loss, cosine, stop = sums.tolist()
        self.stopping = stop > 0
        self.optimizer.zero_grad(set_to_none=True)
        (result.loss * (self.world / max(kept, 1.0))).backward()  # DDP averages over ranks; this makes it the mean over all kept tokens
        if config.teacher.mode is TeacherMode.ema and step % config.teacher.every == 0:
            update_teacher(self.teacher, self.student, config.teacher.momentum)
        lr = one_cycle(step, config.steps, config.optimizer.lr, config.optimizer.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        mean = loss / max(kept, 1.0)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"step {step}: the loss is {mean} (rank {self.rank}, rows {', '.join(batch.keys)}); lower optimizer.lr"
            )
        return {
            "step": step, "loss": mean, "excess_loss": mean - math.log(config.head.prototypes), "cosine": cosine / max(kept, 1.0), "lr": lr,
            "kept_tokens": int(kept), "data_wait_s": round(waited, 4), "rows_per_s": round(config.batch / max(spent, 1e-9), 3),
            "requests_per_row": batch.reads["requests"] / len(batch.keys),
            "cache_hits": batch.reads["hits"] / max(1, batch.reads["hits"] + batch.reads["misses"]),
        }  # fmt: skip

    @torch.no_grad()
    def picture(self) -> bytes:
        """The PCA panel of the probe rows as PNG."""
        batch = self._probe(labels=True).to(self.device)
        self.student.eval()
        targets = supervise(self.config, self.teacher, batch)
        tokens, _ = self.student(batch.target_images.float() / 255, batch.seeds, targets.keep)
        self.student.train()
        blend = self.config.supervision.blend
        return figures.to_png(
            figures.distillation_panel(batch, targets, tokens, f"step {self.step}, blend {blend}, {_backbone_note(self.config)}")
        )


def run(config: TrainConfig) -> None:
    """Trains until `steps` (or `until`), from the newest checkpoint where there is one."""
    _check(config)
    device = _start_process_group(config.device)
    try:
        _train(config, device)
    finally:
        dist.destroy_process_group()


def _check(config: TrainConfig) -> None:
    positive = {
        "steps": config.steps, "batch": config.batch, "checkpoint_every": config.checkpoint_every, "picture_every": config.picture_every,
        "teacher.every": config.teacher.every, "optimizer.lr": config.optimizer.lr, "lora.rank": config.lora.rank,
        "head.student_temperature": config.head.student_temperature, "head.teacher_temperature": config.head.teacher_temperature,
        "loader.prefetch": config.loader.prefetch, "loader.cache_gb": config.loader.cache_gb,
    }  # fmt: skip
    shares = {
        "supervision.blend": config.supervision.blend, "supervision.min_coverage": config.supervision.min_coverage,
        "teacher.momentum": config.teacher.momentum, "lora.dropout": config.lora.dropout, "optimizer.warmup": config.optimizer.warmup,
    }  # fmt: skip
    for name, value in positive.items():
        if not value > 0:
            raise ConfigError(f"{name}={value}: must be above 0")
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name}={value}: must lie between 0 and 1")


def _train(config: TrainConfig, device: torch.device) -> None:
    rows = pinned_rows(config)
    run = Run(config, rows, load_weights(config.backbone), device)
    last = config.steps if config.until is None else min(config.until, config.steps)
    signal.signal(signal.SIGTERM, lambda *_: setattr(run, "signalled", True))
    signal.signal(signal.SIGINT, lambda *_: setattr(run, "signalled", True))
    lead = run.rank == 0
    if lead:
        print(f"{config.output}: steps {run.step} to {last} of {config.steps}, {len(rows)} rows, {run.world} ranks on {device.type}, "
              f"{_backbone_note(config)}", flush=True)  # fmt: skip
    board = _Board(config.output, run.step) if lead else None
    bar = tqdm(initial=run.step, total=last, unit="step", disable=not lead, mininterval=1.0, file=sys.stderr)
    waiting = began = time.perf_counter()
    for batch in step_batches(rows, config, range(run.step, last), run.rank, run.world, pinned=device.type == "cuda"):
        now = time.perf_counter()
        metrics = run.train_step(batch, now - waiting, now - began)
        began = now
        run.metrics.append(metrics)
        bar.update()
        if board:
            bar.set_postfix({k: f"{metrics[k]:.4g}" for k in ("excess_loss", "cosine", "lr", "data_wait_s")})
            board.write(metrics)
        due = run.step % config.checkpoint_every == 0
        if due or run.stopping or run.step == last:
            run.save()
            if board:
                board.upload()
        if lead and (run.step % config.picture_every == 0 or run.step == config.steps):
            location.write_bytes(join(config.output, "pictures", f"pca-{run.step:09d}.png"), run.picture())
        if run.stopping:
            break
        waiting = time.perf_counter()
    bar.close()
    if board:
        board.close()
        history = read_metrics(config.output)
        if history:
            location.write_bytes(join(config.output, "curves.png"), figures.to_png(figures.curves(history, _backbone_note(config))))
        print(
            f"{config.output}: {run.step} of {config.steps} steps done"
            + ("" if run.step >= config.steps else "; the same command goes on"),
            flush=True,
        )


def read_metrics(output: str) -> list[dict[str, Any]]:
    """All metrics of a run, one a step, in order."""
    names = sorted(location.list_sizes(join(output, "metrics")))
    lines = [line for name in names for line in location.read_bytes(join(output, "metrics", name)).decode().splitlines()]
    by_step = {metrics["step"]: metrics for metrics in map(json.loads, lines)}  # where two runs wrote a step, they wrote the same
    return [by_step[step] for step in sorted(by_step)]


class _Board:
    """TensorBoard's event files: written to a local folder, which is the run's own where that is local, else copied there at each
    checkpoint."""

    def __init__(self, output: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        fs, path = location.filesystem(output)
        self.remote = None if "file" in fs.protocol else join(output, "tensorboard")
        self.folder = Path(tempfile.mkdtemp(prefix="tensorboard-") if self.remote else Path(path) / "tensorboard")
        self.writer = SummaryWriter(str(self.folder), purge_step=step)

    def write(self, metrics: dict[str, Any]) -> None:
        for name in ("excess_loss", "cosine", "lr", "kept_tokens", "data_wait_s", "rows_per_s", "requests_per_row", "cache_hits"):
            self.writer.add_scalar(name, metrics[name], metrics["step"])

    def upload(self) -> None:
        self.writer.flush()
        if self.remote:
            for file in sorted(self.folder.iterdir()):
                location.write_bytes(join(self.remote, file.name), file.read_bytes())

    def close(self) -> None:
        self.upload()
        self.writer.close()
        if self.remote:
            shutil.rmtree(self.folder)


def _start_process_group(wanted: str) -> torch.device:
    """nccl and this rank's GPU, or gloo and the CPU. Without torchrun: one rank."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={wanted!r}: choose auto, cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device; choose device=cpu")
    cuda = torch.cuda.is_available() and wanted != "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda and local_rank >= torch.cuda.device_count():
        raise ConfigError(f"rank {local_rank} of this node has no GPU of its own ({torch.cuda.device_count()} here); give torchrun "
                          f"--nproc-per-node={torch.cuda.device_count()}, or device=cpu")  # fmt: skip
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if cuda else "gloo")
    else:
        dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    return device


def _dataset_hash(rows: WindowRows) -> str:
    return hashlib.sha256(codec.encode_json(rows.pins)).hexdigest()


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


if __name__ == "__main__":
    command("train", TrainConfig, run)
