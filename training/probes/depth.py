"""Depth as it is judged and learnt: what is valid, metrics of each image, losses. Metres along the camera's z axis, 0 where unknown.

Sources: Eigen et al. 2014 (metrics and the scale-invariant loss), Garg et al. 2016 (KITTI's crop), DINOv2's, FiT3D's and SnD's evaluation
code for the linear probe, Probe3D's for its own variant.
"""

from __future__ import annotations

import torch

METRICS = ("rmse", "abs_rel", "sq_rel", "d1", "d2", "d3", "log10", "rmse_log", "silog")
PROBE3D_METRICS = ("d1", "d2", "d3", "rmse")
_KINDS = ("probe3d", "probe3d_aligned")
PROBE3D_BOTH = tuple(f"{kind}_{name}" for kind in _KINDS for name in PROBE3D_METRICS)
KITTI_SIZE = (352, 1216)
_EPS = 1e-3  # metres, inside the losses' logarithms
_MEAN_WEIGHT = 0.15  # of the squared mean in the scale-invariant loss


def kitti_window(height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns at the bottom and in the middle of a KITTI image that its benchmark keeps: 352 x 1216 pixels."""
    keep_h, keep_w = KITTI_SIZE
    if height < keep_h or width < keep_w:
        raise ValueError(f"a KITTI image has at least {keep_h} x {keep_w} pixels, not {height} x {width}")
    left = (width - keep_w) // 2
    return slice(height - keep_h, height), slice(left, left + keep_w)


def crop_mask(crop: str | None, height: int, width: int) -> torch.Tensor:
    """The pixels that a crop lets the metric see.

    Args:
        crop: `indoor` (480 x 640 alone), `kitti` (of an image that was cut by `kitti_window`), or None for all.
    Returns: bool [H,W].
    Raises: ValueError for a size that the crop was not made for.
    """
    mask = torch.zeros(height, width, dtype=torch.bool)
    if crop is None:
        mask[:] = True
    elif crop == "indoor":
        if (height, width) != (480, 640):
            raise ValueError(f"the indoor crop is made for 480 x 640 pixels, not {height} x {width}: judge without it, or resize the data")
        mask[45:471, 41:601] = True
    elif crop == "kitti":
        rows = slice(int(0.40810811 * height), int(0.99189189 * height))
        mask[rows, int(0.03594771 * width) : int(0.96405229 * width)] = True
    else:
        raise ValueError(f"depth_crop={crop}: choose indoor, kitti or None")
    return mask


def valid_depth(gt: torch.Tensor, depth_range: tuple[float, float], crop: str | None = None) -> torch.Tensor:
    """Which pixels of true depths [B,H,W] are judged: strictly inside the range, and inside the crop."""
    low, high = depth_range
    return (gt > low) & (gt < high) & crop_mask(crop, *gt.shape[-2:]).to(gt.device)


def depth_metrics(pred: torch.Tensor, gt: torch.Tensor, valid: torch.Tensor) -> dict[str, torch.Tensor]:
    """The nine usual metrics of each image.

    Args:
        pred, gt: [B,H,W] metres. valid: bool [B,H,W], see `valid_depth`.
    Returns: float64 [B] for each name of METRICS; NaN for an image without a valid pixel. silog is in percent, d1-d3 are shares.
    """
    p, d = torch.where(valid, pred, 1).double(), torch.where(valid, gt, 1).double()
    mean = _Mean(valid)
    log_error = p.log() - d.log()
    ratio = torch.maximum(d / p, p / d)
    return {
        "rmse": mean((d - p) ** 2).sqrt(),
        "abs_rel": mean((d - p).abs() / d),
        "sq_rel": mean((d - p) ** 2 / d),
        "d1": mean(ratio < 1.25),
        "d2": mean(ratio < 1.25**2),
        "d3": mean(ratio < 1.25**3),
        "log10": mean((d.log10() - p.log10()).abs()),
        "rmse_log": mean(log_error**2).sqrt(),
        "silog": 100 * (mean(log_error**2) - mean(log_error) ** 2).clamp(min=0).sqrt(),
    }


def scale_free_metrics(pred: torch.Tensor, gt: torch.Tensor, valid: torch.Tensor) -> dict[str, torch.Tensor]:
    """RMSE, AbsRel and d1 after each prediction was multiplied by its own median of gt / pred: the shape of the depth without its scale.

    Args and Returns as `depth_metrics`, under the names scaled_rmse, scaled_abs_rel, scaled_d1.
    """
    ratios = (gt.double() / pred.double()).masked_fill(~valid, torch.nan).flatten(1)
    scaled = depth_metrics(pred.double() * ratios.nanmedian(dim=1).values[:, None, None], gt, valid)
    return {f"scaled_{name}": scaled[name] for name in ("rmse", "abs_rel", "d1")}


def probe3d_depth_metrics(pred: torch.Tensor, gt: torch.Tensor, align: bool = False, crop: bool = False) -> dict[str, torch.Tensor]:
    """Probe3D's metrics of each image: every pixel with a true depth counts, however far, and an image without one scores 0.

    Args:
        pred, gt: [B,H,W] metres. align: first fits a scale and a shift to each image, by least squares. crop: judges the indoor crop.
    Returns: float64 [B] for each name of PROBE3D_METRICS.
    """
    valid, pred, gt = gt > 0, pred.double(), gt.double()
    if crop:
        valid &= crop_mask("indoor", *gt.shape[-2:]).to(gt.device)
    if align:
        pred = _fit_scale_and_shift(pred, gt, gt > 0)
    mean = _Mean(valid)
    ratio = torch.maximum(gt / pred, pred / gt)
    found = {f"d{k}": mean(ratio < 1.25**k) for k in (1, 2, 3)} | {"rmse": mean((gt - pred) ** 2).sqrt()}
    empty = ~valid.flatten(1).any(dim=1)
    return {name: value.masked_fill(empty, 0) for name, value in found.items()}


def probe3d_both(pred: torch.Tensor, gt: torch.Tensor, crop: bool) -> dict[str, torch.Tensor]:
    """`probe3d_depth_metrics` without and with alignment, by the names of PROBE3D_BOTH."""
    found = [probe3d_depth_metrics(pred, gt, align, crop) for align in (False, True)]
    return {f"{kind}_{name}": one[name] for kind, one in zip(_KINDS, found, strict=True) for name in PROBE3D_METRICS}


def siglog_loss(pred: torch.Tensor, gt: torch.Tensor, warm_up: bool = False, bessel: bool = True) -> torch.Tensor:
    """The scale-invariant logarithmic loss, pooled over all pixels of the batch with a true depth.

    Args:
        pred, gt: [B,H,W] metres. warm_up: leaves the variance out, as the published code does for its first 100 steps.
        bessel: the variance has Bessel's correction, as in DINOv2's, FiT3D's and SnD's code; in Probe3D's it has not.
    Returns: a scalar; 0 where no pixel has a depth.
    """
    known = gt > 0
    error = torch.log(pred[known] + _EPS) - torch.log(gt[known] + _EPS)
    if not error.numel():
        return pred.sum() * 0
    squared = _MEAN_WEIGHT * error.mean() ** 2
    # One pixel has no variance.
    return (squared if warm_up or error.numel() == 1 else error.var(unbiased=bessel) + squared).sqrt()


def gradient_loss(pred: torch.Tensor, gt: torch.Tensor, axes: tuple[int, int] = (-2, -1)) -> torch.Tensor:
    """Differences of the log error between positions two apart, at strides 1, 2, 4 and 6, over the number of known pixels.

    Args:
        pred, gt: metres, at least two axes. axes: along which the differences are taken. The last two are meant; DINOv2's, FiT3D's and
            SnD's code takes the first two of [B,1,H,W], batch and channel, which gives 0 for their batches of two images.
    Returns: a scalar.
    """
    total = pred.new_zeros(())
    for stride in (1, 2, 4, 6):
        p, d = (_every(_every(x, axes[0], stride), axes[1], stride) for x in (pred, gt))
        known = d > 0
        error = torch.where(known, torch.log(p + _EPS) - torch.log(d + _EPS), 0)
        parts = pred.new_zeros(())
        for axis in axes:
            length = error.shape[axis]
            if length > 2:
                both = known.narrow(axis, 0, length - 2) & known.narrow(axis, 2, length - 2)
                parts = parts + ((error.narrow(axis, 0, length - 2) - error.narrow(axis, 2, length - 2)).abs() * both).sum()
        total = total + parts / known.sum().clamp(min=1)
    return total


class _Mean:
    """The mean of each image's valid pixels."""

    def __init__(self, valid: torch.Tensor) -> None:
        self.valid, self.count = valid, valid.sum((1, 2)).double()

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        return torch.where(self.valid, values.double(), 0).sum((1, 2)) / self.count


def _every(x: torch.Tensor, axis: int, stride: int) -> torch.Tensor:
    return x.index_select(axis, torch.arange(0, x.shape[axis], stride, device=x.device))


def _fit_scale_and_shift(pred: torch.Tensor, gt: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    fitted = pred.clone()
    for n in range(len(pred)):
        x, y = pred[n][valid[n]], gt[n][valid[n]]
        if len(x) > 1:
            solution = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], dim=1), y[:, None]).solution
            fitted[n] = pred[n] * solution[0] + solution[1]
    return fitted
