"""Whether tokens of the same point agree between views, and what the tokens themselves are like: no head is fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from training.model.head import DinoHead
from training.probes.data.base import ProbeFrame
from training.probes.extractor import Tokens
from training.probes.geometry import reproject
from training.probes.grid import token_majority
from training.probes.matching import token_centres

PATCHES = (1, 2)  # distances, in patches, within which a match is right


def match(first: Tokens, second: Tokens, frames: tuple[ProbeFrame, ProbeFrame], points: np.ndarray | None = None) -> dict[str, Any]:
    """Matches every token of the first view whose point is visible in the second with its nearest token there, by cosine.

    The point is that at the token's middle; it must have depth at both ends and be no more than 3 % and 1 cm behind what is seen there.
    Where points are given, as a `Pair` has them, these replace the tokens' middles.

    Returns:
        By point: error (patches between the match and the truth), angle (degrees between the rays; NaN where points were given), rank
        (share of the second's tokens that are more similar than the true one; half of the equal ones count), cosine (to that
        one); for all: background (mean cosine of all pairs of tokens); and for pictures `from`, `to`, `matched` (pixels).
    """
    if points is None:
        pixels = token_centres(first.map).double().numpy()[first.keep.flatten().numpy()]
        seen = reproject(*frames, pixels)
        truth, visible, angle = seen.pixels, seen.visible, seen.angle
        queries = first.map.patch[0][:, first.keep].T
    else:
        pixels, truth = points[:, :2], points[:, 2:]
        cells, inside = _cells(first, pixels)
        visible, angle = inside & first.keep.flatten().numpy()[cells], np.full(len(pixels), np.nan)
        queries = first.map.patch[0].flatten(1).T[cells]
    there, inside = _cells(second, truth)
    visible = visible & inside & second.keep.flatten().numpy()[there]
    queries = F.normalize(queries[torch.from_numpy(visible)].float(), dim=1, eps=1e-12)
    kept = second.keep.flatten()
    candidates = F.normalize(second.map.patch[0].flatten(1).T[kept].float(), dim=1, eps=1e-12)
    number = (torch.cumsum(kept.long(), 0) - 1)[torch.from_numpy(there[visible])]  # of the true token, among the kept
    similarity = queries @ candidates.T
    true = similarity.gather(1, number[:, None])
    close = similarity - true
    above, equal = (close > 1e-6).sum(1), (close.abs() <= 1e-6).sum(1)
    rank = (above + (equal - 1) / 2) / max(similarity.shape[1] - 1, 1)
    best = similarity.argmax(1) if len(queries) else torch.zeros(0, dtype=torch.long)
    matched = token_centres(second.map).double().numpy()[kept.numpy()][best.numpy()]
    everything = F.normalize(first.map.patch[0][:, first.keep].T.float(), dim=1, eps=1e-12)
    return {
        "error": np.linalg.norm(matched - truth[visible], axis=1) / second.map.stride,
        "angle": angle[visible],
        "rank": rank.double().numpy(),
        "cosine": true[:, 0].double().numpy(),
        "background": float(everything.mean(0) @ candidates.mean(0)) if len(everything) and len(candidates) else 0.0,
        "from": pixels[visible],
        "to": truth[visible],
        "matched": matched,
    }


def _cells(tokens: Tokens, pixels_n2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The token that each pixel falls into, as a number in row-major order, and whether there is one."""
    (h, w), s, (top, left) = tokens.keep.shape, tokens.map.stride, tokens.map.offset
    column, row = np.floor((pixels_n2 + np.array([left, top])) / s).astype(np.int64).T
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    return row.clip(0, h - 1) * w + column.clip(0, w - 1), inside


def effective_rank(tokens_nc: torch.Tensor) -> float:
    """How many directions tokens spread over: the exponential of the entropy of their covariance's eigenvalues, as shares of the sum."""
    centred = tokens_nc.double() - tokens_nc.double().mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0)
    if float(values.sum()) <= 0:
        return 1.0
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.clamp_min(1e-300).log()).sum()))


def inside_variance(tokens: Tokens, frame: ProbeFrame) -> tuple[float, float]:
    """Sum of squares of a frame's labelled tokens around their objects' means, and around the mean of them all.

    A token belongs to the object of most of its pixels.
    """
    assert frame.instances is not None
    ids, known = token_majority(tokens.map, frame.instances, 0)
    use = torch.from_numpy(known) & tokens.keep
    if not use.any():
        return 0.0, 0.0
    values = tokens.map.patch[0][:, use].T.double()
    _, number = torch.unique(torch.from_numpy(ids)[use], return_inverse=True)
    sums = torch.zeros(int(number.max()) + 1, values.shape[1], dtype=torch.float64).index_add_(0, number, values)
    means = sums / torch.bincount(number)[:, None]
    return float(((values - means[number]) ** 2).sum()), float(((values - values.mean(0)) ** 2).sum())


@torch.inference_mode()
def head_distribution(head: DinoHead, tokens_nc: torch.Tensor, temperature: float = 1.0) -> tuple[torch.Tensor, float]:
    """What the head of a run makes of tokens: the sum of their distributions over prototypes [K], and the sum of their entropies (nats)."""
    total, entropy = torch.zeros(head.last_layer.weight_g.shape[0], dtype=torch.float64), 0.0
    for part in tokens_nc.split(512):
        logs = F.log_softmax(head(part.float()) / temperature, -1)
        total += logs.exp().sum(0).double().cpu()
        entropy -= float((logs.exp() * logs).sum().double())
    return total, entropy


def entropy_share(distribution_k: torch.Tensor) -> float:
    """The entropy of a distribution, of any sum, as a share of ln K: 1 where all prototypes are used alike, 0 where it is one."""
    shares = distribution_k.double() / distribution_k.double().sum()
    return float(-(shares * shares.clamp_min(1e-300).log()).sum() / np.log(len(shares)))
