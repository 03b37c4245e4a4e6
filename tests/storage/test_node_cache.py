"""The node's cache: what it gives back is what was put, whatever else happens on the node, and it keeps to its budget."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path
from subprocess import PIPE

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import node_cache
from storage.node_cache import NodeCache
from tests.conftest import REPOSITORY


def files(folder: str | Path) -> list[Path]:
    return [path for path in Path(folder).glob("??/*") if path.is_file()]


def used(folder: str | Path) -> int:
    total = 0
    for path in files(folder):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def content(name: str) -> bytes:
    """The bytes that `name` stands for in these tests: 5 to 15 KB."""
    generator = random.Random(name)
    return generator.randbytes(generator.randrange(5_000, 15_000))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(max_size=400), min_size=1, max_size=12, unique=True),
    st.lists(st.tuples(st.sampled_from(["put", "get", "drop"]), st.integers(0, 11)), max_size=60),
    st.integers(0, 3000),
)
def test_a_hit_is_what_was_put(members: list[bytes], steps: list[tuple[str, int]], budget: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        caches = [NodeCache(folder, budget), NodeCache(folder, budget)]
        known: dict[str, bytes] = {}
        hits = 0
        for n, (action, which) in enumerate(steps):
            data = members[which % len(members)]
            name, cache = f"s3://b/x.tar 0 {len(data)} {zlib.crc32(data)} é\udc80", caches[n % 2]
            if action == "put":
                cache.put(name, data)
                known[name] = data
            elif action == "drop":
                cache.drop(name)
                known.pop(name, None)
            else:
                got = cache.get(name)
                hits += got is not None
                assert got is None or got == known[name]
            assert used(folder) <= budget
        assert sum(cache.hits for cache in caches) == hits
        assert sum(cache.hits + cache.misses for cache in caches) == sum(action == "get" for action, _ in steps)
        if sum(map(len, known.values())) < budget // 2:
            assert all(caches[0].get(name) == data for name, data in known.items())


def test_what_was_longest_not_used_goes_first(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path / "cache"), 100_000)
    assert os.stat(tmp_path / "cache").st_mode & 0o777 == 0o700
    hour_ago = time.time() - 3600
    for n in range(9):
        cache.put(str(n), bytes(10_000))
        for path in files(cache.folder):
            if path.stat().st_mtime > hour_ago + 100:
                os.utime(path, (hour_ago + n, hour_ago + n))
    assert all(cache.get(str(n)) for n in (0, 1))  # which sets their times
    times = [path.stat().st_mtime_ns for path in files(cache.folder)]
    assert all(cache.get(str(n)) for n in (0, 1))
    assert [path.stat().st_mtime_ns for path in files(cache.folder)] == times  # but not at every hit
    cache.put("new", bytes(10_000))
    assert [n for n in range(9) if cache.get(str(n)) is None] == [2, 3]
    assert cache.get("new") == bytes(10_000)


def test_a_member_larger_than_the_budget_is_not_kept(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path), 1000)
    cache.put("small", b"1")
    cache.put("large", bytes(2000))
    assert (cache.get("small"), cache.get("large")) == (b"1", None)


HAMMER = """
import random, sys
from storage.node_cache import NodeCache
from tests.storage.test_node_cache import content
cache = NodeCache(sys.argv[1], int(sys.argv[2]))
print("ready", flush=True)
while True:
    name = str(random.randrange(400))
    data = cache.get(name)
    if data is None:
        cache.put(name, content(name))
    elif data != content(name):
        sys.exit(f"{name}: other bytes came back")
"""


def test_processes_killed_amid_writing_leave_the_cache_right(tmp_path: Path) -> None:
    folder, budget = str(tmp_path / "cache"), 2_000_000  # half of what there is to keep
    for _ in range(4):
        hammers = [
            subprocess.Popen([sys.executable, "-c", HAMMER, folder, str(budget)], cwd=REPOSITORY, stdout=PIPE, stderr=PIPE, text=True)
            for _ in range(2)
        ]
        for hammer in hammers:
            assert hammer.stdout is not None
            assert hammer.stdout.readline() == "ready\n"
        for hammer in hammers:
            for _ in range(8):
                time.sleep(0.05)
                assert used(folder) <= budget * 1.05
            assert hammer.poll() is None, hammer.communicate()[1]
            hammer.send_signal(signal.SIGKILL)
            assert hammer.communicate()[1] == ""
    cache = NodeCache(folder, budget)
    kept = [name for name in map(str, range(400)) if cache.get(name) is not None]
    assert len(kept) > 50
    assert all(cache.get(name) == content(name) for name in kept)
    (files(folder)[0].parent / f"{0:032x}.00000000.partial").write_bytes(bytes(100))  # as a killed process leaves it
    for n in range(200):
        cache.put(f"more {n}", bytes(10_000))
    assert used(folder) <= budget
    assert not [path for path in files(folder) if "partial" in path.name]


def test_a_flipped_bit_is_left_to_the_checksum(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path), 100_000)
    data = content("a")
    cache.put("a", data)
    (path,) = files(tmp_path)
    path.write_bytes(bytes([data[0] ^ 4]) + data[1:])
    got = cache.get("a")
    assert got is not None
    assert zlib.crc32(got) != zlib.crc32(data)
    cache.drop("a")
    cache.drop("a")
    assert cache.get("a") is None
    cache.put("a", data)
    assert cache.get("a") == data


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    cache = NodeCache(str(tmp_path / "cache"), 100_000)
    cache.put("a", b"1")
    (path,) = files(cache.folder)
    path.unlink()
    path.symlink_to(outside / "secret")
    assert cache.get("a") is None
    path.unlink()
    path.parent.rmdir()
    path.parent.symlink_to(outside)
    (outside / path.name).write_bytes(b"planted")
    with pytest.warns(RuntimeWarning, match="is no folder"):
        cache = NodeCache(cache.folder, 100_000)
    cache.put("a", b"1")
    assert cache.get("a") is None
    assert (outside / path.name).read_bytes() == b"planted"


def test_a_folder_that_cannot_be_made_warns_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="nothing more is cached by this process") as caught:
        cache = NodeCache(str(tmp_path / "file" / "cache"), 100_000)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in "abc":
            cache.put(name, b"1")
            assert cache.get(name) is None


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_disk_that_takes_no_more_warns_once_and_is_still_read(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = NodeCache(str(tmp_path), 100_000)
    cache.put("before", b"1")
    real_open = os.open

    def read_only(path: str, flags: int, *mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system")
        return real_open(path, flags, *mode)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node_cache.os, call, {"open": read_only, "write": full}[call])
    with pytest.warns(RuntimeWarning, match="Read-only|No space left") as caught:
        cache.put("a", b"1")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("b", b"1")
    assert (cache.get("before"), cache.get("a"), cache.get("b")) == (b"1", None, None)
    assert len(files(tmp_path)) == 1


def test_a_folder_of_another_user_is_neither_read_nor_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who owns the folder decides what comes back."""
    NodeCache(str(tmp_path), 100_000).put("a", b"planted")
    owner = os.geteuid()
    monkeypatch.setattr(node_cache.os, "geteuid", lambda: owner + 1)
    with pytest.warns(RuntimeWarning, match="it belongs to another user"):
        cache = NodeCache(str(tmp_path), 100_000)
    cache.put("b", b"1")
    assert (cache.get("a"), cache.get("b")) == (None, None)
    assert len(files(tmp_path)) == 1
