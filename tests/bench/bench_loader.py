"""What a row costs the loader in operators mode: beside the least that its bytes and its images can cost, beside what it was before frames
were stored once, and beside WebDataset and litdata with the same rows; on a disk, on S3, and through a node's cache.

    python tests/bench/bench_loader.py [--dataset folder] [--litdata python] [--rounds 9] [--out file.json]

Without --dataset two synthetic rooms are written and built, which takes some minutes. litdata: an interpreter that has it, and what this
repository imports; this one where it is installed here. CPU time (user and system, all threads of the reading process) of the median round
after one that is not counted; a round is an epoch, files lie in the page cache.

limit: `read_ranges` of the same bytes, neighbours in one request, and the bare decoders on each distinct image of a batch, once.
Peers get each row whole, as their formats store it: with Pillow, which is what their users decode JPEG with, and with our own decoders.
In flight: rows of which something was asked and has not come, with a batch of one and 2 s added to each request.
"images": JPEGs decoded a row. Three, but for targets that are in the context, and for frames that rows of a batch share, which is rarer the
larger a dataset is.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from configs import load  # noqa: E402
from configs.schema import TrainConfig  # noqa: E402
from storage import codec, location  # noqa: E402
from storage.reader import coalesced  # noqa: E402
from storage.records.frames import IMAGE, VALID, decode_valid  # noqa: E402
from storage.records.operators import OPERATOR_MEMBERS, decode_operator  # noqa: E402
from tests.bench import loader_peers as peers  # noqa: E402
from tests.servers import delayed, seaweedfs  # noqa: E402
from training.data.loader import StepSampler, step_batches  # noqa: E402
from training.data.rows import WindowRows, open_rows  # noqa: E402
from training.splat.apply import collate_operators  # noqa: E402

HEIGHT, WIDTH, BATCH = 336, 448, 8
BEFORE_MS = {"disk": 9.622, "S3": 22.002}  # results/loader-before.json
DELAY_S, FLYING_ROWS = 2.0, 24


def build_dataset(folder: Path) -> str:
    for command in (
        ["make_rooms.py", f"root={folder}/rooms", "rooms=2", "frames=72", "scale=0.3", "val=0", "seed=5"],
        ["build_shards.py", f"root={folder}/rooms", f"dataset={folder}/set", f"width={WIDTH}", f"height={HEIGHT}", "frames_per_shard=64",
         "features=none", "backbone=demo", "source=synthetic-rooms", "licence=MIT"],
        ["cache_gaussians.py", f"dataset={folder}/set"],
    ):  # fmt: skip
        subprocess.run([sys.executable, f"pipeline/{command[0]}", *command[1:]], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return f"{folder}/set"


def config(dataset: str, *more: str) -> TrainConfig:
    settings = [f"dataset={dataset}", f"output={dataset}/none", "backbone=demo", f"batch={BATCH}", "loader.workers=0", *more]
    return load(TrainConfig, settings)


def median_ms(work: Callable[[int], Any], rounds: int, rows: int) -> float:
    """CPU ms a row of `work(round)`."""
    times = []
    for number in range(rounds + 1):
        started = time.process_time()
        work(number)
        times.append(time.process_time() - started)
    return 1e3 * statistics.median(times[1:]) / rows


def consume(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


class Ours:
    """The loader and its limit, over the same steps of one dataset."""

    def __init__(self, dataset: str, *more: str) -> None:
        self.config = config(dataset, *more)
        self.rows: WindowRows = open_rows(self.config)
        self.steps = len(self.rows) // BATCH

    def round(self, number: int) -> range:
        return range(self.steps * number, self.steps * (number + 1))

    def loader(self, number: int) -> None:
        consume(step_batches(self.rows, self.config, self.round(number), 0, 1))

    def wanted(self, number: int) -> list[list[Any]]:
        sampler = StepSampler(len(self.rows), self.config.seed, BATCH, self.round(number), 0, 1)
        return [[self.rows._wanted(*choice) for choice in choices] for choices in sampler]

    def limits(self, rounds: int) -> Callable[[int], None]:
        """Round by round what must be read and decoded, put together beforehand."""
        rounds_of_runs = [
            [(batch, coalesced(list({member for row in batch for member in row.members.values()}))) for batch in self.wanted(number)]
            for number in range(rounds + 1)
        ]

        def limit(number: int) -> None:
            for batch, runs in rounds_of_runs[number]:
                parts = location.read_ranges(
                    [run[0].url for run in runs],
                    [run[0].offset for run in runs],
                    [run[-1].offset + run[-1].size - run[0].offset for run in runs],
                )
                found = {
                    member: part[member.offset - run[0].offset :][: member.size]
                    for run, part in zip(runs, map(memoryview, parts), strict=True)
                    for member in run
                }
                for member, data in found.items():
                    if member.name == IMAGE:
                        codec.decode_jpeg(data)
                    elif member.name == VALID:
                        decode_valid(data, HEIGHT, WIDTH)
                operators = [next(found[m] for (name, _), m in row.members.items() if name.endswith(OPERATOR_MEMBERS[0])) for row in batch]
                collate_operators([decode_operator({OPERATOR_MEMBERS[0]: bytes(data)}) for data in operators])

        return limit

    def peer_rows(self, number: int) -> list[peers.Row]:
        """The rows of a round as the other formats store them, in its order."""
        found = []
        for row in (row for batch in self.wanted(number) for row in batch):
            operator = next(m for (name, _), m in row.members.items() if name.endswith(OPERATOR_MEMBERS[0]))
            images = [row.members[IMAGE, frame] for frame in (*row.context, row.target)]
            found.append(peers.Row(*self.rows.table.reader.read([*images, row.members[VALID, row.target], operator])))
        return found


def measure_ours(dataset: str, rounds: int, *more: str) -> dict[str, float]:
    """CPU ms a row of the loader and of its limit, in turns, as the machine is shared."""
    ours = Ours(dataset, *more)
    counted = ours.steps * BATCH
    limit = ours.limits(rounds)
    times: dict[str, list[float]] = {"loader": [], "limit": []}
    for number in range(rounds + 1):
        for name, work in (("loader", ours.loader), ("limit", limit)):
            started = time.process_time()
            work(number)
            times[name].append(1e3 * (time.process_time() - started) / counted)
    asked = ours.rows.table.reader.counts()
    batches = [batch for number in range(rounds + 1) for batch in ours.wanted(number)]
    images = sum(len({member for row in batch for member in row.members.values() if member.name == IMAGE}) for batch in batches)
    count = counted * (rounds + 1)
    return {
        **{name: statistics.median(values[1:]) for name, values in times.items()},
        **{f"{name}_lowest": min(values[1:]) for name, values in times.items()},
        "requests_per_row": asked["requests"] / count, "bytes_per_row": asked["bytes"] / count,
        "images_per_row": images / count,
    }  # fmt: skip


def measure_peers(kinds: list[str], tars: Path, rounds: int) -> dict[str, float]:
    """CPU ms a row of WebDataset and litdata, with both kinds of decoding. tars: the rows, as WebDataset has them."""
    torch.set_num_threads(1)
    rows = [row for batch in peers.read_webdataset(tars, 1, list) for row in batch]
    figures = {}
    order = np.random.default_rng(0).permutation(len(rows)).reshape(-1, BATCH)
    with tempfile.TemporaryDirectory() as folder:
        if "litdata" in kinds:
            peers.write_litdata(rows, Path(folder, "litdata"))
        for name, decode in peers.DECODERS.items():
            readers: dict[str, Callable[[int], Any]] = {
                "WebDataset": lambda _, decode=decode: consume(peers.read_webdataset(tars, BATCH, decode)),
                "litdata": lambda _, decode=decode: consume(peers.read_litdata(Path(folder, "litdata"), order, decode)),
            }
            for kind in kinds:
                figures[f"{kind}, {name}"] = median_ms(readers[kind], rounds, len(rows))
    return figures


def measure_flight(dataset: str) -> dict[str, float]:
    """Rows in flight in one process that reads a batch of one row at a time: the most, and by the time that rows take."""
    settings = config(dataset, "batch=1")
    rows = open_rows(settings)
    len(rows)  # opens its tables
    lock, flying = threading.Lock(), [0, 0]
    fetch = rows.fetch

    def counted(choices: Any) -> Any:
        with lock:
            flying[0] += 1
            flying[1] = max(flying)
        try:
            return fetch(choices)
        finally:
            with lock:
                flying[0] -= 1

    rows.fetch = counted  # type: ignore[method-assign]
    started = time.perf_counter()
    consume(step_batches(rows, settings, range(FLYING_ROWS), 0, 1))
    return {"most": flying[1], "rows_per_s": FLYING_ROWS / (time.perf_counter() - started)}


def upload(folder: str, url: str) -> None:
    for path in Path(folder).rglob("*"):
        if path.is_file():
            location.write_bytes(location.join(url, str(path.relative_to(folder))), path.read_bytes())


def judged(what: str, value: float, bar: float, at_least: bool) -> dict[str, Any]:
    passed = value >= bar if at_least else value <= bar
    print(f"  {what:<84}{value:>8.3f}  bar {'>=' if at_least else '<='} {bar:<6.3f}{'pass' if passed else 'FAIL'}", flush=True)
    return {"what": what, "value": value, "bar": bar, "at_least": at_least, "passed": passed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="a dataset on a local disk, as the commands above build it")
    parser.add_argument("--litdata", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="writes the results as JSON")
    parser.add_argument("--peers", nargs=2, metavar=("KIND", "TARS"), help=argparse.SUPPRESS)  # what the other interpreter is asked
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peers:
        print(json.dumps(measure_peers([arguments.peers[0]], Path(arguments.peers[1]), arguments.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments.dataset or build_dataset(Path(folder)), Path(folder), arguments)
    if arguments.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        what = {"commit": commit, "machine": machine, "rounds": arguments.rounds, "batch": BATCH, **results}
        arguments.out.write_text(json.dumps(what, indent=1) + "\n")


def measure(dataset: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, dict[str, float]] = {"disk": measure_ours(dataset, arguments.rounds)}
    ours = Ours(dataset)
    peers.write_webdataset([row for number in range(4) for row in ours.peer_rows(number)], folder / "tars", per_shard=64)
    peer_ms = measure_peers(["WebDataset"], folder / "tars", arguments.rounds)
    command = [arguments.litdata, str(Path(__file__)), "--rounds", str(arguments.rounds), "--peers", "litdata", str(folder / "tars")]
    other = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if other.returncode:
        print(f"litdata: not installed; give --litdata an interpreter that has it ({other.stderr.strip().splitlines()[-1:]})")
    else:
        peer_ms |= json.loads(other.stdout.splitlines()[-1])
    with seaweedfs(folder / "server") as environment:
        os.environ.update(environment, SPLAT_AND_DISTILL_CACHE=f"{folder}/node")
        upload(dataset, "s3://test/set")
        figures["S3"] = measure_ours("s3://test/set", arguments.rounds)
        cache = f"loader.cache={folder}/members"
        Ours("s3://test/set", cache).loader(0)
        cached = Ours("s3://test/set", cache)
        for number in range(arguments.rounds + 1):  # every target that the measured rounds draw
            cached.loader(number)
        figures["S3, node cache"] = measure_ours("s3://test/set", arguments.rounds, cache)
        figures["disk again"] = measure_ours(dataset, arguments.rounds)  # beside what it is compared with
        with delayed(environment["AWS_ENDPOINT_URL"], DELAY_S) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a client that exists keeps its endpoint
                flight = pool.apply(measure_flight, ("s3://test/set",))
    print(f"{'CPU ms a row, operators mode':<32}{'loader':>9}{'limit':>9}{'requests':>10}{'bytes':>9}{'images':>9}")
    for store, figure in figures.items():
        asked = f"{figure['requests_per_row']:>10.2f}{figure['bytes_per_row']:>9.0f}{figure['images_per_row']:>9.2f}"
        print(f"  {store:<30}{figure['loader']:>9.2f}{figure['limit']:>9.2f}{asked}")
    for name, value in peer_ms.items():
        print(f"  {name:<30}{value:>9.2f}")
    print(f"rows a second, one process, batch of 1, {DELAY_S:g} s added to each request: {flight['rows_per_s']:.2f}\n")
    bars = []
    for store in ("disk", "S3"):
        figure = figures[store]
        bars.append(judged(f"rows a CPU second over the limit's, {store}", figure["limit"] / figure["loader"], 0.8, True))
        bars.append(judged(f"CPU a row over what it was before, {store}", figure["loader"] / BEFORE_MS[store], 0.45, False))
    ratio = figures["disk again"]["loader"] / figures["S3, node cache"]["loader"]
    bars.append(judged("rows a CPU second of a second epoch, S3 through the node cache over disk", ratio, 0.8, True))
    bars.append(judged("rows in flight of a process, the most", flight["most"], 4, True))
    for name, value in peer_ms.items():
        bars.append(judged(f"CPU a row over that of {name}", figures["disk"]["loader"] / value, 1.0, False))
    return {"bars": bars, "cpu_ms_per_row": {**figures, **peer_ms}, "flight": flight}


if __name__ == "__main__":
    main()
