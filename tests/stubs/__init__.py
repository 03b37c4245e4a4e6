"""Packages that stand in for those of extras that are not installed. Importing this puts them on the path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FFGS_INSTALLED = importlib.util.find_spec("ffgs") is not None

if not FFGS_INSTALLED:
    sys.path.append(str(Path(__file__).parent))
