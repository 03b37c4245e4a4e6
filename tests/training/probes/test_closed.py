"""Tier `closed`: closed forms find what is linear, oracles win in their own column, what knows nothing scores like a constant."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.training.probes.rooms import Rooms
from training.probes.baselines import Handmade, oracles
from training.probes.closed import Group, fit_logistic, fit_ridge
from training.probes.data.base import IGNORED, ProbeFrame
from training.probes.extractor import Tokens
from training.probes.features import FeatureMap
from training.probes.grid import to_pixels, token_depth, token_majority, token_pixels
from training.probes.judge import judge

STRIDE = 14
CLOSED = ("depth", "normals", "segmentation")


class Grid:
    """Where the tokens of a network with patches of 14 pixels lie."""

    def grid(self, height: int, width: int) -> FeatureMap:
        return FeatureMap(torch.empty(1, 0, height // STRIDE, width // STRIDE), None, (0, 0), STRIDE)


def source(formula: Callable[[FeatureMap, ProbeFrame], np.ndarray]) -> Handmade:
    return Handmade({}, Grid(), formula)  # type: ignore[arg-type]


@dataclass
class Shuffled:
    """Another source's tokens, each frame's given to one of another room."""

    other: Handmade
    frames: list[ProbeFrame]

    def tokens(self, frame: ProbeFrame) -> Tokens:
        keys = [f.key for f in self.frames]
        return self.other.tokens(self.frames[(keys.index(frame.key) + len(keys) // 2) % len(keys)])


@pytest.fixture(scope="module")
def rooms() -> Rooms:
    return Rooms(train=4, test=2, views_each=4)


@pytest.fixture(scope="module")
def scores(rooms: Rooms) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics by source and task."""
    made = oracles(Grid(), rooms, rooms.tasks)  # type: ignore[arg-type]
    noise = np.random.default_rng(0)
    sources = {
        "constant": source(lambda where, _: np.ones((*where.patch.shape[-2:], 2))),
        "random": source(lambda where, _: noise.normal(size=(*where.patch.shape[-2:], 8))),
        "position": source(lambda where, _: np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in where.patch.shape[:-3:-1])), -1)),
        "shuffled": Shuffled(made["segmentation"], [*rooms.frames("train"), *rooms.frames("test")]),
        **{f"oracle {task}": one for task, one in made.items()},
    }
    found = {}
    for name, one in sources.items():
        tasks = ("correspondence",) if name == "oracle correspondence" else rooms.tasks
        found[name] = {task: result["metrics"] for task, result in judge(one, rooms, tasks).to_json().items()}  # type: ignore[arg-type]
    return found


def test_an_oracle_is_best_in_its_own_column(scores: dict) -> None:
    assert scores["oracle depth"]["depth"]["rmse"] < 0.3 * scores["constant"]["depth"]["rmse"]
    assert scores["oracle normals"]["normals"]["mean"] < 0.45 * scores["constant"]["normals"]["mean"]
    assert scores["oracle segmentation"]["segmentation"]["mIoU"] > 0.7
    for task, metric, sign in (("depth", "rmse", 1), ("normals", "mean", 1), ("segmentation", "mIoU", -1)):
        names = [name for name in scores if task in scores[name]]
        assert min(names, key=lambda name: sign * scores[name][task][metric]) == f"oracle {task}"


def test_the_oracle_of_correspondence_finds_nearly_every_token_at_every_angle(scores: dict) -> None:
    found = scores["oracle correspondence"]["correspondence"]
    assert found["recall_1"] > 0.97
    assert min(found[f"recall_1@{b}"] for b in ("0-15", "15-30", "30-60", "60-180")) > 0.9


def test_what_knows_nothing_scores_like_a_constant(scores: dict) -> None:
    assert scores["random"]["depth"]["rmse"] == pytest.approx(scores["constant"]["depth"]["rmse"], rel=0.05)
    assert scores["random"]["normals"]["mean"] == pytest.approx(scores["constant"]["normals"]["mean"], rel=0.05)
    assert abs(scores["random"]["segmentation"]["mIoU"] - scores["constant"]["segmentation"]["mIoU"]) < 0.015


def test_the_truth_of_other_frames_is_no_better_than_the_position_on_the_image(scores: dict) -> None:
    assert scores["shuffled"]["depth"]["rmse"] > 0.95 * scores["position"]["depth"]["rmse"]
    assert scores["shuffled"]["normals"]["mean"] > 0.95 * scores["position"]["normals"]["mean"]
    assert scores["shuffled"]["segmentation"]["mIoU"] < scores["position"]["segmentation"]["mIoU"] + 0.02


def test_a_constant_finds_nothing_and_ranks_nothing(scores: dict) -> None:
    assert scores["constant"]["correspondence"]["recall_1"] < 0.03
    assert scores["constant"]["consistency"]["rank"] == pytest.approx(0.5)
    assert scores["constant"]["consistency"]["effective_rank"] == pytest.approx(1)


def test_twice_the_same_channels_change_nothing(rooms: Rooms) -> None:
    def once(where: FeatureMap, frame: ProbeFrame) -> np.ndarray:
        return token_pixels(where, frame.image).mean(2) / 255

    single = judge(source(once), rooms, CLOSED, strength=1e-3).to_json()
    double = judge(source(lambda w, f: np.concatenate([once(w, f)] * 2, -1)), rooms, CLOSED, strength=1e-3).to_json()
    for task in CLOSED:
        for name, value in single[task]["metrics"].items():
            assert double[task]["metrics"][name] == pytest.approx(value, rel=0.02, abs=0.01), (task, name)


