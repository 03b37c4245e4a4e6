"""What a target's supervision costs: 3-channel passes, one N-channel splat, an operator built and applied, a cached operator applied.

    python tests/bench/bench_splat.py [--device cuda] [--rounds 5] [--out file.json]

One context pair of a synthetic room (seeded, 336x448, one Gaussian per pixel, some 20 masks in the target), interleaved rounds, medians.
`cpu s` adds up the cores. Rows marked * are extrapolated: that many times the measured 3-channel splat. The rasters are the splat alone,
without lift, blend and down-sample, which the operator contains: `whole way` has them all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from storage.domain import Camera  # noqa: E402
from storage.records.operators import decode_operator, encode_operator  # noqa: E402
from training.splat import (  # noqa: E402
    Lift,
    Splats,
    apply_operators,
    build_token_operator,
    collate_operators,
    rasterize,
    render_token_targets,
)

HEIGHT, WIDTH, PATCH = 336, 448, 14
GRID = HEIGHT // PATCH, WIDTH // PATCH
CHANNELS = (384, 768)
BARS = {
    "build / 3-channel splat": ("<=", 1.5),
    "384-channel splat / cached apply": (">=", 300),
    "128 3-channel splats* / cached apply": (">=", 10_000),
    "fp16 operator, bytes": ("<=", 50_000),
    "fp16 operator, relative error of targets": ("<=", 5e-4),
}


def room(seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """A room of 5 x 2.6 x 5 m with boxes on its floor and pictures on its walls: boxes as pairs of corners, pictures, their wall."""
    rng = np.random.default_rng(seed)
    boxes = [np.array([[-2.5, -1.3, -2.5], [2.5, 1.3, 2.5]])]
    for _ in range(12):
        size = rng.uniform([0.3, 0.3, 0.3], [1.0, 1.4, 1.0])
        corner = np.array([rng.uniform(-2.4, 1.5), 1.3 - size[1], rng.uniform(0.0, 2.0)])
        boxes.append(np.stack([corner, corner + size]))
    pictures = np.stack([rng.uniform(-2.2, 1.6, 6), rng.uniform(-1.2, 0.0, 6)], axis=-1)
    return boxes, pictures, rng.uniform(0.3, 0.8, (6, 2))


def trace(camera: Camera, boxes: list[np.ndarray], pictures: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth along z [H,W] and labels [H,W]: walls 1-6, boxes from 10, pictures on the far wall from 40."""
    rays = camera.rays() @ camera.c2w[:3, :3].T
    origin = camera.c2w[:3, 3]
    depth, labels = np.full(rays.shape[:2], np.inf), np.zeros(rays.shape[:2], np.int64)
    for number, (low, high) in enumerate(boxes):
        near, far = np.sort(np.stack([(low - origin) / rays, (high - origin) / rays]), axis=0)
        if number == 0:  # the room, seen from inside
            depth, axis = far.min(axis=-1), far.argmin(axis=-1)
            labels = 1 + 2 * axis + (np.take_along_axis(rays, axis[..., None], -1)[..., 0] > 0)
            point = origin + rays * depth[..., None]
            for picture, (corner, size) in enumerate(zip(pictures, sizes, strict=True)):
                inside = ((point[..., :2] >= corner) & (point[..., :2] <= corner + size)).all(axis=-1) & (labels == 6)
                labels = np.where(inside, 40 + picture, labels)
        else:
            enter, leave = near.max(axis=-1), far.min(axis=-1)
            hit = (enter < leave) & (enter > 0.1) & (enter < depth)
            depth, labels = np.where(hit, enter, depth), np.where(hit, 9 + number, labels)
    return depth, labels


