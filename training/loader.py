"""From a step's number to its batch: each row by byte ranges, only the members that the step needs.

rows = open_rows(config)
for batch in step_batches(rows, config, range(20, 40), rank=0, world=2): ...    # batch i: this rank's rows of step 20 + i
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from configs import ConfigError
from configs.schema import SupervisionConfig, SupervisionMode, TeacherMode, TrainConfig
from storage.column import Manifest, open_columns, read_members
from storage.domain import Frame
from storage.gaussians import MEMBERS as GAUSSIAN_MEMBERS
from storage.gaussians import decode_gaussians
from storage.location import StorageError
from storage.operator import OPERATOR_MEMBERS, decode_operator
from storage.rows import decode_frame, decode_tokens, decode_window, frame_members, operator_source
from training.order import choose, step_rows
from training.splat.apply import OperatorBatch, collate_operators
from training.splat.transposed import SparseLift
from training.splat.window import WindowSplat


@dataclass
class Batch:
    """This rank's rows of one step. B rows, images of H x W pixels; Gaussians differ in number from row to row, so they are lists.

    seeds: what is random about each row in this step (its dropout). viewmats: world-to-camera of the target; Ks: pixels.
    """

    keys: list[str]
    seeds: list[int]
    context_images: torch.Tensor  # [B,2,3,H,W] uint8
    context_labels: torch.Tensor  # [B,2,H,W] int32
    target_images: torch.Tensor  # [B,3,H,W] uint8
    target_labels: torch.Tensor  # [B,H,W] int32
    target_valid: torch.Tensor  # [B,H,W] bool
    viewmats: torch.Tensor  # [B,4,4] float32
    Ks: torch.Tensor  # [B,3,3] float32
    operators: OperatorBatch | None  # the splat as a matrix; None where it is done live
    means: list[torch.Tensor]  # [N,3]; the Gaussians are there where the splat is done live
    quats: list[torch.Tensor]  # [N,4]
    scales: list[torch.Tensor]  # [N,3]
    opacities: list[torch.Tensor]  # [N]
    lifts: list[SparseLift | None]  # from tokens to Gaussians; None where they are pixel-aligned, or not there
    context_tokens: torch.Tensor | None  # [B,2,h,w,C] float32; None where the teacher makes them

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""

        def move(value: object) -> object:
            if isinstance(value, (torch.Tensor, OperatorBatch, SparseLift)):
                return value.to(device, non_blocking=True)
            return [move(part) for part in value] if isinstance(value, list) else value

        return Batch(**{name: move(value) for name, value in vars(self).items()})  # type: ignore[arg-type]

    def pin_memory(self) -> Batch:
        """What a DataLoader that pins calls: copies to a GPU then run beside the computation."""

        def pin(value: object) -> object:
            if isinstance(value, (torch.Tensor, OperatorBatch, SparseLift)):
                return value.pin_memory()
            return [pin(part) for part in value] if isinstance(value, list) else value

        return Batch(**{name: pin(value) for name, value in vars(self).items()})  # type: ignore[arg-type]


class WindowRows(torch.utils.data.Dataset):
    """Rows of the dataset with a target drawn in each: `rows[(row, draw)]` -> the parts of a `Batch`, without the batch's axis.

    Opened in the process that reads: no file system and no manifest crosses a fork.
    """

    def __init__(self, dataset: str, supervision: SupervisionConfig, tokens: bool) -> None:
        self.dataset, self.supervision, self.tokens = dataset, supervision, tokens
        self.splat = supervision.operators if supervision.mode is SupervisionMode.operators else supervision.gaussians
        self._columns: dict[str, Manifest] | None = None

    @property
    def columns(self) -> dict[str, Manifest]:
        if self._columns is None:
            names = ["frames", self.splat, *(["features"] if self.tokens else [])]
            self._columns = open_columns(self.dataset, names)
        return self._columns

    def __getstate__(self) -> dict:
        return {**vars(self), "_columns": None}

    def __len__(self) -> int:
        return len(self.columns["frames"])

    def __getitem__(self, choice: tuple[int, int]) -> dict:
        try:
            return self._sample(*choice)
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise StorageError(f"{self.dataset}, row {self.columns['frames'].keys[choice[0]]}: {error}") from error

    def _sample(self, row: int, draw: int) -> dict:
        frames = self.columns["frames"]
        present = frames.members(row)
        count = sum(name.endswith(".jpg") for name in present)
        target = self._target(row, draw, count)
        context = (0, count - 1)

        names = ["window.json", *(n for p in sorted({*context, target}) for n in frame_members(p, present))]
        wanted = [frames.locate(row, name) for name in names]
        cached = self.supervision.mode is SupervisionMode.operators
        splat_names = [f"{target:02d}.{name}" for name in OPERATOR_MEMBERS] if cached else GAUSSIAN_MEMBERS
        wanted += [self.columns[self.splat].locate(row, name) for name in splat_names]
        if self.tokens:
            wanted.append(self.columns["features"].locate(row, "tokens.npy"))
        members = dict(zip([place.name for _, place in wanted], read_members(wanted), strict=True))

        window = decode_window(members["window.json"])
        views = {p: decode_frame(window, p, members) for p in {*context, target}}
        operator, live, lift = None, None, None
        if cached:
            expected = operator_source(self.columns[self.splat].made_by, frames.keys[row], target)
            operator = decode_operator({name: members[f"{target:02d}.{name}"] for name in OPERATOR_MEMBERS}, expected)
        else:
            cloud, pair = decode_gaussians(members, [window.cameras[place] for place in context]), [views[place] for place in context]
            if self.supervision.mode is SupervisionMode.on_the_fly:
                operator = WindowSplat(cloud, pair).operator(views[target], with_blend=self.supervision.blend < 1)
            elif cloud.pixel_aligned:
                live = cloud  # the step lifts to them on its device
            else:
                splat = WindowSplat(cloud, pair)
                live, lift = splat.gaussians, splat.lift
        return {
            "keys": frames.keys[row],
            "seeds": int(draw) % 2**63,
            "context_images": torch.stack([_chw(views[p]) for p in context]),
            "context_labels": torch.stack([_labels(views[p]) for p in context]),
            "target_images": _chw(views[target]),
            "target_labels": _labels(views[target]),
            "target_valid": torch.from_numpy(views[target].valid),
            "viewmats": torch.from_numpy(views[target].camera.w2c.astype(np.float32)),
            "Ks": torch.from_numpy(views[target].camera.K.astype(np.float32)),
            "operators": operator,
            **{name: None if live is None else torch.from_numpy(getattr(live, name)) for name in ("means", "quats", "scales", "opacities")},
            "lifts": lift,
            "context_tokens": torch.from_numpy(decode_tokens(members)) if self.tokens else None,
        }

    def _target(self, row: int, draw: int, count: int) -> int:
        """The place of the target: one of the window's frames, and one that has an operator where those are read."""
        places = [place for place in range(count) if self.supervision.context_as_target or 0 < place < count - 1]
        if self.supervision.mode is SupervisionMode.operators:
            present = set(self.columns[self.splat].members(row))
            places = [place for place in places if f"{place:02d}.{OPERATOR_MEMBERS[0]}" in present]
        if not places:
            raise ConfigError(
                f"row {self.columns['frames'].keys[row]}: no frame can be its target; set supervision.context_as_target=true, or build "
                "operators for more targets"
            )
        return places[choose(draw, len(places))]


