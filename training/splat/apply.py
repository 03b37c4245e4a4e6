"""Applying operators: a batch of them to a batch of context tokens, as three `embedding_bag`s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from storage.records.operators import SparseRows, TokenOperator


@dataclass(frozen=True)
class OperatorBatch:
    """B operators side by side: sparse rows whose indices run over the batch's tokens [B*Nctx] and masks. All on one device."""

    splat_offsets: Tensor  # [B*Nt] int32: where each row of S begins
    splat_columns: Tensor  # [nnz] int32, below B*Nctx
    splat_values: Tensor  # [nnz] float32
    mean_offsets: Tensor  # [masks] int32: where each row of R begins, all operators' masks in one sequence
    mean_columns: Tensor  # [nnz] int32, below B*Nctx
    mean_values: Tensor  # [nnz] float32
    tap_masks: Tensor  # [B*Nt,4] int32, below masks; [B*Nt,0] where built without blending
    tap_weights: Tensor  # [B*Nt,4] float32
    alpha: Tensor  # [B,Nt] float32
    n_context: int

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def coverage(self) -> Tensor:
        """[B,Nt] float32, see `TokenOperator.coverage`. Summed when asked for."""
        lengths = torch.diff(self.splat_offsets, append=self.splat_offsets.new_tensor([len(self.splat_values)]))
        row = torch.repeat_interleave(lengths)
        return torch.bincount(row, weights=self.splat_values.double(), minlength=len(lengths)).float().view(self.alpha.shape)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> OperatorBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "n_context"}
        return replace(self, **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()})

    def pin_memory(self) -> OperatorBatch:
        """What a loader with pinned memory calls."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "n_context"}
        return replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items()})


def collate_operators(operators: Sequence[TokenOperator]) -> OperatorBatch:
    """Operators with equally many target tokens and equally many context tokens, ready for `apply_operators`; on the CPU."""
    if not operators:
        raise ValueError("operators: none given")
    for name, counts in (
        ("target tokens", {len(op.rows) for op in operators}),
        ("context tokens", {op.n_context for op in operators}),
        ("taps", {op.tap_mask.shape[1] for op in operators}),
    ):
        if len(counts) > 1:
            raise ValueError(f"operators: {sorted(counts)} {name}; those of a batch must have equally many")
    n_context = operators[0].n_context
    first_mask = np.cumsum([0] + [len(op.R) for op in operators])
    has_taps = operators[0].tap_mask.shape[1] > 0
    weights = [op.tap_weights() if has_taps else np.empty(op.tap_mask.shape, np.float32) for op in operators]
    return OperatorBatch(
        *_side_by_side([op.S for op in operators], n_context),
        *_side_by_side([op.R for op in operators], n_context),
        tap_masks=torch.from_numpy(np.concatenate([op.tap_mask + first_mask[b] for b, op in enumerate(operators)]).astype(np.int32)),
        tap_weights=torch.from_numpy(np.concatenate(weights)),
        alpha=torch.from_numpy(np.stack([op.alpha for op in operators])),
        n_context=n_context,
    )


def apply_operators(batch: OperatorBatch, tokens: Tensor, blend: float = 0.5) -> Tensor:
    """Targets [B,Nt,C] float32 from context tokens [B,Nctx,C] of any floating-point dtype, on the batch's device. Sums are float32.

    blend: weight of the splatted feature against its mask's mean; 1 means no blending. Not normalised by alpha: where alpha < 1, targets
    shrink. A row to which nothing was splatted still gets its masks' means: go by `alpha` or `coverage`.
    """
    if tokens.ndim != 3 or tokens.shape[:2] != (len(batch), batch.n_context):
        raise ValueError(f"tokens: shape {tuple(tokens.shape)}, expected ({len(batch)}, {batch.n_context}, C)")
    if not tokens.is_floating_point():
        raise ValueError(f"tokens: dtype {tokens.dtype}, expected a floating-point type")
    if not 0.0 <= blend <= 1.0:
        raise ValueError(f"blend: {blend}, expected a number in [0,1]")
    if blend < 1.0 and batch.tap_masks.shape[1] == 0:
        raise ValueError(f"blend: {blend}, but the operators were built without blending (with_blend=False)")
    flat = tokens.flatten(0, 1).float()
    targets = embedding_bag(batch.splat_columns, flat, batch.splat_offsets, mode="sum", per_sample_weights=batch.splat_values)
    if blend < 1.0:
        means = embedding_bag(batch.mean_columns, flat, batch.mean_offsets, mode="sum", per_sample_weights=batch.mean_values)
        of_masks = embedding_bag(batch.tap_masks, means, mode="sum", per_sample_weights=batch.tap_weights)
        targets = targets.mul_(blend).add_(of_masks, alpha=1.0 - blend)
    return targets.view(*batch.alpha.shape, tokens.shape[2])


def select_tokens(operator: TokenOperator, rows: np.ndarray) -> TokenOperator:
    """The operator of some of its target tokens, in the order given; `rows` [n] integer indexes or [Nt] bool. For token-aligned crops.

    Mask means stay those of the whole target.
    """
    rows = np.arange(len(operator.rows))[rows]
    return replace(
        operator, S=operator.S.take(rows), tap_mask=operator.tap_mask[rows], alpha=operator.alpha[rows], rows=operator.rows[rows]
    )


def flip_operator(operator: TokenOperator, context: bool = True, target: bool = True) -> TokenOperator:
    """The operator of the mirrored world: left and right exchanged in all context views, in the target, or in both.

    Rows of a whole grid stay in row-major order; rows that were selected keep their order and say which token they now are.
    """
    S, R, tap_mask, rows = operator.S, operator.R, operator.tap_mask, operator.rows
    if context:
        S, R = (_mirror_columns(matrix, operator.context_grid[2]) for matrix in (S, R))
    if not target:
        return replace(operator, S=S, R=R)
    width = operator.grid[1]
    rows = rows // width * width + width - 1 - rows % width
    if tap_mask.shape[1]:
        tap_mask = tap_mask[:, [1, 0, 3, 2]]  # left and right pixels of a token
    flipped = replace(operator, S=S, R=R, tap_mask=tap_mask, rows=rows)
    whole = np.array_equal(np.sort(rows), np.arange(width * operator.grid[0]))
    return select_tokens(flipped, np.argsort(rows)) if whole else flipped


def _mirror_columns(matrix: SparseRows, width: int) -> SparseRows:
    columns = matrix.columns // width * width + width - 1 - matrix.columns % width
    order = np.lexsort((columns, np.repeat(np.arange(len(matrix)), matrix.lengths)))
    return SparseRows(matrix.offsets, columns[order], matrix.values[order])


def _side_by_side(matrices: Sequence[SparseRows], n_context: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each row begins, columns and values of the block-diagonal matrix."""
    first_entry = np.cumsum([0] + [matrix.offsets[-1] for matrix in matrices])
    offsets = np.concatenate([matrix.offsets[:-1] + first_entry[b] for b, matrix in enumerate(matrices)])
    columns = np.concatenate([matrix.columns + b * n_context for b, matrix in enumerate(matrices)])
    values = np.concatenate([matrix.values for matrix in matrices])
    return torch.from_numpy(offsets.astype(np.int32)), torch.from_numpy(columns.astype(np.int32)), torch.from_numpy(values)
