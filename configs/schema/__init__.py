"""Every key of every command: its type, default, meaning and check."""

from configs.schema.common import ActorConfig, BackboneConfig, RayConfig, WindowsConfig
from configs.schema.data import (
    BuildShardsConfig,
    CacheGaussiansConfig,
    HeldOutConfig,
    MakeRoomsConfig,
    OperatorsConfig,
    PlanWindowsConfig,
    WithdrawConfig,
)
from configs.schema.probes import CompareConfig, EvaluateConfig, FeaturesConfig, SupervisedTokensConfig
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
    HeadConfig,
    LoaderConfig,
    LoraConfig,
    OptimizerConfig,
    SupervisionConfig,
    SupervisionMode,
    TeacherConfig,
    TeacherMode,
    TrainConfig,
)

__all__ = [
    "ActorConfig",
    "BackboneConfig",
    "BuildShardsConfig",
    "CacheGaussiansConfig",
    "CompareConfig",
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
    "MakeRoomsConfig",
    "Network",
    "OperatorsConfig",
    "OptimizerConfig",
    "PlanWindowsConfig",
    "RayConfig",
    "SupervisedTokensConfig",
    "SupervisionConfig",
    "SupervisionMode",
    "TeacherConfig",
    "TeacherMode",
    "TrainConfig",
    "VerifyConfig",
    "WindowsConfig",
    "WithdrawConfig",
]
