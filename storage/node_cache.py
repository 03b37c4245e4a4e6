"""Members that were read from a store once, kept on the node's own disk for all of its processes.

    cache = NodeCache("/scratch/members", budget_bytes=200 << 30)
    data = cache.get(name)
    if data is None:
        cache.put(name, data := read_from_the_store())

A cache only saves time: what it lost, did not keep or could not write is read from the store again. It does not vouch for its bytes, as a
disk can lose or change some; whoever reads holds them to the member's checksum, and drops those that differ.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
import time
import warnings
from array import array
from collections.abc import Iterator

import numpy as np

_TOUCH_AFTER_S = 300  # a hit sets a file's time only if it is older; disks are often mounted so that reading alone sets nothing
_READ = os.O_RDONLY | os.O_NOFOLLOW
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_PARTIAL = ".partial"


class NodeCache:
    """A folder of files, each named after the hash of a member's name, and together no larger than a budget.

    A name stands for the same bytes always. Room is accounted for before it is filled: each process takes 1/2048 of the budget at a time
    from a count that all share, so one that is killed leaves the count too high. Where the count nears the budget, one process looks at
    what really lies there and removes what was longest not used; the others keep nothing meanwhile. No file stays open, so an instance
    may cross a fork.

    hits, misses: what `get` found and did not find, in this process.
    """

    def __init__(self, folder: str, budget_bytes: int) -> None:
        self.folder = os.path.abspath(folder)
        self.hits = 0
        self.misses = 0
        self._share = budget_bytes // 2048
        self._high = budget_bytes - budget_bytes // 32  # leaves room for the shares that 64 processes hold
        self._low = budget_bytes - budget_bytes // 8
        self._reserved = 0
        self._reads = False
        self._writes = True
        with self._never_failing():
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            if os.stat(self.folder).st_uid != os.geteuid():
                raise PermissionError("it belongs to another user")
            for name in self._subfolders():
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, mode=0o700)
                if not stat.S_ISDIR(os.lstat(name).st_mode):
                    raise NotADirectoryError(f"{name} is no folder")
            self._reads = True

    def get(self, name: str) -> bytes | None:
        """What was put under `name`, or None: it never was, or it is there no more."""
        data = self._read(self._path(name)) if self._reads else None
        if data is None:
            self.misses += 1
        else:
            self.hits += 1
        return data

    @staticmethod
    def _read(path: str) -> bytes | None:
        try:
            descriptor = os.open(path, _READ)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            data = os.read(descriptor, status.st_size)
            if time.time() - status.st_mtime > _TOUCH_AFTER_S:
                with contextlib.suppress(OSError):  # a disk that can only be read
                    os.utime(descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return data if len(data) == status.st_size else None

    def put(self, name: str, data: bytes) -> None:
        """Keeps `data` under `name`, if there is room. The first failure is told in a warning; after it this process only reads."""
        if not self._writes or len(data) > self._low:
            return
        with self._never_failing():
            if self._reserved < len(data) and not self._reserve(max(len(data), self._share)):
                return  # another process is making room
            self._reserved -= len(data)
            path = self._path(name)
            temporary = f"{path}.{secrets.token_hex(4)}{_PARTIAL}"
            try:
                descriptor = os.open(temporary, _CREATE, 0o600)
                try:
                    written = 0
                    while written < len(data):
                        written += os.write(descriptor, memoryview(data)[written:])
                finally:
                    os.close(descriptor)
                with contextlib.suppress(FileNotFoundError):  # an eviction took it for a killed process's
                    os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    def drop(self, name: str) -> None:
        """Forgets what lies under `name`."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return f"{self.folder}/{digest[:2]}/{digest}"

    def _subfolders(self) -> list[str]:
        return [f"{self.folder}/{n:02x}" for n in range(256)]

    @contextlib.contextmanager
    def _never_failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writes = False
            warnings.warn(f"{self.folder}: nothing more is cached by this process: {error}", RuntimeWarning, stacklevel=4)

    def _reserve(self, count: int) -> bool:
        """Takes `count` bytes of the budget, making room if need be. Not while another process is making room."""
        total = self._add(count)
        if total is None or total > self._high:
            with self._locked("lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as mine:
                if mine is None:
                    if total is not None:
                        self._add(-count)
                    return False
                self._evict(self._reserved + count)
        self._reserved += count
        return True

    def _evict(self, reserved: int) -> None:
        """Sets the count right; where there is too much, removes what was longest not used first.

        Args:
            reserved: bytes that this process has taken of the budget and not yet filled.
        """
        before = self._add(0)
        times, sizes = array("q"), array("q")  # 16 bytes a file: there may be millions
        for _, status in self._files():
            times.append(status.st_mtime_ns)
            sizes.append(status.st_size)
        total = reserved + sum(sizes)
        if total > self._high:
            order = np.argsort(times)
            enough = np.searchsorted(np.cumsum(np.array(sizes)[order]), total - self._low)
            newest = np.array(times)[order[: enough + 1]].max(initial=0)
            for path, status in self._files():
                if total <= self._low:
                    break
                if status.st_mtime_ns <= newest:
                    self._unlink(path)
                    total -= status.st_size
        # What others took meanwhile stays counted.
        with self._locked("bytes", fcntl.LOCK_EX) as descriptor:
            now = self._count(descriptor)
            self._set_count(descriptor, total + (now - before if now is not None and before is not None else 0))

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        """All that is cached; temporaries are removed on the way, since whoever still writes one can do without."""
        for folder in self._subfolders():
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith(_PARTIAL):
                        self._unlink(entry.path)
                    else:
                        with contextlib.suppress(FileNotFoundError):
                            yield entry.path, entry.stat(follow_symlinks=False)

    @staticmethod
    def _unlink(path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def _add(self, count: int) -> int | None:
        """The shared count with `count` added, or None where there is no count yet."""
        with self._locked("bytes", fcntl.LOCK_EX) as descriptor:
            total = self._count(descriptor)
            if total is not None and count:
                total += count
                self._set_count(descriptor, total)
            return total

    @staticmethod
    def _count(descriptor: int | None) -> int | None:
        assert descriptor is not None
        try:
            return int(os.pread(descriptor, 32, 0))
        except ValueError:  # empty: nobody has looked yet
            return None

    @staticmethod
    def _set_count(descriptor: int | None, total: int) -> None:
        assert descriptor is not None
        os.pwrite(descriptor, b"%020d" % total, 0)

    @contextlib.contextmanager
    def _locked(self, name: str, how: int) -> Iterator[int | None]:
        """The file `name`, locked; None where another process holds it. Opened anew: a fork shares the locks of what is open."""
        descriptor = os.open(f"{self.folder}/{name}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, how)
            except BlockingIOError:
                yield None
            else:
                yield descriptor
        finally:
            os.close(descriptor)
