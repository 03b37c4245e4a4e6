"""A run's state at a step, as one object on storage; the newest is the one to go on from.

Held: the trained parameters of student and teacher, the optimiser's moments, and the identity of the run. The frozen weights are not in it:
their hash is. The learning rate, the order of the rows and all randomness are functions of the step, so they need no place here.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import torch

from configs import ConfigError
from configs.fields import plain
from configs.schema import TrainConfig
from configs.stored import complete
from storage import location
from storage.location import join
from storage.provenance import differences
from training.model.network import Network

FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{9})\.pt")

# What may differ between the runs before and after a resume. Weights may lie elsewhere: their hash binds.
_FREE = (
    "dataset",
    "output",
    "device",
    "loader",
    "monitor",
    "checkpoint_every",
    "checkpoint_background",
    "picture_every",
    "until",
    "steps",
    "allow_unstable",
    "accumulate",
    "compile",
)


def identity(config: TrainConfig, weights_hash: str, dataset_hash: str) -> dict[str, Any]:
    """What made a checkpoint, as plain JSON: all but a few keys of it (`_FREE`) must be the same in a run that goes on from it."""
    return {"format_version": FORMAT_VERSION, "config": plain(config), "weights_sha256": weights_hash, "dataset_sha256": dataset_hash}


@dataclass
class TrainerState:
    """All that a step changes. Every field is in a checkpoint: a new one cannot be forgotten."""

    student: Network
    teacher: Network
    optimizer: torch.optim.Optimizer
    step: int = 0
    centre: torch.nn.Module | None = None  # of the teacher's distributions, where the configuration asks for one

    def state_dict(self) -> dict[str, Any]:
        """By field: of a network the trained parameters, on the CPU; a number as it is; else the part's own `state_dict`."""
        return {name: _state(getattr(self, name)) for name in self._names()}

    def _names(self) -> list[str]:
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave. Raises ValueError, which names it, where a part is missing, surplus or does not fit."""
        names = set(self._names())
        if set(state) != names:
            raise ValueError(f"it lacks {sorted(names - set(state))} and has {sorted(set(state) - names)} too many")
        for name, part in state.items():
            own = getattr(self, name)
            try:
                if isinstance(own, Network):
                    own.load_trained(part)
                elif isinstance(own, int):
                    setattr(self, name, int(part))
                else:
                    if isinstance(own, torch.optim.Optimizer):  # how it computes is this device's business
                        for saved, now in zip(part["param_groups"], own.param_groups, strict=True):
                            saved["fused"] = now["fused"]
                    own.load_state_dict(part)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(f"{name}: {error}") from error

    def load(self, run: str, step: int, who: dict[str, Any]) -> int:
        """Goes on from a checkpoint of the same run. Returns the number of steps that it was to have."""
        state, there = load(run, step)
        check_identity(run, there, who)
        state.pop("identity")
        try:
            self.load_state_dict(state)
        except ValueError as error:
            raise ConfigError(f"{_url(run, step)}: {' '.join(str(error).split())}; remove it to go on from the one before") from error
        return int(there["config"]["steps"])


def _state(part: Any) -> Any:
    if isinstance(part, Network):
        return {name: parameter.detach().cpu() for name, parameter in part.trained().items()}
    return part if isinstance(part, int) else part.state_dict()


class Writer:
    """Writes checkpoints of a run. background: while training goes on, one at a time."""

    def __init__(self, run: str, who: dict[str, Any], background: bool = False) -> None:
        self.run, self.who = run, who
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._pending: Future | None = None

    def save(self, state: TrainerState) -> None:
        """Writes the checkpoint of the steps that are completed; what failed of the one before raises here."""
        stream = io.BytesIO()
        torch.save({**state.state_dict(), "identity": json.dumps(self.who, sort_keys=True)}, stream)
        url, data = _url(self.run, state.step), stream.getvalue()
        self.finish()
        if self._pool is None:
            location.write_bytes(url, data)
        else:
            self._pending = self._pool.submit(location.write_bytes, url, data)

    def finish(self) -> None:
        """Waits for what is being written."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None


def _url(run: str, step: int) -> str:
    return join(run, "checkpoints", f"step-{step:09d}.pt")


def steps(run: str) -> list[int]:
    """The steps of the checkpoints that lie there, ascending."""
    names = location.list_sizes(join(run, "checkpoints"))
    return sorted(int(m[1]) for m in map(_NAME.fullmatch, names) if m)


def load(run: str, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and identity of one checkpoint. Only tensors and plain values are unpickled."""
    url = _url(run, step)
    try:
        state = torch.load(io.BytesIO(location.read_bytes(url)), map_location="cpu", weights_only=True)
        return state, json.loads(state["identity"])
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"{url}: not a checkpoint of training/train.py ({type(error).__name__}); remove it to go on from the one before"
        ) from error


def check_identity(run: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuses to resume where something that matters differs, naming it. there: as it was stored, perhaps by an older release."""
    before = {**there, "config": complete(TrainConfig, there["config"], run)}
    different = differences(_binding(before), _binding(here))
    if different:
        raise ConfigError(f"{run}: a run with other settings is there ({'; '.join(different[:4])}); choose another output")
    if here["config"]["steps"] < before["config"]["steps"]:
        raise ConfigError(
            f"{run}: was begun with steps={before['config']['steps']}, which may grow but not shrink; stop it sooner with until=..., or "
            "choose another output"
        )


def _binding(who: dict[str, Any]) -> dict[str, Any]:
    config = {name: value for name, value in who["config"].items() if name not in _FREE}
    return {**who, "config": {**config, "backbone": {**config["backbone"], "weights": None}}}
