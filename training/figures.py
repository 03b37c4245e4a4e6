"""What a person looks at during a run: PCA panels of supervision and student, and the curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from training.data.batch import Batch
from training.objective.supervision import Supervision


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes; the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def label_colours(labels_hw: np.ndarray) -> np.ndarray:
    """Object ids [H,W] -> [H,W,3] uint8; a colour an id, black for 0."""
    mixed = (labels_hw.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
    colours = np.stack([(mixed >> np.uint64(shift)) & np.uint64(0xFF) for shift in (24, 34, 44)], axis=-1)
    return np.where(labels_hw[..., None] > 0, 55 + colours * 200 // 255, 0).astype(np.uint8)


def pca_basis(tokens_nc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [C] and the three leading components [C,3] of tokens, signs fixed so that the picture does not flip between runs."""
    tokens = tokens_nc.float().cpu()
    mean = tokens.mean(0)
    _, _, v = torch.linalg.svd(tokens - mean, full_matrices=False)
    basis = v[:3].T
    return mean, basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()


def pca_colours(tokens_hwc: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> np.ndarray:
    """Tokens [h,w,C] -> [h,w,3] in [0,1]: their three components, `low`..`high` [3] stretched to 0..1."""
    scores = (tokens_hwc.float().cpu() - mean) @ basis
    return ((scores - low) / (high - low).clamp_min(1e-6)).clamp(0, 1).numpy()


def distillation_panel(
    batch: Batch, supervision: Supervision, untrained_bhwc: torch.Tensor, student_bhwc: torch.Tensor, title: str
) -> Figure:
    """A row for each sample: context, target, its masks, and the target's tokens in one PCA basis: of the untrained backbone, the
    supervision, the student.

    The basis is fitted on the untrained tokens, so it is the same at every step and in every run that starts from the same backbone: what
    differs between two pictures is the student.
    """
    assert batch.context_images is not None
    assert batch.target_labels is not None
    views = batch.context_images.shape[1]
    tokens = ("untrained (PCA)", "supervision (PCA)", "student (PCA)")
    columns = (*(f"context {view}" for view in range(views)), "target", "target masks", *tokens)
    rows = len(batch.keys)
    height, width = batch.target_images.shape[-2:]
    figure = Figure(figsize=(2.3 * len(columns), 2.3 * rows * height / width + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    flat = untrained_bhwc.flatten(0, 2).float().cpu()
    mean, components = pca_basis(flat)
    scores = (flat - mean) @ components
    basis = (mean, components, scores.quantile(0.02, 0), scores.quantile(0.98, 0))
    for b in range(rows):
        keep = supervision.keep[b].cpu().numpy()[..., None]
        pictures: list[np.ndarray] = [*map(_hwc, batch.context_images[b]), _hwc(batch.target_images[b])]
        pictures.append(label_colours(batch.target_labels[b].cpu().numpy()))
        pictures += [pca_colours(of[b], *basis) for of in (untrained_bhwc, supervision.tokens, student_bhwc)]
        pictures[-2] = np.where(keep, pictures[-2], 0)
        for axis, picture, name in zip(axes[b], pictures, columns, strict=True):
            axis.imshow(picture, extent=(0, width, height, 0), interpolation="nearest")
            axis.set_axis_off()
            if b == 0:
                axis.set_title(name, fontsize=9)
    return figure


_CURVES = {"excess_loss": "loss - ln K (of cosine: loss)", "cosine": "cosine(student, supervision)", "lr": "learning rate"}
_JUDGED = {
    "match": "held out: matched within a patch",
    "effective_rank": "held out: effective rank",
    "inside_variance": "held out: variance inside objects",
    "head_entropy": "held out: entropy of prototypes",
}


def curves(metrics: Sequence[dict[str, Any]], judged: Sequence[dict[str, Any]], title: str) -> Figure:
    """Loss less ln K, cosine between student and supervision, and learning rate against the step; below, what the monitor found."""
    rows = [(metrics, _CURVES), *([(judged, _JUDGED)] if judged else [])]
    figure = Figure(figsize=(12, 3.2 * len(rows)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, (found, names) in zip(parts, rows, strict=True):
        for axis, (name, label) in zip(part.subplots(1, len(names)), names.items(), strict=True):
            axis.plot(
                [m["step"] for m in found], [m.get(name) for m in found], "o-" if found is judged else "-", linewidth=0.8, markersize=3
            )
            axis.set_xlabel("step")
            axis.set_title(label, fontsize=9)
            axis.grid(alpha=0.3)
    return figure


def _hwc(image_3hw: torch.Tensor) -> np.ndarray:
    return image_3hw.permute(1, 2, 0).cpu().numpy()
