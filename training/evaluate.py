"""Says how much a frozen network's features know of depth, normals, classes and of the same point in another view, beside baselines.

    python training/evaluate.py data.train=s3://bucket/rooms data.test=s3://bucket/others output=results name=before backbone=dinov2_vits14
    python training/evaluate.py data.train=s3://bucket/rooms data.test=s3://bucket/others output=results name=after run=s3://bucket/runs/a
    python training/compare.py results=[results/before.json,results/after.json]

`supervision.operators=operators` judges the supervision of a dataset instead, before a step is trained. OUTPUT/NAME.json holds all that was
measured: by image, by pair, by room.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from configs import ConfigError, command
from configs.fields import plain
from configs.schema import EvaluateConfig
from configs.schema.probes import PROBE_DATA
from storage import codec, location
from storage.location import join
from training.data import pins
from training.figures import to_png
from training.probes import pictures, results
from training.probes.baselines import judge_baselines
from training.probes.data.base import ProbeData
from training.probes.data.dataset import DatasetProbes, evenly
from training.probes.extractor import NetworkModel, TokenSource, open_model
from training.probes.intervals import interval
from training.probes.judge import judge
from training.probes.outcome import Outcome
from training.probes.protocol import PROTOCOLS
from training.probes.supervision import SupervisionModel
from training.probes.tiers import judge_trained


def run(config: EvaluateConfig) -> None:
    """Judges one model, prints the tables and writes the result."""
    began = time.process_time()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    data: ProbeData = PROBE_DATA.get(config.data.name).make(config.data.config)
    tasks = [task for task in config.tasks if task in data.tasks]
    if not tasks:
        raise ConfigError(f"tasks: data={config.data.name} can judge {', '.join(sorted(data.tasks))} alone")
    check_unseen(config, data)
    network = open_model(config, device)
    source: TokenSource = network
    if config.supervision.operators is not None:
        source = SupervisionModel(network, data, config.supervision)
    dropped = sorted(set(config.tasks) - set(tasks))
    if dropped:
        print(f"data={config.data.name} cannot judge {', '.join(dropped)}", flush=True)
    frames, pairs = drawn(data, config.pictures)
    if config.tier == "closed":
        outcome = judge(source, data, tasks, config.ridge, (frames, pairs))
    else:
        outcome = judge_trained(network, data, tasks, config, device, frames, say=lambda line: print(line, flush=True))
    record = describe(config, data, network, source, outcome, time.process_time() - began)
    if config.baselines:
        record["baselines"] = judge_baselines(source, network, data, tasks, config, device)
    write(config, data, record, outcome)


def check_unseen(config: EvaluateConfig, data: ProbeData) -> None:
    """Raises ConfigError where a run is to be judged on the frames that it was trained on."""
    trained = None if config.run is None else pins.noted(config.run)
    if trained is not None and isinstance(data, DatasetProbes) and data.test_pins()["frames"] == trained["indexes"]["frames"]:
        raise ConfigError(f"data.test: {config.run} was trained on these very frames; give a dataset of other scenes")


def drawn(data: ProbeData, count: int) -> tuple[list[int], list[int]]:
    """The test frames and the pairs to draw, evenly over all."""
    return evenly(len(data.frames("test")), count), evenly(len(data.pairs()), count)


def describe(
    config: EvaluateConfig, data: ProbeData, network: NetworkModel, source: TokenSource, outcome: Outcome, seconds: float
) -> dict[str, Any]:
    """The result, as plain JSON values, without baselines."""
    tasks = outcome.to_json()
    for found in tasks.values():
        known = [name for name, value in found["metrics"].items() if value is not None]
        found["intervals"] = {name: [(one := interval([found["rooms"]], name)).low, one.high] for name in known}
    return {
        "kind": results.KIND,
        "schema": results.SCHEMA,
        "name": config.name,
        "label": config.label or config.name,
        "protocol": config.protocol,
        "protocol_commit": PROTOCOLS[config.protocol].commit,
        "tier": config.tier,
        "settings": {"ridge": config.ridge} if config.tier == "closed" else {"steps": config.steps},
        "seeds": {"heads": None if config.tier == "closed" else config.seed, "bootstrap": 0},
        "judged": {
            "grid": list(network.grid_rule),
            "supervision": None if config.supervision.operators is None else plain(config.supervision),
        },
        "model": dict(source.description),
        "data": dict(data.describe()),
        "commit": results.commit(),
        "machine": results.machine(),
        "cpu_seconds": round(seconds, 1),
        "tasks": tasks,
    }


def write(config: EvaluateConfig, data: ProbeData, record: dict[str, Any], outcome: Outcome) -> None:
    """Writes OUTPUT/NAME.json and the pictures beside it, and prints the tables."""
    url = join(config.output, f"{config.name}.json")
    location.write_bytes(url, codec.encode_json(record))
    found = {
        "predictions": pictures.predictions(data, outcome.predictions, record["name"]) if outcome.predictions else None,
        "matches": pictures.matches(data, outcome.matches, record["name"]) if outcome.matches else None,
        "angles": pictures.recall_by_angle({record["name"]: record["tasks"], **record.get("baselines", {})}) if config.pictures else None,
    }
    for name, figure in found.items():
        if figure is not None:
            location.write_bytes(join(config.output, f"{config.name}-{name}.png"), to_png(figure))
    rows = {record["name"]: record["tasks"], **_ends(record["tasks"]), **record.get("baselines", {})}
    counts = {split: len(data.frames(split)) for split in ("train", "test")}
    rooms = len({key for found in record["tasks"].values() for key in found["rooms"]})
    print(results.table(rows))
    print(
        f"\n{url}: protocol {config.protocol}, tier {config.tier}, {counts['train']} train frames, {counts['test']} test frames of {rooms} "
        f"rooms, {len(data.pairs())} pairs, {record['cpu_seconds']} CPU-s; intervals: 95 %, over rooms",
        flush=True,
    )


def _ends(tasks: dict[str, Any]) -> dict[str, Any]:
    """Both ends of the intervals, as rows of the table."""
    return {
        title: {task: {"metrics": {name: ends[i] for name, ends in found["intervals"].items()}} for task, found in tasks.items()}
        for i, title in enumerate(("  from", "  to"))
    }


if __name__ == "__main__":
    command(EvaluateConfig, run)
