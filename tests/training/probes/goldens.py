"""The metric goldens: what the published code made of the same arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parents[2] / "golden" / "metrics"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array))


def metres(raw: np.ndarray, scale: float = 1000) -> torch.Tensor:
    """Stored depth as metres, float32."""
    return torch.from_numpy(raw.astype(np.float32) / np.float32(scale))
