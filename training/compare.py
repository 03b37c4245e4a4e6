"""Says in what results differ: each against the first, over the same rooms, with intervals.

    python training/compare.py results=[results/before.json,results/after.json]
    python training/compare.py results=[teacher.json,blend-1-seed-0.json,blend-1-seed-1.json,control.json] output=comparison

Results with one label (several seeds of one training) are one row, whose figure is the mean of theirs. An interval is a paired bootstrap:
rooms are drawn once for both rows, seeds for each. Results of other data, protocol or tier are refused.
"""

from __future__ import annotations

from typing import Any

from configs import ConfigError, command
from configs.schema import CompareConfig
from storage import codec, location
from storage.location import join
from storage.provenance import differences
from training.figures import to_png
from training.probes import pictures, published, results
from training.probes.intervals import Interval, difference

_SAME = ("protocol", "tier", "settings", "data", "judged")


def run(config: CompareConfig) -> None:
    """Prints the differences, and writes them where there is an output."""
    found = {url: results.read(url) for url in config.results}
    check_same(found)
    rows: dict[str, list[dict[str, Any]]] = {}
    for record in found.values():
        rows.setdefault(record["label"], []).append(record)
    if len(rows) < 2:
        raise ConfigError("results: all of one label; give results of two models at least, or other labels to training/evaluate.py")
    check_rows(rows)
    compared = compare(rows, config)
    print(as_text(rows, compared))
    if config.output is not None:
        location.write_bytes(join(config.output, "comparison.json"), codec.encode_json(compared))
        figure = pictures.recall_by_angle({label: records[0]["tasks"] for label, records in rows.items()})
        if figure is not None:
            location.write_bytes(join(config.output, "angles.png"), to_png(figure))


def check_same(found: dict[str, dict[str, Any]]) -> None:
    """Raises ConfigError, naming what differs, where two results cannot be compared."""
    (first, reference), *others = found.items()
    for url, record in others:
        different = [line for name in _SAME for line in differences({name: reference[name]}, {name: record[name]})]
        if different:
            raise ConfigError(f"results: {url} and {first} were not judged alike ({'; '.join(different[:3])}); evaluate one of them again")


def check_rows(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Raises ConfigError where results of one label are not of one training with different seeds."""
    for label, records in rows.items():
        hashes = [record["model"]["weights_sha256"] for record in records if "weights_sha256" in record["model"]]
        courses = []
        for record in records:
            config = dict(record["model"].get("trained_with", {}).get("config", {}))
            courses.append(
                {**{name: value for name, value in config.items() if name not in ("seed", "output")}, "at": record["model"].get("step")}
            )
        if len(set(hashes)) < len(hashes):
            raise ConfigError(f"results: two of label {label!r} are of the same weights; give each seed once")
        different = [line for course in courses[1:] for line in differences(courses[0], course)]
        if different:
            raise ConfigError(
                f"results: label {label!r} has more than seeds of one training ({'; '.join(different[:3])}); give other labels"
            )


def compare(rows: dict[str, list[dict[str, Any]]], config: CompareConfig) -> dict[str, Any]:
    """For each task, figure and row but the first: figure, difference from the first, interval, and the rooms in which it is better."""
    reference, *others = rows
    compared: dict[str, Any] = {}
    for task, metrics in results.METRICS.items():
        judged = {label: [record["tasks"][task] for record in records if task in record["tasks"]] for label, records in rows.items()}
        seeds = {label: [found["rooms"] for found in records] for label, records in judged.items()}
        if not seeds[reference]:
            continue
        for name, metric in metrics.items():
            for label in (one for one in others if seeds[one]):
                one = difference(seeds[reference], seeds[label], name, config.samples, config.confidence)
                if one.value is not None:
                    better = one.up if metric.higher else _down(seeds, reference, label, name)
                    compared.setdefault(task, {}).setdefault(name, {})[label] = _entry(one, better, rows, task, name, reference, label)
    return {"reference": reference, "confidence": config.confidence, "samples": config.samples, "tasks": compared}


def _down(seeds: dict[str, list[Any]], reference: str, label: str, name: str) -> int:
    """In how many rooms a figure is below the reference's: it is above where the two are exchanged."""
    return difference(seeds[label], seeds[reference], name, samples=1).up


def _entry(
    one: Interval, better: int, rows: dict[str, list[dict[str, Any]]], task: str, name: str, reference: str, label: str
) -> dict[str, Any]:
    return {
        "reference": _mean(rows[reference], task, name),
        "value": _mean(rows[label], task, name),
        "seeds": [len(rows[reference]), len(rows[label])],
        "difference": one.value,
        "low": one.low,
        "high": one.high,
        "excludes_zero": one.excludes_zero,
        "better_rooms": better,
        "rooms": one.rooms,
    }


def _mean(records: list[dict[str, Any]], task: str, name: str) -> float:
    values = [record["tasks"][task]["metrics"][name] for record in records if task in record["tasks"]]
    return float(sum(values) / len(values))


def as_text(rows: dict[str, list[dict[str, Any]]], compared: dict[str, Any]) -> str:
    """The tables: a row a figure and model. A star: the interval excludes 0."""
    reference = compared["reference"]
    first = rows[reference][0]
    lines = []
    for task, metrics in compared["tasks"].items():
        share = f"{compared['confidence'] * 100:g} %"
        table = [[task, "figure", reference, "model's", "difference", "%", f"{share} from", "to", "", "rooms better"]]
        for name, by_label in metrics.items():
            for label, one in by_label.items():
                relative = f"{one['difference'] / one['reference'] * 100:+.1f}" if one["reference"] else "-"
                cells = [results.cell(task, name, one[key]) for key in ("reference", "value", "difference", "low", "high")]
                rooms = f"{one['better_rooms']} of {one['rooms']}"
                title = results.METRICS[task][name].title
                star = "*" if one["excludes_zero"] else ""
                table.append([label, title, *cells[:3], relative, *cells[3:], star, rooms])
        for figure in published.matching(first, task):
            title = results.METRICS[task][figure.metric].title
            table.append([f"{figure.model} (published)", title, "", results.cell(task, figure.metric, figure.value), *[""] * 6])
        lines.append(results.layout(table))
    seeds = ", ".join(f"{label} {len(records)}" for label, records in rows.items() if len(records) > 1)
    note = f"protocol {first['protocol']}, tier {first['tier']}; *: the interval excludes 0"
    return "\n\n".join([*lines, f"{note}; results of one label: {seeds}" if seeds else note])


if __name__ == "__main__":
    command(CompareConfig, run)
