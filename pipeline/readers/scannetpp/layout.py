"""The official ScanNet++ folder layout, read without opening an image: split lists, `transforms.json`, what lies on disk and what is not.

    <root>/splits/<split>.txt            (or split/)
    <root>/data/<scene>/dslr/nerfstudio/transforms.json, dslr/resized_images/, dslr/resized_anon_masks/
    <root>/data/<scene>/scans/mesh_aligned_0.05.ply, segments.json, segments_anno.json

Every dropped frame is a `Skip` with a reason; a scene that cannot be used at all raises `BadScene`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.readers.base import BadFrame, BadScene, FrameEntry, SceneIndex, Skip
from pipeline.readers.lens import Lens
from storage.location import NotFound, ObjectInfo, StorageError, join, list_folders, list_objects, list_sizes, read_bytes

MESH_FILES = ("mesh_aligned_0.05.ply", "segments.json", "segments_anno.json")
RIGID_TOLERANCE = 1e-3

_SPLIT_FOLDERS = ("splits", "split")  # the documentation prints one, the official code opens the other
_FLIP_CAMERA = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL camera axes <-> OpenCV camera axes
_SWAP_WORLD = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])  # (x, y, z) -> (y, x, -z), its own inverse, det +1
_TRAILING_NUMBER = re.compile(r"(\d+)$")


@dataclass(frozen=True)
class ScanNetPPIndex(SceneIndex):
    """A listed scene with the one lens of all its photographs. Its version covers lens, mesh and annotations."""

    lens: Lens


def read_split(root: str, split: str) -> list[str]:
    """The scene ids of `split` (such as "nvs_sem_train"), in file order, without blanks, duplicates, byte-order mark or Windows line ends.

    Raises NotFound naming the URL and the splits that are there; StorageError where the file is not UTF-8 text.
    """
    file_name = f"{split.removesuffix('.txt')}.txt"
    present: list[str] = []
    for folder in _SPLIT_FOLDERS:
        names = list_sizes(join(root, folder))
        if file_name in names:
            url = join(root, folder, file_name)
            try:
                text = read_bytes(url).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise StorageError(f"{url}: not UTF-8 text ({error}); save it as UTF-8, one scene id per line") from error
            return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
        present += sorted(f"{folder}/{name}" for name in names if name.endswith(".txt"))
    there = ", ".join(present) or "no split list at all; check that the root is the folder that holds splits/ and data/"
    raise NotFound(f"{join(root, _SPLIT_FOLDERS[0], file_name)}: no such split; under {root} there is: {there}")


def pose_from_json(transform: np.ndarray) -> np.ndarray:
    """`transform_matrix` of transforms.json [4,4] -> OpenCV camera-to-world [4,4] in the mesh frame. The conversion is its own inverse."""
    return _SWAP_WORLD @ transform @ _FLIP_CAMERA


def read_scene(root: str, scene_id: str, keep_bad: bool = False) -> ScanNetPPIndex:
    """Everything about a scene that can be checked without opening its images or its mesh: one small file and three folder listings.

    Reasons of dropped frames: entry_invalid, duplicate, image_missing, pose_not_finite, pose_not_rigid, is_bad (unless `keep_bad`),
    mask_missing. A frame with several gets the first of them.
    Raises BadScene: scene_missing, transforms_missing, transforms_invalid, camera_model, no_frames, mesh_missing.
    """
    scene_url = join(root, "data", scene_id)
    transforms = _read_transforms(scene_url, scene_id)
    lens = _lens(transforms, scene_id)
    entries = transforms.get("frames")
    if not isinstance(entries, list):
        raise BadScene(scene_id, "transforms_invalid", "transforms.json has no list 'frames'")
    if not entries:
        raise BadScene(scene_id, "no_frames", "'frames' of transforms.json is empty")
    scans = list_objects(join(scene_url, "scans"))
    absent = sorted(set(MESH_FILES) - set(scans))
    if absent:
        raise BadScene(scene_id, "mesh_missing", f"{scene_url}/scans lacks {', '.join(absent)}; labels and depth come from there")

    images = _Folder(join(scene_url, "dslr", "resized_images"))
    masks = _Folder(join(scene_url, "dslr", "resized_anon_masks")) if transforms.get("has_mask", True) is not False else None
    frames: list[FrameEntry] = []
    skipped: list[Skip] = []
    seen: set[str] = set()
    remarks: Counter[str] = Counter()
    for position, entry in enumerate(entries):
        try:
            frames.append(_frame(scene_id, position, entry, images, masks, keep_bad, seen, remarks))
        except BadFrame as error:
            skipped.append(error.skip)

    notes = [f"{count} frames: {remark}" for remark, count in sorted(remarks.items())]
    if masks is None:
        notes.append("has_mask is false: every pixel counts as valid")
    if isinstance(transforms.get("test_frames"), list) and transforms["test_frames"]:
        notes.append(f"{len(transforms['test_frames'])} test_frames are left out: they are no sequence")
    if not images.names and "resized_images.zip" in list_sizes(join(scene_url, "dslr")):
        notes.append("dslr/resized_images is empty beside resized_images.zip: unpack it")
    frames.sort(key=lambda frame: (frame.number, frame.name))
    version = _version([lens, *(scans[name] for name in MESH_FILES)])
    return ScanNetPPIndex(scene_id, tuple(frames), tuple(skipped), tuple(notes), version, lens)


class _Folder:
    """One listing of a folder, with look-up that ignores case."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.objects = {name: found for name, found in list_objects(url).items() if found.size > 0}
        self.names = {name.lower(): name for name in self.objects}

    def find(self, name: str) -> tuple[str, ObjectInfo] | None:
        """URL, size and version of the file called `name` in any case, None where it is absent or empty."""
        found = self.names.get(name.lower())
        return None if found is None else (join(self.url, found), self.objects[found])


