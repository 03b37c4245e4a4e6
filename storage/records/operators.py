"""The supervision of one target view as a matrix: a target's tokens from its context's tokens, and how that matrix lies in a record.

Lift, splat, blend and down-sample are linear in the context's tokens F [Nctx,C], whatever their channels mean:

    T = blend * S F + (1 - blend) * L (R F)        S [Nt,Nctx] splat, R [M,Nctx] mean of the splat over each mask, L [Nt,M] the masks met

A token reads four pixels; row t of L holds their bilinear weights, each in the column of its pixel's mask. `blend` is not stored.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from storage import codec

FORMAT_VERSION = 1
MAX_TOKENS = 65_535  # columns are stored in 16 bits
OPERATOR_MEMBERS = ("operator.safetensors",)
_NEGLIGIBLE = 2.0**-13  # of a row's largest value: less than a quarter of what float16 rounds off that one

Option = str | float | bool


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix by rows: row i holds `values` at offsets[i]:offsets[i+1], in the columns at the same offsets, ascending.

    offsets [rows+1] int64, columns [nnz] int32, values [nnz] float32.
    """

    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Entries of each row."""
        return np.diff(self.offsets)

    def sums(self) -> np.ndarray:
        """[rows] float32: the sum of each row."""
        row = np.repeat(np.arange(len(self)), self.lengths)
        return np.bincount(row, weights=self.values, minlength=len(self)).astype(np.float32)

    def take(self, rows: np.ndarray) -> SparseRows:
        """The given rows, in that order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        entry = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[rows], lengths)
        return SparseRows(offsets, self.columns[entry], self.values[entry])

    def dense(self, columns: int) -> np.ndarray:
        """[rows,columns] float32."""
        matrix = np.zeros((len(self), columns), np.float32)
        matrix[np.repeat(np.arange(len(self)), self.lengths), self.columns] = self.values
        return matrix


@dataclass(frozen=True)
class TokenOperator:
    """The matrix of one context and one target. Rows of S, `tap_mask` and `alpha` belong together: one per target token.

    Columns are the context's tokens in the order view, row, column. A row of S may be empty, and sums to at most its `alpha`.
    """

    S: SparseRows  # [Nt,Nctx]
    R: SparseRows  # [M,Nctx], divided by the mask's pixel count; no rows where built without blending
    tap_mask: np.ndarray  # [Nt,4] int32: the row of R for each of the pixels that `bilinear_taps` names; [Nt,0] without blending
    alpha: np.ndarray  # [Nt] float32 in [0,1]: accumulated alpha, sampled where the features are
    rows: np.ndarray  # [Nt] int32: the token of the target's grid that each row is (row-major)
    size: tuple[int, int]  # (H,W) of the target that was splatted to, pixels
    grid: tuple[int, int]  # (h,w) of the target's tokens
    context_grid: tuple[int, int, int]  # (V,h,w) of the context's tokens
    options: Mapping[str, Option] = field(default_factory=dict)  # how it was lifted and rendered
    source_hash: str = ""  # of everything it depends on, see `content_hash`; "" where nobody asked

    def __post_init__(self) -> None:
        tokens, masks, n_context = len(self.rows), len(self.R), self.n_context
        if max(n_context, math.prod(self.grid)) > MAX_TOKENS:
            raise ValueError(f"operator: grids {self.context_grid} and {self.grid} have more than {MAX_TOKENS} tokens")
        if len(self.S) != tokens or self.alpha.shape != (tokens,) or self.tap_mask.shape != (tokens, 4 if masks else 0):
            shapes = f"S {len(self.S)} rows, alpha {self.alpha.shape}, tap_mask {self.tap_mask.shape}"
            raise ValueError(f"operator: {shapes}; expected {tokens} tokens, four taps each where there are masks")
        for name, matrix in (("S", self.S), ("R", self.R)):
            lengths = matrix.lengths
            if (lengths < 0).any() or matrix.offsets[0] != 0 or not len(matrix.columns) == len(matrix.values) == matrix.offsets[-1]:
                raise ValueError(
                    f"operator: {name} has {len(matrix.columns)} columns and {len(matrix.values)} values, not what its rows say"
                )
            _expect_below(f"{name}: column", matrix.columns, n_context)
        _expect_below("tap_mask", self.tap_mask, masks)
        _expect_below("rows", self.rows, math.prod(self.grid))

    @property
    def n_context(self) -> int:
        return math.prod(self.context_grid)

    @property
    def coverage(self) -> np.ndarray:
        """[Nt] float32 in [0,1]: how much of a token's value comes from context tokens. At most `alpha`: Gaussians may carry no feature."""
        return self.S.sums()

    def tap_weights(self) -> np.ndarray:
        """[Nt,4] float32: the weight of each entry of `tap_mask` in L."""
        return _tap_weights(self.size, self.grid)[self.rows]


