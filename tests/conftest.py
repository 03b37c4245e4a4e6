"""Fixtures that cost seconds are made once a session: an S3 server, a root of synthetic rooms, a dataset built from them."""

from __future__ import annotations

import contextlib
import hashlib
import os

# Before torch is imported, and for every process that a test starts: OpenMP's threads wait by spinning, so on a shared machine two of
# them are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import codec
from storage.provenance import Provenance
from tests.servers import seaweedfs

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables of a running SeaweedFS; its bucket is called `test`."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs") / "server") as environment:
        yield environment


@pytest.fixture
def s3(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An empty folder of the S3 server, with the environment set so that this process reaches it."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://test/{request.node.name.replace('[', '-').replace(']', '')}"


@pytest.fixture(params=["local", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder to write to, once on the local disk and once on S3: what holds for one must hold for the other."""
    return str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3")


def command(*arguments: str, environment: dict[str, str] | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` in the repository, as a user would; its output is captured."""
    result = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=280
    )
    if check and result.returncode:
        raise AssertionError(f"{' '.join(arguments)} ended with {result.returncode}:\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return result


def hashes(folder: str) -> dict[str, str]:
    """SHA-256 of every file below a folder; of a column's note without what it records beside (the time, the code's version)."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(_content(p)).hexdigest() for p in files}


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name == "column.json":
        with contextlib.suppress(ValueError):  # a damaged note is compared as it is
            return codec.encode_json(Provenance.from_json(codec.unseal(data)).binding)
    return data


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root of two small synthetic rooms (one of them for validation) in the official layout."""
    root = str(tmp_path_factory.mktemp("rooms"))
    command("pipeline/make_rooms.py", f"root={root}", "rooms=3", "frames=20", "scale=0.125", "val=1", "seed=3")
    return root


@pytest.fixture(scope="session")
def dataset(rooms: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """All tables and columns, built from `rooms` by the commands: 126 x 84 pixels, demo backbone."""
    url = str(tmp_path_factory.mktemp("dataset"))
    command("pipeline/build_shards.py", f"root={rooms}", f"dataset={url}", *BUILD)
    command("pipeline/cache_gaussians.py", f"dataset={url}")
    return url


BUILD = ("width=126", "height=84", "frames_per_shard=8", "backbone=demo", "source=synthetic-rooms", "licence=MIT")
