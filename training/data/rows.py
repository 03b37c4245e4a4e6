"""Rows of the windows table as training wants them: a target drawn in each, and of all members only those that the step uses.

rows = WindowRows(config, pins)
found = rows.fetch([(17, draw), (4, draw)])     # bytes, all in flight together
batch = rows.decode(found)
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from configs import ConfigError
from configs.schema import SupervisionMode, TargetFrames, TeacherMode, TrainConfig
from storage import codec
from storage.column import Column
from storage.domain import Frame
from storage.index import Member
from storage.location import StorageError
from storage.node_cache import NodeCache
from storage.reader import COUNTED, MemberReader
from storage.records.frames import CAMERA, IMAGE, MASK, TOKENS, VALID, decode_camera, decode_tokens, decode_valid
from storage.records.gaussians import MEMBERS as GAUSSIAN_MEMBERS
from storage.records.gaussians import decode_gaussians
from storage.records.operators import OPERATOR_MEMBERS, decode_operator, operator_member
from storage.table import Table
from training.data.batch import Batch
from training.data.order import choose, mix
from training.model.registry import find_spec
from training.splat.apply import collate_operators
from training.splat.window import OPERATOR_PATCH, WindowSplat

Choice = tuple[int, int]  # a row, and the number from which all that is random about it is drawn


@dataclass(frozen=True)
class _Wanted:
    """One row of a batch. target_index: among the window's targets; members: where each lies, by (what, frame)."""

    row: int
    draw: int
    target_index: int
    context: tuple[int, ...]
    target: int
    members: dict[tuple[str, int], Member]


class Fetched(NamedTuple):
    """The members of a batch, read; reads: what was asked of the store for it."""

    wanted: list[_Wanted]
    data: dict[Member, bytes]
    reads: dict[str, int]


