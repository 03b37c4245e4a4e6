"""What it costs to open a dataset's tables, to hold them and to find a row in them, as they grow; and to list and index many shards on S3.

    python tests/bench/bench_table.py [--rows 10000 100000 1000000] [--shards 10000] [--out file.json]

The tables hold synthetic rows and no tars: `frames`, `masks`, `windows` of stride 1 with 9 frames each, `operators` into each of them. A
reader and two workers, fresh processes all, open the same tables one after the other and keep them open together. Opening: wall time of
the second time, so that the files lie in the page cache. Private: what a process holds for itself (Private_Clean and Private_Dirty), over
what it held before it opened, after its lookups. A lookup draws a target for a random row and finds what a step in operators mode reads of
it, as the loader does; CPU time.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import gc
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from configs import load  # noqa: E402
from configs.schema import TrainConfig  # noqa: E402
from storage import codec, location  # noqa: E402
from storage.column import Column, Record, ShardPlan  # noqa: E402
from storage.index import IndexRows  # noqa: E402
from storage.provenance import Provenance  # noqa: E402
from storage.records.operators import operator_member  # noqa: E402
from storage.table import Table  # noqa: E402
from tests.servers import delayed, requests_made, seaweedfs  # noqa: E402
from training.data.rows import WindowRows  # noqa: E402

TARGETS, SCENE, SHARD = 9, 500, 64
COLUMNS = ["windows", "masks", "operators"]  # and `frames`
LOOKUPS = 20_000
OPEN_S, PRIVATE_MB, LOOKUP_US, LISTING_S, INDEXING_S = 1.0, 50.0, 30.0, 10.0, 60.0


def write_tables(root: str, rows: int) -> dict[str, int]:
    """The four indexes with some `rows` rows each. Returns the bytes of each."""
    frames = -(-rows // SCENE) * SCENE
    scene, number = np.divmod(np.arange(frames), SCENE)
    names = [f"{s * 2654435761 % 2**40:010x}" for s in range(frames // SCENE)]
    keys = [f"{names[s]}-DSC{n:05d}" for s, n in zip(scene.tolist(), number.tolist(), strict=True)]
    random = np.random.default_rng(0)
    first = np.flatnonzero(number <= SCENE - TARGETS)
    targets = (first[:, None] + np.arange(TARGETS)).astype(np.int32)
    attributes = {
        "scene": [names[s] for s in scene.tolist()],
        "number": number,
        "held_out": np.zeros(frames, bool),
        "c2w": pa.FixedSizeListArray.from_arrays(random.standard_normal(frames * 16), 16),
    }
    lists = {"scene": [names[s] for s in scene[first].tolist()], "context": _lists(targets[:, [0, -1]]), "targets": _lists(targets)}
    window_keys = [keys[n] for n in first.tolist()]
    operators = tuple(operator_member(t) for t in range(TARGETS))
    sums: dict[str, str] = {}
    for name, kind_keys, layout, more in (
        ("frames", keys, ("camera.json", "depth.png", "jpg", "valid.png"), attributes),
        ("masks", keys, ("mask.png",), {}),
        ("windows", window_keys, (), lists),
        ("operators", window_keys, operators, {}),
    ):
        count, members = len(kind_keys), len(kind_keys) * len(layout)
        shard = (np.arange(count) // SHARD).astype(np.int32)
        index_rows = IndexRows(
            layouts=[layout], keys=kind_keys, shard=shard, offset=np.arange(count) % SHARD * 400_000, layout=np.zeros(count, np.int16),
            lengths=np.full(count, len(layout)), sizes=random.integers(1, 60_000, members).astype(np.uint32),
            crc32s=random.integers(0, 2**32, members, np.uint64).astype(np.uint32), attributes=more,
        )  # fmt: skip
        digest = "5f3a9c01be77d2a4" * 4
        shards: list[Any] = [[n, digest[:16], 6_000_000, digest] for n in range(int(shard[-1]) + 1)]
        if name == "windows":
            shards = [[n, digest[:16], {"frames": {str(n): digest, str(n + 1): digest}}] for n, *_ in shards]
        of = {source: sums[source] for source in ("frames", *(("windows",) if name == "operators" else ())) if source in sums}
        metadata = {"kind": name, "of": of, "provenance": digest, "shards": shards}
        sums[name] = Column(root, name).publish_index(index_rows, metadata, records="").sha256
    return {path.parent.name: path.stat().st_size for path in sorted(Path(root).glob("*/*.arrow"))}


def _lists(values: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1], values.ravel())


def private_bytes() -> dict[str, int]:
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    return {name: 1024 * int(kilobytes) for name, kilobytes, _ in lines if name in ("Private_Clean:", "Private_Dirty:")}


def measure(root: str, seed: int, alone: Any, barrier: Any, results: Any) -> None:
    """One process: what it took to open the tables, what it holds, how long a lookup takes."""
    before = private_bytes()
    Table.open(root, COLUMNS)  # the page cache, and all that is imported late
    gc.collect()
    with alone:
        started, cpu = time.perf_counter(), time.process_time()
        table = Table.open(root, COLUMNS)
        opened, cpu = time.perf_counter() - started, time.process_time() - cpu
    random = np.random.default_rng(seed)
    choices = list(zip(random.integers(0, len(table), LOOKUPS).tolist(), random.integers(0, 2**63, LOOKUPS).tolist(), strict=True))
    rows = WindowRows(load(TrainConfig, [f"dataset={root}", f"output={root}/none", "backbone=demo"]))
    rows.table = table
    barrier.wait()
    times = []
    for _ in range(5):
        started = time.process_time()
        for row, draw in choices:
            rows._wanted(row, draw)
        times.append((time.process_time() - started) / LOOKUPS)
    started = time.process_time()
    for row, _ in choices:
        table.row(row).window()
    window = (time.process_time() - started) / LOOKUPS
    gc.collect()
    barrier.wait()
    after = private_bytes()
    held = {name: (after[name] - before[name]) / 1e6 for name in after}
    barrier.wait()
    results.put(
        {
            "open_s": opened, "open_cpu_s": cpu, "private_mb": sum(held.values()), "dirty_mb": held["Private_Dirty:"],
            "lookup_us": 1e6 * statistics.median(times), "window_us": 1e6 * window,
        }
    )  # fmt: skip


def in_processes(root: str, count: int = 3) -> list[dict[str, float]]:
    """The figures of a reader and its workers, which hold the tables at the same time."""
    spawn = multiprocessing.get_context("spawn")
    alone, barrier, results = spawn.Lock(), spawn.Barrier(count), spawn.Queue()
    processes = [spawn.Process(target=measure, args=(root, seed, alone, barrier, results)) for seed in range(count)]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return found


def worst(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: max(figure[name] for figure in figures) for name in figures[0]}


def write_shards(root: str, count: int) -> list[ShardPlan]:
    """Commit records of `frames` as builds write them, 64 rows each; their tars are empty and of the right length."""
    column, provenance = Column(root, "frames"), Provenance({}, {"kind": "frames"}, 1)
    column.declare(provenance)
    random = np.random.default_rng(0)
    made = Record(
        column="frames", number=0, provenance=provenance.fingerprint, source="5f3a9c01be77d2a4", inputs={}, tar_bytes=512,
        tar_sha256="0" * 64, layouts=[["camera.json", "depth.png", "jpg", "valid.png"]], keys=[], layout=[0] * SHARD,
        offsets=list(range(0, SHARD * 98_304, 98_304)), sizes=[[436, 33551, 60438, 188]] * SHARD,
        crc32s=random.integers(0, 2**32, (SHARD, 4)).tolist(), notes={},
        attributes={
            "scene": ["1df7ab113e"] * SHARD, "number": list(range(SHARD)), "held_out": [False] * SHARD,
            "c2w": random.standard_normal((SHARD, 16)).tolist(),
        },
    )  # fmt: skip

    def write(number: int) -> None:
        record = replace(made, number=number, keys=[f"1df7ab113e-{number:06d}-DSC{n:05d}" for n in range(SHARD)])
        location.write_bytes(column.tar_url(number), bytes(512))
        location.write_bytes(location.join(column.url, record.name), codec.seal(asdict(record)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(count)))
    return [ShardPlan(number, made.source) for number in range(count)]


def index_shards(root: str, plan: list[ShardPlan]) -> dict[str, Any]:
    """A fresh process beside a delayed server: what is missing, an index from all records, and the same index again."""
    proxy, column, figures = os.environ["AWS_ENDPOINT_URL"], Column(root, "frames"), {}
    for what, work in (
        ("listing", lambda: column.missing([*plan, ShardPlan(len(plan), plan[0].source)])),
        ("indexing", lambda: column.write_index(plan, {})),
        ("again", lambda: column.write_index(plan, {})),
    ):
        requests, started, cpu = requests_made(proxy), time.perf_counter(), time.process_time()
        found = work()
        figures[what] = {
            "wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu, "requests": requests_made(proxy) - requests,
        }  # fmt: skip
        if what == "listing" and list(found) != [len(plan)]:
            raise AssertionError(f"{len(found)} shards are missing, not 1")
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {**figures, "peak_mb": int(peak.split()[1]) / 1024}


def on_s3(shards: int, rows: int) -> dict[str, Any]:
    """On a server that takes 20 ms longer: listing and indexing of many shards; opening through the node's copy."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, seaweedfs(Path(folder) / "server") as environment:
        os.environ.update(environment, SPLAT_AND_DISTILL_CACHE=f"{folder}/node")
        plan = write_shards("s3://test/many", shards)
        write_tables("s3://test/tables", rows)
        with delayed(environment["AWS_ENDPOINT_URL"], 0.02) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy
            with spawn.Pool(1) as pool:
                figures = pool.apply(index_shards, ("s3://test/many", plan))
            figures["open"] = worst(in_processes("s3://test/tables"))
    return figures


