"""Memory and time of the loss in chunks, beside the plain one that holds all logits.

    python tests/bench/bench_loss.py [--out file.json] [--device cuda] [--bf16]

8 images of 768 kept tokens, a bottleneck of 256, 65,536 prototypes: forward and backward, gradients of points and prototypes. Each way runs
in processes of its own, in turn, so that its peak of memory is its own; on the CPU that of the process less what it held before, with one
thread. The least of the rounds' times is reported: what disturbs only adds.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))
TOKENS, WIDTH, PROTOTYPES = 8 * 768, 256, 65536
TEMPERATURES = 0.1, 0.05


def plain(points: torch.Tensor, prototypes: torch.Tensor, their_points: torch.Tensor, their_prototypes: torch.Tensor) -> torch.Tensor:
    """As one would write it."""
    targets = F.softmax(F.linear(their_points, their_prototypes).float() / TEMPERATURES[1], -1)
    return -(targets * F.log_softmax(F.linear(points, prototypes).float() / TEMPERATURES[0], -1)).sum()


def chunked(points: torch.Tensor, prototypes: torch.Tensor, their_points: torch.Tensor, their_prototypes: torch.Tensor) -> torch.Tensor:
    """The project's."""
    from training.objective.loss import PrototypeTargets, prototype_cross_entropy

    targets = PrototypeTargets(their_points, their_prototypes, TEMPERATURES[1])
    return prototype_cross_entropy(points, prototypes, targets, TEMPERATURES[0]).loss


def once(way: str, device: str, bf16: bool) -> dict[str, float]:
    """One forward and backward pass."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given = [F.normalize(torch.randn(n, WIDTH, device=device), dim=1) for n in (TOKENS, PROTOTYPES) * 2]
    for tensor in given[:2]:
        tensor.requires_grad_()
    F.linear(given[0][:8], given[1][:8]).sum().backward()  # libraries are loaded
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began, spent = time.perf_counter(), time.process_time()
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = {"plain": plain, "chunked": chunked}[way](*given)
    loss.backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began if device == "cuda" else time.process_time() - spent
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert given[0].grad is not None
    return {"seconds": seconds, "bytes": peak - held, "loss": float(loss.detach()), "gradient": float(given[0].grad.norm())}


def measure(device: str, bf16: bool, rounds: int) -> dict[str, Any]:
    """Both ways, in turn."""
    found: dict[str, list[dict[str, float]]] = {"plain": [], "chunked": []}
    for _ in range(rounds):
        for way, results in found.items():
            words = [sys.executable, __file__, "--once", way, "--device", device, *(["--bf16"] if bf16 else [])]
            results.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
            print(way, results[-1], flush=True)
    best = {way: {name: min(one[name] for one in results) for name in results[0]} for way, results in found.items()}
    ratios = {name: best["chunked"][name] / best["plain"][name] for name in ("seconds", "bytes", "loss", "gradient")}
    return {**best, "chunked_over_plain": ratios}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", choices=("plain", "chunked"), default=None)
    asked = parser.parse_args()
    if asked.once:
        print(json.dumps(once(asked.once, asked.device, asked.bf16)))
        raise SystemExit
    figures = measure(asked.device, asked.bf16, asked.rounds)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    card = torch.cuda.get_device_name() if asked.device == "cuda" else None
    figures |= {"command": "python tests/bench/bench_loss.py", "bf16": asked.bf16, "tokens": TOKENS, "prototypes": PROTOTYPES}
    figures |= {"commit": commit, "machine": platform.platform(), "gpu": card, "torch": torch.__version__}
    print("chunked / plain: " + ", ".join(f"{name} {value:.3f}" for name, value in figures["chunked_over_plain"].items()))
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")
