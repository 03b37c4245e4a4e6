"""Pictures of a dataset: a contact sheet of its windows, and the Gaussians' view of each target beside the true image.

python pipeline/inspect_rows.py dataset=outputs/rooms output=outputs/pictures
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from configs import command
from configs.schema import InspectConfig
from storage import location
from storage.column import Manifest, open_columns, read_members
from storage.domain import Camera, Frame, Gaussians
from storage.gaussians import MEMBERS, decode_gaussians
from storage.location import join
from storage.rows import decode_frame, decode_window
from training.pictures import label_colours, to_png
from training.splat import rasterize
from training.splat.window import window_lift


def run(config: InspectConfig) -> None:
    """Writes `windows.png` and `rendered.png`."""
    columns = open_columns(config.dataset, ["frames", config.gaussians])
    count = len(columns["frames"])
    chosen = sorted({int(i) for i in np.linspace(0, count - 1, min(config.rows, count)).round()})
    windows = [read_window(columns["frames"], row) for row in chosen]
    location.write_bytes(join(config.output, "windows.png"), to_png(contact_sheet([columns["frames"].keys[r] for r in chosen], windows)))
    clouds = [read_gaussians(columns[config.gaussians], row, window) for row, window in zip(chosen, windows, strict=True)]
    figure, psnr = rendered_sheet([columns["frames"].keys[r] for r in chosen], windows, clouds)
    location.write_bytes(join(config.output, "rendered.png"), to_png(figure))
    print(f"{config.output}: windows.png, rendered.png; target views rendered from the context pair's Gaussians, "
          f"PSNR where alpha > 0.95: {np.mean(psnr):.1f} dB over {len(psnr)} rows", flush=True)  # fmt: skip


def contact_sheet(keys: Sequence[str], windows: Sequence[Sequence[Frame]]) -> Figure:
    """A row for each window: both context frames with their masks, the middle target with its mask."""
    columns = ("context 0", "its masks", "context 1", "its masks", "target (middle)", "its masks")
    figure, axes = picture_grid(len(windows), columns, windows[0][0])
    for axis_row, key, window in zip(axes, keys, windows, strict=True):
        pictures = [p for frame in (window[0], window[-1], middle(window)) for p in (frame.image, label_colours(frame.labels))]
        show_pictures(axis_row, pictures, key)
    return figure


def rendered_sheet(keys: Sequence[str], windows: Sequence[Sequence[Frame]], clouds: Sequence[Gaussians]) -> tuple[Figure, list[float]]:
    """A row for each window: the middle target, the Gaussians' view of it, the difference, alpha; and the PSNR of each row where alpha >
    0.95."""
    figure, axes = picture_grid(len(windows), ("true target", "rendered from context", "|difference| x 4", "alpha"), windows[0][0])
    ratios = []
    for axis_row, key, window, cloud in zip(axes, keys, windows, clouds, strict=True):
        target = middle(window)
        rendered, alpha = render_view(cloud, (window[0], window[-1]), target)
        if (alpha > 0.95).any():
            ratios.append(psnr(rendered, target, alpha))
        true = target.image.astype(np.float32) / 255
        difference = np.abs(rendered - true)
        show_pictures(axis_row, [true, rendered.clip(0, 1), (4 * difference).clip(0, 1), np.repeat(alpha[..., None], 3, axis=-1)], key)
    return figure, ratios


def render_view(cloud: Gaussians, context: Sequence[Frame], target: Frame) -> tuple[np.ndarray, np.ndarray]:
    """The context images, carried by their Gaussians, seen from the target's camera: [H,W,3] in [0,1] and alpha [H,W]."""
    return render_features(cloud, context_colours(cloud, context), target.camera)


def context_colours(cloud: Gaussians, context: Sequence[Frame]) -> np.ndarray:
    """The colour of each Gaussian of a context pair, lifted from the images as features are, pixel by pixel: [N,3] float32 in [0,1]."""
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


def middle(window: Sequence[Frame]) -> Frame:
    """The frame in the middle of a window: the farthest from both context views."""
    return window[len(window) // 2]


def read_window(frames: Manifest, row: int) -> list[Frame]:
    """All frames of a row, the context pair at its ends."""
    names = frames.members(row)
    members = dict(zip(names, read_members([frames.locate(row, name) for name in names]), strict=True))
    window = decode_window(members["window.json"])
    return [decode_frame(window, place, members) for place in range(len(window.names))]


def read_gaussians(gaussians: Manifest, row: int, window: Sequence[Frame]) -> Gaussians:
    """The Gaussians that a row holds for the context pair of its window."""
    parts = read_members([gaussians.locate(row, name) for name in MEMBERS])
    return decode_gaussians(dict(zip(MEMBERS, parts, strict=True)), [window[0].camera, window[-1].camera])


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
    command("inspect_rows", InspectConfig, run)
