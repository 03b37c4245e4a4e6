"""A small dataset of all columns, made in this process, and a copy of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.storage import small


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """To be read only."""
    url = str(tmp_path_factory.mktemp("small"))
    small.build(url)
    return url


@pytest.fixture
def dataset(made: str, tmp_path: Path) -> str:
    """To do anything with."""
    shutil.copytree(made, tmp_path / "dataset")
    return str(tmp_path / "dataset")
