"""Every location is a URL: a local path, `file://`, `s3://`, or anything else that fsspec knows. One small set of calls for all of them.

Endpoint and credentials come from the environment, as every AWS tool reads them (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`, ...); nothing here stores, prints or passes on a secret. Failures come back as `StorageError`, one
line that names the URL and the remedy.

    write_bytes("s3://bucket/set/a.json", b"{}")
    read_bytes("s3://bucket/set/a.json")

Long because each call stands here once for local disks, S3 and other stores, which must behave alike.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import fsspec

from storage import s3_reads

_ATTEMPTS = 4
_FIRST_WAIT_S = 0.25
_PARTIAL = ".partial"  # a local file being written; one that a killed process left is nobody's
_BULK = 1000  # what one S3 delete request may name


class StorageError(OSError):
    """A location could not be read or written. The message names the URL and what to do."""


class NotFound(StorageError):
    """Nothing lies at the URL."""


class ObjectInfo(NamedTuple):
    """What a listing says of an object. The same size and version again: the same bytes."""

    size: int
    version: str  # the ETag on S3; the time of the last change, in ns, on a local disk


def join(url: str, *parts: str) -> str:
    """`join("s3://b/x/", "y")` -> `"s3://b/x/y"`."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system for `url` and the path in it. Called afresh in every process: no client crosses a fork."""
    scheme = url.split("://", 1)[0] if "://" in url else "file"
    if scheme not in fsspec.available_protocols():
        raise StorageError(f"{url}: unknown scheme {scheme!r}; use a local path, s3:// or another fsspec protocol")
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a"):
        # A listing kept from before a write would hide a committed shard.
        options = {"use_listings_cache": False, "config_kwargs": {"max_pool_connections": s3_reads.CONNECTIONS}}
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        remedy = "install the extra: pip install 'splat-and-distill-at-scale[s3]'" if options else "install that, or use a local path"
        raise StorageError(f"{url}: nothing here reads {scheme}:// ({error}); {remedy}") from error
    return fs, path


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns what a file system raises into one line that names the URL and the remedy."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{url}: not found; check the URL (scheme, bucket, path)") from error
    except PermissionError as error:
        raise StorageError(
            f"{url}: access refused ({type(error).__name__}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        ) from error
    except Exception as error:
        # botocore's own errors (no endpoint, no credentials) do not derive from OSError.
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
            raise StorageError(
                f"{url}: {type(error).__name__}: {error}; check the URL, AWS_ENDPOINT_URL, the credentials and the network"
            ) from error
        raise


def _is_transient(error: BaseException) -> bool:
    """Whether the same read may succeed a moment later: a cut connection, a busy or restarting server."""
    if isinstance(error, StorageError):
        return error.__cause__ is not None and _is_transient(error.__cause__)
    if isinstance(error, (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)):
        return False
    name = type(error).__name__
    return isinstance(error, (ConnectionError, TimeoutError)) or name in {
        "ClientPayloadError", "ConnectTimeoutError", "ConnectionClosedError", "EndpointConnectionError", "IncompleteRead",
        "ReadTimeoutError", "ServerTimeoutError",
    }  # fmt: skip


def _read(url: str, attempt: Any) -> Any:
    wait = _FIRST_WAIT_S
    for remaining in reversed(range(_ATTEMPTS)):
        try:
            with _explained(url):
                return attempt()
        except StorageError as error:
            if not remaining or not _is_transient(error):
                raise
            time.sleep(wait)
            wait *= 4
    raise AssertionError("unreachable")


def read_bytes(url: str) -> bytes:
    """The whole object. Bounded retries where the connection broke."""

    def attempt() -> bytes:
        fs, path = filesystem(url)
        return fs.cat_file(path)

    return _read(url, attempt)


def read_many(urls: Sequence[str]) -> list[bytes]:
    """Whole small objects, many in flight together where the store allows it. The URLs share one file system.

    Raises:
        NotFound: one is missing; the message names it.
    """
    return _read_parts(urls, [None] * len(urls), [None] * len(urls))


def read_ranges(urls: Sequence[str], offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    """One byte range of each URL, all in flight together where the store allows it. The URLs share one file system."""
    parts = _read_parts(urls, list(offsets), [offset + size for offset, size in zip(offsets, sizes, strict=True)])
    for url, part, size in zip(urls, parts, sizes, strict=True):
        if len(part) != size:
            raise StorageError(f"{url}: {len(part)} bytes came where {size} were asked for; the object is shorter than its index says")
    return parts


def _read_parts(urls: Sequence[str], starts: list, ends: list) -> list[bytes]:
    """`url[start:end]` of each. Where some reads failed for the moment, only those are made again."""
    parts: list[Any] = [None] * len(urls)
    missing = list(range(len(urls)))

    def attempt() -> None:
        nonlocal missing
        fs, _ = filesystem(urls[0])
        asked = [fs._strip_protocol(urls[n]) for n in missing], [starts[n] for n in missing], [ends[n] for n in missing]
        for n, part in zip(missing, _cat_ranges(fs, *asked), strict=True):
            parts[n] = part
        missing = [n for n in missing if isinstance(parts[n], BaseException)]
        # What no retry mends comes first.
        for n in sorted(missing, key=lambda n: _is_transient(parts[n])):
            with _explained(urls[n]):
                raise parts[n]

    if urls:
        _read(urls[0], attempt)
    return parts


def _cat_ranges(fs: fsspec.AbstractFileSystem, paths: list[str], starts: list, ends: list) -> list[bytes | BaseException]:
    """`path[start:end]` of each, or what went wrong."""
    if _is_local(fs):
        return _pread(paths, starts, ends)
    if not _is_s3(fs):
        return fs.cat_ranges(paths, starts, ends, on_error="return")
    parts: list[Any] = s3_reads.read_parts(fs, paths, starts, ends)
    left = [n for n, part in enumerate(parts) if part is None]
    if left:
        asked = [paths[n] for n in left], [starts[n] for n in left], [ends[n] for n in left]
        # Otherwise s3fs asks for the size of a whole object first, to cut a large one up: a second request each.
        for n, part in zip(left, fs.cat_ranges(*asked, on_error="return", max_concurrency=1), strict=True):
            parts[n] = part
    return parts


def _pread(paths: list[str], starts: list, ends: list) -> list[bytes | BaseException]:
    """From local files, each opened once; an eighth of the CPU time that fsspec takes."""
    parts: list[bytes | BaseException] = []
    opened: dict[str, int] = {}
    try:
        for path, start, end in zip(paths, starts, ends, strict=True):
            try:
                if path not in opened:
                    opened[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                begin, stop = start or 0, os.fstat(opened[path]).st_size if end is None else end
                parts.append(os.pread(opened[path], stop - begin, begin))
            except OSError as error:
                parts.append(error)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
    return parts


def write_bytes(url: str, data: bytes) -> None:
    """Replaces the object in one go: a reader sees the old or the new one, never half of one."""
    with _explained(url):
        fs, path = filesystem(url)
        if _is_local(fs):
            with _written(path, data) as temporary:
                os.replace(temporary, path)
        else:
            fs.pipe_file(path, data)


def create_bytes(url: str, data: bytes) -> bool:
    """Writes the object if nothing lies at `url`; of several that try at once, one does.

    Other stores than a local disk and S3 get a look and then a write, between which another writer may come. Where the connection breaks
    after S3 has taken the object, the retry finds it there: that write can be reported as another's.

    Returns:
        Whether this call wrote it.
    """
    with _explained(url):
        fs, path = filesystem(url)
        if _is_local(fs):
            with _written(path, data) as temporary:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    return False
            return True
        if not _is_s3(fs):
            if exists(url):
                return False
            fs.pipe_file(path, data)
            return True
        for remaining in reversed(range(_ATTEMPTS)):
            try:
                fs.pipe_file(path, data, mode="create")
                return True
            except OSError as error:
                # AWS answers a refused condition as FileExistsError, other servers as EINVAL; EBUSY is another write under way.
                if not (isinstance(error, FileExistsError) or error.errno in (errno.EINVAL, errno.EBUSY)):
                    raise
                if exists(url):
                    return False
                if not remaining:
                    raise
                time.sleep(_FIRST_WAIT_S)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _written(path: str, data: bytes) -> Iterator[str]:
    """A temporary local file beside `path` that holds `data`, on the disk; removed at the end unless it was renamed."""
    os.makedirs(posixpath.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL}"
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def local_path(url: str) -> str | None:
    """The path of a URL on a local disk; None where it lies elsewhere."""
    fs, path = filesystem(url)
    return path if _is_local(fs) else None


def exists(url: str) -> bool:
    """Whether an object lies at `url`. Wrong credentials raise: they are not an absence."""

    def attempt() -> bool:
        fs, path = filesystem(url)
        try:
            fs.info(path)
        except FileNotFoundError:
            return False
        return True

    return _read(url, attempt)


def list_objects(url: str) -> dict[str, ObjectInfo]:
    """The objects directly below the folder `url`, by name. An absent folder is an empty one."""
    return _objects(url, deep=False)


def list_sizes(url: str) -> dict[str, int]:
    """The objects directly below the folder `url`: name -> bytes. An absent folder is an empty one."""
    return {name: info.size for name, info in _objects(url, deep=False).items()}


def find_sizes(url: str) -> dict[str, int]:
    """The objects anywhere below the folder `url`: path relative to it -> bytes. An absent folder is an empty one."""
    return {name: info.size for name, info in _objects(url, deep=True).items()}


def _objects(url: str, deep: bool) -> dict[str, ObjectInfo]:
    def attempt() -> dict[str, ObjectInfo]:
        fs, path = filesystem(url)
        if _is_local(fs):
            return _local_objects(path, deep)
        try:
            entries = list(fs.find(path, detail=True).values()) if deep else fs.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        files = {entry["name"][len(path.rstrip("/")) + 1 :]: entry for entry in entries if entry["type"] == "file"}
        # A name that ends in "/" is an S3 console's mark of a folder; no name is `url` itself, an object.
        return {
            name: ObjectInfo(int(entry["size"]), str(entry.get("ETag", "")).strip('"'))
            for name, entry in files.items()
            if name and not name.endswith("/")
        }

    return _read(url, attempt)


def _local_objects(path: str, deep: bool) -> dict[str, ObjectInfo]:
    def refused(error: OSError) -> None:
        # A folder that another process has just removed is as good as an absent one.
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise error

    found = {}
    for folder, _, names in os.walk(path, onerror=refused):
        for name in names:
            file = posixpath.join(folder, name)
            if not name.endswith(_PARTIAL):
                with contextlib.suppress(FileNotFoundError):
                    stat = os.stat(file)
                    found[posixpath.relpath(file, path)] = ObjectInfo(stat.st_size, str(stat.st_mtime_ns))
        if not deep:
            break
    return found


def list_folders(url: str) -> list[str]:
    """The names of the folders directly below `url`, sorted. An absent folder has none."""

    def attempt() -> list[str]:
        fs, path = filesystem(url)
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(e["name"].rstrip("/")) for e in entries if e["type"] == "directory")

    return _read(url, attempt)


def remove(url: str) -> None:
    """Removes one object."""
    with _explained(url):
        fs, path = filesystem(url)
        fs.rm_file(path)


def remove_many(urls: Sequence[str]) -> None:
    """Removes objects, on S3 a thousand at a request; quiet about what is already gone. The URLs share one file system."""
    if not urls:
        return
    with _explained(urls[0]):
        fs, _ = filesystem(urls[0])
        _remove_paths(fs, [fs._strip_protocol(url) for url in urls])


def _remove_paths(fs: fsspec.AbstractFileSystem, paths: Sequence[str]) -> None:
    if not _is_s3(fs):
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(path)
        return
    buckets: dict[str, list[str]] = {}
    for path in paths:
        bucket, _, key = path.partition("/")
        if key:
            buckets.setdefault(bucket, []).append(key)
    for bucket, keys in buckets.items():
        for n in range(0, len(keys), _BULK):
            # s3fs's own bulk delete passes over what the server refused to delete.
            answer = fs.call_s3(
                "delete_objects", Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys[n : n + _BULK]], "Quiet": True}
            )
            for refused in answer.get("Errors", []):
                raise StorageError(
                    f"s3://{bucket}/{refused['Key']}: not removed ({refused.get('Code')}); check the credentials and the bucket's policy"
                )


def move(url: str, new_url: str) -> None:
    """Renames an object within one file system; on S3 a copy, then a removal. Replaces what lies at `new_url`."""
    with _explained(url):
        fs, path = filesystem(url)
        _, new_path = filesystem(new_url)
        if _is_local(fs):
            os.makedirs(posixpath.dirname(new_path), exist_ok=True)
            os.replace(path, new_path)
        else:
            fs.cp_file(path, new_path)
            fs.rm_file(path)


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in _protocols(fs)


def _is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    return "s3" in _protocols(fs)


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
