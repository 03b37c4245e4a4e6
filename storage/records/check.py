"""Decodes every member of a row, as a reader would: what the writer put there must be what readers understand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from storage import codec
from storage.domain import Camera
from storage.index import Index
from storage.reader import MemberReader
from storage.records import SKIPPED
from storage.records.frames import CAMERA, MASK, TOKENS, decode_camera, decode_frame, decode_tokens
from storage.records.gaussians import decode_gaussians
from storage.records.operators import OPERATOR_MEMBERS, decode_operator, operator_member, operator_source


class RowCheck:
    """Decodes rows of a column of one kind.

    windows, frames: the indexes that a derived column was made for; without them, what needs a window's cameras or targets is not decoded.
    """

    def __init__(self, kind: str, windows: Index | None = None, frames: Index | None = None) -> None:
        self.kind, self.windows, self.frames = kind, windows, frames
        self._row = {key: row for row, key in enumerate(windows.all_keys())} if windows and kind in ("gaussians", "operators") else {}
        self._reader = MemberReader()

    def decode(self, key: str, members: Mapping[str, bytes], provenance: str) -> None:
        """Raises whatever decoding raises: ValueError, or what an image library thinks of. provenance: of the shard's record."""
        if SKIPPED in members:
            codec.decode_json(members[SKIPPED])["reason"]
        if self.kind == "frames":
            frame = decode_frame(members)
            size = (frame.camera.height, frame.camera.width)
            for name, pixels in (("image", frame.image), ("valid", frame.valid), ("depth", frame.depth)):
                if pixels is not None and pixels.shape[:2] != size:
                    raise ValueError(f"{name} has {pixels.shape[:2]} pixels, its camera {size}")
        elif self.kind == "masks":
            codec.decode_ids(members[MASK])
        elif self.kind == "features":
            tokens = decode_tokens(members[TOKENS])
            if tokens.ndim != 3 or not np.isfinite(tokens).all():
                raise ValueError(f"tokens of shape {tokens.shape}, not [h,w,C], or not finite")
        elif self.windows and self.frames and key in self._row:
            offsets, frames = self.windows.lists("context" if self.kind == "gaussians" else "targets")
            of_window = frames[offsets[self._row[key]] : offsets[self._row[key] + 1]]
            if self.kind == "gaussians":
                decode_gaussians(members, self._cameras(of_window.tolist()))
            else:
                self._decode_operators(key, members, provenance, [self.frames.key(frame) for frame in of_window.tolist()])

    def _decode_operators(self, key: str, members: Mapping[str, bytes], provenance: str, targets: Sequence[str]) -> None:
        expected = {operator_member(index): operator_source(provenance, key, frame) for index, frame in enumerate(targets)}
        unknown = members.keys() - expected.keys() - {SKIPPED}
        if unknown:
            raise ValueError(f"{min(unknown)} is for no target of its window")
        for name in members.keys() & expected.keys():
            decode_operator({OPERATOR_MEMBERS[0]: members[name]}, expected[name])

    def _cameras(self, frames: Sequence[int]) -> list[Camera]:
        """Raises StorageError where those of the frames cannot be read."""
        assert self.frames
        return [decode_camera(data)[1] for data in self._reader.read([self.frames.locate(frame, CAMERA) for frame in frames])]
