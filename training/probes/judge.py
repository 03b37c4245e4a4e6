"""Tier `closed`: one source of tokens through the tasks. Train frames are decoded once, test frames once and again for pairs."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from storage.location import StorageError
from training.model.head import DinoHead
from training.probes import consistency
from training.probes.closed import Group, Linear, fit_logistic, fit_ridge
from training.probes.data.base import ProbeData, ProbeFrame
from training.probes.depth import depth_metrics, scale_free_metrics, valid_depth
from training.probes.extractor import Tokens, TokenSource
from training.probes.geometry import ANGLES
from training.probes.grid import to_pixels, token_classes, token_depth, token_normals
from training.probes.normals import normal_metrics
from training.probes.outcome import Outcome
from training.probes.results import Tally
from training.probes.segmentation import confusion_matrix

DENSE = ("depth", "normals", "segmentation")


def judge(
    source: TokenSource,
    data: ProbeData,
    tasks: Collection[str],
    strength: float | None = None,
    draw: tuple[Collection[int], Collection[int]] = ((), ()),
) -> Outcome:
    """Fits heads on the train frames, and judges them, and matches between views, on the test frames.

    Args:
        source: the tokens; a head of its own (`head`) is looked at too.
        tasks: those that are wanted; what the data cannot judge is left out.
        strength: of the ridge; None: chosen on the train rooms.
        draw: test frames, and pairs, whose predictions are kept.
    """
    wanted = [task for task in (*DENSE, "correspondence") if task in tasks and task in data.tasks]
    outcome = Outcome({task: Tally() for task in (*wanted, "consistency")})
    heads = _fit(source, data, [task for task in wanted if task in DENSE], strength)
    outcome.notes = {task: {"strength": head.strength} for task, head in heads.items()}
    views: list[tuple[Tokens, ProbeFrame]] = []
    for number, frame in enumerate(data.frames("test")):
        tokens = source.tokens(frame)
        if tokens.keep.any():
            found = _judge_frame(outcome, heads, data, frame, tokens)
            if number in draw[0]:
                outcome.predictions[number] = found
        bare = dataclasses.replace(frame, image=np.empty((*frame.image.shape[:2], 0), np.uint8), normals=None, labels=None)
        views.append((tokens, bare))
    if "correspondence" in wanted:
        _judge_pairs(outcome, data, views, draw[1])
    _judge_tokens(outcome.tasks["consistency"], views, getattr(source, "head", None), getattr(source, "temperature", 1.0))
    return outcome


def _fit(source: TokenSource, data: ProbeData, tasks: Sequence[str], strength: float | None) -> dict[str, Linear]:
    """A head a task, of the train frames' tokens."""
    if not tasks:
        return {}
    learnt = []
    for frame in data.frames("train"):
        tokens = source.tokens(frame)
        if tokens.keep.any():
            learnt.append(_learnt(tokens, frame, data, tasks))
    # The ridge's strength is chosen by leaving one room out; of a single room, one frame.
    groups = {one.room for one in learnt}
    parts: defaultdict[str, list[_Learnt]] = defaultdict(list)
    for one in learnt:
        parts[one.room if len(groups) > 1 else one.key].append(one)
    heads = {}
    for task in tasks:
        rooms = []
        for _, members in sorted(parts.items()):
            known = torch.cat([one.wanted[task][1] for one in members])
            if known.any():
                everything, target = torch.cat([one.tokens for one in members]), torch.cat([one.wanted[task][0] for one in members])
                rooms.append(Group(everything[known], target[known]))
        if not rooms:
            raise StorageError(f"data={data.name}: no token of a train frame has a truth of {task}; check the data, or leave the task out")
        heads[task] = fit_logistic(rooms, len(data.classes)) if task == "segmentation" else fit_ridge(rooms, strength)
    return heads


class _Learnt(NamedTuple):
    """A train frame. tokens: [N,C] that count; wanted: of each task what is wanted of them, and whether it is known."""

    room: str
    key: str
    tokens: torch.Tensor
    wanted: dict[str, tuple[torch.Tensor, torch.Tensor]]


def _learnt(tokens: Tokens, frame: ProbeFrame, data: ProbeData, tasks: Sequence[str]) -> _Learnt:
    wanted = {}
    for task in tasks:
        target, known = map(torch.from_numpy, _target(task, tokens, frame, data))
        wanted[task] = target[tokens.keep], known[tokens.keep]
    return _Learnt(frame.group, frame.key, tokens.map.patch[0][:, tokens.keep].T, wanted)


def _target(task: str, tokens: Tokens, frame: ProbeFrame, data: ProbeData) -> tuple[np.ndarray, np.ndarray]:
    if task == "depth":
        return token_depth(tokens.map, frame, data.depth_range)
    return token_normals(tokens.map, frame) if task == "normals" else token_classes(tokens.map, frame)