def judged(what: str, value: float, bar: float, unit: str) -> dict[str, Any]:
    """Prints a figure beside its bar."""
    print(f"  {what:<72}{value:>10.3g} {unit:<4} bar {bar:>6g}  {'pass' if value < bar else 'FAIL'}", flush=True)
    return {"what": what, "value": value, "bar": bar, "unit": unit, "passed": value < bar}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--shards", type=int, default=10_000, help="on the S3 server; 0: none")
    parser.add_argument("--out", type=Path, help="writes the results as JSON")
    arguments = parser.parse_args()
    sizes = sorted(arguments.rows)
    tables = {}
    print(f"{'rows':>9}{'files, MB':>11}{'open, s':>10}{'(CPU)':>9}{'private, MB':>13}{'(dirty)':>9}{'lookup, us':>12}{'window, us':>12}")
    for rows in sizes:
        with tempfile.TemporaryDirectory() as root:
            size = sum(write_tables(root, rows).values()) / 1e6
            figures = tables[rows] = {"files_mb": size, **worst(in_processes(root))}
        print(
            f"{rows:>9}{size:>11.0f}{figures['open_s']:>10.3f}{figures['open_cpu_s']:>9.3f}{figures['private_mb']:>13.1f}{figures['dirty_mb']:>9.1f}"
            f"{figures['lookup_us']:>12.1f}{figures['window_us']:>12.1f}",
            flush=True,
        )
    low, high = tables[sizes[0]], tables[sizes[-1]]
    print(f"\nat {sizes[-1]} rows, the worst of a reader and two workers")
    bars = [
        judged("open, warm", high["open_s"], OPEN_S, "s"),
        judged("private memory of each process", high["private_mb"], PRIVATE_MB, "MB"),
        judged("a lookup", high["lookup_us"], LOOKUP_US, "us"),
        judged("growth of opening over that of rows", high["open_s"] / low["open_s"] / (sizes[-1] / sizes[0]), 1.05, ""),
        judged("growth of a lookup over that of rows", high["lookup_us"] / low["lookup_us"] / (sizes[-1] / sizes[0]), 1.05, ""),
    ]
    results: dict[str, Any] = {"tables": tables}
    if arguments.shards:
        results["s3"] = s3 = on_s3(arguments.shards, sizes[0])
        print(f"\n{arguments.shards} shards of {SHARD} rows on S3, 20 ms added to each request; peak memory {s3['peak_mb']:.0f} MB")
        for what in ("listing", "indexing", "again"):
            print(f"  {what:<10}{s3[what]['wall_s']:>8.2f} s wall{s3[what]['cpu_s']:>8.2f} s CPU{s3[what]['requests']:>8} requests")
        bars += [
            judged("what is missing, by listing", s3["listing"]["wall_s"], LISTING_S, "s"),
            judged("the index, from all records", s3["indexing"]["wall_s"], INDEXING_S, "s"),
            judged("requests of a second indexing, beside the listing's", s3["again"]["requests"] - s3["listing"]["requests"], 10, ""),
            judged(f"open, warm, {sizes[0]} rows through the node's copy", s3["open"]["open_s"], OPEN_S, "s"),
        ]
    if arguments.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        what = {"commit": commit, "machine": machine, "bars": bars, "results": results}
        arguments.out.write_text(json.dumps(what, indent=1) + "\n")


if __name__ == "__main__":
    main()
