"""What breaks in the middle: a read comes at last or ends with a line, a write is whole or not there, a shard is what its record says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from storage import location, shard
from storage.column import Column, ShardPlan, source_digest
from storage.index import Index
from storage.location import NotFound, StorageError, join
from storage.provenance import Provenance
from tests.conftest import REPOSITORY
from tests.servers import cut_replies, delayed, requests_made

READS: dict[str, Callable[[str], list[bytes]]] = {
    "read_bytes": lambda url: [location.read_bytes(url)],
    "read_many": lambda url: location.read_many([url, url]),
    "read_ranges": lambda url: location.read_ranges([url, url], [0, 0], [1000, 1000]),
}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a read waited before it was made again; nothing really waits. Reads without end fail."""
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        assert len(waited) < 20, "made again for ever"

    monkeypatch.setattr(location.time, "sleep", wait)
    return waited


@pytest.fixture
def breaking(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A proxy before the S3 server, whose replies a test can cut; the client itself makes no read again."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with delayed(os.environ["AWS_ENDPOINT_URL"], 0.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("name", READS)
def test_a_read_whose_connection_breaks_is_made_again(name: str, s3: str, breaking: str, waits: list[float]) -> None:
    url, content = join(s3, "there"), os.urandom(1000)
    location.write_bytes(url, content)
    READS[name](url)  # the client is made
    cut_replies(breaking, 3)
    assert set(READS[name](url)) == {content}
    assert waits
    assert waits == sorted(set(waits))  # longer each time


@pytest.mark.parametrize("name", READS)
def test_a_read_that_no_attempt_mends_ends_with_a_line(name: str, s3: str, breaking: str, waits: list[float]) -> None:
    url = join(s3, "there")
    location.write_bytes(url, bytes(1000))
    cut_replies(breaking, 1000)
    with pytest.raises(StorageError, match=r"there: .*check the URL, AWS_ENDPOINT_URL, the credentials and the network"):
        READS[name](url)
    assert requests_made(breaking) < 40
    cut_replies(breaking, 0)
    waits.clear()
    with pytest.raises(NotFound, match="absent: not found"):
        READS[name](join(s3, "absent"))
    assert waits == []  # what is not there is not asked for again


LOOKS: dict[str, tuple[str, Callable[[str], object], object]] = {
    "exists": ("info", lambda url: location.exists(join(url, "there")), True),
    "list_sizes": ("ls", location.list_sizes, {"there": 2}),
    "find_sizes": ("find", location.find_sizes, {"there": 2, "deep/one": 1}),
    "list_folders": ("ls", location.list_folders, ["deep"]),
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_that_fails_for_the_moment_is_no_absence(name: str, s3: str, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    method, look, expected = LOOKS[name]
    location.write_bytes(join(s3, "there"), b"12")
    location.write_bytes(join(s3, "deep", "one"), b"1")
    fs, _ = location.filesystem(s3)
    ask, failures = getattr(fs, method), iter([ConnectionResetError("cut"), TimeoutError("busy")])

    def failing_first(*arguments: Any, **options: Any) -> Any:
        for error in failures:
            raise error
        return ask(*arguments, **options)

    monkeypatch.setattr(fs, method, failing_first)
    assert look(s3) == expected
    assert len(waits) == 2


CUT_WRITER = """
import resource, signal, sys
from storage import location
call, url, dies = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # no file grows beyond: the disk is full in the middle of a write
if dies == "killed":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # and the kernel ends the process there
getattr(location, call)(url, b"n" * 1_000_000)
"""


@pytest.mark.parametrize("dies", ["killed", "full"])
@pytest.mark.parametrize(("call", "before"), [("write_bytes", b"o" * 200_000), ("write_bytes", None), ("create_bytes", None)])
def test_a_local_write_that_ends_in_the_middle_shows_nothing_of_itself(call: str, before: bytes | None, dies: str, tmp_path: Path) -> None:
    url = str(tmp_path / "column" / "shard.tar")
    if before:
        location.write_bytes(url, before)
    ended = subprocess.run([sys.executable, "-c", CUT_WRITER, call, url, dies], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    if dies == "killed":
        assert ended.returncode == -signal.SIGXFSZ, ended.stderr
    else:
        assert f"StorageError: {url}: " in ended.stderr
        assert [path.name for path in Path(url).parent.iterdir()] == (["shard.tar"] if before else [])  # nothing takes up the full disk
    left = {"shard.tar": len(before)} if before else {}
    assert location.list_sizes(join(str(tmp_path), "column")) == left
    assert location.find_sizes(str(tmp_path)) == {f"column/{name}": size for name, size in left.items()}
    if before:
        assert location.read_bytes(url) == before
    else:
        assert not location.exists(url)
        assert location.create_bytes(url, b"mine")  # the name is free


WRITER = """
import sys
from storage import location
for turn in range(1_000_000):
    location.write_bytes(sys.argv[1], bytes([65 + turn % 2]) * 2_000_000)
    print(turn, flush=True)
"""


def test_a_reader_beside_a_local_writer_sees_the_old_or_the_new(tmp_path: Path) -> None:
    url = str(tmp_path / "current.json")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, url], cwd=REPOSITORY, stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"0\n"
        seen = [location.read_bytes(url) for _ in range(60)]
    finally:
        writer.kill()
        writer.wait()
    seen.append(location.read_bytes(url))
    assert {(len(data), len(set(data))) for data in seen} == {(2_000_000, 1)}


MADE = Provenance({}, {"kind": "masks"}, 2)
OLD, NEW = (ShardPlan(0, source_digest(source)) for source in ("old", "new"))


def rows(content: bytes) -> list[shard.Row]:
    return [(f"k{n}", {"a.bin": content * 100}) for n in range(3)]


class Killed(BaseException):
    """What no handler catches."""


def stop_at(monkeypatch: pytest.MonkeyPatch, change: int) -> None:
    """Of the changes that are made to the store from now on, the one of that number does not happen, nor what follows."""
    made = iter(range(1000))

    def stopping(call: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*arguments: Any) -> Any:
            if next(made) >= change:
                raise Killed
            return call(*arguments)

        return maybe

    for name in ("write_bytes", "create_bytes", "remove", "remove_many", "move"):
        monkeypatch.setattr(location, name, stopping(getattr(location, name)))


@pytest.mark.parametrize("change", [0, 1, 2, 99])
@pytest.mark.parametrize("present", [True, False])
def test_a_commit_that_ends_between_two_writes_leaves_no_record_of_another_tar(
    present: bool, change: int, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard whose source changed is made anew, with other bytes of the same length: only the records tell one tar from the other."""
    column = Column(store_url, "masks")
    column.declare(MADE)
    if present:
        column.commit(OLD, rows(b"o"), MADE.fingerprint)
    stale = column.missing([NEW])[0]
    with monkeypatch.context() as patch:
        stop_at(patch, change)
        try:
            column.commit(NEW, rows(b"n"), MADE.fingerprint, stale)
            whole = True
        except Killed:
            whole = False
    assert whole or change < 99
    contents = {OLD.source: rows(b"o"), NEW.source: rows(b"n")}
    for committed in column.listing():  # each record that is there is of the tar that is there
        assert committed.whole
        assert column.read_shard(0) == contents[committed.source]
    assert (0 in column.missing([NEW])) == (not whole)
    for number, names in column.missing([NEW]).items():
        column.commit(NEW, rows(b"n"), MADE.fingerprint, names)
        assert number == 0
    assert [c.source for c in column.listing()] == [NEW.source]
    assert column.read_shard(0) == contents[NEW.source]
    column.write_index([NEW], {})


@pytest.mark.parametrize("change", [0, 1, 99])
def test_an_index_that_ends_between_two_writes_leaves_the_one_before(change: int, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `current.json` names is there at every moment."""
    column = Column(store_url, "masks")
    column.declare(MADE)
    column.commit(OLD, rows(b"o"), MADE.fingerprint)
    before = column.write_index([OLD], {})
    column.commit(ShardPlan(1, OLD.source), [("more", {"a.bin": b""})], MADE.fingerprint)
    both = [OLD, ShardPlan(1, OLD.source)]
    with monkeypatch.context() as patch:
        stop_at(patch, change)
        try:
            column.write_index(both, {})
        except Killed:
            assert change < 99
            assert Index.open(store_url, "masks").sha256 == before.sha256
    assert len(column.write_index(both, {})) == 4
    assert len(Index.open(store_url, "masks")) == 4