def _judge_frame(
    outcome: Outcome, heads: Mapping[str, Linear], data: ProbeData, frame: ProbeFrame, tokens: Tokens
) -> dict[str, np.ndarray]:
    """Adds one frame's figures; returns its predictions, for pictures."""
    height, width = frame.image.shape[:2]
    flat = tokens.map.patch[0].flatten(1).T
    drawn = {}
    for task, head in heads.items():
        tally = outcome.tasks[task]
        at_tokens = head(flat).T.unflatten(1, tokens.keep.shape)
        pixels, covered = to_pixels(at_tokens, tokens, height, width)
        record: dict[str, Any] = {"key": frame.key, "room": frame.group}
        if task == "segmentation":
            assert frame.labels is not None
            classes = pixels.argmax(0)
            labels = torch.from_numpy(frame.labels.astype(np.int64)).masked_fill(~covered, 255)
            matrix = confusion_matrix(classes, labels, len(data.classes))
            tally.add_confusion(frame.group, matrix)
            record |= {"pixels": int(matrix.sum()), "right": int(matrix.diagonal().sum())}
            drawn[task] = classes.numpy().astype(np.uint8)
        else:
            values, valid, drawn[task] = _dense(task, pixels, covered, frame, data)
            record |= {"pixels": int(valid.sum()), **values}
            for name, value in values.items():
                tally.add(frame.group, name, value)
        tally.records.append({name: None if value != value else value for name, value in record.items()})
    return drawn


def _dense(
    task: str, pixels_khw: torch.Tensor, covered: torch.Tensor, frame: ProbeFrame, data: ProbeData
) -> tuple[dict[str, float], torch.Tensor, np.ndarray]:
    """Figures of one image, the pixels that were judged, and the prediction."""
    if task == "depth":
        assert frame.depth is not None
        truth = torch.from_numpy(frame.depth)[None].double()
        depth = pixels_khw.exp().clamp(*data.depth_range)
        valid = valid_depth(truth, data.depth_range, data.depth_crop) & covered
        found = {**depth_metrics(depth, truth, valid), **(scale_free_metrics(depth, truth, valid) if valid.any() else {})}
        prediction = depth[0].numpy()
    else:
        assert frame.normals is not None
        truth = torch.from_numpy(frame.normals).permute(2, 0, 1)[None]
        valid = (truth.abs().sum(1) > 0) & covered
        found = normal_metrics(pixels_khw[None], truth, valid)
        prediction = torch.nn.functional.normalize(pixels_khw, dim=0).permute(1, 2, 0).numpy()
    return {name: float(value[0]) for name, value in found.items()}, valid, prediction


def _judge_pairs(outcome: Outcome, data: ProbeData, views: Sequence[tuple[Tokens, ProbeFrame]], draw: Collection[int]) -> None:
    tally, of_all = outcome.tasks["correspondence"], outcome.tasks["consistency"]
    for number, pair in enumerate(data.pairs()):
        (first, a), (second, b) = views[pair.first], views[pair.second]
        record: dict[str, Any] = {"first": a.key, "second": b.key, "room": a.group, "points": 0}
        tally.records.append(record)
        if not (first.keep.any() and second.keep.any()):
            continue
        found = consistency.match(first, second, (a, b), pair.points)
        error, angle, count = found["error"], found["angle"], len(found["error"])
        if not count:
            continue
        record["points"] = count
        for limit in consistency.PATCHES:
            right = error <= limit
            record[f"recall_{limit}"] = float(right.mean())
            tally.add(a.group, f"recall_{limit}", float(right.sum()), count)
            for low, high in itertools.pairwise(ANGLES):
                here = (angle >= low) & (angle < high)
                tally.add(a.group, f"recall_{limit}@{low}-{high}", float(right[here].sum()), int(here.sum()))
        tally.add(a.group, "error_median", float(np.median(error)))
        of_all.add(a.group, "rank", float(found["rank"].sum()), count)
        of_all.add(a.group, "cosine", float(found["cosine"].sum()), count)
        of_all.add(a.group, "margin", float((found["cosine"] - found["background"]).sum()), count)
        if number in draw:
            outcome.matches[number] = found


def _judge_tokens(tally: Tally, views: Sequence[tuple[Tokens, ProbeFrame]], head: DinoHead | None, temperature: float) -> None:
    """What the test tokens of each room are like."""
    rooms: defaultdict[str, list[tuple[Tokens, ProbeFrame]]] = defaultdict(list)
    for tokens, frame in views:
        if tokens.keep.any():
            rooms[frame.group].append((tokens, frame))
    for room, members in rooms.items():
        everything = torch.cat([tokens.map.patch[0][:, tokens.keep].T for tokens, _ in members])
        tally.add(room, "effective_rank", consistency.effective_rank(everything))
        if all(frame.instances is not None for _, frame in members):
            sums = [consistency.inside_variance(tokens, frame) for tokens, frame in members]
            tally.add(room, "inside_variance", sum(s for s, _ in sums), sum(s for _, s in sums))
        if head is not None:
            used, entropy = consistency.head_distribution(head, everything, temperature)
            tally.add(room, "head_entropy", consistency.entropy_share(used))
            tally.add(room, "head_entropy_token", entropy / len(everything) / float(np.log(len(used))))
