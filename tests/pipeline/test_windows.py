"""Windows: by file number and pose, never across a hole, and a scene without any ends."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import WindowConfig
from pipeline.windows import plan_windows

RULE = WindowConfig(gap=8, stride=4, min_baseline=0.03, max_baseline=0.6, max_rotation=25.0)


def walk(numbers: list[int], step: float = 0.02, degrees: float = 1.0) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(numbers), 1, 1))
    for pose, number in zip(poses, numbers, strict=True):
        angle = np.radians(degrees * number)
        pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        pose[0, 3] = step * number
    return poses


def plan(numbers: list[int], rule: WindowConfig = RULE, **how: float):
    return plan_windows("s", [f"DSC{n:05d}.JPG" for n in numbers], numbers, walk(numbers, **how), rule)


def test_an_unbroken_walk_gives_a_window_every_stride() -> None:
    windows, passed = plan(list(range(100, 120)))
    assert [w.names[0] for w in windows] == ["DSC00100.JPG", "DSC00104.JPG", "DSC00108.JPG"]
    assert {len(w.names) for w in windows} == {9}
    assert windows[0].key == "s-DSC00100"
    assert passed == {"no_frame_at_gap": 8}


@given(st.lists(st.integers(0, 80), unique=True, max_size=60).map(sorted), st.integers(1, 12), st.integers(1, 9))
def test_every_window_spans_exactly_the_gap(numbers: list[int], gap: int, stride: int) -> None:
    windows, passed = plan(numbers, WindowConfig(gap, stride, 0.0, 9.0, 180.0))
    starts = [int(w.names[0][3:8]) for w in windows]
    for start, window in zip(starts, windows, strict=True):
        inside = [n for n in numbers if start <= n <= start + gap]
        assert window.names == tuple(f"DSC{n:05d}.JPG" for n in inside)
        assert inside[-1] == start + gap
    assert all(b - a >= stride for a, b in itertools.pairwise(starts))
    possible = [n for n in numbers if n + gap in numbers]
    assert bool(windows) == bool(possible)
    assert all(any(start <= n < start + stride for start in starts) for n in possible)
    assert len(windows) + sum(passed.values()) <= len(numbers)


def test_pairs_whose_poses_do_not_suit_are_counted() -> None:
    numbers = list(range(9))
    assert plan(numbers, step=0.001)[1] == {"baseline_too_short": 1, "no_frame_at_gap": 8}
    assert plan(numbers, step=0.1)[1] == {"baseline_too_long": 1, "no_frame_at_gap": 8}
    assert plan(numbers, degrees=4.0)[1] == {"no_frame_at_gap": 8, "rotation_too_large": 1}
    assert plan([]) == ([], {})
