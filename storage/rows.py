"""A row of the `frames` column: a window, that is a context pair of frames and the frames between them, any of which can be the target.

Members of a row, `NN` being the frame's place in the window (the first and the last are the context pair):

    window.json      scene, names, cameras (c2w in the mesh frame, K in pixels of the stored image)
    NN.jpg           the image
    NN.labels.png    object ids, 16 bit, 0 = unlabelled
    NN.valid.png     absent where every pixel is valid
    NN.depth.png     millimetres, 16 bit, 0 = no surface; the context pair only
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage import codec
from storage.domain import Camera, Frame
from storage.operator import content_hash


@dataclass(frozen=True)
class Window:
    """What `window.json` says: the scene, and name and camera of each frame in order."""

    scene: str
    names: tuple[str, ...]
    cameras: tuple[Camera, ...]

    @property
    def context(self) -> tuple[int, int]:
        """The places of the context pair: the window's two ends."""
        return 0, len(self.names) - 1


def encode_window(scene: str, frames: Sequence[Frame]) -> dict[str, bytes]:
    """The members of a row. Depth is kept for those frames that carry it."""
    if len(frames) < 2:
        raise ValueError(f"scene {scene}: a window needs two context frames, got {len(frames)}")
    size = (frames[0].camera.width, frames[0].camera.height)
    if any((f.camera.width, f.camera.height) != size for f in frames):
        raise ValueError(f"scene {scene}: the frames of a window differ in size")
    cameras = [{"c2w": f.camera.c2w.tolist(), "K": f.camera.K.tolist()} for f in frames]
    header = {"scene": scene, "names": [f.name for f in frames], "cameras": cameras, "width": size[0], "height": size[1]}
    members = {"window.json": codec.encode_json(header)}
    for place, frame in enumerate(frames):
        members[f"{place:02d}.jpg"] = codec.encode_jpeg(frame.image)
        members[f"{place:02d}.labels.png"] = codec.encode_ids(frame.labels)
        if not frame.valid.all():
            members[f"{place:02d}.valid.png"] = codec.encode_valid(frame.valid)
        if frame.depth is not None:
            members[f"{place:02d}.depth.png"] = codec.encode_depth(frame.depth)
    return members


def decode_window(data: bytes) -> Window:
    header = codec.decode_json(data)
    cameras = tuple(Camera(np.array(c["c2w"]), np.array(c["K"]), header["width"], header["height"]) for c in header["cameras"])
    return Window(header["scene"], tuple(header["names"]), cameras)


def frame_members(place: int, present: Iterable[str]) -> list[str]:
    """The members of the frame at `place` that a training step reads: image, labels and, where the row has one, validity."""
    wanted = [f"{place:02d}.jpg", f"{place:02d}.labels.png", f"{place:02d}.valid.png"]
    return [name for name in wanted if name in set(present)]


def decode_frame(window: Window, place: int, members: Mapping[str, bytes]) -> Frame:
    """The frame at `place` from the members of its row (those that `frame_members` names; depth where it is there)."""
    camera = window.cameras[place]
    valid = members.get(f"{place:02d}.valid.png")
    depth = members.get(f"{place:02d}.depth.png")
    return Frame(
        name=window.names[place],
        camera=camera,
        image=codec.decode_jpeg(members[f"{place:02d}.jpg"]),
        labels=codec.decode_ids(members[f"{place:02d}.labels.png"]),
        valid=np.ones((camera.height, camera.width), bool) if valid is None else codec.decode_valid(valid),
        depth=None if depth is None else codec.decode_depth(depth),
    )


def encode_tokens(tokens_vhwc: np.ndarray) -> dict[str, bytes]:
    """A row of a `features` column: the teacher's patch tokens of the context pair [2,h,w,C], float16."""
    return {"tokens.npy": codec.encode_array(tokens_vhwc.astype(np.float16))}


def decode_tokens(members: Mapping[str, bytes]) -> np.ndarray:
    """[2,h,w,C] float32."""
    return codec.decode_array(members["tokens.npy"]).astype(np.float32)


def operator_source(made_by: Mapping[str, Any], key: str, place: int) -> str:
    """The hash that an operator of an `operators` column carries: of what made the column, its row and its target's place."""
    return content_hash(made_by={name: made_by[name] for name in ("from", "reconstructor")}, row=key, target=place)
