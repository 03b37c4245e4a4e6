"""Every place is a URL: a local path, `file://`, `s3://`, or anything else that fsspec knows. One small set of calls for all of them.

Endpoint and credentials come from the environment, as every AWS tool reads them (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`, ...); nothing here stores, prints or passes on a secret. Failures come back as `StorageError`, one
line that names the URL and the remedy.

    write_bytes("s3://bucket/set/a.json", b"{}")
    read_bytes("s3://bucket/set/a.json")
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import time
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec

_ATTEMPTS = 4
_FIRST_WAIT_S = 0.25
_PARTIAL = ".partial"  # a local file being written; one that a killed process left is nobody's


class StorageError(OSError):
    """A location could not be read or written. The message names the URL and what to do."""


class NotFound(StorageError):
    """Nothing lies at the URL."""


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
        options = {"use_listings_cache": False}
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise StorageError(f"{url}: {error}; install the extra: pip install 'splat-and-distill-at-scale[s3]'") from error
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
        "ClientPayloadError", "ConnectTimeoutError", "EndpointConnectionError", "IncompleteRead", "ReadTimeoutError", "ServerTimeoutError",
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


def read_ranges(urls: Sequence[str], offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    """One byte range of each URL, all in flight together where the store allows it. The URLs share one file system."""
    if not urls:
        return []

    def attempt() -> list[bytes]:
        fs, _ = filesystem(urls[0])
        paths = [fs._strip_protocol(url) for url in urls]
        ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
        parts = fs.cat_ranges(paths, list(offsets), ends, on_error="return")
        for url, part, size in zip(urls, parts, sizes, strict=True):
            if isinstance(part, BaseException):
                with _explained(url):
                    raise part
            if len(part) != size:
                raise StorageError(
                    f"{url}: {len(part)} bytes came where {size} were asked for; the object is shorter than its manifest says"
                )
        return parts

    return _read(urls[0], attempt)


def write_bytes(url: str, data: bytes) -> None:
    """Replaces the object in one go: a reader sees the old or the new one, never half of one."""
    with _explained(url):
        fs, path = filesystem(url)
        if "file" in _protocols(fs):
            fs.makedirs(posixpath.dirname(path), exist_ok=True)
            temporary = f"{path}.{os.getpid()}{_PARTIAL}"
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        else:
            fs.pipe_file(path, data)


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


def list_sizes(url: str) -> dict[str, int]:
    """The objects directly below the folder `url`: name -> bytes. An absent folder is an empty one."""

    def attempt() -> dict[str, int]:
        fs, path = filesystem(url)
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        sizes = {posixpath.basename(e["name"]): int(e["size"]) for e in entries if e["type"] == "file"}
        return {name: size for name, size in sizes.items() if not name.endswith(_PARTIAL)}

    return _read(url, attempt)


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


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
