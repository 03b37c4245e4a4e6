"""Writes rooms in the directory layout of the ScanNet++ documentation: one folder per scene, split lists and class lists at the root.

Point clouds, 360-degree pictures, phone captures and full-resolution originals are left out.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.synthetic.render.capture import Capture, Shot, expose, plan, stream
from pipeline.synthetic.scene.room import Room, build_room, furnished_room
from pipeline.synthetic.spec import FRAME_DEFECTS, RoomSpec
from pipeline.synthetic.write.classes import metadata
from pipeline.synthetic.write.colmap import text_model
from pipeline.synthetic.write.scans import scan_files
from storage.location import join, write_bytes

_SPLITS = ("nvs_sem_train", "nvs_sem_val", "nvs_test", "nvs_test_small", "nvs_test_iphone", "sem_test")
_WORLD_SWAP = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
_CAMERA_FLIP = np.diag([1.0, -1, -1, 1])
_JPEG_QUALITY = 95
_MAGENTA = (255, 0, 255)
_FAR_M = np.array([25.0, -14.0, 6.0])
_STRETCH = 1.3

_ANNOTATION = "scans/segments_anno.json"
_TRANSFORMS = "dslr/nerfstudio/transforms.json"


def json_pose(c2w: np.ndarray) -> np.ndarray:
    """The [4,4] matrix of `transforms.json` for an OpenCV camera-to-world pose in the mesh frame: camera y and z are flipped, and of the
    world x and y are swapped and z negated. The same product takes a json matrix back.
    """
    return _WORLD_SWAP @ c2w @ _CAMERA_FLIP


def _json(content: Any) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def _frame(shot: Shot, defect: str | None) -> dict[str, Any]:
    """One entry of `frames`, its pose spoilt if the defect says so."""
    c2w = shot.c2w.copy()
    if defect == "far_pose":
        c2w[:3, 3] += _FAR_M
    if defect == "non_rigid_pose":
        c2w[:3, 0] *= _STRETCH
    matrix = json_pose(c2w)
    if defect == "nan_pose":
        matrix[0, 3] = math.nan
    return {"file_path": shot.name, "mask_path": shot.mask, "is_bad": shot.bad, "transform_matrix": matrix.tolist()}


def _transforms(spec: RoomSpec, capture: Capture, defect_of: dict[str, str]) -> dict[str, Any]:
    lens = capture.lens
    frames = [_frame(shot, defect_of.get(shot.name)) for shot in capture.training]
    order = np.random.Generator(np.random.PCG64(stream(spec, 5))).permutation(len(frames))
    frames = [frames[k] for k in order]
    frames += [frame for frame in frames if defect_of.get(frame["file_path"]) == "duplicate"]
    k1, k2, k3, k4 = lens.k
    return {
        "camera_model": "OPENCV_FISHEYE",
        "fl_x": lens.fx,
        "fl_y": lens.fy,
        "cx": lens.cx,
        "cy": lens.cy,
        "w": lens.width,
        "h": lens.height,
        "k1": k1,
        "k2": k2,
        "k3": k3,
        "k4": k4,
        "has_mask": True,
        "frames": frames,
        "test_frames": [_frame(shot, None) for shot in capture.testing],
    }


def _anonymise(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Paints one rectangle magenta and marks it in the mask, in place."""
    height, width = mask.shape
    h, w = int(height * rng.uniform(0.15, 0.3)), int(width * rng.uniform(0.15, 0.3))
    top, left = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
    cv2.rectangle(mask, (left, top), (left + w, top + h), 0, -1)
    image[mask == 0] = _MAGENTA


