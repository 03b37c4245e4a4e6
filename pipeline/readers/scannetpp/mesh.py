"""The scan: a triangle mesh with one object id per face, and rays against it. Labels and depth of every frame come from here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from pipeline.readers.base import BadScene
from pipeline.readers.scannetpp.layout import MESH_FILES
from storage.domain import Camera
from storage.location import NotFound, join, read_bytes

MAX_OBJECT_ID = np.iinfo(np.uint16).max

_SCALARS = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2", "uint16": "<u2",
    "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class Objects:
    """The join of vertices and annotations.

    vertex_ids: [V] uint16, 0 = no object. labels: object id -> raw label. multiply_claimed, unclaimed: how many vertices several objects
    and no object claim. unknown_segments: annotated segment ids that the mesh does not have.
    """

    vertex_ids: np.ndarray
    labels: Mapping[int, str]
    multiply_claimed: int
    unclaimed: int
    unknown_segments: int


@dataclass(frozen=True)
class SceneMesh:
    """vertices [V,3] float32 metres, faces [F,3] int32, face_object_ids [F] uint16."""

    vertices: np.ndarray
    faces: np.ndarray
    face_object_ids: np.ndarray
    objects: Objects


def read_mesh(root: str, scene_id: str) -> SceneMesh:
    """Mesh and annotations of a scene. Raises BadScene mesh_missing or mesh_invalid, naming the file and what is wrong with it."""
    folder = join(root, "data", scene_id, "scans")
    mesh_name, segments_name, groups_name = MESH_FILES
    reading = mesh_name
    try:
        vertices, faces = parse_ply(read_bytes(join(folder, mesh_name)))
        reading = segments_name
        segments = _segment_indices(json.loads(read_bytes(join(folder, segments_name))), len(vertices))
        reading = groups_name
        objects = join_objects(segments, _groups(json.loads(read_bytes(join(folder, groups_name)))))
    except NotFound as error:
        raise BadScene(scene_id, "mesh_missing", str(error)) from error
    except ValueError as error:
        raise BadScene(scene_id, "mesh_invalid", f"{join(folder, reading)}: {error}; download it again or leave the scene out") from error
    return SceneMesh(vertices, faces, vote_face_ids(faces, objects.vertex_ids), objects)


def parse_ply(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A binary little-endian PLY of triangles -> vertices [V,3] float32, faces [F,3] int32.

    Raises ValueError where the header is not understood, the byte count differs from what the header announces, a face is no triangle or
    names a vertex that does not exist, or a coordinate is not finite.
    """
    head = re.match(rb"ply\r?\n(?:[^\n]*\n)*?end_header\r?\n", data[:65536])
    if head is None:
        raise ValueError("no PLY header")
    lines = [line.split() for line in head[0].decode("latin-1").splitlines()]
    if ["format", "binary_little_endian", "1.0"] not in lines:
        raise ValueError("the format is not binary_little_endian 1.0")
    elements: list[tuple[str, int, list[list[str]]]] = []
    for line in lines:
        if line[:1] == ["element"] and len(line) == 3:
            elements.append((line[1], int(line[2]), []))
        elif line[:1] == ["property"] and elements:
            elements[-1][2].append(line[1:])
    if [name for name, _, _ in elements] != ["vertex", "face"]:
        raise ValueError(f"elements {[name for name, _, _ in elements]}, expected vertex and face")

    (_, vertex_count, vertex_properties), (_, face_count, face_properties) = elements
    vertex_type, face_type = _row_type(vertex_properties), _row_type(face_properties)
    corners = next((name for name in ("vertex_indices", "vertex_index") if name in (face_type.names or ())), None)
    if corners is None or not {"x", "y", "z"} <= set(vertex_type.names or ()):
        raise ValueError("vertices need x, y, z and faces need a list vertex_indices")
    if not vertex_count or not face_count:
        raise ValueError(f"{vertex_count} vertices and {face_count} faces: nothing to cast rays at")
    expected = len(head[0]) + vertex_count * vertex_type.itemsize + face_count * face_type.itemsize
    if len(data) != expected:
        counts = f"{vertex_count} vertices and {face_count} triangles"
        raise ValueError(f"{len(data)} bytes, but {counts} take {expected}: cut short, or not all triangles")
    vertex_rows = np.frombuffer(data, vertex_type, vertex_count, len(head[0]))
    face_rows = np.frombuffer(data, face_type, face_count, len(head[0]) + vertex_count * vertex_type.itemsize)
    if (face_rows[f"{corners} count"] != 3).any():
        raise ValueError(f"{int((face_rows[f'{corners} count'] != 3).sum())} faces are not triangles")
    vertices = np.stack([vertex_rows[axis] for axis in "xyz"], axis=1).astype(np.float32)
    if not np.isfinite(vertices).all():
        raise ValueError("a vertex coordinate is not finite")
    faces = face_rows[corners]
    if faces.min() < 0 or faces.max() >= vertex_count:
        raise ValueError(f"face index {int(faces.min())}..{int(faces.max())} outside the {vertex_count} vertices")
    return vertices, np.ascontiguousarray(faces, np.int32)


def _row_type(properties: Sequence[Sequence[str]]) -> np.dtype:
    """The numpy type of one row, under the assumption that every list has three items; the counts are kept as "<name> count"."""
    fields: list[tuple[Any, ...]] = []
    try:
        for words in properties:
            if words[0] == "list":
                fields += [(f"{words[3]} count", _SCALARS[words[1]]), (words[3], _SCALARS[words[2]], (3,))]
            else:
                fields.append((words[1], _SCALARS[words[0]]))
    except (KeyError, IndexError) as error:
        raise ValueError(f"property {' '.join(words)!r} is not understood") from error
    return np.dtype(fields)


