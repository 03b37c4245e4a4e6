"""Joining Ray: the cluster that the job was submitted to, or a small one of our own on the loopback."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from configs import ConfigError
from configs.schema import ActorConfig, RayConfig

_PROBE_S = 5.0
_HTTP_S = 1.0


@dataclass(frozen=True)
class Cluster:
    """What a stage may count on. workers: actors or tasks at a time, one CPU each; cpus, gpus: in the cluster."""

    workers: int
    cpus: float
    gpus: float

    def model_stage(self, actor: ActorConfig, gpu: bool) -> tuple[int, dict[str, float]]:
        """Workers and their resources, as many as fit; with a share of a GPU each where the stage can use one and there are any."""
        resources = {"num_cpus": actor.cpus}
        fitting = self.cpus / actor.cpus if actor.cpus > 0 else self.workers
        if gpu and self.gpus and actor.gpus > 0:
            resources["num_gpus"] = actor.gpus
            fitting = min(fitting, self.gpus / actor.gpus)
        if fitting < 1:
            raise ConfigError(
                f"actor.cpus={actor.cpus:g}, actor.gpus={actor.gpus:g}: the cluster has {self.cpus:g} CPUs and {self.gpus:g} GPUs, "
                "too few for one actor"
            )
        return min(self.workers, int(fitting)), resources


@contextlib.contextmanager
def joined(config: RayConfig) -> Iterator[Cluster]:
    """Connects to Ray for the block.

    A submitted job, or RAY_ADDRESS, or `ray.address` says which cluster. Otherwise a local one starts, bound to the loopback, and ends with
    the block; it never joins a cluster that somebody else left on the machine.
    """
    import ray

    address = config.address or os.environ.get("RAY_ADDRESS")
    if address:
        _probe(address, "ray.address" if config.address else "RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(
                address="local", include_dashboard=False, _node_ip_address="127.0.0.2", logging_level=logging.WARNING,
                num_cpus=max(config.workers, os.cpu_count() or 1),
            )  # fmt: skip
    except ConnectionError as error:
        raise ConfigError(
            f"ray.address={address}: no Ray cluster answers there; start one with `ray start --head`, or leave the address out"
        ) from error
    try:
        resources = ray.cluster_resources()
        cpus = resources.get("CPU", 1.0)
        yield Cluster(config.workers or max(1, int(cpus)), cpus, resources.get("GPU", 0.0))
    finally:
        ray.shutdown()


def _probe(address: str, name: str) -> None:
    """Refuses an address at which no cluster can be: Ray itself would try for ten minutes without a word. name: of who gave it."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{name}={address}: that is the job server's, which takes jobs: ray job submit --address {address} --working-dir . -- "
            "python pipeline/...; to join the cluster itself give HOST:PORT, as `ray start --head` prints it"
        )
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:  # auto, local
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S) as connection:
            is_web_server = _speaks_http(connection)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{name}={address}: no Ray cluster answers there ({error}); start one with `ray start --head`, or leave the address out for a "
            "local one"
        ) from error
    if is_web_server:
        raise ConfigError(
            f"{name}={address}: a web server answers there, such as Ray's job server; give HOST:PORT as `ray start --head` prints it"
        )


def _speaks_http(connection: socket.socket) -> bool:
    """A cluster hangs up, says nothing, or answers in frames."""
    connection.settimeout(_HTTP_S)
    try:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(5) == b"HTTP/"
    except OSError:
        return False


def map_tasks(function: Callable[..., Any], arguments: Iterable[Sequence[Any]], workers: int) -> Iterator[tuple[int, Any]]:
    """Runs `function(*arguments[i])` as Ray tasks, `workers` at a time, and yields (i, result) as they end. A task's exception is raised as
    itself."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=3)(function)
    waiting = list(enumerate(arguments))[::-1]
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            number, values = waiting.pop()
            running[task.remote(*values)] = number
        (done,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(done)
        yield number, result_of(done)


def result_of(reference: Any) -> Any:
    """`ray.get`, with an exception of the task raised as what it was there."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