def _picture_files(spec: RoomSpec, room: Room, capture: Capture, index: int, defect: str | None) -> dict[str, bytes]:
    """The image and the mask of one shot, as the defect leaves them, by path below `dslr/`."""
    shot = capture.shots[index]
    image = expose(spec, room, capture, index)
    mask = np.full(image.shape[:2], 255, np.uint8)
    if defect == "anonymised":
        _anonymise(image, mask, np.random.Generator(np.random.PCG64(stream(spec, 6))))
    encoded = _jpeg(image)
    files = {f"resized_images/{shot.name}": encoded, f"resized_anon_masks/{shot.mask}": _png(mask)}
    if defect == "missing_image":
        del files[f"resized_images/{shot.name}"]
    if defect == "truncated_jpeg":
        files[f"resized_images/{shot.name}"] = encoded[: len(encoded) * 11 // 20]
    if defect == "missing_mask":
        del files[f"resized_anon_masks/{shot.mask}"]
    return files


def _unlabelled_object(spec: RoomSpec, room: Room) -> int:
    """A piece of furniture, not the room's own surfaces and not the carpet, that the annotator forgets."""
    choices = [number for number, label in room.labels.items() if number > 6 and label not in ("carpet", "skirting board")]
    return int(np.random.Generator(np.random.PCG64(stream(spec, 7))).choice(choices))


def _defect_report(spec: RoomSpec, room: Room, capture: Capture) -> dict[str, dict[str, list[Any]]]:
    """Defect -> the files it hit (below the scene's folder), the pictures (gap: the names that do not exist) and the object ids."""
    report: dict[str, dict[str, list[Any]]] = {}
    files_of = {
        "missing_image": "dslr/resized_images/{0}",
        "truncated_jpeg": "dslr/resized_images/{0}",
        "missing_mask": "dslr/resized_anon_masks/{1}",
        "anonymised": "dslr/resized_images/{0} dslr/resized_anon_masks/{1}",
    }
    for defect, hits in capture.hits.items():
        shots = [capture.training[k] for k in hits]
        names = "dslr/resized_images/{0} " + _TRANSFORMS if defect == "is_bad_run" else files_of.get(defect, _TRANSFORMS)
        files = sorted({name for shot in shots for name in names.format(shot.name, shot.mask).split()})
        report[defect] = {"files": files, "frames": [shot.name for shot in shots], "objects": []}
    numbers = {label: [k for k, name in room.labels.items() if name == label] for label in ("carpet", "floor")}
    if "gap" in spec.defects:
        report["gap"] = {"files": [_TRANSFORMS], "frames": capture.skipped, "objects": []}
    if "multilabel" in spec.defects:
        report["multilabel"] = {"files": [_ANNOTATION], "frames": [], "objects": numbers["carpet"] + numbers["floor"]}
    if "unlabelled_object" in spec.defects:
        report["unlabelled_object"] = {
            "files": [_ANNOTATION, "scans/mesh_aligned_0.05_semantic.ply"],
            "frames": [],
            "objects": [_unlabelled_object(spec, room)],
        }
    if "empty" in spec.defects:
        report["empty"] = {"files": [_TRANSFORMS], "frames": [], "objects": []}
    return report


def write_room(root: str, spec: RoomSpec) -> dict[str, Any]:
    """Writes `<root>/data/<scene_id>/` and returns what went there; `root` is a URL. The same spec gives the same bytes and the same
    summary.

    Summary: scene_id, frames, test_frames, objects, vertices, faces, points, observations, files, bytes, and `defects`: for every
    injected defect the `files` it hit (paths below the scene), the `frames` (image names; for "gap" the names that are missing) and the
    `objects` (ids).
    """
    room = build_room(spec.seed)
    capture = plan(spec, room)
    folder = join(root, "data", spec.scene_id)
    training = capture.training
    defect_of = {training[k].name: defect for defect in FRAME_DEFECTS for k in capture.hits.get(defect, [])}
    written = {"files": 0, "bytes": 0}

    def put(path: str, data: bytes) -> None:
        write_bytes(join(folder, path), data)
        written["files"] += 1
        written["bytes"] += len(data)

    for index, shot in enumerate(capture.shots):
        for path, data in _picture_files(spec, room, capture, index, defect_of.get(shot.name)).items():
            put(f"dslr/{path}", data)
    put(_TRANSFORMS, _json(_transforms(spec, capture, defect_of)))
    lists = {"train": [shot.name for shot in training], "test": [shot.name for shot in capture.testing], "has_masks": True}
    put("dslr/train_test_lists.json", _json(lists))
    model, points, observations = text_model(room, capture, np.random.Generator(np.random.PCG64(stream(spec, 8))))
    for name, data in model.items():
        put(f"dslr/colmap/{name}", data)
    unlabelled = {_unlabelled_object(spec, room)} if "unlabelled_object" in spec.defects else set()
    for name, data in scan_files(spec.scene_id, room, "multilabel" in spec.defects, unlabelled).items():
        put(f"scans/{name}", data)
    return {
        "scene_id": spec.scene_id,
        "frames": len(training),
        "test_frames": len(capture.testing),
        "objects": len(room.labels) - len(unlabelled),
        "vertices": len(room.mesh.vertices),
        "faces": len(room.mesh.faces),
        "points": points,
        "observations": observations,
        **written,
        "defects": _defect_report(spec, room, capture),
    }


def write_root(root: str, specs: Sequence[RoomSpec], train: Sequence[str], val: Sequence[str]) -> None:
    """Writes `<root>/splits/*.txt` and `<root>/metadata/*`; `train` and `val` are scene ids, and no scene may be in both. Test splits are
    empty.
    """
    both = sorted(set(train) & set(val))
    if both:
        raise ValueError(f"scenes {', '.join(both)} are in the training and in the validation split")
    members = {"nvs_sem_train": train, "nvs_sem_val": val}
    for split in _SPLITS:
        write_bytes(join(root, "splits", f"{split}.txt"), "".join(f"{scene}\n" for scene in members.get(split, ())).encode())
    labels = {spec.scene_id: list(furnished_room(spec.seed)[0].labels.values()) for spec in specs}
    kinds = {scene: "bedroom" if "bed" in names else "living room" for scene, names in labels.items()}
    write_bytes(join(root, "metadata", "scene_types.json"), _json(kinds))
    for path, text in metadata(list(labels.values())).items():
        write_bytes(join(root, "metadata", path), text.encode())