def test_the_same_numbers_every_time(rooms: Rooms) -> None:
    colour = source(lambda where, frame: token_pixels(where, frame.image).mean(2) / 255)
    assert judge(colour, rooms, rooms.tasks).to_json() == judge(colour, rooms, rooms.tasks).to_json()


def test_what_is_unknown_or_not_kept_counts_for_nothing(rooms: Rooms) -> None:
    """A band without truth, whatever the tokens say there, changes nothing that is not in it."""

    @dataclass
    class Spoilt:
        value: float

        def tokens(self, frame: ProbeFrame) -> Tokens:
            found = source(lambda where, f: token_pixels(where, f.image).mean(2) / 255).tokens(frame)
            patch, keep = found.map.patch.clone(), found.keep.clone()
            patch[..., :3, :], keep[:3] = self.value, False
            return Tokens(replace(found.map, patch=patch), keep)

    results = [judge(Spoilt(value), rooms, rooms.tasks).to_json() for value in (0.0, 1e3)]  # type: ignore[arg-type]
    assert results[0] == results[1]
    assert results[0]["depth"]["records"][0]["pixels"] <= 6 * STRIDE * 168


def test_ridge_finds_a_linear_truth_and_keeps_its_bias() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 2))
    rooms = []
    for _ in range(3):
        x = rng.normal(size=(200, 5)) * [1, 10, 0.1, 3, 1] + 4
        rooms.append(Group(torch.from_numpy(x), torch.from_numpy(x @ weight + [100, -7])))
    head = fit_ridge(rooms)
    assert head.strength == 1e-4  # without noise the weakest is best
    error = head(rooms[0].tokens) - rooms[0].wanted
    assert float(error.abs().max()) < 1e-2


def test_ridge_is_stronger_where_rooms_do_not_agree() -> None:
    rng = np.random.default_rng(1)
    rooms = [Group(torch.from_numpy(rng.normal(size=(40, 30))), torch.from_numpy(rng.normal(size=(40, 1)))) for _ in range(4)]
    assert fit_ridge(rooms).strength >= 1


def test_the_logistic_head_is_at_its_optimum() -> None:
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(size=(600, 6))).float()
    y = (x[:, :3] + 0.5 * torch.from_numpy(rng.normal(size=(600, 3))).float()).argmax(1)
    head = fit_logistic([Group(x, y)], 3)
    weight = head.weight.clone().requires_grad_()
    standard = (x - head.mean) / head.scale
    loss = torch.nn.functional.cross_entropy(standard @ weight[:-1] + weight[-1], y) + head.strength / 2 * (weight[:-1] ** 2).sum()
    loss.backward()
    assert float(weight.grad.abs().max()) < 1e-4
    assert float((head(x).argmax(1) == y).float().mean()) > 0.75


def test_pixels_and_tokens_of_a_padded_map_lie_on_each_other() -> None:
    """A map of 2 x 2 tokens of 4 pixels over an image of 6 x 7, which begins a row and no column inside it."""
    where = FeatureMap(torch.empty(1, 0, 2, 2), None, (1, 0), 4)
    image = np.arange(42, dtype=np.float32).reshape(6, 7) + 1
    tiles = token_pixels(where, image)
    assert tiles.shape == (2, 2, 16)
    assert (tiles[0, 0].reshape(4, 4)[0] == 0).all()
    np.testing.assert_array_equal(tiles[0, 1].reshape(4, 4)[1], [5, 6, 7, 0])
    tokens = Tokens(where, torch.ones(2, 2, dtype=torch.bool))
    back, judged = to_pixels(torch.tensor([[[1.0, 2], [3, 4]]]), tokens, 6, 7)
    assert back.shape == (1, 6, 7)
    assert judged.all()
    assert back[0, 0, 0] == 1
    cropped = Tokens(FeatureMap(torch.empty(1, 0, 1, 1), None, (-1, -1), 4), torch.ones(1, 1, dtype=torch.bool))
    _, judged = to_pixels(torch.ones(1, 1, 1), cropped, 6, 7)
    assert judged.sum() == 16
    assert judged[1, 1] and not judged[0, 1] and not judged[1, 5]  # noqa: PT018


def test_truths_of_tokens_leave_out_what_is_unknown() -> None:
    where = FeatureMap(torch.empty(1, 0, 1, 2), None, (0, 0), 2)
    depth = np.array([[1, 0, 0, 0], [4, 0, 0, 50]], np.float32)
    frame = ProbeFrame("a", "r", np.zeros((2, 4, 3), np.uint8), depth=depth)
    value, known = token_depth(where, frame, (0.1, 10.0))
    assert value[0, 0, 0] == pytest.approx(np.log(2))
    assert known.tolist() == [[True, False]]
    ids = np.array([[3, 3, IGNORED, IGNORED], [IGNORED, 1, IGNORED, IGNORED]], np.uint8)
    most, known = token_majority(where, ids, IGNORED)
    assert most[0, 0] == 3
    assert known.tolist() == [[True, False]]