def make_scene(seed: int, device: str) -> dict[str, torch.Tensor]:
    """Pixel-aligned Gaussians of two views 0.3 m apart, a little noisy, and a target between them: what `render_token_targets` takes."""
    rng = np.random.default_rng(seed)
    world = room(seed)
    K = np.array([[0.8 * WIDTH, 0, WIDTH / 2], [0, 0.8 * WIDTH, HEIGHT / 2], [0, 0, 1]])
    cameras = []
    for step in (-1.0, 1.0, 0.2):
        turn, c2w = 0.08 * step, np.eye(4)
        c2w[:3, :3] = [[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]]
        c2w[:3, 3] = [0.15 * step, 0.03 * step, -2.0 + 0.05 * step]
        cameras.append(Camera(c2w, K, WIDTH, HEIGHT))
    views = [trace(camera, *world) for camera in cameras]
    means, pixel = [], []
    for camera, (depth, _) in zip(cameras[:2], views[:2], strict=True):
        depth = depth * (1 + 0.01 * rng.standard_normal(depth.shape))
        means.append((camera.rays() * depth[..., None]).reshape(-1, 3) @ camera.c2w[:3, :3].T + camera.c2w[:3, 3])
        pixel.append(depth.ravel() / K[0, 0])
    n = 2 * HEIGHT * WIDTH
    arrays = {
        "means": np.concatenate(means),
        "quats": rng.standard_normal((n, 4)),
        "scales": rng.uniform(0.5, 1.5, (n, 3)) * np.concatenate(pixel)[:, None],
        "opacities": rng.uniform(0.2, 0.95, n),
        "viewmat": cameras[2].w2c,
        "K": K,
    }
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    tensors["context_masks"] = torch.from_numpy(np.stack([labels for _, labels in views[:2]]))
    tensors["target_mask"] = torch.from_numpy(views[2][1])
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def measure(ways: dict[str, tuple[Callable[[], Any], int]], rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Median CPU and wall seconds of each way, called so many times in a row, in interleaved rounds after one that is not counted."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, (way, repeats) in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                way()
            if device != "cpu":
                torch.cuda.synchronize()
            times[name].append(((time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats))
    return {
        name: {"cpu_s": statistics.median(cpu for cpu, _ in runs[1:]), "wall_s": statistics.median(wall for _, wall in runs[1:])}
        for name, runs in times.items()
    }


def run(device: str, rounds: int, seed: int) -> dict[str, Any]:
    scene = make_scene(seed, device)
    splat = {name: scene[name] for name in ("means", "quats", "scales", "opacities")}
    splats = Splats(**splat)
    camera = {"viewmats": scene["viewmat"][None], "Ks": scene["K"][None], "width": WIDTH, "height": HEIGHT}
    target = {name: scene[name] for name in ("target_mask", "viewmat", "K")}
    lift = Lift.from_masks(scene["context_masks"], GRID)
    generator = torch.Generator().manual_seed(seed)
    tokens = {c: torch.randn(1, lift.tokens, c, generator=generator).to(device) for c in CHANNELS}
    colors = {c: torch.randn(len(scene["means"]), c, generator=generator).to(device) for c in (3, *CHANNELS)}

    def build(with_blend: bool = True):
        return build_token_operator(splats, **target, lift=lift, grid=GRID, with_blend=with_blend)

    def whole_way(c: int) -> torch.Tensor:
        lift = Lift.from_masks(scene["context_masks"], GRID)
        return render_token_targets(splats, **target, lift=lift, tokens=tokens[c].view(2, *GRID, c)).features

    operator = build()
    records = {dtype: encode_operator(operator, dtype) for dtype in ("f16", "u8")}
    batch = collate_operators([operator]).to(device)
    ways: dict[str, tuple[Callable[[], Any], int]] = {
        "lift, once per pair": (lambda: Lift.from_masks(scene["context_masks"], GRID), 1),
        "3-channel splat": (lambda: rasterize(**splat, **camera, colors=colors[3]), 1),
        "build": (build, 1),
        "build, no blending": (lambda: build(with_blend=False), 1),
        "decode + collate": (lambda: collate_operators([decode_operator(records["f16"])]).to(device), 10),
    }
    for c in CHANNELS:
        ways[f"{c}-channel splat"] = (lambda c=c: rasterize(**splat, **camera, colors=colors[c]), 1)
        ways[f"whole way, C={c}"] = (lambda c=c: whole_way(c), 1)
        ways[f"built and applied, C={c}"] = (lambda c=c: apply_operators(collate_operators([build()]).to(device), tokens[c]), 1)
        ways[f"cached apply, C={c}"] = (lambda c=c: apply_operators(batch, tokens[c]), 30)
    times = measure(ways, rounds, device)
    for c in CHANNELS:
        passes = -(-c // 3)
        times[f"{passes} 3-channel splats*"] = {clock: seconds * passes for clock, seconds in times["3-channel splat"].items()}

    clock = "cpu_s" if device == "cpu" else "wall_s"
    seconds = {name: time_[clock] for name, time_ in times.items()}
    whole = {c: whole_way(c).flatten(0, 1) for c in CHANNELS}
    exact = {c: apply_operators(batch, tokens[c])[0] for c in CHANNELS}
    errors = {f"operator against the whole way, C={c}": _relative(exact[c], whole[c]) for c in CHANNELS}
    for dtype, record in records.items():
        decoded = collate_operators([decode_operator(record)]).to(device)
        errors[f"{dtype} against the whole way, C=384"] = _relative(apply_operators(decoded, tokens[384])[0], whole[384])
    ratios = {"build / 3-channel splat": seconds["build"] / seconds["3-channel splat"]}
    for c in CHANNELS:
        apply = seconds[f"cached apply, C={c}"]
        built = seconds[f"built and applied, C={c}"]
        passes = f"{-(-c // 3)} 3-channel splats*"
        ratios[f"{c}-channel splat / cached apply"] = seconds[f"{c}-channel splat"] / apply
        ratios[f"whole way / cached apply, C={c}"] = seconds[f"whole way, C={c}"] / apply
        ratios[f"{passes} / cached apply"] = seconds[passes] / apply
        ratios[f"{c}-channel splat / built and applied"] = seconds[f"{c}-channel splat"] / built
        ratios[f"whole way / built and applied, C={c}"] = seconds[f"whole way, C={c}"] / built
        ratios[f"{passes} / built and applied"] = seconds[passes] / built
    sizes = {
        "Gaussians, 11 x fp16": 22 * len(scene["means"]),
        "fp16 operator, bytes": sum(map(len, records["f16"].values())),
        "u8 operator, bytes": sum(map(len, records["u8"].values())),
    }
    shown = ratios | sizes | {"fp16 operator, relative error of targets": errors["f16 against the whole way, C=384"]}
    met = {name: bool(shown[name] <= bar if sign == "<=" else shown[name] >= bar) for name, (sign, bar) in BARS.items()}
    counts = {
        "masks in the target": len(torch.unique(scene["target_mask"])),
        "non-zeros of S": len(operator.S.values),
        "non-zeros of R": len(operator.R.values),
        "coverage, mean": float(operator.coverage.mean()),
    }
    return {"clock": clock, "times": times, "ratios": ratios, "sizes": sizes, "errors": errors, "counts": counts, "bars_met": met}


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="writes the results as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = run(arguments.device, arguments.rounds, arguments.seed)
    card = torch.cuda.get_device_name() if arguments.device != "cpu" else None
    processor = platform.processor() or platform.machine()
    result["machine"] = {
        "card": card, "processor": processor, "cores": os.cpu_count(), "threads": arguments.threads, "torch": torch.__version__,
        "load": os.getloadavg()[0], "size": [HEIGHT, WIDTH], "rounds": arguments.rounds, "seed": arguments.seed,
    }  # fmt: skip

    print(f"{'':<44}{'cpu ms':>12}{'wall ms':>12}")
    for name, time_ in result["times"].items():
        print(f"{name:<44}{time_['cpu_s'] * 1e3:>12.2f}{time_['wall_s'] * 1e3:>12.2f}")
    for title in ("ratios", "sizes", "errors", "counts"):
        print(f"\n{title}{' (' + result['clock'][:-2] + ')' if title == 'ratios' else ''}")
        for name, value in result[title].items():
            bar = "" if name not in BARS else f"   bar {BARS[name][0]} {BARS[name][1]:g}: {'met' if result['bars_met'][name] else 'MISSED'}"
            print(f"  {name:<46}{value:>12.4g}{bar}")
    print(f"\n{'all bars met' if all(result['bars_met'].values()) else 'NOT all bars met'}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
