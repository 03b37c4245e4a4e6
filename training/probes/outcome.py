"""What came of judging one source of features, in whichever tier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.probes.results import Tally


@dataclass
class Outcome:
    """tasks: a tally each. notes: of each task what else is to be said, as plain JSON values. For pictures: predictions by test frame and
    task, and matches by number of the pair."""

    tasks: dict[str, Tally] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictions: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    matches: dict[int, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {task: {**tally.to_json(), **self.notes.get(task, {})} for task, tally in self.tasks.items()}
