"""The laser scan's files: aligned meshes as binary PLY, segments and object annotations."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from pipeline.synthetic.scene.room import Room
from pipeline.synthetic.write.classes import SEMANTIC_CLASSES, UNLABELLED

_VERTEX = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
_PLY_TYPES = {"<f4": "float", "u1": "uchar", "<i4": "int"}


def _ply(room: Room, label: np.ndarray | None) -> bytes:
    """A mesh in the mesh frame, metres, z up; `label` [V] int32 adds the semantic column."""
    mesh = room.mesh
    columns = _VERTEX + ([("label", "<i4")] if label is not None else [])
    vertex = np.empty(len(mesh.vertices), dtype=columns)
    for axis, name in enumerate("xyz"):
        vertex[name] = mesh.vertices[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertex[name] = mesh.colours[:, channel]
    if label is not None:
        vertex["label"] = label
    face = np.empty(len(mesh.faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    face["count"], face["corners"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertex)}"]
    header += [f"property {_PLY_TYPES[kind]} {name}" for name, kind in columns]
    header += [f"element face {len(face)}", "property list uchar int vertex_indices", "end_header"]
    return ("\n".join(header) + "\n").encode() + vertex.tobytes() + face.tobytes()


def _oriented_box(points_n3: np.ndarray, yaw: float) -> dict[str, Any]:
    """The box of an object along its own upright axes. normalizedAxes lists the three unit axes one after another."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    axes = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    local = points_n3.astype(np.float64) @ axes.T
    low, high = local.min(axis=0), local.max(axis=0)
    return {
        "centroid": ((low + high) / 2 @ axes).tolist(),
        "axesLengths": (high - low).tolist(),
        "normalizedAxes": axes.ravel().tolist(),
        "min": points_n3.min(axis=0).astype(float).tolist(),
        "max": points_n3.max(axis=0).astype(float).tolist(),
    }


def _dominant_normal(room: Room, object_id: int) -> list[float]:
    mesh = room.mesh
    corners = mesh.vertices[mesh.faces[mesh.object_id[mesh.faces[:, 0]] == object_id]].astype(np.float64)
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    directions, which = np.unique(np.rint(areas / np.linalg.norm(areas, axis=1, keepdims=True) * 100) + 0.0, axis=0, return_inverse=True)
    weight = np.bincount(which.ravel(), weights=np.linalg.norm(areas, axis=1))
    best = directions[int(weight.argmax())]
    return (best / np.linalg.norm(best)).tolist()


def scan_files(scene_id: str, room: Room, carpet_is_floor: bool, unlabelled: set[int]) -> dict[str, bytes]:
    """The files below `scans/` by name. Segment ids are vertex indices.

    carpet_is_floor: carpets also belong to the floor, whose group then comes last. unlabelled: objects that were never annotated.
    """
    mesh = room.mesh
    rows = {name: row for row, name in enumerate(SEMANTIC_CLASSES)}
    row_of_object = np.full(max(room.labels) + 1, UNLABELLED, np.int32)
    for number, label in room.labels.items():
        if number not in unlabelled:
            row_of_object[number] = rows[label]
    groups = []
    for number, label in room.labels.items():
        if number in unlabelled:
            continue
        members = mesh.object_id == number
        box = _oriented_box(mesh.vertices[members], room.yaws[number])
        if carpet_is_floor and label == "floor":
            members |= np.isin(mesh.object_id, [k for k, name in room.labels.items() if name == "carpet"])
        groups.append(
            {
                "id": number,
                "objectId": number,
                "partId": number,
                "index": number - 1,
                "label": label,
                "obb": box,
                "dominantNormal": _dominant_normal(room, number),
                "segments": np.flatnonzero(members).tolist(),
            }
        )
    if carpet_is_floor:
        groups.sort(key=lambda group: group["label"] == "floor")
    annotation = {"sceneId": scene_id, "appId": "rooms", "annId": scene_id, "segGroups": groups}
    segments = {"sceneId": scene_id, "segIndices": list(range(len(mesh.vertices)))}
    return {
        "mesh_aligned_0.05.ply": _ply(room, None),
        "mesh_aligned_0.05_semantic.ply": _ply(room, row_of_object[mesh.object_id]),
        "mesh_aligned_0.05_mask.txt": b"",
        "segments.json": json.dumps(segments, sort_keys=True, separators=(",", ":")).encode(),
        "segments_anno.json": json.dumps(annotation, sort_keys=True, separators=(",", ":")).encode(),
    }
