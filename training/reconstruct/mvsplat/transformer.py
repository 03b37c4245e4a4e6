"""Windowed self- and cross-view attention over the matching features (MVSplat, ECCV 2024, section 3.1; the scheme is UniMatch's).

Two views only. The maps are cut into 2 x 2 windows whatever their size; every second layer cuts them after a cyclic shift by half a window.
Scores are never held: with them the memory would grow with the square of the pixel count.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.reconstruct.mvsplat.cnn import CHANNELS

LAYERS = 6
SPLITS = 2
# What a score loses where the shift put tokens beside each other that are no neighbours. Finite, so a great one gets through: as published.
MASK = -100.0

_LABELS = 4
_FFN_TOKENS = 4096  # the hidden layer is 1024 wide: 16 MiB at a time


def position_encoding(h: int, w: int, device: torch.device | str = "cpu") -> Tensor:
    """Sines and cosines of the position in the window, [1,128,h,w] float32: 64 channels of the row, then 64 of the column.

    It starts anew in each window, and counts rows and columns from 1.
    """
    halves = []
    for size in (h // SPLITS, w // SPLITS):
        position = torch.arange(1, size + 1, dtype=torch.float64, device=device) * (2 * math.pi / (size + 1e-6))
        j = torch.arange(CHANNELS // 2, device=device)
        angle = position[:, None] / 10000 ** (2 * (j // 2) / (CHANNELS // 2))
        halves.append(torch.where(j % 2 == 0, angle.sin(), angle.cos()).float().T)
    rows, columns = halves
    window = torch.cat([rows[:, :, None].expand(-1, -1, w // SPLITS), columns[:, None, :].expand(-1, h // SPLITS, -1)])
    return window.repeat(1, SPLITS, SPLITS)[None]


class Windows:
    """Cuts maps [N,h,w,C] into windows [N,4,T,C] (row-major both) and puts them together again.

    Where `shifted`, the maps are first rolled by half a window towards index 0; `labels` [4,T,4] then says, one-hot, which tokens of a
    window were neighbours before the roll. None where all were.
    """

    def __init__(self, h: int, w: int, shifted: bool, device: torch.device | str = "cpu") -> None:
        self.h, self.w = h, w
        self.shift = (h // SPLITS // 2, w // SPLITS // 2) if shifted else (0, 0)
        self.labels: Tensor | None = None
        if shifted:
            # In the rolled map only the last rows and columns, which came around the edge, are strangers in their window.
            row = (torch.arange(h, device=device) >= h - self.shift[0]).long()
            column = (torch.arange(w, device=device) >= w - self.shift[1]).long()
            labels = F.one_hot(2 * row[:, None] + column[None, :], _LABELS)
            self.labels = self._cut(labels[None].float())[0]

    def split(self, maps_nhwc: Tensor) -> Tensor:
        if any(self.shift):
            maps_nhwc = maps_nhwc.roll((-self.shift[0], -self.shift[1]), (1, 2))
        return self._cut(maps_nhwc)

    def merge(self, windows_n4tc: Tensor) -> Tensor:
        n, _, _, c = windows_n4tc.shape
        maps = windows_n4tc.view(n, SPLITS, SPLITS, self.h // SPLITS, self.w // SPLITS, c).transpose(2, 3).reshape(n, self.h, self.w, c)
        return maps.roll(self.shift, (1, 2)) if any(self.shift) else maps

    def _cut(self, maps: Tensor) -> Tensor:
        n, h, w, c = maps.shape
        return maps.view(n, SPLITS, h // SPLITS, SPLITS, w // SPLITS, c).transpose(2, 3).reshape(n, SPLITS**2, -1, c)


def attend(q_n4tc: Tensor, k_n4tc: Tensor, v_n4tc: Tensor, labels_4tl: Tensor | None) -> Tensor:
    """Softmax attention inside each window, one head; scores of tokens with unlike labels lose 100. [N,4,T,C].

    The loss is written as a product of extra channels, q' = -s (1 - label) and k' = s label, so that a fused kernel needs no T x T mask.
    """
    c = q_n4tc.shape[-1]
    scale = c**-0.5
    if labels_4tl is None:
        return F.scaled_dot_product_attention(q_n4tc, k_n4tc, v_n4tc, scale=scale)
    labels = labels_4tl.expand(len(q_n4tc), -1, -1, -1) * math.sqrt(-MASK / scale)
    q = torch.cat([q_n4tc, labels - math.sqrt(-MASK / scale)], dim=-1)
    k = torch.cat([k_n4tc, labels], dim=-1)
    # The fused kernels want v as wide as q and k.
    return F.scaled_dot_product_attention(q, k, F.pad(v_n4tc, (0, _LABELS)), scale=scale)[..., :c]


class WindowAttention(nn.Module):
    """What the tokens of a window hear from those of another: the message is normalised, the stream that it is added to never is."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.k_proj = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.v_proj = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.merge = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.norm1 = nn.LayerNorm(CHANNELS)

    def forward(self, source: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
        heard = attend(self.q_proj(source), self.k_proj(target), self.v_proj(target), labels)
        return source + self.norm1(self.merge(heard))


class WindowAttentionWithFFN(WindowAttention):
    """The same, and source and message together through a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * CHANNELS, 8 * CHANNELS, bias=False), nn.GELU(), nn.Linear(8 * CHANNELS, CHANNELS, bias=False)
        )
        self.norm2 = nn.LayerNorm(CHANNELS)

    def forward(self, source: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
        heard = attend(self.q_proj(source), self.k_proj(target), self.v_proj(target), labels)
        out = torch.empty_like(source)
        for tokens, message, into in zip(*(x.flatten(0, -2).split(_FFN_TOKENS) for x in (source, heard, out)), strict=True):
            message = self.norm1(self.merge(message))
            torch.add(tokens, self.norm2(self.mlp(torch.cat([tokens, message], dim=-1))), out=into)
        return out


class Layer(nn.Module):
    """Self-attention, then attention to the other view as it was before this layer. Both views at once, [2B,4,T,128], view-major."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = WindowAttention()
        self.cross_attn_ffn = WindowAttentionWithFFN()

    def forward(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        other = tokens.roll(len(tokens) // 2, 0)
        return self.cross_attn_ffn(self.self_attn(tokens, tokens, labels), other, labels)


class MultiViewTransformer(nn.Module):
    """[2B,128,h,w] view-major (all first views, then all second ones) -> the same. h and w are even."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, features_nchw: Tensor) -> Tensor:
        h, w = features_nchw.shape[-2:]
        device = features_nchw.device
        maps = (features_nchw + position_encoding(h, w, device)).permute(0, 2, 3, 1).contiguous()
        kinds = [Windows(h, w, shifted, device) for shifted in (False, True)]
        for number, layer in enumerate(self.layers):
            windows = kinds[number % 2]
            maps = windows.merge(layer(windows.split(maps), windows.labels))
        return maps.permute(0, 3, 1, 2)
