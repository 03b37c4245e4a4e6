"""Pictures of a dataset: a contact sheet of its windows, and the Gaussians' view of each target beside the true image.

python pipeline/inspect_rows.py dataset=outputs/rooms output=outputs/pictures
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from configs import command
from configs.schema import InspectConfig
from storage import location
from storage.domain import Camera, Frame, Gaussians
from storage.location import join
from storage.table import Row, Table
from training.figures import label_colours, to_png
from training.splat import rasterize
from training.splat.window import window_lift


def run(config: InspectConfig) -> None:
    """Writes `windows.png` and `rendered.png`."""
    table = Table.open(config.dataset, [config.windows, config.masks, config.gaussians])
    chosen = sorted({int(i) for i in np.linspace(0, len(table) - 1, min(config.rows, len(table))).round()})
    views = [read_views(table.row(row)) for row in chosen]
    location.write_bytes(join(config.output, "windows.png"), to_png(contact_sheet(views)))
    figure, psnr = rendered_sheet(views)
    location.write_bytes(join(config.output, "rendered.png"), to_png(figure))
    print(f"{config.output}: windows.png, rendered.png; target views rendered from the context's Gaussians, "
          f"PSNR where alpha > 0.95: {np.mean(psnr):.1f} dB over {len(psnr)} rows", flush=True)  # fmt: skip


@dataclass(frozen=True)
class WindowViews:
    """What the pictures show of a window: its context, the target in the middle, and the context's Gaussians."""

    key: str
    context: tuple[Frame, ...]
    target: Frame
    cloud: Gaussians


def read_views(row: Row, depth: bool = False) -> WindowViews:
    """A window's frames with their labels, and its Gaussians."""
    context, targets = row.context(labels=True, depth=depth), row.targets(labels=True, depth=depth)
    return WindowViews(row.key, tuple(context), middle(targets), row.gaussians([frame.camera for frame in context]))


def contact_sheet(windows: Sequence[WindowViews]) -> Figure:
    """A row for each window: its context frames with their masks, the middle target with its mask."""
    names = [*(f"context {view}" for view in range(len(windows[0].context))), "target (middle)"]
    figure, axes = picture_grid(len(windows), [part for name in names for part in (name, "its masks")], windows[0].target)
    for axis_row, window in zip(axes, windows, strict=True):
        show_pictures(axis_row, [p for f in (*window.context, window.target) for p in (f.image, label_colours(labels_of(f)))], window.key)
    return figure


def labels_of(frame: Frame) -> np.ndarray:
    """The frame's labels [H,W]; black where they were not read."""
    return np.zeros(frame.valid.shape, np.uint16) if frame.labels is None else frame.labels


def rendered_sheet(windows: Sequence[WindowViews]) -> tuple[Figure, list[float]]:
    """A row for each window: the middle target, the Gaussians' view of it, the difference, alpha; and the PSNR of each row where alpha >
    0.95."""
    figure, axes = picture_grid(len(windows), ("true target", "rendered from context", "|difference| x 4", "alpha"), windows[0].target)
    ratios = []
    for axis_row, window in zip(axes, windows, strict=True):
        rendered, alpha = render_view(window.cloud, window.context, window.target)
        if (alpha > 0.95).any():
            ratios.append(psnr(rendered, window.target, alpha))
        true = window.target.image.astype(np.float32) / 255
        pictures = [true, rendered.clip(0, 1), (4 * np.abs(rendered - true)).clip(0, 1), np.repeat(alpha[..., None], 3, axis=-1)]
        show_pictures(axis_row, pictures, window.key)
    return figure, ratios


def render_view(cloud: Gaussians, context: Sequence[Frame], target: Frame) -> tuple[np.ndarray, np.ndarray]:
    """The context images, carried by their Gaussians, seen from the target's camera: [H,W,3] in [0,1] and alpha [H,W]."""
    return render_features(cloud, context_colours(cloud, context), target.camera)


def context_colours(cloud: Gaussians, context: Sequence[Frame]) -> np.ndarray:
    """The colour of each Gaussian of a context, lifted from the images as features are, pixel by pixel: [N,3] float32 in [0,1]."""
    images = torch.from_numpy(np.stack([frame.image for frame in context])).float() / 255
    return window_lift(cloud, context, grid=(images.shape[1], images.shape[2])).apply(images.flatten(0, 2)).numpy()


def render_features(cloud: Gaussians, features_nc: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Features carried by Gaussians, seen from a camera: [H,W,C], not divided by alpha, and alpha [H,W]."""
    features, alpha = rasterize(
        means=torch.from_numpy(cloud.means), quats=torch.from_numpy(cloud.quats), scales=torch.from_numpy(cloud.scales),
        opacities=torch.from_numpy(cloud.opacities), colors=torch.from_numpy(features_nc),
        viewmats=torch.from_numpy(camera.w2c.astype(np.float32))[None], Ks=torch.from_numpy(camera.K.astype(np.float32))[None],
        width=camera.width, height=camera.height,
    )  # fmt: skip
    return features[0].numpy(), alpha[0, ..., 0].numpy()


def psnr(rendered_hwc: np.ndarray, frame: Frame, alpha_hw: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of a rendered view against the true frame, over the pixels where alpha > 0.95; nan without any."""
    solid = alpha_hw > 0.95
    if not solid.any():
        return float("nan")
    return float(-10 * np.log10(np.mean((rendered_hwc - frame.image.astype(np.float32) / 255)[solid] ** 2)))


def middle(targets: Sequence[Frame]) -> Frame:
    """The frame in the middle of those that can be the target."""
    return targets[len(targets) // 2]


def picture_grid(rows: int, columns: Sequence[str], frame: Frame) -> tuple[Figure, np.ndarray]:
    """An empty figure with room for pictures of the frame's shape, and its axes [rows, columns]; the columns are named."""
    height = 2.4 * frame.camera.height / frame.camera.width
    figure = Figure(figsize=(2.4 * len(columns), (height + 0.1) * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=9)
    return figure, axes


def show_pictures(axes: Sequence, pictures: Sequence[np.ndarray], key: str) -> None:
    """Fills a row of the grid, and writes `key` beside it."""
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_ylabel(key, fontsize=6)


if __name__ == "__main__":
    command(InspectConfig, run)