class WindowRows:
    """The rows that a configuration trains from.

    Opened in the process that reads: no file system and no index crosses a fork. pins: the sums of the indexes to open; None for those of
    now. labels: read masks and context images too, for pictures.
    """

    def __init__(self, config: TrainConfig, pins: Mapping[str, str] | None = None, labels: bool = False) -> None:
        self.config, self.pins, self.labels = config, dict(pins) if pins else None, labels
        supervision = config.supervision
        self.tokens = config.teacher.mode is TeacherMode.frozen
        self.cached = supervision.mode is SupervisionMode.operators
        # Batches hold the Gaussians. So they may `on_the_fly`, where the step makes operators of them.
        self.live = supervision.mode is SupervisionMode.live
        self.patch = OPERATOR_PATCH if self.cached else find_spec(config.backbone.architecture).patch  # of the lifts that are made here
        self.withdrawn: frozenset[str] = frozenset()

    def with_labels(self) -> WindowRows:
        """The same rows, read with what pictures show."""
        rows = WindowRows(self.config, self.pins, labels=True)
        rows.withdrawn, rows.live = self.withdrawn, self.live
        return rows

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("table", "_replacements")}

    @cached_property
    def table(self) -> Table:
        config = self.config
        names = [config.windows, config.supervision.operators if self.cached else config.supervision.gaussians]
        names += ["features"] if self.tokens else []
        if not self.cached:
            names.append(config.supervision.masks)
        elif self.labels:  # those that the operators blend by
            names.append(Column(config.dataset, config.supervision.operators).provenance().settings["masks"])
        cache = NodeCache(config.loader.cache, int(config.loader.cache_gb * 1e9)) if config.loader.cache else None
        return Table.open(config.dataset, names, self.pins, MemberReader(cache))

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def _replacements(self) -> np.ndarray | None:
        """The rows that may stand in for those of withdrawn scenes; None where none is withdrawn."""
        if not self.withdrawn:
            return None
        kept = np.flatnonzero(~self.table.windows.is_of_scenes(self.withdrawn))
        if not len(kept):
            raise StorageError(f"{self.config.dataset}: every row of the run's index belongs to a withdrawn scene; start a new run")
        return kept

    def fetch(self, choices: Sequence[Choice]) -> Fetched:
        """What the rows of a batch need, read: neighbours in one request, all requests in flight together."""
        wanted = [self._wanted(row, draw) for row, draw in choices]
        members = list(dict.fromkeys(member for row in wanted for member in row.members.values()))
        reads = dict.fromkeys(COUNTED, 0)
        return Fetched(wanted, dict(zip(members, self.table.reader.read(members, reads), strict=True)), reads)

    def decode(self, fetched: Fetched) -> Batch:
        """The batch, as tensors."""
        wanted, data, reads = fetched
        images = self._images(wanted, data)
        size = images["target_images"].shape[-2:]
        rows = []
        for row in wanted:
            try:
                rows.append(self._decoded(row, {part: data[member] for part, member in row.members.items()}, size))
            except ValueError as error:
                if isinstance(error, ConfigError):
                    raise
                raise StorageError(f"{self.config.dataset}, row {self.table.windows.key(row.row)}: {error}") from error
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        operators = columns.pop("operators")
        parts: dict[str, Any] = {
            name: values if name not in _STACKED else None if values[0] is None else torch.stack(values)
            for name, values in columns.items()
            if name in (*_STACKED, "keys", "seeds") or self.live
        }
        return Batch(**parts, **images, reads=reads, operators=collate_operators(operators) if operators[0] is not None else None)

    def _wanted(self, row: int, draw: int) -> _Wanted:
        table = self.table
        if self._replacements is not None and table.windows.scene(row) in self.withdrawn:
            row = int(self._replacements[choose(int(mix(draw, row)), len(self._replacements))])
        context, targets = table.context(row).tolist(), table.targets(row).tolist()
        target_index = self._choose_target(row, draw, context, targets)
        target = targets[target_index]
        members = {(IMAGE, target): table.frames.locate(target, IMAGE)}
        frames = [(target, [VALID])]
        if not self.tokens or self.labels:
            members |= {(IMAGE, frame): table.frames.locate(frame, IMAGE) for frame in context}
        if self.tokens:
            members |= {(TOKENS, frame): table.locate("features", frame, TOKENS) for frame in context}
        if self.cached:
            members[operator_member(target_index), row] = table.locate("operators", row, operator_member(target_index))
        else:
            members |= {(name, row): table.locate("gaussians", row, name) for name in GAUSSIAN_MEMBERS}
            frames = [(frame, [VALID, CAMERA]) for frame in dict.fromkeys([*context, target])]
        for frame, names in frames:
            members |= {(name, frame): table.frames.locate(frame, name) for name in names if table.frames.has(frame, name)}
        if "masks" in table.by_kind:
            members |= {(MASK, frame): table.locate("masks", frame, MASK) for frame in [*context, target]}
        return _Wanted(row, draw, target_index, tuple(context), target, members)

    def _choose_target(self, row: int, draw: int, context: Sequence[int], targets: Sequence[int]) -> int:
        """The index of one of the window's targets, and of one that has an operator where those are read."""
        allowed = self.config.supervision.targets
        indices = [
            i for i, frame in enumerate(targets) if allowed is TargetFrames.all or (frame in context) == (allowed is TargetFrames.context)
        ]
        if self.cached:
            operators = self.table.by_kind["operators"]
            present = self.table.row_in("operators", row)
            indices = [i for i in indices if operators.has(present, operator_member(i))]
        if not indices:
            raise ConfigError(
                f"row {self.table.windows.key(row)}: no frame can be its target; set supervision.targets=all, or build "
                "operators for more targets"
            )
        return indices[choose(draw, len(indices))]

    def _images(self, wanted: Sequence[_Wanted], data: Mapping[Member, bytes]) -> dict[str, Any]:
        """The images of a batch: [B,3,H,W] and [B,V,3,H,W], channels last in memory. A frame that several rows use is decoded once."""
        uses: defaultdict[Member, list[tuple[int, ...]]] = defaultdict(list)  # (row,) among the targets, (row, view) in the context
        for b, row in enumerate(wanted):
            uses[row.members[IMAGE, row.target]].append((b,))
            if not self.tokens or self.labels:
                for view, frame in enumerate(row.context):
                    uses[row.members[IMAGE, frame]].append((b, view))
        lengths, arrays = (len(wanted), len(wanted[0].context)), {}
        for member, indices in uses.items():
            image = codec.decode_jpeg(data[member])
            for index in indices:
                axes = len(index)
                if axes not in arrays:
                    arrays[axes] = np.empty((*lengths[:axes], *image.shape), np.uint8)
                arrays[axes][index] = image
        return {
            name: torch.from_numpy(arrays[axes]).movedim(-1, axes) if axes in arrays else None
            for name, axes in (("target_images", 1), ("context_images", 2))
        }

    def _decoded(self, row: _Wanted, parts: Mapping[tuple[str, int], bytes], size: Sequence[int]) -> dict[str, Any]:
        """The parts of a `Batch`, without its axis, but for the images. size: (H,W)."""
        found: dict[str, Any] = dict.fromkeys(("operators", "lifts", *_STACKED, *_GAUSSIANS))
        found["keys"], found["seeds"] = self.table.windows.key(row.row), int(row.draw) % 2**63
        found["target_valid"] = torch.from_numpy(decode_valid(parts.get((VALID, row.target)), *size))
        if self.tokens:
            found["context_tokens"] = torch.stack([torch.from_numpy(decode_tokens(parts[TOKENS, frame])) for frame in row.context])
        labels: dict[int, np.ndarray] = {}
        if (MASK, row.target) in parts:
            labels = {frame: codec.decode_ids(parts[MASK, frame]) for frame in {*row.context, row.target}}
            as_tensor = {frame: torch.from_numpy(ids.astype(np.int32)) for frame, ids in labels.items()}
            found["target_labels"] = as_tensor[row.target]
            found["context_labels"] = torch.stack([as_tensor[frame] for frame in row.context])
        if self.cached:
            expected = self.table.row(row.row).operator_source(row.target_index)
            stored = parts[operator_member(row.target_index), row.row]
            return found | {"operators": decode_operator({OPERATOR_MEMBERS[0]: stored}, expected)}
        return found | self._decoded_splat(row, parts, labels)

    def _decoded_splat(self, row: _Wanted, parts: Mapping[tuple[str, int], bytes], labels: Mapping[int, np.ndarray]) -> dict[str, Any]:
        """From the window's Gaussians: the operator into its target; for the live splat the Gaussians and the target's camera."""
        context = [self._view(frame, parts, labels) for frame in row.context]
        target = self._view(row.target, parts, labels)
        cloud = decode_gaussians({name: parts[name, row.row] for name in GAUSSIAN_MEMBERS}, [view.camera for view in context])
        if not self.live:
            splat = WindowSplat(cloud, context, self.patch, self.config.supervision.splat)
            return {"operators": splat.operator(target, with_blend=self.config.supervision.blend < 1)}
        lift = None
        if not cloud.pixel_aligned:
            splat = WindowSplat(cloud, context, self.patch, self.config.supervision.splat)
            cloud, lift = splat.gaussians, splat.lift
        return {
            **{name: torch.from_numpy(getattr(cloud, name)) for name in _GAUSSIANS},
            "viewmats": torch.from_numpy(target.camera.w2c.astype(np.float32)),
            "Ks": torch.from_numpy(target.camera.K.astype(np.float32)),
            "lifts": lift,
        }

    def _view(self, frame: int, parts: Mapping[tuple[str, int], bytes], labels: Mapping[int, np.ndarray]) -> Frame:
        """What the splat asks of a frame; its image is not wanted."""
        name, camera = decode_camera(parts[CAMERA, frame])
        valid = decode_valid(parts.get((VALID, frame)), camera.height, camera.width)
        return Frame(name, camera, np.empty((camera.height, camera.width, 0), np.uint8), labels[frame], valid)


_GAUSSIANS = ("means", "quats", "scales", "opacities")
_STACKED = ("target_valid", "context_tokens", "context_labels", "target_labels", "viewmats", "Ks")


def open_rows(config: TrainConfig, pins: Mapping[str, str] | None = None) -> WindowRows:
    """The rows that `config` trains from. A missing column, or one that does not match the others, raises here."""
    rows = WindowRows(config, pins)
    if not len(rows):
        raise ConfigError(f"{config.dataset}: the windows table {config.windows!r} has no rows")
    if pins is None:  # with all that the opened columns were made from: pictures want the masks of the operators
        of = [index.of for index in rows.table.columns.values()]
        rows = WindowRows(config, {name: sha256 for sums in (*of, rows.table.pins()) for name, sha256 in sums.items()})
    return rows


def few(config: TrainConfig, batch: int) -> TrainConfig:
    """The same configuration for a batch of at most that many rows, read in this process."""
    return dataclasses.replace(config, batch=min(batch, config.batch), accumulate=1, loader=dataclasses.replace(config.loader, workers=0))
