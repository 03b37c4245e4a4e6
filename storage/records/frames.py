"""A row of the tables' frame columns, keyed scene and stem of the image's name. Each frame is encoded and stored once.

    frames      camera.json    scene, name, c2w in the scene's frame, K in pixels of the stored image, size, whether it is held out
                jpg            the image
                depth.png      millimetres, 16 bit, 0 = no surface; absent where the scene has no depth
                valid.png      absent where every pixel is valid
    masks       mask.png       object ids, 16 bit, 0 = unlabelled
    features    tokens.npy     a teacher's patch tokens [h,w,C], float16

The attributes that an index of `frames` carries beside: scene, number (the camera's counter), c2w, held_out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from storage import codec
from storage.domain import Camera, Frame

CAMERA, IMAGE, DEPTH, VALID, MASK, TOKENS = "camera.json", "jpg", "depth.png", "valid.png", "mask.png", "tokens.npy"


def frame_key(scene: str, name: str) -> str:
    """The key of a frame: scene and the stem of its image's name."""
    return f"{scene}-{name.rsplit('.', 1)[0]}"


def encode_frame(scene: str, frame: Frame, held_out: bool) -> dict[str, bytes]:
    """The members of a frame in `frames`; its labels go elsewhere (`encode_mask`)."""
    camera = frame.camera
    header = {
        "scene": scene, "name": frame.name, "c2w": camera.c2w.tolist(), "K": camera.K.tolist(), "width": camera.width,
        "height": camera.height, "held_out": held_out,
    }  # fmt: skip
    members = {CAMERA: codec.encode_json(header), IMAGE: codec.encode_jpeg(frame.image)}
    if frame.depth is not None:
        members[DEPTH] = codec.encode_depth(frame.depth)
    if not frame.valid.all():
        members[VALID] = codec.encode_valid(frame.valid)
    return members


def decode_frame(members: Mapping[str, bytes]) -> Frame:
    """The frame from its members in `frames` and, where they are given too, in `masks`; depth where it is there."""
    name, camera = decode_camera(members[CAMERA])
    depth, mask = members.get(DEPTH), members.get(MASK)
    return Frame(
        name=name,
        camera=camera,
        image=codec.decode_jpeg(members[IMAGE]),
        labels=None if mask is None else codec.decode_ids(mask),
        valid=decode_valid(members.get(VALID), camera.height, camera.width),
        depth=None if depth is None else codec.decode_depth(depth),
    )


def decode_camera(data: bytes) -> tuple[str, Camera]:
    """The name of a frame's image, and its camera."""
    header = codec.decode_json(data)
    return header["name"], Camera(np.array(header["c2w"]), np.array(header["K"]), header["width"], header["height"])


def decode_valid(data: bytes | None, height: int, width: int) -> np.ndarray:
    """[H,W] bool; without the member, every pixel is valid."""
    return np.ones((height, width), bool) if data is None else codec.decode_valid(data)


def encode_mask(labels_hw: np.ndarray) -> dict[str, bytes]:
    """The members of a frame in `masks`: [H,W] uint16 object ids."""
    return {MASK: codec.encode_ids(labels_hw)}


def encode_tokens(tokens_hwc: np.ndarray) -> dict[str, bytes]:
    """The members of a frame in `features`: [h,w,C] patch tokens."""
    return {TOKENS: codec.encode_array(tokens_hwc.astype(np.float16))}


def decode_tokens(data: bytes) -> np.ndarray:
    """[h,w,C] float32."""
    return codec.decode_array(data).astype(np.float32)
