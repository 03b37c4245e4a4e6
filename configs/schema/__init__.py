"""Every key of every command: its type, default, meaning and check."""

from configs.schema.common import ActorConfig, BackboneConfig, RayConfig, SplatConfig, WindowsConfig
from configs.schema.data import (
    BuildShardsConfig,
    CacheGaussiansConfig,
    HeldOutConfig,
    MakeRoomsConfig,
    OperatorsConfig,
    PlanWindowsConfig,
    WithdrawConfig,
)
from configs.schema.network import CentringKind, HeadConfig, LoraConfig, TrainedConfig, TrainedPart
from configs.schema.probes import CompareConfig, EvaluateConfig, FeaturesConfig, SupervisedTokensConfig
from configs.schema.supervision import Control, SupervisionConfig, SupervisionMode, TargetFrames
from configs.schema.tools import (
    DeleteConfig,
    Deletion,
    DescribeConfig,
    ExportConfig,
    InspectConfig,
    InspectGaussiansConfig,
    Network,
    VerifyConfig,
)
from configs.schema.training import (
    LoaderConfig,
    LossConfig,
    LossKind,
    MonitorConfig,
    OptimizerConfig,
    TeacherConfig,
    TeacherMode,
    TrainConfig,
)

__all__ = [
    "ActorConfig",
    "BackboneConfig",
    "BuildShardsConfig",
    "CacheGaussiansConfig",
    "CentringKind",
    "CompareConfig",
    "Control",
    "DeleteConfig",
    "Deletion",
    "DescribeConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FeaturesConfig",
    "HeadConfig",
    "HeldOutConfig",
    "InspectConfig",
    "InspectGaussiansConfig",
    "LoaderConfig",
    "LoraConfig",
    "LossConfig",
    "LossKind",
    "MakeRoomsConfig",
    "MonitorConfig",
    "Network",
    "OperatorsConfig",
    "OptimizerConfig",
    "PlanWindowsConfig",
    "RayConfig",
    "SplatConfig",
    "SupervisedTokensConfig",
    "SupervisionConfig",
    "SupervisionMode",
    "TargetFrames",
    "TeacherConfig",
    "TeacherMode",
    "TrainConfig",
    "TrainedConfig",
    "TrainedPart",
    "VerifyConfig",
    "WindowsConfig",
    "WithdrawConfig",
]
