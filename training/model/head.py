"""The projection head of DINO."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from configs.schema import HeadConfig


class Prototypes(torch.nn.Module):
    """Rows `weight_g[k] * weight_v[k] / |weight_v[k]|`: a weight-normalised linear layer without bias. Parameter names as published."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_g = torch.nn.Parameter(torch.ones(outputs, 1))
        self.weight_v = torch.nn.Parameter(torch.empty(outputs, inputs).uniform_(-(inputs**-0.5), inputs**-0.5))

    def rows(self) -> torch.Tensor:
        """[K,D]: the prototypes."""
        return self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True))


class DinoHead(torch.nn.Module):
    """Linear and GELU, `layers` times; L2 normalisation; prototypes. [..., C] -> logits [..., K]."""

    def __init__(self, inputs: int, hidden: int, bottleneck: int, prototypes: int, layers: int = 3) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), bottleneck]
        modules: list[torch.nn.Module] = []
        for i in range(layers):
            modules += [torch.nn.Linear(widths[i], widths[i + 1]), torch.nn.GELU()]
        self.mlp = torch.nn.Sequential(*modules[:-1])
        self.last_layer = Prototypes(bottleneck, prototypes)
        for module in self.mlp:
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.trunc_normal_(module.weight, std=0.02)
                torch.nn.init.zeros_(module.bias)

    @classmethod
    def from_config(cls, inputs: int, config: HeadConfig) -> DinoHead:
        return cls(inputs, config.hidden, config.bottleneck, config.prototypes)

    def points(self, features: torch.Tensor) -> torch.Tensor:
        """[..., C] -> [..., D], of unit length: where features lie among the prototypes."""
        return F.normalize(self.mlp(features).float(), dim=-1, eps=1e-12)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(self.points(features), self.last_layer.rows())
