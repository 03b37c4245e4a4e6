"""The same rows in two formats of other projects, for a loader to be measured beside: WebDataset's tars, read in their order, and litdata's
chunks, read at random. All of a batch but its bytes comes from `decode`, so that the readers alone differ.

    write_webdataset(rows, folder, per_shard=8);  for batch in read_webdataset(folder, 8, decode_rows): ...
    write_litdata(rows, folder);                  for batch in read_litdata(folder, [[3, 0], [1, 2]], decode_rows): ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import webdataset

from storage import codec
from storage.operator import OPERATOR_MEMBERS, decode_operator
from training.splat.apply import OperatorBatch, collate_operators

T = TypeVar("T")


class Row(NamedTuple):
    """What a step reads where splats are cached: the JPEGs of the context pair and of the target, and the target's operator."""

    images: tuple[bytes, bytes, bytes]
    operator: bytes


def decode_rows(rows: Sequence[Row]) -> tuple[np.ndarray, OperatorBatch]:
    """Images [B,3,H,W,3] uint8, context pair first, and the operators side by side."""
    images = np.stack([[codec.decode_jpeg(image) for image in row.images] for row in rows])
    return images, collate_operators([decode_operator({OPERATOR_MEMBERS[0]: row.operator}) for row in rows])


def write_webdataset(rows: Sequence[Row], folder: Path, per_shard: int) -> None:
    """Plain tars, a sample a row."""
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=per_shard, encoder=False, verbose=0) as writer:
        for number, row in enumerate(rows):
            images = {f"{place}.jpg": image for place, image in enumerate(row.images)}
            writer.write({"__key__": f"{number:06d}", **images, OPERATOR_MEMBERS[0]: row.operator})


def read_webdataset(folder: Path, batch: int, decode: Callable[[Sequence[Row]], T]) -> Iterator[T]:
    """All whole batches, tar after tar."""
    samples = webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
    for some in samples.batched(batch, collation_fn=None, partial=False):
        yield decode([Row((s["0.jpg"], s["1.jpg"], s["2.jpg"]), s[OPERATOR_MEMBERS[0]]) for s in some])


def write_litdata(rows: Sequence[Row], folder: Path) -> None:
    """By litdata's own writer, in chunks of the size that it recommends."""
    _litdata()
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")  # what `litdata.optimize` runs in a process of its own
    for number, row in enumerate(rows):
        writer.add_item(number, (*row.images, row.operator))
    writer.done()
    writer.merge()


def read_litdata(folder: Path, batches: Sequence[Sequence[int]], decode: Callable[[Sequence[Row]], T]) -> Iterator[T]:
    """Batches of the given rows, each row asked for by its number."""
    dataset = _litdata().StreamingDataset(str(folder))
    for rows in batches:
        # Views of a mapped file on a local disk; what decodes takes bytes.
        samples = [[bytes(part) for part in dataset[int(row)]] for row in rows]
        yield decode([Row((first, last, target), operator) for first, last, target, operator in samples])


def _litdata() -> Any:
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # or it asks the package index for its newest release
    try:
        import litdata
    except ImportError as error:
        raise ImportError("litdata is missing: pip install litdata, in an environment of its own (it moves boto's version)") from error
    return litdata
