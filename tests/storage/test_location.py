"""Locations: local disk and S3 alike; every failure names the URL and the remedy."""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from subprocess import PIPE
from urllib.parse import urlsplit

import fsspec
import pytest
import s3fs

from storage import location, s3_reads
from storage.location import NotFound, ObjectInfo, StorageError, join
from tests.conftest import REPOSITORY
from tests.servers import delayed, requests_made


def test_write_read_list_remove(store_url: str) -> None:
    location.write_bytes(join(store_url, "a", "one"), b"1")
    location.write_bytes(join(store_url, "a", "two"), b"22")
    location.write_bytes(join(store_url, "a", "deep", "three"), b"333")
    location.write_bytes(join(store_url, "a", "two"), b"2222")
    assert location.read_bytes(join(store_url, "a", "two")) == b"2222"
    assert location.list_sizes(join(store_url, "a")) == {"one": 1, "two": 4}
    assert location.list_folders(join(store_url, "a")) == ["deep"]
    location.remove(join(store_url, "a", "one"))
    assert not location.exists(join(store_url, "a", "one"))
    assert location.list_sizes(join(store_url, "nothing")) == {}


def test_ranges_come_in_order_and_short_objects_are_noticed(store_url: str) -> None:
    urls = [join(store_url, name) for name in "xyz"]
    for n, url in enumerate(urls):
        location.write_bytes(url, bytes([65 + n]) * 100)
    assert location.read_ranges([urls[2], urls[0], urls[0]], [0, 5, 95], [2, 3, 5]) == [b"CC", b"AAA", b"AAAAA"]
    assert location.read_ranges([], [], []) == []
    with pytest.raises(StorageError, match="shorter than its index"):
        location.read_ranges([urls[0]], [90], [20])
    with pytest.raises(NotFound, match="not found; check the URL"):
        location.read_ranges([join(store_url, "absent")], [0], [1])


def test_whole_objects_come_in_order_and_a_missing_one_is_named(store_url: str) -> None:
    urls = [join(store_url, str(n)) for n in range(40)]
    for n, url in enumerate(urls):
        location.write_bytes(url, b"%d" % n * n)
    assert location.read_many(urls[::-1] + urls[:2]) == [b"%d" % n * n for n in [*range(39, -1, -1), 0, 1]]
    assert location.read_many([]) == []
    with pytest.raises(NotFound, match=r"absent/one: not found"):
        location.read_many([urls[0], join(store_url, "absent", "one"), urls[1]])


