"""Time and peak memory of the MVSplat encoder on one context pair, beside the same network computed the plain way: whole score matrices, a
whole warped feature volume, whole heads.

    python tests/bench/bench_reconstruct.py [--device cuda] [--pairs 4] [--out file.json]

Each measurement has a process of its own, with dummy weights; times are of one of the `--pairs` that pass together. `cpu s` adds up the
cores; `peak` is the process's resident memory (all of it, torch included), or on CUDA what the allocator held. `stored` is what the
`gaussians` column needs: everything but the colours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = ((256, 256), (304, 448), (336, 448))
WAYS = ("plain", "ours", "stored")

# The original code, torch 2.13, float32, two CPU cores of the same kind, in another session: CPU seconds and peak GB of a pair.
ORIGINAL = {(256, 256): (10.7, 1.7), (304, 448): (24.2, 2.9)}


def measure(way: str, height: int, width: int, device: str, runs: int, pairs: int) -> dict[str, Any]:
    """Best of `runs`; the first call on a CUDA device is not counted."""
    sys.path.insert(0, str(REPOSITORY))
    import torch
    from tests.pipeline.mvsplat_plain import plain

    from training.reconstruct.mvsplat.checkpoint import load_encoder

    encoder = load_encoder("rule", device)
    torch.manual_seed(0)
    image = torch.rand(pairs, 2, 3, height, width)
    c2w = torch.eye(4).repeat(pairs, 2, 1, 1)
    c2w[:, 1, 0, 3] = 0.3
    K = torch.tensor([[0.9, 0, 0.5], [0, 0.9 * width / height, 0.5], [0, 0, 1]]).repeat(pairs, 2, 1, 1)
    inputs = [x.to(device) for x in (image, c2w, K, torch.ones(pairs, 2), torch.full((pairs, 2), 100.0))]
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    walls, cpus = [], []
    with plain() if way == "plain" else nullcontext(), torch.inference_mode():
        for run in range(runs + (device != "cpu")):
            wall, cpu = time.perf_counter(), time.process_time()
            encoder(*inputs, harmonics=way != "stored")
            if device != "cpu":
                torch.cuda.synchronize()
            if device == "cpu" or run:
                walls.append((time.perf_counter() - wall) / pairs)
                cpus.append((time.process_time() - cpu) / pairs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6 if device == "cpu" else torch.cuda.max_memory_allocated() / 1e9
    return {
        "way": way, "height": height, "width": width, "pairs": pairs, "device": device, "wall_s": min(walls), "cpu_s": min(cpus),
        "peak_gb": peak, "before_gb": loaded, "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--runs", type=int, default=2, help="the best of so many")
    parser.add_argument("--pairs", type=int, default=1, help="in one pass")
    parser.add_argument("--out", type=Path, help="writes the results as JSON")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "HEIGHT", "WIDTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, height, width = arguments.one
        print(json.dumps(measure(way, int(height), int(width), arguments.device, arguments.runs, arguments.pairs)))
        return

    results = []
    print(f"{'size':>9}  {'way':<8}  {'wall s':>7}  {'cpu s':>6}  {'peak GB':>7}  {'cpu s / plain':>13}  {'peak / plain':>12}")
    for height, width in SIZES:
        if arguments.device == "cpu" and (height, width) in ORIGINAL:
            cpu, peak = ORIGINAL[height, width]
            print(f"{height:>4}x{width:<4}  {'original':<8}  {'':>7}  {cpu:>6.1f}  {peak:>7.2f}   (measured elsewhere)")
        for way in WAYS:
            command = [
                sys.executable,
                __file__,
                "--device",
                arguments.device,
                "--runs",
                str(arguments.runs),
                "--pairs",
                str(arguments.pairs),
                "--one",
                way,
                f"{height}",
                f"{width}",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"error: {way} {height}x{width} ended with {done.returncode}:\n{done.stderr[-2000:]}")
            result = json.loads(done.stdout.splitlines()[-1])
            results.append(result)
            base = next(r for r in results if (r["way"], r["height"], r["width"]) == ("plain", height, width))
            clock = "cpu_s" if arguments.device == "cpu" else "wall_s"
            print(
                f"{height:>4}x{width:<4}  {way:<8}  {result['wall_s']:>7.3f}  {result['cpu_s']:>6.2f}  {result['peak_gb']:>7.2f}  "
                f"{result[clock] / base[clock]:>13.2f}  {result['peak_gb'] / base['peak_gb']:>12.2f}",
                flush=True,
            )
    if arguments.out:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        arguments.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
