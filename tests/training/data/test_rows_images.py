"""The images of a batch are those of its rows' frames, each frame decoded once."""

import numpy as np
import pytest

from configs import load
from configs.schema import TrainConfig
from storage import codec
from training.data.rows import open_rows


@pytest.mark.parametrize("labels", [False, True])
def test_images_stand_where_their_rows_and_views_do(dataset: str, tmp_path, monkeypatch: pytest.MonkeyPatch, labels: bool) -> None:
    rows = open_rows(load(TrainConfig, [f"dataset={dataset}", f"output={tmp_path}", "backbone=demo"]))
    rows.labels = labels
    decoded = []
    decode = codec.decode_jpeg
    monkeypatch.setattr(codec, "decode_jpeg", lambda data: decoded.append(data) or decode(data))
    choices = [(row % len(rows), 12345678901234567 * (row + 1) % 2**64) for row in (0, 1, 2, 0)]
    found = rows.fetch(choices)
    batch = rows.decode(found)
    shown = {frame for row in found[0] for frame in (*row.context, row.target)}
    assert len(decoded) == len(shown)
    assert batch.context_images is not None
    for b, row in enumerate(found[0]):
        images = [frame.image for frame in rows.table.read_frames([*row.context, row.target])]
        np.testing.assert_array_equal(batch.target_images[b].movedim(0, -1), images[-1])
        for view, image in enumerate(images[:-1]):
            np.testing.assert_array_equal(batch.context_images[b, view].movedim(0, -1), image)