def collate(samples: list[dict]) -> Batch:
    """Samples of `WindowRows` -> one `Batch`."""
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    operators = columns.pop("operators")
    listed = ("keys", "seeds", "means", "quats", "scales", "opacities", "lifts")
    stacked = {n: v if n in listed else None if v[0] is None else torch.stack(v) for n, v in columns.items()}
    return Batch(**stacked, operators=None if operators[0] is None else collate_operators(operators))  # type: ignore[arg-type]


class StepSampler:
    """For each step the (row, draw) pairs of one rank."""

    def __init__(self, rows: int, seed: int, batch: int, steps: range, rank: int, world: int) -> None:
        if batch % world:
            raise ConfigError(f"batch={batch} rows a step cannot be shared equally by {world} ranks; choose a multiple of {world}")
        self.rows, self.seed, self.batch, self.steps, self.rank, self.world = rows, seed, batch, steps, rank, world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            choice = step_rows(self.rows, self.seed, step, self.batch)
            mine = slice(self.rank, None, self.world)
            yield [(int(r), int(d)) for r, d in zip(choice.row[mine], choice.draw[mine], strict=True)]


def open_rows(config: TrainConfig) -> WindowRows:
    """The rows that `config` trains from. A missing column, or one that does not match the others, raises here."""
    tokens = config.teacher.mode is TeacherMode.frozen
    rows = WindowRows(config.dataset, config.supervision, tokens)
    if not len(rows):
        raise ConfigError(f"{config.dataset}: the dataset has no rows")
    return rows


def step_batches(
    rows: WindowRows, config: TrainConfig, steps: range, rank: int, world: int, pinned: bool = False
) -> torch.utils.data.DataLoader:
    """The batches of `steps` for one rank, in order, read ahead by worker processes (spawned, so that no client is forked)."""
    sampler = StepSampler(len(rows), config.seed, config.batch, steps, rank, world)
    workers = config.loader.workers
    ahead: dict[str, Any] = (
        {"prefetch_factor": config.loader.prefetch, "multiprocessing_context": multiprocessing.get_context("spawn")} if workers else {}
    )
    return torch.utils.data.DataLoader(
        rows,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pinned,
        worker_init_fn=_leave_signals_to_the_rank,
        **ahead,
    )


def _leave_signals_to_the_rank(_: int) -> None:
    """torchrun signals a rank's whole process group: a worker that died of it would take the rank along before its checkpoint."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _chw(frame: Frame) -> torch.Tensor:
    return torch.from_numpy(frame.image).permute(2, 0, 1).contiguous()


def _labels(frame: Frame) -> torch.Tensor:
    return torch.from_numpy(frame.labels.astype(np.int32))
