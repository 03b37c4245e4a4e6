"""Judges a training while it runs, on a few frames of rooms that it does not see: seconds, and no head is fitted.

Loss and cosine do not say whether a model gets better: the cosine falls as it learns, and rises as it blurs.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from configs import ConfigError
from configs.schema import MonitorConfig
from storage import codec, location
from storage.location import join
from storage.records.frames import DEPTH
from storage.table import Table
from training.model.network import Network
from training.probes import consistency
from training.probes.data.base import Pair, ProbeFrame
from training.probes.data.dataset import choose_pairs, evenly
from training.probes.extractor import Tokens
from training.probes.features import FeatureMap

BLUR = 2 / 3  # of the variance inside objects at the start: below it the model blurs
COLLAPSE = 0.25  # entropy of the prototypes' use, as a share of ln K: below it the head has collapsed

_PAIRS = 24  # a scene


class Monitor:
    """A few held-out frames, decoded once.

    config: which, with a dataset. patch: of the backbone; frames are cropped to whole ones. size: (height, width) of the training's images;
    trained: the scenes that it sees.
    """

    def __init__(self, config: MonitorConfig, patch: int, size: tuple[int, int], trained: Collection[str] = ()) -> None:
        assert config.dataset is not None
        self.config, self.patch = config, patch
        table = Table.open(config.dataset, [config.masks])
        height, width = size[0] // patch * patch, size[1] // patch * patch
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for row in range(len(table.frames)):
            if table.frames.has(row, DEPTH):
                rows[table.frames.scene(row)].append(row)
        scenes = sorted(rows)
        common = sorted(set(scenes) & set(trained))
        if common:
            raise ConfigError(f"monitor.dataset={config.dataset}: the training sees scene {common[0]} too; give a dataset of other scenes")
        if not scenes:
            raise ConfigError(
                f"monitor.dataset={config.dataset}: no frame has depth, so that views cannot be matched; give another dataset"
            )
        chosen = [scenes[i] for i in evenly(len(scenes), config.scenes)]
        self.views: list[ProbeFrame] = []
        self.pairs: list[Pair] = []
        for scene in chosen:
            first = len(self.views)
            of_scene = [rows[scene][i] for i in evenly(len(rows[scene]), config.frames)]
            for frame in table.read_frames(of_scene, labels=True, depth=True):
                if frame.image.shape[:2] != size:
                    raise ConfigError(
                        f"monitor.dataset={config.dataset}: frames of {frame.camera.height} x {frame.camera.width} pixels, the training's "
                        f"are of {size[0]} x {size[1]}; build it at that size"
                    )
                assert frame.depth is not None
                assert frame.labels is not None
                depth = np.where(frame.valid, frame.depth, np.float32(0))[:height, :width]
                labels = np.where(frame.valid, frame.labels, np.uint16(0))[:height, :width]
                self.views.append(
                    ProbeFrame(
                        frame.name, scene, frame.image[:height, :width], depth, instances=labels, K=frame.camera.K, c2w=frame.camera.c2w
                    )
                )
            self.pairs += [Pair(first + a, first + b) for a, b in choose_pairs(self.views[first:], _PAIRS)]
        # What is judged: figures of other frames are another series.
        names = [[view.group, view.key] for view in self.views]
        self.digest = hashlib.sha256(codec.encode_json([names, table.pins()])).hexdigest()[:16]

    @torch.inference_mode()
    def judge(self, network: Network, temperature: float | None, device: torch.device) -> dict[str, float]:
        """What a network knows.

        Args:
            network: of the training, in whatever mode; it is judged without dropout.
            temperature: of the softmax over its head's prototypes; None for a network whose head is not trained.
            device: where it is.

        Returns:
            match: where views overlap, the share of the tokens whose nearest token in another view is within one patch of the truth;
            effective_rank of the tokens of a scene; inside_variance: of tokens within an object, as a share of all; head_entropy: of the
            use of the prototypes, as a share of the most that there can be.
        """
        training = network.training
        network.eval()
        try:
            tokens = [self._tokens(network, view, device) for view in self.views]
            found = [consistency.match(tokens[p.first], tokens[p.second], (self.views[p.first], self.views[p.second])) for p in self.pairs]
            everything = torch.cat([one.map.patch[0].flatten(1).T for one in tokens])
            if temperature is not None:
                use, _ = consistency.head_distribution(network.head, everything.to(device), temperature)
        finally:
            network.train(training)
        if not everything.isfinite().all():
            raise FloatingPointError("the student's tokens are no numbers; lower optimizer.lr")
        errors = np.concatenate([one["error"] for one in found]) if found else np.zeros(0)
        scenes = sorted({view.group for view in self.views})
        ranks = [
            consistency.effective_rank(
                torch.cat([t.map.patch[0].flatten(1).T for t, v in zip(tokens, self.views, strict=True) if v.group == s])
            )
            for s in scenes
        ]
        inside, total = np.sum([consistency.inside_variance(t, v) for t, v in zip(tokens, self.views, strict=True)], axis=0)
        return {
            **({"match": float((errors <= 1).mean())} if len(errors) else {}),
            "effective_rank": float(np.mean(ranks)),
            **({"inside_variance": float(inside / total)} if total > 0 else {}),
            **({"head_entropy": consistency.entropy_share(use)} if temperature is not None else {}),
        }

    def _tokens(self, network: Network, view: ProbeFrame, device: torch.device) -> Tokens:
        image = torch.from_numpy(np.ascontiguousarray(view.image)).permute(2, 0, 1)[None].to(device).float() / 255
        tokens = network.tokens(image, [0]).permute(0, 3, 1, 2).float().cpu()
        return Tokens(FeatureMap(tokens, None, (0, 0), self.patch), torch.ones(tokens.shape[-2:], dtype=torch.bool))


def warnings(first: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a person should know, a line each: the figure, what it means and what to do. first: what was judged before the first step."""
    found, step = [], now["step"]
    if now.get("inside_variance", 1.0) < BLUR * first.get("inside_variance", 0.0):
        found.append(
            f"step {step}: the variance inside objects fell from {first['inside_variance']:.3f} to {now['inside_variance']:.3f}: the "
            "model blurs; choose supervision.blend=1, a slower teacher or a lower optimizer.lr"
        )
    if now.get("head_entropy", 1.0) < COLLAPSE:
        found.append(
            f"step {step}: the head uses few of its prototypes (entropy {now['head_entropy']:.2f}, at most 1): it collapses; choose "
            "teacher.mode=frozen, head.centring=sinkhorn or a higher head.teacher_temperature"
        )
    return found


def write(run: str, judged: dict[str, Any]) -> None:
    """Keeps what was judged at a step."""
    location.write_bytes(join(run, "monitor", f"step-{judged['step']:09d}.json"), codec.encode_json(judged))


def read(run: str) -> list[dict[str, Any]]:
    """All that was judged of a run, by step."""
    folder = join(run, "monitor")
    return [codec.decode_json(location.read_bytes(join(folder, name))) for name in sorted(location.list_sizes(folder))]


def forget(run: str, step: int, digest: str) -> None:
    """Takes away what was judged after a step, which the run now comes to on another course, or on other frames."""
    old = [one["step"] for one in read(run) if one["step"] > step or one["frames"] != digest]
    location.remove_many([join(run, "monitor", f"step-{number:09d}.json") for number in old])
