"""What is kept beside a provenance, and binds nothing: who made the column, and when."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version


def recorded() -> dict[str, str]:
    """The code's version and the time."""
    return {"code_version": version("splat-and-distill-at-scale"), "time": datetime.now(UTC).isoformat(timespec="seconds")}
