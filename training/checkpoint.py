"""A run's state at a step, as one object on storage; the newest is the one to go on from.

Held: the trained parameters of student and teacher, the optimiser's moments, and the identity of the run. The frozen weights are not in it:
their hash is. The learning rate, the order of the rows and all randomness are functions of the step, so they need no place here.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from dataclasses import asdict
from typing import Any

import torch

from configs import ConfigError
from configs.schema import TrainConfig
from storage import location
from storage.location import join
from storage.provenance import differences

FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{9})\.pt")

# What may differ between the runs before and after a resume.
_FREE = ("dataset", "output", "device", "loader", "checkpoint_every", "picture_every", "until")


def identity(config: TrainConfig, weights_hash: str, dataset_hash: str) -> dict[str, Any]:
    """What made a checkpoint, as plain JSON: all but a few keys of it (`_FREE`) must be the same in a run that goes on from it."""
    plain = json.loads(json.dumps(asdict(config), default=lambda choice: choice.value))
    return {"format_version": FORMAT_VERSION, "config": plain, "weights_sha256": weights_hash, "dataset_sha256": dataset_hash}


def save(run: str, step: int, state: dict[str, Any], who: dict[str, Any]) -> None:
    """Writes the checkpoint of `step` completed steps."""
    stream = io.BytesIO()
    torch.save({**state, "step": step, "identity": json.dumps(who, sort_keys=True)}, stream)
    location.write_bytes(join(run, "checkpoints", f"step-{step:09d}.pt"), stream.getvalue())


def steps(run: str) -> list[int]:
    """The steps of the checkpoints that lie there, ascending."""
    names = location.list_sizes(join(run, "checkpoints"))
    return sorted(int(m[1]) for m in map(_NAME.fullmatch, names) if m)


def load(run: str, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and identity of one checkpoint. Only tensors and plain values are unpickled."""
    url = join(run, "checkpoints", f"step-{step:09d}.pt")
    try:
        state = torch.load(io.BytesIO(location.read_bytes(url)), map_location="cpu", weights_only=True)
        return state, json.loads(state["identity"])
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"{url}: not a checkpoint of training/train.py ({type(error).__name__}); remove it to go on from the one before"
        ) from error


def check_identity(run: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuses to resume where something that matters differs, naming it."""
    different = differences(_binding(there), _binding(here))
    if different:
        raise ConfigError(f"{run}: a run with other settings is there ({'; '.join(different[:4])}); choose another output")


def _binding(who: dict[str, Any]) -> dict[str, Any]:
    return {**who, "config": {name: value for name, value in who["config"].items() if name not in _FREE}}