def _segment_indices(document: Any, vertex_count: int) -> np.ndarray:
    indices = document.get("segIndices") if isinstance(document, dict) else None
    try:
        segments = np.array(indices, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("segIndices is absent or holds something other than integers") from error
    if segments.shape != (vertex_count,):
        raise ValueError(f"segIndices has shape {segments.shape}, the mesh has {vertex_count} vertices")
    return segments


def _groups(document: Any) -> list[tuple[int, str, np.ndarray]]:
    """(object id, raw label, segment ids) of every annotated object that is not marked as junk, in file order."""
    groups = document.get("segGroups") if isinstance(document, dict) else document
    if not isinstance(groups, list):
        raise ValueError("no list segGroups")
    found: list[tuple[int, str, np.ndarray]] = []
    for group in groups:
        try:
            object_id, label, segments = group["objectId"], str(group["label"]), np.array(group["segments"], dtype=np.int64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"a segGroup without objectId, label or integer segments ({type(error).__name__}: {error})") from error
        if label.strip().lower() != "remove":
            found.append((object_id, label, segments))
    return found


def join_objects(segments: np.ndarray, groups: Sequence[tuple[int, str, np.ndarray]]) -> Objects:
    """Segment id per vertex [V] and (object id, label, segment ids) -> one object per vertex.

    A vertex that several objects claim goes to the smallest (fewest vertices; of equals, the first listed): a cushion wins over its sofa
    whatever the file order. Raises ValueError for a repeated object id and for ids outside 1..65535.
    """
    labels: dict[int, str] = {}
    for object_id, label, _ in groups:
        if isinstance(object_id, bool) or not isinstance(object_id, int) or not 1 <= object_id <= MAX_OBJECT_ID:
            raise ValueError(f"objectId {object_id!r} ({label!r}) is not an integer from 1 to {MAX_OBJECT_ID}, what a label can hold")
        if object_id in labels:
            raise ValueError(f"objectId {object_id} is repeated ({labels[object_id]!r} and {label!r})")
        labels[object_id] = label

    known, segment_of_vertex, vertices_in_segment = np.unique(segments, return_inverse=True, return_counts=True)
    unknown_segments = 0
    claims: list[tuple[int, int, np.ndarray]] = []
    for object_id, _, wanted in groups:
        wanted = np.unique(wanted)
        slots = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        slots = slots[known[slots] == wanted]
        unknown_segments += len(wanted) - len(slots)
        claims.append((int(vertices_in_segment[slots].sum()), object_id, slots))

    ids = np.zeros(len(known), np.uint16)
    times = np.zeros(len(known), np.int32)
    for _, object_id, slots in sorted(reversed(claims), key=lambda claim: -claim[0]):  # largest first; the last one written stays
        ids[slots] = object_id
        times[slots] += 1
    several, none = int(vertices_in_segment[times > 1].sum()), int(vertices_in_segment[times == 0].sum())
    return Objects(ids[segment_of_vertex], labels, several, none, unknown_segments)


def vote_face_ids(faces: np.ndarray, vertex_ids: np.ndarray) -> np.ndarray:
    """faces [F,3], vertex_ids [V] -> [F]: the id that two or three corners share, else that of the first corner."""
    first, second, third = vertex_ids[faces].T
    return np.where(second == third, second, first)


class MeshCaster:
    """Rays against a mesh: vertices [V,3], faces [F,3], face_object_ids [F] uint16. Builds the search tree once; one thread."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray, face_object_ids: np.ndarray) -> None:
        if len(face_object_ids) and int(face_object_ids.max()) > MAX_OBJECT_ID:
            raise ValueError(f"objectId {int(face_object_ids.max())} does not fit uint16 labels (at most {MAX_OBJECT_ID})")
        self._ids = np.append(face_object_ids, 0).astype(np.uint16)  # the last, which -1 names, is that of a miss
        self._scene = EmbreeScene(robust=True)  # else rays that meet an edge or a corner of the mesh can slip through
        TriangleMesh(self._scene, np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32))

    def cast(self, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        """One ray through the centre of every pixel: depth [H,W] float32 metres along z, object ids [H,W] uint16; both 0 at a miss."""
        # The rays have z = 1 in the camera, so the ray parameter is the depth along z. Summed by rows and columns: the threads that BLAS
        # wakes for `@` spin on through the cast and double its CPU time, and einsum alone takes a twelfth of it.
        shape = camera.height, camera.width
        rays, rotation = camera.rays(), camera.c2w[:3, :3]
        directions = np.empty((*shape, 3), np.float32)
        for axis, (x, y, z) in enumerate(rotation):
            directions[..., axis] = np.add.outer(y * rays[:, 0, 1], x * rays[0, :, 0]) + z
        origins = np.broadcast_to(camera.c2w[:3, 3].astype(np.float32), directions.shape).copy()
        hits = self._scene.run(origins.reshape(-1, 3), directions.reshape(-1, 3), query="INTERSECT", output=1)
        depth = np.where(hits["primID"] >= 0, hits["tfar"], np.float32(0))
        return depth.reshape(shape), self._ids[hits["primID"]].reshape(shape)
