"""A cluster that is not there is refused at once, in one line that names who gave its address."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from configs import ConfigError
from configs.schema import RayConfig
from pipeline.cluster import joined
from tests.conftest import command


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", r"ray\.address=http://127\.0\.0\.1:8265: that is the job server's.*ray job submit"),
        ("127.0.0.1:{port}", r"ray\.address=127\.0\.0\.1:\d+: no Ray cluster answers there .*ray start --head"),
        ("ray://127.0.0.1:{port}", "no Ray cluster answers there"),
        ("127.0.0.1:door", "no Ray cluster answers there"),
    ],
)
def test_an_address_without_a_cluster_is_refused_before_ray_tries_it(address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was asked"))
    with pytest.raises(ConfigError, match=message), joined(RayConfig(address.format(port=closed_port()))):
        pass


def test_a_web_server_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job server's address without its `http://`: Ray would try it for ten minutes."""
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was asked"))
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    try:
        with pytest.raises(ConfigError, match=r"ray\.address=.*: a web server answers there"), joined(RayConfig(address)):
            pass
    finally:
        thread.join(10)
        server.server_close()


def test_the_environment_is_named_where_it_gave_the_address(tmp_path: Path) -> None:
    words = (f"root={tmp_path}", "rooms=1", "frames=4", "scale=0.05", "val=0")
    result = command("pipeline/make_rooms.py", *words, environment={"RAY_ADDRESS": f"127.0.0.1:{closed_port()}"}, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: configuration: RAY_ADDRESS=127.0.0.1:")
    assert len(result.stderr.splitlines()) == 1
