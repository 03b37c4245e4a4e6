"""A dataset that is read and trained from in moments."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.plan.windows import PlannedWindow
from pipeline.reconstruct.depth import DepthReconstructor
from storage.domain import Camera, Frame
from tests.datasets import Scene, write_dataset

HEIGHT, WIDTH = 28, 42  # 2 x 3 tokens
CONTEXT, TARGETS = (0, 2, 4), (0, 1, 2, 3, 4)


def tiny_frames(spacing: float = 0.05) -> list[Frame]:
    """Five cameras in a row, `spacing` metres apart, 2 m before a wall of two halves. Frame n is grey 40 n all over; one pixel is
    invalid, in row n (in frame 3 none is)."""
    K = np.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]])
    labels = np.ones((HEIGHT, WIDTH), np.uint16)
    labels[:, WIDTH // 2 :] = 2
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    frames = []
    for number in TARGETS:
        c2w = np.eye(4)
        c2w[0, 3] = spacing * number
        image = np.full((HEIGHT, WIDTH, 3), 40 * number, np.uint8)
        valid = np.ones((HEIGHT, WIDTH), bool)
        valid[number, 1] = number == 3
        frames.append(Frame(f"{number}.jpg", Camera(c2w, K, WIDTH, HEIGHT), image, labels, valid, depth))
    return frames


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Frames, masks, windows, Gaussians and operators of two rooms of `tiny_frames`, a window each."""
    root = str(tmp_path_factory.mktemp("tiny"))
    scenes = [Scene(name, tiny_frames(), [PlannedWindow(CONTEXT, TARGETS)]) for name in ("hall", "loft")]
    write_dataset(root, scenes, DepthReconstructor(0.4).reconstruct, operators=True)
    return root
