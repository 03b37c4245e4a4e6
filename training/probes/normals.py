"""Surface normals as they are judged and learnt. Camera axes (x right, y down, z forward), unit length in the truth, any length predicted.

Sources: Bae et al. 2021 (the uncertainty-aware loss), Probe3D's and SnD's evaluation code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

METRICS = ("rmse", "mean", "median", "d1", "d2", "d3")
THRESHOLDS = (11.25, 22.5, 30.0)  # degrees, of d1 to d3


def angular_error(pred: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """Angles between normals.

    Args: pred [B,3 or more,H,W], whose first three channels count; gt [B,3,H,W].
    Returns: degrees [B,H,W], float64; 90 where one of the two has no length.
    """
    cosine = F.cosine_similarity(pred[:, :3].double(), gt.double(), dim=1)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


def normal_metrics(pred: torch.Tensor, gt: torch.Tensor, valid: torch.Tensor, empty: float = math.nan) -> dict[str, torch.Tensor]:
    """The metrics of each image.

    Args:
        pred: [B,3 or more,H,W]. gt: [B,3,H,W]. valid: bool [B,H,W].
        empty: the scores of an image without a valid pixel; 0 in Probe3D and SnD.
    Returns: float64 [B] for each name of METRICS: degrees, and shares below THRESHOLDS.
    """
    error = angular_error(pred, gt)
    wrong = (error.isnan() & valid).flatten(1).any(dim=1)  # a prediction that is no number has no angle: the image has no score
    error = error.masked_fill(~valid, torch.nan).flatten(1)
    count = valid.flatten(1).sum(dim=1).double()
    found = {
        "rmse": (error**2).nansum(dim=1).div(count).sqrt(),
        "mean": error.nansum(dim=1) / count,
        "median": error.nanmedian(dim=1).values,
        **{f"d{k}": (error < limit).sum(dim=1) / count for k, limit in enumerate(THRESHOLDS, 1)},
    }
    found = {name: value.masked_fill(wrong, math.nan) for name, value in found.items()}
    return {name: torch.where(count > 0, value, empty) for name, value in found.items()}


def angular_loss(pred: torch.Tensor, gt: torch.Tensor, valid: torch.Tensor, uncertainty: bool = True) -> torch.Tensor:
    """The mean angle over valid pixels, in radians, or its uncertainty-aware form.

    Args:
        pred: [B,4,H,W]: normals of any length, and of which concentration they are sure (3 channels do without `uncertainty`).
        gt: [B,3,H,W]. valid: bool [B,H,W].
    Returns: a scalar; 0 where no pixel is valid.
    """
    if not valid.any():
        return pred.sum() * 0
    cosine = F.cosine_similarity(pred[:, :3], gt, dim=1)[valid]
    angle = torch.acos(cosine.clamp(-1 + 1e-4, 1 - 1e-4))  # acos has no finite slope at 1
    if not uncertainty:
        return angle.mean()
    kappa = F.elu(pred[:, 3][valid]) + 1.01
    return (torch.log1p(torch.exp(-kappa * math.pi)) - torch.log(kappa**2 + 1) + kappa * angle).mean()
