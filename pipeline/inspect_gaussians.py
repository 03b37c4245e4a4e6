"""One window's Gaussians: its views rendered beside the real frames, with depth and PSNR, and a standard 3DGS `.ply` for any splat viewer.

    python pipeline/inspect_gaussians.py dataset=outputs/rooms key=SCENE-DSC00012 output=outputs/pictures

With `view=true` (extra `viewer`) a browser shows them, colours from the context images, with the window's cameras.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from configs import ConfigError, command
from configs.schema import InspectGaussiansConfig
from pipeline.inspect_rows import (
    context_colours,
    picture_grid,
    psnr,
    read_views,
    render_features,
    show_pictures,
)
from storage import location
from storage.column import Column
from storage.domain import Frame, Gaussians
from storage.index import Index
from storage.location import join
from storage.provenance import Provenance
from storage.table import Table
from training.figures import to_png
from training.splat import gaussian_covariances

_SH_C0 = 0.28209479177387814  # the constant spherical harmonic: 1 / (2 sqrt(pi))
_ALMOST_OPAQUE = 1 - 1e-6  # what stands for opacity 1, whose logit is infinite


def run(config: InspectGaussiansConfig) -> None:
    """Writes `KEY.png` and `KEY.ply`; with `view` shows them until it is interrupted."""
    viser = _viser() if config.view else None
    table = Table.open(config.dataset, [config.windows, config.masks, config.gaussians])
    row = table.row(_find(config.key, table.windows, config.dataset))
    window = read_views(row, depth=True)
    cloud, colours = window.cloud, context_colours(window.cloud, window.context)
    roles = {**{f"context {view}": frame for view, frame in enumerate(window.context)}, "target": window.target}
    views = {role: see(cloud, colours, frame) for role, frame in roles.items()}
    maker = maker_title(Column(config.dataset, config.gaussians).provenance())
    location.write_bytes(join(config.output, f"{config.key}.png"), to_png(views_sheet(f"{config.key}, {maker}", views)))
    location.write_bytes(join(config.output, f"{config.key}.ply"), encode_ply(cloud, colours))
    for role, view in views.items():
        print(f"{role}, {view.frame.name}: {view.psnr:.1f} dB where alpha > 0.95 ({np.mean(view.alpha > 0.95):.0%} of the view)")
    print(f"{config.output}: {maker}; {config.key}.png, {config.key}.ply with {int((cloud.opacities > 0).sum())} Gaussians", flush=True)
    if viser is not None:
        show(viser, cloud, colours, row.frames(), [frame.name for frame in window.context])


@dataclass(frozen=True)
class View:
    """A real frame and what the Gaussians show in its place: rendered [H,W,3], alpha [H,W], depth [H,W] metres (0 where alpha is 0)."""

    frame: Frame
    rendered: np.ndarray
    alpha: np.ndarray
    depth: np.ndarray

    @property
    def psnr(self) -> float:
        return psnr(self.rendered, self.frame, self.alpha)


def see(cloud: Gaussians, colours_n3: np.ndarray, frame: Frame) -> View:
    """Depth is the alpha-weighted mean of the Gaussians' depths along z."""
    z = cloud.means @ frame.camera.w2c[2, :3] + frame.camera.w2c[2, 3]
    features, alpha = render_features(cloud, np.column_stack([colours_n3, z]).astype(np.float32), frame.camera)
    depth = np.divide(features[..., 3], alpha, out=np.zeros_like(alpha), where=alpha > 0)
    return View(frame, features[..., :3], alpha, depth)


def maker_title(provenance: Provenance) -> str:
    """The reconstructor of a column and, where it says so, what its weights are."""
    reconstructor = provenance.settings["reconstructor"]
    weights = f", weights {reconstructor['weights']}" if "weights" in reconstructor else ""
    return f"reconstructor {reconstructor['name']}{weights}"


