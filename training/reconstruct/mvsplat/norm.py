"""Group normalisation that keeps its digits on large channels-last maps.

torch's own kernel for that layout on the CPU adds squares up one after another in float32: at 256 x 256 pixels its result is off by 4e-5,
a hundred times what the rest of the network loses.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-5


def group_norm_(x_nchw: Tensor, groups: int, weight_c: Tensor | None = None, bias_c: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.group_norm`, with eps 1e-5. On the CPU it overwrites its argument."""
    if x_nchw.is_cuda:
        return F.group_norm(x_nchw, groups, weight_c, bias_c, _EPS)
    maps = x_nchw.permute(0, 2, 3, 1)
    # Row by row in float32, rows together in float64; the second moment after the mean is gone.
    maps -= _by_group(maps.mean(2).double().mean(1), groups)
    variance = _by_group(maps.square().sum(2).double().sum(1) / maps[0, ..., 0].numel(), groups, _EPS)
    maps *= variance.rsqrt() if weight_c is None else variance.rsqrt() * weight_c
    if bias_c is not None:
        maps += bias_c
    return x_nchw


def _by_group(values_nc: Tensor, groups: int, plus: float = 0.0) -> Tensor:
    """Each channel's value replaced by its group's mean; [N,1,1,C] float32."""
    means = values_nc.unflatten(1, (groups, -1)).mean(-1, keepdim=True) + plus
    return means.expand(-1, -1, values_nc.shape[1] // groups).reshape(len(values_nc), 1, 1, -1).float()


def instance_norm_(x_nchw: Tensor) -> Tensor:
    """Per sample and channel, without affine parameters. On the CPU it overwrites its argument."""
    return group_norm_(x_nchw, x_nchw.shape[1])


class GroupNorm(nn.GroupNorm):
    """Stands after a convolution whose result nothing else needs: see `group_norm_`."""

    def forward(self, input: Tensor) -> Tensor:
        return group_norm_(input, self.num_groups, self.weight, self.bias)
