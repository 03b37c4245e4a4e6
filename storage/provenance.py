"""What made a column: what binds, and what is only kept.

    Provenance(inputs={"frames": "5f0c..."}, settings={"reconstructor": {...}}, format_version=2, recorded={"code_version": "0.1.0"})

`inputs`, `settings` and `format_version` bind: a column that was made with others is another column. `recorded` says who and when, and
binds nothing: a new release goes on with a column that an older one began.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storage import codec


@dataclass(frozen=True)
class Provenance:
    """What made a column, as plain JSON values.

    inputs: by the name of each source column, its fingerprint. settings: everything that decides about the bytes; weights stand here by
    their hash. format_version: of the record. recorded: code version, time, the path that weights came from; compared with nothing.
    """

    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    format_version: int
    recorded: Mapping[str, Any] = field(default_factory=dict)

    @property
    def binding(self) -> dict[str, Any]:
        """The part that binds, as JSON has it (tuples are lists)."""
        binds = {"inputs": dict(self.inputs), "settings": dict(self.settings), "format_version": self.format_version}
        return codec.decode_json(codec.encode_json(binds))

    @property
    def fingerprint(self) -> str:
        """64 hex digits over what binds."""
        return hashlib.sha256(codec.encode_json(self.binding)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {**self.binding, "recorded": dict(self.recorded)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Provenance:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError where a part is missing or of another type."""
        return cls(dict(value["inputs"]), dict(value["settings"]), int(value["format_version"]), dict(value["recorded"]))


def differences(there: Any, here: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, a line each: `window.gap: there 8, here 10`."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [line for k in sorted({*there, *here}) for line in differences(there.get(k), here.get(k), f"{path}.{k}" if path else k)]
    return [] if there == here else [f"{path}: there {there!r}, here {here!r}"]
