"""The supervision itself, as if it were the features of the frames that it is splatted into: judges reconstructor, lift, blend and masks
before a step is trained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from configs import ConfigError
from configs.fields import plain
from configs.schema import SupervisedTokensConfig
from storage.location import StorageError
from storage.records.operators import operator_member
from storage.table import Table
from training.objective.supervision import patches_all_valid
from training.probes.data.base import ProbeData, ProbeFrame
from training.probes.extractor import NetworkModel, Tokens
from training.probes.features import FeatureMap
from training.splat.apply import apply_operators, collate_operators

_KEPT = 64  # token maps of context frames; neighbouring targets share theirs


class SupervisionModel:
    """The target tokens of a dataset's windows: the operators applied to a network's tokens of the context frames.

    A frame takes the first window that has an operator into it, and one whose context it is not part of where there is such a window. A
    token is kept as in training: what came there reaches `min_coverage`, and no pixel of its patch is invalid.
    """

    def __init__(self, model: NetworkModel, data: ProbeData, config: SupervisedTokensConfig) -> None:
        assert config.operators is not None
        datasets = data.describe().get("indexes")
        if not datasets:
            raise ConfigError(f"supervision.operators: data={data.name} holds none; choose data=dataset")
        self.model, self.config = model, config
        tables = [Table.open(root, [config.windows, config.operators]) for root in datasets]
        self.windows = {key: row for table in tables for key, row in _windows_of(table).items()}
        keys = data.describe()["frames"]
        self.description: Mapping[str, Any] = {
            **model.description,
            "supervision": plain(config),
            "operators": {table.root: table.by_kind["operators"].provenance for table in tables},
            "frames_without": [key for split in ("train", "test") for key in keys[split] if key not in self.windows],
        }
        if not all(any(key in self.windows for key in keys[split]) for split in ("train", "test")):
            raise ConfigError(
                f"supervision.operators={config.operators}: leads into no frame of one split; build operators for its windows, with "
                "operators.targets=all"
            )
        self._context: OrderedDict[tuple[str, int], torch.Tensor] = OrderedDict()

    def tokens(self, frame: ProbeFrame) -> Tokens:
        patch = self.model.spec.patch
        if frame.key not in self.windows:
            h, w = self.model.spec.grid(*frame.image.shape[:2])
            nothing = torch.zeros(1, 1, h, w), torch.zeros(h, w, dtype=torch.bool)
            return Tokens(FeatureMap(nothing[0], None, (0, 0), patch), nothing[1])
        table, row, target = self.windows[frame.key]
        operator = table.row(row).operator(target)
        context = torch.stack([self._tokens_of(table, int(number)) for number in table.context(row)])  # [V,C,h,w]
        if tuple(context.shape[0:1] + context.shape[2:]) != tuple(operator.context_grid):
            raise StorageError(
                f"{table.root}/{self.config.operators}: operators over {tuple(operator.context_grid)} tokens, the network gives "
                f"{tuple(context.shape[0:1] + context.shape[2:])}; build them with operators.patch={patch}"
            )
        flat = context.flatten(2).transpose(1, 2).flatten(0, 1)[None]
        try:
            tokens = apply_operators(collate_operators([operator]), flat, self.config.blend)
        except ValueError as error:
            raise StorageError(f"{table.root}/{self.config.operators}, row {table.windows.key(row)}: {error}") from error
        h, w = operator.grid
        (decoded,) = table.read_frames([int(table.targets(row)[target])])
        there = operator.alpha if self.config.keep_by == "alpha" else operator.coverage
        keep = torch.from_numpy(there).view(h, w) >= self.config.min_coverage
        keep &= patches_all_valid(torch.from_numpy(decoded.valid)[None], h, w)[0]
        return Tokens(FeatureMap(tokens.unflatten(1, (h, w)).permute(0, 3, 1, 2), None, (0, 0), patch), keep)

    def _tokens_of(self, table: Table, number: int) -> torch.Tensor:
        """[C,h,w] of a context frame."""
        found = (table.root, number)
        if found not in self._context:
            (frame,) = table.read_frames([number])
            self._context[found] = self.model.tokens(ProbeFrame(table.frames.key(number), "", frame.image)).map.patch[0]
        self._context.move_to_end(found)
        while len(self._context) > _KEPT:
            self._context.popitem(last=False)
        return self._context[found]


def _windows_of(table: Table) -> dict[str, tuple[Table, int, int]]:
    """For each frame that an operator leads into: the table, a window, and the frame's index among its targets."""
    found: dict[str, tuple[Table, int, int]] = {}
    within: dict[str, tuple[Table, int, int]] = {}
    for row in range(len(table)):
        context = set(table.context(row).tolist())
        stored = table.row_in("operators", row)
        for index, frame in enumerate(table.targets(row).tolist()):
            if table.by_kind["operators"].has(stored, operator_member(index)):
                (within if frame in context else found).setdefault(table.frames.key(frame), (table, row, index))
    return within | found