def bilinear_taps(size: tuple[int, int], grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that each token of a grid reads, and their weights: bilinear, half-pixel centres, no antialias.

    size: (H,W) pixels. grid: (h,w), at most as large. Returns pixels [h*w,4] int64 (row-major index; top left, top right, bottom left,
    bottom right) and weights [h*w,4] float64. Where a token sits on a pixel's centre, that pixel is named twice, once with weight 0.
    Positions are exact; torch's `interpolate` of float32 images rounds them to float32, some 1e-5 of a pixel where the ratio is no integer.
    """
    axes = []
    for pixels, tokens in zip(size, grid, strict=True):
        if not 1 <= tokens <= pixels:
            raise ValueError(f"grid: {grid}, expected (h, w) between 1 and the target's size {size}")
        doubled = (2 * np.arange(tokens) + 1) * pixels - tokens  # the position times 2 * tokens, exactly
        low, rest = np.divmod(doubled, 2 * tokens)
        axes.append((np.stack([low, low + (rest > 0)], -1), np.stack([2 * tokens - rest, rest], -1) / (2 * tokens)))
    (rows, weight_y), (columns, weight_x) = axes
    pixels_hw22 = rows[:, None, :, None] * size[1] + columns[None, :, None, :]
    weights_hw22 = weight_y[:, None, :, None] * weight_x[None, :, None, :]
    return pixels_hw22.reshape(-1, 4), weights_hw22.reshape(-1, 4)


@lru_cache(maxsize=16)
def _tap_weights(size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """[h*w,4] float32. Kept: a dataset's operators share a few sizes, and a loader asks for those of each."""
    return bilinear_taps(size, grid)[1].astype(np.float32)


def content_hash(**parts: np.ndarray | Mapping | str | float) -> str:
    """32 hex digits that differ where a name or anything below it does: arrays by dtype, shape and bytes, the rest by its JSON."""
    digest = hashlib.blake2b(digest_size=16)
    for name, part in sorted(parts.items()):
        if isinstance(part, np.ndarray):
            data = codec.encode_array(part)
        else:
            data = codec.encode_json(dict(part) if isinstance(part, Mapping) else part)
        digest.update(f"{name}:{len(data)}:".encode() + data)
    return digest.hexdigest()


@lru_cache(maxsize=256)
def operator_member(target: int) -> str:
    """The member of a row of an `operators` column that holds the splat into the window's target of that number."""
    return f"{target:02d}.{OPERATOR_MEMBERS[0]}"


def operator_source(provenance: str, window: str, target: str) -> str:
    """The hash that an operator carries: of what made its column (its fingerprint), its window and its target (their keys)."""
    return content_hash(provenance=provenance, window=window, target=target)


def encode_operator(operator: TokenOperator, value_dtype: str = "f16") -> dict[str, bytes]:
    """The members of one operator's record: little-endian arrays behind one header.

    value_dtype: "f16" keeps targets to 5e-4 of their size; "u8", scaled by each row's largest value, to 5e-3 in some 60 % of the bytes.
    """
    if value_dtype not in ("f16", "u8"):
        raise ValueError(f"value_dtype: {value_dtype!r}, expected 'f16' or 'u8'")
    arrays = {"alpha": operator.alpha.astype(np.float16), "tap_mask": _narrow(operator.tap_mask)}
    if not np.array_equal(operator.rows, np.arange(math.prod(operator.grid))):
        arrays["rows"] = _narrow(operator.rows)
    for name, matrix in (("S", operator.S), ("R", operator.R)):
        row = np.repeat(np.arange(len(matrix)), matrix.lengths)
        largest = np.zeros(len(matrix), np.float32)
        np.maximum.at(largest, row, matrix.values)
        if value_dtype == "u8":
            values = np.rint(matrix.values / np.where(largest > 0, largest, 1)[row] * 255).astype(np.uint8)
            arrays[f"{name}.scale"] = largest / 255
        else:
            values = np.where(matrix.values > largest[row] * _NEGLIGIBLE, matrix.values, 0).astype(np.float16)
        kept = values > 0
        arrays[f"{name}.lengths"] = _narrow(np.bincount(row[kept], minlength=len(matrix)))
        arrays[f"{name}.columns"] = matrix.columns[kept].astype(np.uint16)
        arrays[f"{name}.values"] = values[kept]
    header = {
        "format_version": FORMAT_VERSION,
        "source_hash": operator.source_hash,
        "size": operator.size,
        "grid": operator.grid,
        "context_grid": operator.context_grid,
        "options": dict(operator.options),
    }
    return {OPERATOR_MEMBERS[0]: codec.encode_arrays(arrays, header)}


def decode_operator(members: Mapping[str, bytes], expect_hash: str | None = None) -> TokenOperator:
    """The inverse of `encode_operator`. Where `expect_hash` is given, an operator made from anything else is refused.

    Raises ValueError, saying what differs, for another format version, another source, or arrays that do not fit each other.
    """
    arrays, header = codec.decode_arrays(members[OPERATOR_MEMBERS[0]])
    remedy = "build the operators again"
    if header.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"operator: format version {header.get('format_version')}, this code reads {FORMAT_VERSION}: {remedy}")
    if expect_hash is not None and header["source_hash"] != expect_hash:
        different = f"source hash {header['source_hash']!r}, expected {expect_hash!r}"
        raise ValueError(f"operator: {different} (its Gaussians, masks, camera or options are not the current ones): {remedy}")
    matrices = []
    for name in ("S", "R"):
        lengths = arrays[f"{name}.lengths"].astype(np.int64)
        values = arrays[f"{name}.values"].astype(np.float32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        if offsets[-1] != len(values):
            raise ValueError(f"operator: {name} has {len(values)} values for rows of {offsets[-1]} entries; the record is damaged")
        if f"{name}.scale" in arrays:
            values *= np.repeat(arrays[f"{name}.scale"], lengths)
        matrices.append(SparseRows(offsets, arrays[f"{name}.columns"].astype(np.int32), values))
    grid = tuple(header["grid"])
    return TokenOperator(
        S=matrices[0],
        R=matrices[1],
        tap_mask=arrays["tap_mask"].astype(np.int32),
        alpha=arrays["alpha"].astype(np.float32),
        rows=arrays.get("rows", np.arange(math.prod(grid))).astype(np.int32),
        size=tuple(header["size"]),
        grid=grid,
        context_grid=tuple(header["context_grid"]),
        options=header["options"],
        source_hash=header["source_hash"],
    )


def _narrow(array: np.ndarray) -> np.ndarray:
    """The same numbers, all >= 0, in the narrowest unsigned type."""
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))


def _expect_below(name: str, array: np.ndarray, limit: int) -> None:
    if array.size and not (array.min() >= 0 and array.max() < limit):
        raise ValueError(f"operator: {name} {array.min()}..{array.max()}, expected 0..{limit - 1}")
