"""What a row of the `gaussians` column weighs, how fast it is read, and what its rounding does to the supervision and to a rendered view;
beside plain float16 arrays of the same numbers, 22 bytes a Gaussian.

    python tests/bench/bench_gaussians.py [--rounds 5] [--out file.json]

One context pair of a synthetic room at 336 x 448 and the frame in the middle between. `depth`: the mesh's depth; `mvsplat`: dummy
weights, whose Gaussians mean nothing but have all that a network's have (offsets, any rotation, any opacity); `free`: half of `depth`'s, as
of a model that is not pixel-aligned. Errors are against the Gaussians before they were stored: of targets, lifted and splatted from random
tokens of 384 channels; of the context's colours, in 255ths. CPU time, one thread.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy: BLAS threads that wait count as CPU time

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from pipeline.inspect_rows import context_colours, middle, psnr, render_features  # noqa: E402
from pipeline.readers.scannetpp.scene import SceneReader  # noqa: E402
from pipeline.reconstruct.depth import DepthReconstructor  # noqa: E402
from pipeline.reconstruct.mvsplat import MVSplatReconstructor  # noqa: E402
from pipeline.synthetic import room_specs, write_room  # noqa: E402
from storage import codec  # noqa: E402
from storage.domain import Frame, Gaussians  # noqa: E402
from storage.records.gaussians import decode_gaussians, encode_gaussians  # noqa: E402
from training.splat import apply_operators, collate_operators  # noqa: E402
from training.splat.window import WindowSplat  # noqa: E402

HEIGHT, WIDTH, CHANNELS = 336, 448, 384
ARRAYS = ("means", "quats", "scales", "opacities")


def room(seed: int) -> list[Frame]:
    """The nine frames of a window; depth is kept for its ends."""
    with tempfile.TemporaryDirectory() as root:
        spec = room_specs(1, seed=seed, frames=9, scale=0.3)[0]
        write_room(root, spec)
        reader = SceneReader(root, spec.scene_id, WIDTH, HEIGHT)
        entries = reader.index.frames
        frames = [reader.read(entry) for entry in entries]
        return [frames[0], *(replace(frame, depth=None) for frame in frames[1:-1]), frames[-1]]


def clouds(pair: Sequence[Frame], seed: int) -> dict[str, Gaussians]:
    depth = DepthReconstructor(0.4).reconstruct(pair)
    half = depth.take(np.random.default_rng(seed).permutation(len(depth))[::2])
    return {
        "depth": depth,
        "mvsplat": MVSplatReconstructor("rule", near=1.0, far=100.0, device="cpu").reconstruct(pair),
        "free": replace(half, scales=1.4 * half.scales),
    }


def encode_halves(cloud: Gaussians) -> dict[str, bytes]:
    return {name: codec.encode_array(getattr(cloud, name).astype(np.float16)) for name in ARRAYS}


def decode_halves(members: Mapping[str, bytes], like: Gaussians) -> Gaussians:
    return replace(like, **{name: codec.decode_array(members[name]).astype(np.float32) for name in ARRAYS})


def median_seconds(work: Callable[[], Any], rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return statistics.median(times)


def compare(cloud: Gaussians, window: Sequence[Frame], rounds: int) -> dict[str, dict[str, float]]:
    """For `record` and `float16`: bytes, CPU ms, errors."""
    pair, target = [window[0], window[-1]], middle(window)
    cameras = [view.camera for view in pair]
    tokens = torch.randn(1, 2 * (HEIGHT // 14) * (WIDTH // 14), CHANNELS, generator=torch.Generator().manual_seed(0))

    def shown(cloud: Gaussians) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        operator = WindowSplat(cloud, pair).operator(target)
        view, alpha = render_features(cloud, context_colours(cloud, pair), target.camera)
        return apply_operators(collate_operators([operator]), tokens)[0], view, alpha

    targets, view, alpha = shown(cloud)
    members, halves = encode_gaussians(cloud, cameras), encode_halves(cloud)
    ways = {
        "record": (members, lambda: encode_gaussians(cloud, cameras), lambda: decode_gaussians(members, cameras)),
        "float16": (halves, lambda: encode_halves(cloud), lambda: decode_halves(halves, cloud)),
    }
    results = {}
    for way, (stored, encode, decode) in ways.items():
        got, got_view, _ = shown(decode())
        size = sum(map(len, stored.values()))
        results[way] = {
            "bytes": size,
            "bytes a Gaussian": size / len(cloud),
            "encode, ms": 1e3 * median_seconds(encode, rounds),
            "decode, ms": 1e3 * median_seconds(decode, rounds),
            "targets, relative rms": float((got - targets).norm() / targets.norm()),
            "targets, worst token": float((got - targets).norm(dim=-1).max() / targets.norm(dim=-1).max()),
            "colours, rms of 255": 255 * float(np.sqrt(np.mean((got_view - view) ** 2))),
            "PSNR, dB": psnr(got_view, target, alpha),
            "PSNR before, dB": psnr(view, target, alpha),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, help="writes the results as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    window = room(arguments.seed)
    results = {}
    for name, cloud in clouds([window[0], window[-1]], arguments.seed).items():
        results[name] = compare(cloud, window, arguments.rounds)
        print(f"\n{name}, {len(cloud)} Gaussians{'record':>40}{'float16':>12}{'record / float16':>18}")
        for what, value in results[name]["record"].items():
            other = results[name]["float16"][what]
            ratio = "" if "PSNR" in what else f"{value / other:>18.3g}"
            print(f"  {what:<{60 - len(name)}}{value:>12.5g}{other:>12.5g}{ratio}", flush=True)
    if arguments.out:
        machine = {
            "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
            "size": [HEIGHT, WIDTH], "seed": arguments.seed, "rounds": arguments.rounds,
        }  # fmt: skip
        arguments.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