def views_sheet(title: str, views: dict[str, View]) -> Figure:
    """A row for each view: the real frame, the Gaussians' view, their difference, alpha, the Gaussians' depth and, where the row keeps it,
    the mesh's; all depths in one scale."""
    any_view = next(iter(views.values()))
    columns = ("real frame", "rendered from context", "|difference| x 4", "alpha", "splatted depth", "mesh's depth")
    figure, axes = picture_grid(len(views), columns, any_view.frame)
    visible = np.concatenate([view.depth[view.alpha > 0.5] for view in views.values()])
    low, high = np.quantile(visible, [0.01, 0.99]) if len(visible) else (0.0, 1.0)
    for axis_row, (role, view) in zip(axes, views.items(), strict=True):
        true = view.frame.image.astype(np.float32) / 255
        known = np.zeros_like(view.depth) if view.frame.depth is None else view.frame.depth
        difference = np.abs(view.rendered - true)
        pictures = [true, view.rendered.clip(0, 1), (4 * difference).clip(0, 1), np.repeat(view.alpha[..., None], 3, axis=-1)]
        pictures += [depth_colours(depth, low, high) for depth in (np.where(view.alpha > 0.5, view.depth, 0), known)]
        show_pictures(axis_row, pictures, f"{role}: {view.psnr:.1f} dB\n{view.frame.name}")
    figure.suptitle(f"{title}; PSNR where alpha > 0.95; depth from {low:.2f} m (blue) to {high:.2f} m (red)", fontsize=9)
    return figure


def depth_colours(depth_hw: np.ndarray, low: float, high: float) -> np.ndarray:
    """Depth [H,W] -> [H,W,3]: from blue at `low` to red at `high`, black where it is 0."""
    scaled = (depth_hw - low) / max(high - low, 1e-6)
    return np.where(depth_hw[..., None] > 0, matplotlib.colormaps["turbo"](scaled.clip(0, 1))[..., :3], 0)


def encode_ply(cloud: Gaussians, colours_n3: np.ndarray) -> bytes:
    """A standard 3DGS `.ply`, its colours without view dependence. Gaussians of opacity 0, whose logit is infinite, are left out."""
    seen = cloud.opacities > 0
    opacities = np.minimum(cloud.opacities[seen].astype(np.float64), _ALMOST_OPAQUE)
    fields = {
        "x y z": cloud.means[seen],
        "nx ny nz": np.zeros((len(opacities), 3)),
        "f_dc_0 f_dc_1 f_dc_2": (colours_n3[seen] - 0.5) / _SH_C0,
        "opacity": np.log(opacities / (1 - opacities))[:, None],
        "scale_0 scale_1 scale_2": np.log(cloud.scales[seen]),
        "rot_0 rot_1 rot_2 rot_3": cloud.quats[seen],
    }
    names = " ".join(fields).split()
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(opacities)}", *(f"property float {n}" for n in names)]
    return "\n".join([*header, "end_header\n"]).encode() + np.concatenate(list(fields.values()), axis=1).astype("<f4").tobytes()


def show(viser: ModuleType, cloud: Gaussians, colours_n3: np.ndarray, frames: Sequence[Frame], context: Sequence[str]) -> None:
    """Serves the Gaussians and the window's cameras to browsers of this machine, until Ctrl-C. context: names of the frames to show."""
    server = viser.ViserServer(host="127.0.0.1")
    server.scene.set_up_direction("+z")
    covariances = gaussian_covariances(torch.from_numpy(cloud.quats), torch.from_numpy(cloud.scales)).numpy()
    server.scene.add_gaussian_splats("/gaussians", cloud.means, covariances, colours_n3, cloud.opacities[:, None])
    for index, frame in enumerate(frames):
        camera = frame.camera
        server.scene.add_camera_frustum(
            f"/cameras/{index:02d}",
            fov=2 * np.arctan(camera.height / (2 * camera.K[1, 1])),
            aspect=camera.width / camera.height,
            scale=0.1,
            image=frame.image if frame.name in context else None,
            wxyz=viser.transforms.SO3.from_matrix(camera.c2w[:3, :3]).wxyz,
            position=camera.c2w[:3, 3],
        )
    with contextlib.suppress(KeyboardInterrupt):
        server.sleep_forever()
    server.stop()


def _find(key: str, windows: Index, dataset: str) -> int:
    row = windows.find(key)
    if row >= 0:
        return row
    keys = windows.all_keys()
    close = difflib.get_close_matches(key, keys, n=3) or keys[:3]
    raise ConfigError(f"key={key}: not among the {len(keys)} windows of {dataset}; there are {', '.join(close)} ...")


def _viser() -> ModuleType:
    try:
        import viser
    except ImportError as error:
        raise ConfigError(f"view=true: {error}; install the extra: pip install 'splat-and-distill-at-scale[viewer]'") from error
    return viser


if __name__ == "__main__":
    command(InspectGaussiansConfig, run)