def test_only_the_reads_that_failed_are_made_again(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [join(store_url, name) for name in "xyz"]
    for url in urls:
        location.write_bytes(url, url.encode())
    asked: list[list[str]] = []
    cat_ranges = location._cat_ranges

    def flaky(fs: fsspec.AbstractFileSystem, paths: list[str], starts: list, ends: list) -> list:
        asked.append([path[-1] for path in paths])
        parts = cat_ranges(fs, paths, starts, ends)
        cut = len(asked) < 3
        return [ConnectionResetError("cut") if cut and path.endswith("y") else part for path, part in zip(paths, parts, strict=True)]

    monkeypatch.setattr(location, "_cat_ranges", flaky)
    monkeypatch.setattr(location, "_FIRST_WAIT_S", 0.0)
    assert location.read_many(urls) == [url.encode() for url in urls]
    assert asked == [["x", "y", "z"], ["y"], ["y"]]
    asked.clear()
    with pytest.raises(NotFound, match="absent"):  # at once, although another read could be made again
        location.read_many([*urls, join(store_url, "absent")])
    assert len(asked) == 1


@pytest.mark.parametrize("fault", ["none", "refused", "no credentials", "failing"])
def test_what_the_short_way_to_s3_does_not_bring_comes_through_the_client(fault: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [join(s3, name) for name in ("plain", "a b+c%20?&=~(é).tar")]
    for url in urls:
        location.write_bytes(url, url.encode() * 100)
    fs, _ = location.filesystem(s3)
    asked: list[str] = []
    cat_ranges = fs.cat_ranges

    def ordinary(paths: list[str], *arguments: object, **options: object) -> list:
        asked.extend(paths)
        return cat_ranges(paths, *arguments, **options)

    monkeypatch.setattr(fs, "cat_ranges", ordinary)
    monkeypatch.setattr(s3_reads, "_roots", {})
    if fault == "refused":
        with monkeypatch.context() as patch:
            patch.setattr("botocore.auth.S3SigV4Auth.signature", lambda *_: "0" * 64)
            assert s3_reads.read_parts(fs, ["test/x"], [None], [None]) == [None]
        assert set(s3_reads._roots.values()) == {""}  # and is not tried again
    if fault == "no credentials":
        monkeypatch.setattr(fs.session, "get_credentials", None)
    if fault == "failing":
        monkeypatch.setattr(s3_reads, "quote", None)
    assert location.read_many(urls) == [url.encode() * 100 for url in urls]
    assert location.read_ranges(urls, [5, 7], [100, 20]) == [(urls[0].encode() * 100)[5:105], (urls[1].encode() * 100)[7:27]]
    assert bool(asked) == (fault != "none")


def test_create_writes_only_where_nothing_lies(store_url: str) -> None:
    url = join(store_url, "claims", "a")
    assert location.create_bytes(url, b"first")
    assert not location.create_bytes(url, b"second")
    assert location.read_bytes(url) == b"first"
    location.remove(url)
    assert location.create_bytes(url, b"third")
    assert location.find_sizes(store_url) == {"claims/a": 5}


def test_of_racing_creators_one_wins(store_url: str) -> None:
    location.write_bytes(join(store_url, "there"), b"")  # the client is made once, before the race
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(3):
            url = join(store_url, f"claim-{round_}")
            barrier = threading.Barrier(8)

            def create(n: int, url: str = url, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return location.create_bytes(url, b"%d" % n)

            won = list(pool.map(create, range(8)))
            assert sum(won) == 1
            assert location.read_bytes(url) == b"%d" % won.index(True)


def test_of_racing_processes_one_creates(store_url: str) -> None:
    code = "import sys; from storage import location; sys.stdin.read(1); print(location.create_bytes(sys.argv[1], sys.argv[2].encode()))"
    start = [sys.executable, "-c", code, join(store_url, "claim")]
    racers = [subprocess.Popen([*start, str(n)], cwd=REPOSITORY, stdin=PIPE, stdout=PIPE, text=True) for n in range(3)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("g")
        racer.stdin.flush()
    won = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(won) == ["False", "False", "True"]
    assert location.read_bytes(join(store_url, "claim")) == b"%d" % won.index("True")


def test_a_refused_creation_is_an_error_and_not_a_loss(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(22, "BadDigest")

    monkeypatch.setattr(location.filesystem(s3)[0], "pipe_file", refuse)
    monkeypatch.setattr(location, "_FIRST_WAIT_S", 0.0)
    with pytest.raises(StorageError, match=r"claim: .*BadDigest"):
        location.create_bytes(join(s3, "claim"), b"")


def test_a_store_without_conditional_writes_creates_too() -> None:
    assert location.create_bytes("memory://claims/a", b"1")
    assert not location.create_bytes("memory://claims/a", b"2")
    assert location.list_sizes("memory://claims") == {"a": 1}
    assert location.read_many(["memory://claims/a"]) == [b"1"]
    location.remove_many(["memory://claims/a"])
    assert location.find_sizes("memory://claims") == {}


def test_a_changed_object_has_another_version(store_url: str) -> None:
    for name in ("a", "b"):
        location.write_bytes(join(store_url, name), b"12")
    before = location.list_objects(store_url)
    assert set(before) == {"a", "b"}
    assert all(isinstance(info, ObjectInfo) and info.size == 2 and info.version for info in before.values())
    location.write_bytes(join(store_url, "a"), b"21")
    after = location.list_objects(store_url)
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]
    assert location.list_objects(join(store_url, "a")) == {}  # an object is no folder


def test_long_listings_are_whole_and_never_stale(store_url: str) -> None:
    fs, path = location.filesystem(store_url)
    names = {f"{n:04}" for n in range(1100)}
    if store_url.startswith("s3"):
        fs.pipe({f"{path}/deep/{name}": b"1" for name in names})
    else:
        os.makedirs(f"{path}/deep")
        for name in names:
            with open(f"{path}/deep/{name}", "wb") as stream:
                stream.write(b"1")
    deep = join(store_url, "deep")
    assert set(location.list_objects(deep)) == names
    assert location.find_sizes(store_url) == {f"deep/{name}": 1 for name in names}
    fsspec.filesystem("s3" if store_url.startswith("s3") else "file", skip_instance_cache=True).pipe_file(f"{path}/deep/new", b"22")
    assert location.list_sizes(deep)["new"] == 2
    location.remove_many([join(deep, name) for name in names])
    assert location.find_sizes(store_url) == {"deep/new": 2}


def test_what_is_removed_is_gone_and_its_neighbours_stay(store_url: str) -> None:
    for name in ("a/one", "a/b/two", "ab/three"):
        location.write_bytes(join(store_url, name), b"1")
    assert location.find_sizes(join(store_url, "a")) == {"one": 1, "b/two": 1}
    for _ in range(2):
        location.remove_many([join(store_url, "a", "one"), join(store_url, "a", "b", "two")])
        assert location.find_sizes(store_url) == {"ab/three": 1}
    location.remove_many([join(store_url, "ab", "three"), join(store_url, "ab", "absent")])
    location.remove_many([])
    assert location.find_sizes(store_url) == {}


def test_move_replaces(store_url: str) -> None:
    location.write_bytes(join(store_url, "a"), b"new")
    location.write_bytes(join(store_url, "c", "b"), b"old")
    location.move(join(store_url, "a"), join(store_url, "c", "b"))
    assert location.find_sizes(store_url) == {"c/b": 3}
    assert location.read_bytes(join(store_url, "c", "b")) == b"new"
    with pytest.raises(NotFound, match="a: not found"):
        location.move(join(store_url, "a"), join(store_url, "x"))


def test_a_missing_object_is_named(store_url: str) -> None:
    with pytest.raises(NotFound, match=r"absent/thing: not found; check the URL"):
        location.read_bytes(join(store_url, "absent", "thing"))


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(StorageError, match="unknown scheme 'gopher'"):
        location.read_bytes("gopher://host/file")


def test_wrong_credentials_are_an_error_and_not_an_absence(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    location.write_bytes(join(s3, "there"), b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-that-one")
    s3fs.S3FileSystem.clear_instance_cache()
    for call in (location.read_bytes, location.exists, location.list_sizes):
        with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY") as caught:
            call(join(s3, "there"))
        assert "not-that-one" not in str(caught.value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_no_server_at_the_endpoint_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(location, "_FIRST_WAIT_S", 0.0)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"s3://test/.*AWS_ENDPOINT_URL"):
        location.read_bytes(join(s3, "x"))
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def slow(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Puts a proxy between this process and the S3 server: `slow(seconds, flip_first=0)` gives the proxy's endpoint."""
    with contextlib.ExitStack() as stack:

        def start(seconds: float, flip_first: int = 0) -> str:
            proxy = stack.enter_context(delayed(os.environ["AWS_ENDPOINT_URL"], seconds, flip_first))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
            s3fs.S3FileSystem.clear_instance_cache()
            location.exists(s3)  # the client is made now
            return proxy

        yield start
    s3fs.S3FileSystem.clear_instance_cache()


def test_many_reads_wait_together(s3: str, slow: Callable[..., str]) -> None:
    large = os.urandom(5 << 20)
    location.write_bytes(join(s3, "direct"), large)
    proxy = slow(0.2)
    location.write_bytes(join(s3, "there"), large)
    assert location.read_bytes(join(s3, "there")) == location.read_bytes(join(s3, "direct")) == large
    made = requests_made(proxy)
    began = time.monotonic()
    parts = location.read_ranges([join(s3, "there")] * 64, [n * 1000 for n in range(64)], [60_000] * 64)
    assert time.monotonic() - began < 2
    assert requests_made(proxy) == made + 64
    assert parts == [large[n * 1000 : n * 1000 + 60_000] for n in range(64)]
    location.read_many([join(s3, "there"), join(s3, "direct")])
    assert requests_made(proxy) == made + 66  # and not a question for the size of each
    assert location.list_sizes(s3) == {"direct": 5 << 20, "there": 5 << 20}
    with pytest.raises(NotFound):
        location.read_bytes(join(s3, "absent"))
    location.remove_many([join(s3, name) for name in location.find_sizes(s3)])
    assert location.find_sizes(s3) == {}


def test_the_proxy_flips_one_bit_of_the_first_ranged_reads(s3: str, slow: Callable[..., str]) -> None:
    slow(0.0, flip_first=2)
    url = join(s3, "zeros")
    location.write_bytes(url, bytes(100_000))
    assert location.read_many([url]) == [bytes(100_000)]  # no range
    parts = [location.read_ranges([url], [10], [90_000])[0] for _ in range(3)]
    assert [sum(part) for part in parts] == [1, 1, 0]
    assert all(len(part) == 90_000 for part in parts)


def test_the_proxy_passes_every_kind_of_body() -> None:
    """Against a server of the standard library: chunked replies, uploads that ask first, replies that end with the connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_response(200)
            if self.path == "/chunked":
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
            elif self.path == "/until-closed":
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(b"z" * 500_000)
                self.close_connection = True
            else:
                host = self.headers["Host"].encode()
                self.send_header("Content-Length", str(len(host)))
                self.end_headers()
                self.wfile.write(host)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.closing(server.socket), delayed(f"http://127.0.0.1:{server.server_port}", 0.0) as proxy:
        host = urlsplit(proxy).netloc
        client = http.client.HTTPConnection(host, timeout=20)  # one connection for all
        for path, body in [("/host", host.encode()), ("/chunked", b"abcdefg"), ("/host", host.encode()), ("/until-closed", b"z" * 500_000)]:
            client.request("GET", path)
            assert client.getresponse().read() == body
        client = http.client.HTTPConnection(host, timeout=20)
        large = os.urandom(3 << 20)
        client.request("PUT", "/x", body=large)
        assert client.getresponse().read() == large
        with socket.create_connection(urlsplit(proxy).netloc.split(":"), timeout=20) as stream:
            stream.sendall(b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            assert stream.recv(100).startswith(b"HTTP/1.1 100 ")
            stream.sendall(b"hello")
            stream.shutdown(socket.SHUT_WR)
            assert stream.makefile("rb").read().endswith(b"\r\n\r\nhello")
        client.request("GET", "/host")
        assert client.getresponse().read() == host.encode()
        assert requests_made(proxy) == 7
        server.shutdown()
