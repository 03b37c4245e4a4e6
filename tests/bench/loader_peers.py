"""The same rows in two formats of other projects, for a loader to be measured beside: WebDataset's tars, read in their order, and litdata's
chunks, read at random. What makes a batch of their bytes is given, so that the readers alone differ, or as users would write it.

    write_webdataset(rows, folder, per_shard=8);  for batch in read_webdataset(folder, 8, decode_rows): ...
    write_litdata(rows, folder);                  for batch in read_litdata(folder, [[3, 0], [1, 2]], decode_rows): ...
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import webdataset
from PIL import Image

from storage import codec
from storage.records.operators import OPERATOR_MEMBERS, decode_operator
from training.splat.apply import OperatorBatch, collate_operators

T = TypeVar("T")


class Row(NamedTuple):
    """What a step reads where splats are cached: the JPEGs of the context pair and of the target, the target's validity and operator."""

    first: bytes
    last: bytes
    target: bytes
    valid: bytes
    operator: bytes


Decoded = tuple[np.ndarray, np.ndarray, OperatorBatch]


def decode_rows(rows: Sequence[Row]) -> Decoded:
    """Images [B,3,H,W,3] uint8, context pair first, validity [B,H,W] bool, and the operators side by side; by Pillow, as WebDataset's
    "rgb8" and litdata decode JPEG."""
    images = np.stack([[np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in row[:3]] for row in rows])
    valid = np.stack([np.asarray(Image.open(io.BytesIO(row.valid))) for row in rows])
    return images, valid, _operators(rows)


def decode_rows_as_ours(rows: Sequence[Row]) -> Decoded:
    """The same by this project's functions, and into arrays of the batch; every image of every row, as these formats repeat them."""
    shape = codec.decode_jpeg(rows[0].target).shape
    images, valid = np.empty((len(rows), 3, *shape), np.uint8), np.empty((len(rows), *shape[:2]), bool)
    for b, row in enumerate(rows):
        valid[b] = codec.decode_valid(row.valid)
        for view, image in enumerate(row[:3]):
            images[b, view] = codec.decode_jpeg(image)
    return images, valid, _operators(rows)


def _operators(rows: Sequence[Row]) -> OperatorBatch:
    return collate_operators([decode_operator({OPERATOR_MEMBERS[0]: row.operator}) for row in rows])


DECODERS: dict[str, Callable[[Sequence[Row]], Decoded]] = {"Pillow": decode_rows, "our decode": decode_rows_as_ours}
_FILES = ("first.jpg", "last.jpg", "target.jpg", "valid.png", OPERATOR_MEMBERS[0])


def write_webdataset(rows: Sequence[Row], folder: Path, per_shard: int) -> None:
    """Plain tars, a sample a row."""
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=per_shard, encoder=False, verbose=0) as writer:
        for number, row in enumerate(rows):
            writer.write({"__key__": f"{number:06d}", **dict(zip(_FILES, row, strict=True))})


def read_webdataset(folder: Path, batch: int, decode: Callable[[Sequence[Row]], T]) -> Iterator[T]:
    """All whole batches, tar after tar."""
    samples = webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
    for some in samples.batched(batch, collation_fn=None, partial=False):
        yield decode([Row(*(sample[name] for name in _FILES)) for sample in some])


def write_litdata(rows: Sequence[Row], folder: Path) -> None:
    """By litdata's own writer, in chunks of the size that it recommends."""
    _litdata()
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir(parents=True)
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")  # what `litdata.optimize` runs in a process of its own
    for number, row in enumerate(rows):
        writer.add_item(number, tuple(row))
    writer.done()
    writer.merge()


def read_litdata(folder: Path, batches: Sequence[Sequence[int]], decode: Callable[[Sequence[Row]], T]) -> Iterator[T]:
    """Batches of the given rows, each row asked for by its number."""
    dataset = _litdata().StreamingDataset(str(folder))
    for rows in batches:
        # Views of a mapped file on a local disk; what decodes takes bytes.
        yield decode([Row(*map(bytes, dataset[int(row)])) for row in rows])


def _litdata() -> Any:
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # or it asks the package index for its newest release
    try:
        import litdata
    except ImportError as error:
        raise ImportError("litdata is missing: pip install litdata, in an environment of its own (it moves boto's version)") from error
    return litdata
