"""What must fit together before a training starts: its ranks, the columns that it reads, and its backbone."""

from __future__ import annotations

from typing import Any

from configs import ConfigError
from configs.fields import plain
from configs.schema import SupervisionMode, TeacherMode, TrainConfig
from storage.column import Column
from training.data.rows import WindowRows
from training.distributed import Ranks
from training.model.registry import find_spec


def check_same_end(ranks: Ranks, first: dict[str, Any], own: dict[str, Any]) -> None:
    """What is free from one start of a run to the next is not free between its ranks: they would wait for each other at the end."""
    for name in ("steps", "until"):
        if own[name] != first[name]:
            raise ConfigError(
                f"rank {ranks.rank}: {name}={own[name]}, but rank 0 has {name}={first[name]}; start all ranks with the same keys"
            )


def check_grids(config: TrainConfig, height: int, width: int) -> None:
    """The tokens of the backbone, and those of the operators and features that are read, must lie on one grid."""
    spec, grids = find_spec(config.backbone.architecture), {}
    if config.supervision.mode is SupervisionMode.operators:
        name = config.supervision.operators
        h, w = Column(config.dataset, name).provenance().settings["grid"]
        grids[name] = (h, w), f"build another with operators.patch={spec.patch}"
    if config.teacher.mode is TeacherMode.frozen:
        made_by = Column(config.dataset, "features").provenance().settings["architecture"]
        grids["features"] = find_spec(made_by).grid(height, width), f"build it with {spec.name}"
    for column, (grid, remedy) in grids.items():
        if grid != spec.grid(height, width):
            raise ConfigError(
                f"{config.dataset}: column {column!r} has {grid[0]} x {grid[1]} tokens an image, backbone.architecture={spec.name} "
                f"{' x '.join(map(str, spec.grid(height, width)))}: {remedy}, or choose a backbone with the column's patch"
            )


def check_splat(config: TrainConfig) -> None:
    """Operators that are read must be of the rule that is asked for."""
    if config.supervision.mode is not SupervisionMode.operators:
        return
    name, asked = config.supervision.operators, plain(config.supervision.splat)
    built = {"footprint": "covariance", "mask_aware": True, **Column(config.dataset, name).provenance().settings["lift"]}
    different = [one for one in asked if built[one] != asked[one]]
    if different:
        as_built = " ".join(f"supervision.splat.{one}={built[one]}" for one in different)
        as_asked = " ".join(f"operators.splat.{one}={asked[one]}" for one in different)
        raise ConfigError(
            f"{config.dataset}: column {name!r} was built by another rule than is asked for; take it as it is ({as_built}), or build one "
            f"with pipeline/cache_gaussians.py {as_asked} operators.column=NAME"
        )


def check_features(config: TrainConfig, rows: WindowRows, weights_hash: str) -> None:
    """A frozen teacher's cached tokens must come from the very weights that the student starts from."""
    if config.teacher.mode is TeacherMode.frozen:
        cached = Column(config.dataset, "features").provenance().settings["weights_sha256"]
        if cached != weights_hash:
            raise ConfigError(
                f"{config.dataset}: column 'features' was made with other weights ({str(cached)[:12]}) than backbone has "
                f"({weights_hash[:12]}); build the column with this backbone, or choose teacher.mode=ema"
            )
