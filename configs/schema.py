"""Which keys each command has, and of what type. The values and what they mean stand in the YAML beside."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING


@dataclass
class RayConfig:
    address: str | None = MISSING
    workers: int = MISSING


@dataclass
class ActorConfig:
    cpus: float = MISSING
    gpus: float = MISSING


@dataclass
class BackboneConfig:
    architecture: str = MISSING
    weights: str = MISSING
    seed: int = MISSING


@dataclass
class MakeRoomsConfig:
    root: str = MISSING
    rooms: int = MISSING
    frames: int = MISSING
    scale: float = MISSING
    seed: int = MISSING
    val: int = MISSING
    defects: list[str] = MISSING
    ray: RayConfig = MISSING


@dataclass
class WindowsConfig:
    rule: str = MISSING
    gap: int = MISSING
    stride: int = MISSING
    views: int = MISSING
    min_baseline: float = MISSING
    max_baseline: float = MISSING
    max_rotation: float = MISSING
    held_out: bool = MISSING


@dataclass
class HeldOutConfig:
    scenes: list[str] = MISSING
    part: float = MISSING


@dataclass
class BuildShardsConfig:
    root: str = MISSING
    layout: str = MISSING
    dataset: str = MISSING
    split: str = MISSING
    width: int = MISSING
    height: int = MISSING
    keep_bad: bool = MISSING
    min_kept_share: float = MISSING
    frames_per_shard: int = MISSING
    held_out: HeldOutConfig = MISSING
    masks: str = MISSING
    windows: WindowsConfig = MISSING
    features: str = MISSING
    backbone: BackboneConfig = MISSING
    source: str = MISSING
    licence: str = MISSING
    actor: ActorConfig = MISSING
    ray: RayConfig = MISSING
    plan_only: bool = MISSING


@dataclass
class PlanWindowsConfig:
    dataset: str = MISSING
    name: str = MISSING
    windows: WindowsConfig = MISSING


@dataclass
class WithdrawConfig:
    dataset: str = MISSING
    scene: str = MISSING
    dry_run: bool = MISSING


@dataclass
class DescribeConfig:
    dataset: str = MISSING


@dataclass
class VerifyConfig:
    dataset: str = MISSING
    decode: bool = MISSING
    set_aside: bool = MISSING


class Deletion(Enum):
    retired = "retired"
    column = "column"
    dataset = "dataset"


@dataclass
class DeleteConfig:
    dataset: str = MISSING
    what: Deletion = MISSING
    column: str | None = MISSING
    dry_run: bool = MISSING


@dataclass
class OperatorsConfig:
    targets: str = MISSING
    column: str = MISSING
    values: str = MISSING


@dataclass
class CacheGaussiansConfig:
    dataset: str = MISSING
    windows: str = MISSING
    masks: str = MISSING
    column: str = MISSING
    keep_gaussians: bool = MISSING
    operators: OperatorsConfig = MISSING
    reconstructor: dict[str, Any] = MISSING
    actor: ActorConfig = MISSING
    ray: RayConfig = MISSING
    plan_only: bool = MISSING


class TeacherMode(Enum):
    ema = "ema"
    frozen = "frozen"


@dataclass
class TeacherConfig:
    mode: TeacherMode = MISSING
    momentum: float = MISSING
    every: int = MISSING
    dropout: bool = MISSING


@dataclass
class LoraConfig:
    rank: int = MISSING
    alpha: int = MISSING
    dropout: float = MISSING
    patch_embed: bool = MISSING


@dataclass
class HeadConfig:
    hidden: int = MISSING
    bottleneck: int = MISSING
    prototypes: int = MISSING
    student_temperature: float = MISSING
    teacher_temperature: float = MISSING


class SupervisionMode(Enum):
    operators = "operators"
    on_the_fly = "on_the_fly"
    live = "live"


@dataclass
class SupervisionConfig:
    mode: SupervisionMode = MISSING
    masks: str = MISSING
    gaussians: str = MISSING
    operators: str = MISSING
    blend: float = MISSING
    min_coverage: float = MISSING
    context_as_target: bool = MISSING
    shuffle: bool = MISSING


@dataclass
class OptimizerConfig:
    lr: float = MISSING
    warmup: float = MISSING


@dataclass
class LoaderConfig:
    workers: int = MISSING
    prefetch: int = MISSING
    cache: str | None = MISSING
    cache_gb: float = MISSING
    skip_withdrawn: bool = MISSING


@dataclass
class TrainConfig:
    dataset: str = MISSING
    windows: str = MISSING
    output: str = MISSING
    steps: int = MISSING
    until: int | None = MISSING
    batch: int = MISSING
    seed: int = MISSING
    device: str = MISSING
    backbone: BackboneConfig = MISSING
    teacher: TeacherConfig = MISSING
    lora: LoraConfig = MISSING
    head: HeadConfig = MISSING
    supervision: SupervisionConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    loader: LoaderConfig = MISSING
    checkpoint_every: int = MISSING
    picture_every: int = MISSING


class Network(Enum):
    teacher = "teacher"
    student = "student"


@dataclass
class ExportConfig:
    run: str = MISSING
    output: str = MISSING
    step: int | None = MISSING
    network: Network = MISSING


@dataclass
class InspectConfig:
    dataset: str = MISSING
    windows: str = MISSING
    masks: str = MISSING
    gaussians: str = MISSING
    output: str = MISSING
    rows: int = MISSING


@dataclass
class InspectGaussiansConfig:
    dataset: str = MISSING
    windows: str = MISSING
    masks: str = MISSING
    gaussians: str = MISSING
    key: str = MISSING
    output: str = MISSING
    view: bool = MISSING