def _version(parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _read_transforms(scene_url: str, scene_id: str) -> dict[str, Any]:
    url = join(scene_url, "dslr", "nerfstudio", "transforms.json")
    try:
        data = read_bytes(url)
    except NotFound as error:
        if not list_folders(scene_url):
            raise BadScene(scene_id, "scene_missing", f"nothing lies at {scene_url}") from error
        raise BadScene(scene_id, "transforms_missing", f"{url} is absent; download the scene's dslr assets") from error
    try:
        # Python's parser takes the bare words NaN and Infinity that real files contain; the poses are checked one by one.
        transforms = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise BadScene(scene_id, "transforms_invalid", f"{url}: {error}; download it again") from error
    if not isinstance(transforms, dict):
        raise BadScene(scene_id, "transforms_invalid", f"{url}: holds a {type(transforms).__name__}, not an object")
    return transforms


def _lens(transforms: Mapping[str, Any], scene_id: str) -> Lens:
    model = transforms.get("camera_model")
    if model not in ("OPENCV_FISHEYE", "PINHOLE"):
        raise BadScene(scene_id, "camera_model", f"camera_model is {model!r}; OPENCV_FISHEYE and PINHOLE are understood")
    coefficients = ("k1", "k2", "k3", "k4")
    values: dict[str, float] = {}
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h", *coefficients):
        value = transforms.get(key, 0.0 if model == "PINHOLE" and key in coefficients else None)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise BadScene(scene_id, "transforms_invalid", f"transforms.json: {key} is {value!r}, not a finite number")
        values[key] = float(value)
    for key in ("fl_x", "fl_y", "w", "h"):
        if values[key] <= 0 or (key in ("w", "h") and not values[key].is_integer()):
            raise BadScene(scene_id, "transforms_invalid", f"transforms.json: {key} is {values[key]:g}")
    distortion = tuple(values[key] for key in coefficients)
    if model == "PINHOLE":
        if any(distortion):
            raise BadScene(scene_id, "camera_model", f"PINHOLE with distortion {distortion}: one of the two is wrong")
        distortion = ()
    return Lens(model, values["fl_x"], values["fl_y"], values["cx"], values["cy"], distortion, int(values["w"]), int(values["h"]))


def _frame(
    scene_id: str, position: int, entry: Any, images: _Folder, masks: _Folder | None, keep_bad: bool, seen: set[str], remarks: Counter[str]
) -> FrameEntry:
    """One element of `frames`. Raises BadFrame; adds the name to `seen` and what is odd but harmless to `remarks`."""
    path = entry.get("file_path") if isinstance(entry, dict) else None
    if not isinstance(path, str):
        raise BadFrame(scene_id, f"#{position}", "entry_invalid", "an element of 'frames' without a file_path")
    name = _base_name(path)
    number = _TRAILING_NUMBER.search(name.rsplit(".", 1)[0])
    if number is None:
        raise BadFrame(scene_id, name, "entry_invalid", "no camera counter at the end of the file's stem, so it cannot be put in order")
    if name.lower() in seen:
        raise BadFrame(scene_id, name, "duplicate", "listed more than once; the first is kept")
    seen.add(name.lower())

    image = images.find(name)
    if image is None:
        raise BadFrame(scene_id, name, "image_missing", f"no such file, or an empty one, in {images.url}")
    c2w = pose_from_json(_transform(scene_id, name, entry.get("transform_matrix")))
    is_bad = bool(entry.get("is_bad", False))
    if is_bad and not keep_bad:
        raise BadFrame(scene_id, name, "is_bad", "flagged as blurred or in heavy shadow")
    mask = None
    mask_path = entry.get("mask_path", entry.get("mask"))  # the documentation calls it "mask"
    if masks is not None and isinstance(mask_path, str) and mask_path:
        mask = masks.find(_base_name(mask_path))
        if mask is None:
            detail = f"{_base_name(mask_path)} is not in {masks.url}; anonymised pixels would be unknown"
            raise BadFrame(scene_id, name, "mask_missing", detail)

    if name != path:
        remarks["folder dropped from file_path"] += 1
    image_url, mask_url = image[0], mask and mask[0]
    if not image_url.endswith(f"/{name}"):
        remarks["file name differs in upper and lower case"] += 1
    if "is_bad" not in entry:
        remarks["no is_bad flag, taken as good"] += 1
    version = _version([c2w.tolist(), is_bad, image[1], mask and mask[1]])
    return FrameEntry(name, int(number[1]), c2w, image_url, mask_url, version)


def _base_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def _transform(scene_id: str, name: str, value: Any) -> np.ndarray:
    """`transform_matrix` as [4,4] float64, finite and rigid, or BadFrame."""
    try:
        transform = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadFrame(scene_id, name, "pose_not_finite", f"transform_matrix holds no numbers: {error}") from error
    if transform.shape != (4, 4) or not np.isfinite(transform).all():
        raise BadFrame(scene_id, name, "pose_not_finite", "transform_matrix is absent, not 4x4, or holds NaN or infinity")
    rotation = transform[:3, :3]
    deviation = max(np.abs(rotation @ rotation.T - np.eye(3)).max(), np.abs(transform[3] - (0.0, 0.0, 0.0, 1.0)).max())
    if deviation > RIGID_TOLERANCE or np.linalg.det(rotation) < 0:
        raise BadFrame(scene_id, name, "pose_not_rigid", f"off a rigid motion by {deviation:.2g}, det {np.linalg.det(rotation):.3f}")
    return transform
