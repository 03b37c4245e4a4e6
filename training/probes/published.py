"""Figures of the Splat and Distill paper (ICLR 2026), for rows that are marked as published: shares, metres, degrees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Published(NamedTuple):
    """One figure. data: as the sources of training/probes/data are named; depth and classes are of ViT-S."""

    data: str
    task: str
    metric: str
    model: str
    value: float


PROTOCOL = "snd"
_DATA = ("scannetpp_probe", "scannet_probe", "nyuv2")
_DEPTH = {
    "DINOv2": (0.3777, 0.2817, 0.5210), "FiT3D": (0.3506, 0.2713, 0.5075), "MEF": (0.4000, 0.3042, 0.5656), "SnD": (0.3299, 0.2555, 0.4912),
}  # fmt: skip
_CLASSES = {
    "DINOv2": (0.2954, 0.5127, 0.6473), "FiT3D": (0.3177, 0.5450, 0.6633), "MEF": (0.2744, 0.4744, 0.6317), "SnD": (0.3178, 0.5601, 0.6750),
}  # fmt: skip
_NORMALS = {
    "DINOv2 S": 30.99, "DINOv2 B": 31.40, "FiT3D S": 30.57, "FiT3D B": 30.57,
    "MEF S": 33.05, "MEF B": 32.60, "SnD S": 28.93, "SnD B": 29.37,
}  # fmt: skip

FIGURES: tuple[Published, ...] = (
    *(Published(d, "depth", "rmse", f"{m} S", v) for m, row in _DEPTH.items() for d, v in zip(_DATA, row, strict=True)),
    *(Published(d, "segmentation", "mIoU", f"{m} S", v) for m, row in _CLASSES.items() for d, v in zip(_DATA, row, strict=True)),
    *(Published("nyuv2_normals", "normals", "rmse", m, v) for m, v in _NORMALS.items()),
    Published("ade20k", "segmentation", "mIoU", "FiT3D B", 0.4829),
    Published("ade20k", "segmentation", "mIoU", "SnD B", 0.5001),
    Published("kitti", "depth", "rmse", "FiT3D B", 2.2485),
    Published("kitti", "depth", "rmse", "SnD B", 2.1741),
)


def matching(record: Mapping[str, Any], task: str) -> list[Published]:
    """The figures that may stand beside a result: of its data, where its heads were trained by the whole published protocol."""
    whole = record["protocol"] == PROTOCOL and record["tier"] == "reference" and record["settings"].get("steps") is None
    return [one for one in FIGURES if whole and (one.data, one.task) == (record["data"]["name"], task)]
