"""ScanNet++ ingestion against a box room whose every pixel, depth and label is known in closed form."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pipeline.readers import BadFrame, BadScene, FrameEntry, Skip
from pipeline.readers.lens import Lens
from pipeline.readers.scannetpp.layout import pose_from_json, read_scene, read_split
from pipeline.readers.scannetpp.mesh import MeshCaster, join_objects, read_mesh, vote_face_ids
from pipeline.readers.scannetpp.scene import SceneReader
from pipeline.readers.undistort import Undistorter
from storage.domain import Camera
from storage.location import NotFound

SCENE = "00dd871005"
HALF = np.array([2.0, 1.6, 1.25])  # the room is the box |x| <= HALF around the origin
LOW_X, HIGH_X, LOW_Y, HIGH_Y, CEILING, FLOOR, CARPET = 11, 12, 13, 14, 15, 400, 7
WIDE = Lens("OPENCV_FISHEYE", 154.180, 154.338, 219.648, 147.442, (0.06109, 0.00335, 0.002988, -0.001002), 438, 292)
NARROW = Lens("OPENCV_FISHEYE", 197.477, 197.889, 219.801, 146.197, (-0.02947, -0.00577, -0.002148, 0.0001484), 438, 292)
WIDTH, HEIGHT = 336, 224


# ---- the room, in closed form ------------------------------------------------------------------------------------------------------------


def looking(origin: tuple[float, float, float], target: tuple[float, float, float]) -> np.ndarray:
    """OpenCV camera-to-world [4,4], z of the world up."""
    forward = np.subtract(target, origin) / np.linalg.norm(np.subtract(target, origin))
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(forward, right), forward, np.asarray(origin)], axis=1)
    return c2w


def hit_box(origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From inside the box: ray parameter [...], point [...,3], object id [...] (the carpet is the half of the floor with x > 0)."""
    with np.errstate(divide="ignore"):
        t = (np.sign(directions) * HALF - origin) / directions
    axis = np.nanargmin(np.where(t > 0, t, np.inf), axis=-1)
    t = np.take_along_axis(t, axis[..., None], -1)[..., 0]
    points = origin + t[..., None] * directions
    up = np.take_along_axis(directions, axis[..., None], -1)[..., 0] > 0
    ids = np.array([[LOW_X, HIGH_X], [LOW_Y, HIGH_Y], [FLOOR, CEILING]])[axis, up.astype(int)]
    return t, points, np.where((ids == FLOOR) & (points[..., 0] > 0), CARPET, ids)


def paint(points: np.ndarray) -> np.ndarray:
    """A smooth colour [...,3] for every point of the walls."""
    x, y, z = np.moveaxis(points, -1, 0)
    return 128 + 100 * np.stack([np.sin(3 * x + 2 * y), np.sin(4 * y - 3 * z), np.cos(3 * z + 2 * x)], axis=-1)


def fisheye(lens: Lens, rays: np.ndarray) -> np.ndarray:
    """Kannala-Brandt forwards: camera rays [...,3] -> pixels [...,2], centres at +0.5."""
    radius = np.hypot(rays[..., 0], rays[..., 1])
    theta = np.arctan2(radius, rays[..., 2])
    bent = theta * (1 + sum(k * theta ** (2 * i) for i, k in enumerate(lens.distortion, 1)))
    scale = bent / np.maximum(radius, 1e-12)
    return np.stack([lens.fx * rays[..., 0] * scale + lens.cx, lens.fy * rays[..., 1] * scale + lens.cy], axis=-1)


def fisheye_rays(lens: Lens) -> np.ndarray:
    """Kannala-Brandt backwards for every pixel centre: unit rays [h,w,3], by bisection."""
    u, v = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    x, y = (u - lens.cx) / lens.fx, (v - lens.cy) / lens.fy
    wanted = np.hypot(x, y)
    low, high = np.zeros_like(wanted), np.full_like(wanted, 1.7)
    for _ in range(40):
        theta = (low + high) / 2
        beyond = theta * (1 + sum(k * theta ** (2 * i) for i, k in enumerate(lens.distortion, 1))) > wanted
        low, high = np.where(beyond, low, theta), np.where(beyond, theta, high)
    scale = np.sin(theta) / np.maximum(wanted, 1e-12)
    return np.stack([x * scale, y * scale, np.cos(theta)], axis=-1)


def photograph(lens: Lens, c2w: np.ndarray) -> np.ndarray:
    rays = fisheye_rays(lens) @ c2w[:3, :3].T
    return np.clip(paint(hit_box(c2w[:3, 3], rays)[1]), 0, 255).round().astype(np.uint8)


def room_mesh(steps: int = 12) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
    """vertices [V,3], faces [F,3] and the vertices of each object; the floor claims the carpet's vertices too."""
    sheets = {LOW_X: (0, -1), HIGH_X: (0, 1), LOW_Y: (1, -1), HIGH_Y: (1, 1), CEILING: (2, 1), FLOOR: (2, -1), CARPET: (2, -1)}
    vertices: list[np.ndarray] = []
    faces: list[np.ndarray] = []
    members: dict[int, np.ndarray] = {}
    for object_id, (axis, side) in sheets.items():
        a, b = [other for other in range(3) if other != axis]
        along_a = {FLOOR: (-1, 0), CARPET: (0, 1)}.get(object_id, (-1, 1))
        p, q = np.meshgrid(np.linspace(*along_a, steps) * HALF[a], np.linspace(-1, 1, steps) * HALF[b], indexing="ij")
        sheet = np.zeros((steps, steps, 3))
        sheet[..., axis], sheet[..., a], sheet[..., b] = side * HALF[axis], p, q
        index = len(vertices) * steps**2 + np.arange(steps**2).reshape(steps, steps)
        corners = [index[:-1, :-1], index[1:, :-1], index[:-1, 1:], index[1:, 1:]]
        faces += [np.stack([corners[i].ravel() for i in triangle], axis=1) for triangle in ((0, 1, 2), (1, 3, 2))]
        vertices.append(sheet.reshape(-1, 3))
        members[object_id] = index.ravel()
    members[FLOOR] = np.concatenate([members[FLOOR], members[CARPET]])
    return np.concatenate(vertices), np.concatenate(faces), members


# ---- the room, in the official layout ----------------------------------------------------------------------------------------------------


def ply_bytes(vertices: np.ndarray, faces: np.ndarray, face_header: str = "list uchar int vertex_indices") -> bytes:
    axes = "".join(f"property float {axis}\n" for axis in "xyz") + "".join(f"property uchar {c}\n" for c in ("red", "green", "blue"))
    header = (
        f"ply\nformat binary_little_endian 1.0\ncomment a room\nelement vertex {len(vertices)}\n{axes}"
        f"element face {len(faces)}\nproperty {face_header}\nend_header\n"
    )
    rows = np.zeros(len(vertices), [("p", "<f4", 3), ("c", "u1", 3)])
    rows["p"] = vertices
    triangles = np.zeros(len(faces), [("n", "u1"), ("i", "<i4", 3)])
    triangles["n"], triangles["i"] = 3, faces
    return header.encode() + rows.tobytes() + triangles.tobytes()


def json_pose(c2w: np.ndarray) -> np.ndarray:
    """The official conversion, in its own words: flip camera y and z, swap world rows 0 and 1, negate row 2."""
    pose = c2w.copy()
    pose[:, 1:3] *= -1
    pose = pose[[1, 0, 2, 3]]
    pose[2] *= -1
    return pose


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **({"quality": 95, "subsampling": 0, **options} if kind == "JPEG" else options))
    return stream.getvalue()


def entry_of(name: str, c2w: np.ndarray, **extra: Any) -> dict[str, Any]:
    stem = name.rsplit(".", 1)[0]
    return {"file_path": name, "mask_path": f"{stem}.png", "transform_matrix": json_pose(c2w).tolist(), "is_bad": False, **extra}


class Room:
    """A scene folder under `root`; tests break parts of it and write it again."""

    def __init__(self, root: Path, lens: Lens, poses: list[np.ndarray], photos: list[bytes]) -> None:
        self.root, self.lens, self.poses = str(root), lens, poses
        self.folder = root / "data" / SCENE
        self.dslr, self.scans = self.folder / "dslr", self.folder / "scans"
        for folder in (self.dslr / "nerfstudio", self.dslr / "resized_images", self.dslr / "resized_anon_masks", self.scans):
            folder.mkdir(parents=True)
        self.names = [f"DSC{9990 + i:05d}.JPG" for i in range(len(poses))]
        white = encoded(np.full((lens.height, lens.width), 255, np.uint8), "PNG")
        for name, photo in zip(self.names, photos, strict=True):
            self.image(name).write_bytes(photo)
            self.mask(name).write_bytes(white)
        k1, k2, k3, k4 = lens.distortion
        self.transforms: dict[str, Any] = {
            "fl_x": lens.fx, "fl_y": lens.fy, "cx": lens.cx, "cy": lens.cy, "w": lens.width, "h": lens.height,
            "k1": k1, "k2": k2, "k3": k3, "k4": k4, "camera_model": lens.model, "has_mask": True,
            "frames": [entry_of(name, c2w) for name, c2w in zip(self.names, poses, strict=True)][::-1],
            "test_frames": [entry_of("DSC01000.JPG", poses[0])],
        }  # fmt: skip
        vertices, faces, members = room_mesh()
        groups = [{"objectId": i, "label": f"thing {i}", "segments": m.tolist()} for i, m in members.items() if i != FLOOR]
        groups.append({"objectId": FLOOR, "label": "floor", "segments": members[FLOOR].tolist()})  # last, so "the last wins" differs
        groups.append({"objectId": 99, "label": "REMOVE", "segments": members[CARPET][:5].tolist()})
        self.annotation: dict[str, Any] = {"sceneId": SCENE, "segGroups": groups}
        self.segments: dict[str, Any] = {"segIndices": list(range(len(vertices)))}
        self.ply = ply_bytes(vertices, faces)
        self.write()

    def image(self, name: str) -> Path:
        return self.dslr / "resized_images" / name

    def mask(self, name: str) -> Path:
        return self.dslr / "resized_anon_masks" / f"{name.rsplit('.', 1)[0]}.png"

    def entry(self, name: str) -> dict[str, Any]:
        return next(entry for entry in self.transforms["frames"] if entry["file_path"] == name)

    def write(self) -> None:
        (self.dslr / "nerfstudio" / "transforms.json").write_text(json.dumps(self.transforms))
        (self.scans / "mesh_aligned_0.05.ply").write_bytes(self.ply)
        (self.scans / "segments.json").write_text(json.dumps(self.segments))
        (self.scans / "segments_anno.json").write_text(json.dumps(self.annotation))

    def reader(self, **options: Any) -> SceneReader:
        return SceneReader(self.root, SCENE, WIDTH, HEIGHT, **options)


def walk(count: int) -> list[np.ndarray]:
    return [looking((-0.8 + 0.03 * i, -0.6 + 0.02 * i, 0.1), (1.5, 0.9 - 0.05 * i, -0.5)) for i in range(count)]


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    return [encoded(photograph(WIDE, c2w)) for c2w in walk(3)]


@pytest.fixture
def room(tmp_path: Path, photos: list[bytes]) -> Room:
    return Room(tmp_path, WIDE, walk(3), photos)


# ---- split lists -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["splits", "split"])
def test_split_lists_are_cleaned(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "nvs_sem_train.txt").write_bytes(b"\xef\xbb\xbfaaa\r\n\r\nbbb \r\naaa\r\nccc\r\n\r\n")
    assert read_split(str(tmp_path), "nvs_sem_train") == ["aaa", "bbb", "ccc"]


def test_unknown_split_names_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "nvs_sem_val.txt").write_text("aaa\n")
    with pytest.raises(NotFound, match=r"nvs_sem_train\.txt.*splits/nvs_sem_val\.txt"):
        read_split(str(tmp_path), "nvs_sem_train")


# ---- poses -------------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1), st.tuples(*[st.floats(-50, 50)] * 3))
def test_pose_convention_round_trip(quaternion: list[float], position: tuple[float, float, float]) -> None:
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    c2w = np.eye(4)
    c2w[:3, 3] = position
    c2w[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    np.testing.assert_allclose(pose_from_json(json_pose(c2w)), c2w, atol=1e-12)
    np.testing.assert_allclose(pose_from_json(c2w), json_pose(c2w), atol=1e-12)  # its own inverse
    assert np.linalg.det(pose_from_json(c2w)[:3, :3]) == pytest.approx(1)


# ---- undistortion ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lens", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize(("width", "height", "limit"), [(438, 292, 0.05), (336, 224, 0.13), (224, 224, 0.13)])
def test_a_point_lands_where_the_pinhole_projects_it(lens: Lens, width: int, height: int, limit: float) -> None:
    """A 3-D point on the ray of a stored pixel; the photograph is a colour ramp whose grey lies at the point's fisheye pixel.

    What the stored pixel shows is then its distance from the truth, 40 grey levels to a source pixel. The maps are in 1/32 pixel, and an
    area mean over 1.3 pixels counts parts of pixels at their centres, up to an eighth of a pixel off.
    """
    undistorter = Undistorter(lens, width, height)
    assert undistorter.K[0, 2] == pytest.approx(width / 2)
    assert undistorter.K[1, 2] == pytest.approx(height / 2)
    columns, rows = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    camera = Camera(np.eye(4), undistorter.K, width, height)
    for x, y in np.random.default_rng(0).integers((4, 4), (width - 4, height - 4), (40, 2)):
        point = 2.5 * camera.rays()[y, x]
        np.testing.assert_allclose(camera.project(point[None])[0][0], (x + 0.5, y + 0.5))
        u, v = fisheye(lens, point)
        ramp = np.clip(128 + 40 * np.stack([columns - u, rows - v, 0 * rows], axis=-1), 0, 255).round().astype(np.uint8)
        error = (undistorter.image(ramp)[y, x, :2].astype(float) - 128) / 40
        assert np.abs(error).max() < limit, (x, y, error)


@pytest.mark.parametrize("lens", [WIDE, NARROW], ids=["wide", "narrow"])
def test_pixels_beyond_the_photograph_are_invalid(lens: Lens) -> None:
    undistorter = Undistorter(lens, lens.width, lens.height)
    source = fisheye(lens, Camera(np.eye(4), undistorter.K, lens.width, lens.height).rays())
    inside = np.minimum(source, (lens.width, lens.height) - source).min(-1)  # a bilinear read wants half a pixel of margin
    valid = undistorter.valid(None)
    assert valid[inside > 0.55].all()
    assert not valid[inside < 0.45].any()
    assert 0.95 < valid.mean() < 1


def test_an_anonymised_pixel_spoils_what_it_enters_and_no_more() -> None:
    undistorter = Undistorter(WIDE, WIDTH, HEIGHT)
    u, v = 130, 200
    mask = np.full((WIDE.height, WIDE.width), 255, np.uint8)
    mask[v, u] = 254
    spoilt = undistorter.valid(None) & ~undistorter.valid(mask)
    black = np.zeros((WIDE.height, WIDE.width, 3), np.uint8)
    black[v, u] = 255
    assert spoilt[undistorter.image(black)[..., 0] > 0].all()
    assert 1 <= spoilt.sum() <= 16
    assert (undistorter.valid(np.full_like(mask, 255)) == undistorter.valid(None)).all()
    assert not undistorter.valid(np.zeros_like(mask)).any()


@pytest.mark.parametrize(("width", "height"), [(336, 224), (448, 336), (438, 292), (219, 146), (101, 97)])
@pytest.mark.parametrize(
    "lens", [WIDE, NARROW, Lens("PINHOLE", 300.0, 310.0, 200.0, 140.0, (), 448, 300)], ids=["wide", "narrow", "pinhole"]
)
def test_validity_of_a_part_is_that_of_the_whole(lens: Lens, width: int, height: int) -> None:
    """Only rows near what is hidden are looked at again; a first and a last row that are hidden make it all of them."""
    undistorter = Undistorter(lens, width, height)
    ends = np.full((lens.height, lens.width), 255, np.uint8)
    ends[[0, -1]] = 0
    random = np.random.default_rng(0)
    for tall in (1, 2, 17, 120):
        x, y = random.integers(0, (lens.width - 30, lens.height - tall))
        mask = np.full_like(ends, 255)
        mask[y : y + tall, x : x + 30] = 0
        assert (undistorter.valid(mask) & undistorter.valid(ends) == undistorter.valid(np.minimum(mask, ends))).all()


def test_pinhole_is_only_resized() -> None:
    lens = Lens("PINHOLE", 300.0, 310.0, 200.0, 140.0, (), 448, 300)
    undistorter = Undistorter(lens, 224, 100)
    np.testing.assert_allclose(undistorter.K, [[150, 0, 100], [0, 310 / 3, 140 / 3], [0, 0, 1]])
    image = np.random.default_rng(0).integers(0, 256, (300, 448, 3), dtype=np.uint8)
    means = image.reshape(100, 3, 224, 2, 3).mean((1, 3))
    assert np.abs(undistorter.image(image) - means).max() <= 0.51
    assert undistorter.valid(None).all()
    with pytest.raises(ValueError, match="292"):
        undistorter.image(np.zeros((292, 448, 3), np.uint8))


# ---- the mesh ----------------------------------------------------------------------------------------------------------------------------


def test_labels_and_depth_against_closed_form(room: Room) -> None:
    reader = room.reader()
    for entry in reader.index.frames:
        frame = reader.read(entry)
        depth, _, ids = hit_box(frame.camera.c2w[:3, 3], frame.camera.rays() @ frame.camera.c2w[:3, :3].T)
        assert frame.labels.dtype == np.uint16
        assert frame.depth.dtype == np.float32
        assert (frame.labels != ids).mean() < 1e-3  # rays into an edge of the room
        np.testing.assert_allclose(frame.depth, depth, rtol=1e-5)
        assert {FLOOR, CARPET} <= set(np.unique(frame.labels))


def test_image_depth_and_camera_agree(room: Room) -> None:
    """The colour of each stored pixel is that of the wall point which its depth and camera name; a pose or half-pixel slip would show."""
    reader = room.reader()
    assert [entry.name for entry in reader.index.frames] == room.names
    for entry, truth in zip(reader.index.frames, room.poses, strict=True):
        np.testing.assert_allclose(entry.c2w, truth, atol=1e-12)
        frame = reader.read(entry)
        points = (frame.camera.rays() * frame.depth[..., None]) @ frame.camera.c2w[:3, :3].T + frame.camera.c2w[:3, 3]
        error = np.abs(frame.image - np.clip(paint(points), 0, 255))[frame.valid]
        assert error.mean() < 1.0
        assert np.percentile(error, 99) < 5.0
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert frame.valid.mean() > 0.99


def test_mesh_vertices_reproject(room: Room) -> None:
    """A vertex drawn at its fisheye pixel is found, in the stored image, at its pinhole projection."""
    reader = room.reader()
    camera = reader.camera(reader.index.frames[0])
    undistorter = Undistorter(WIDE, WIDTH, HEIGHT)
    pixels, depth = camera.project(reader.mesh.vertices.astype(np.float64))
    usable = (depth > 0.1) & (pixels > 12).all(1) & (pixels < (WIDTH - 12, HEIGHT - 12)).all(1)
    chosen = np.flatnonzero(usable)[::25]
    assert len(chosen) > 5
    columns, rows = np.meshgrid(np.arange(WIDE.width) + 0.5, np.arange(WIDE.height) + 0.5)
    out_columns, out_rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    for vertex in chosen:
        u, v = fisheye(WIDE, reader.mesh.vertices[vertex] @ camera.w2c[:3, :3].T + camera.w2c[:3, 3])
        dot = (255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 2)).round().astype(np.uint8)
        seen = undistorter.image(np.repeat(dot[..., None], 3, 2))[..., 0].astype(float)
        landed = np.array([(seen * out_columns).sum(), (seen * out_rows).sum()]) / seen.sum()
        assert np.linalg.norm(landed - pixels[vertex]) < 0.5


def test_smallest_object_wins_whatever_the_order() -> None:
    sofa, cushion = (5, "sofa", np.arange(8)), (300, "cushion", np.array([2, 3, 77]))
    for groups in ([sofa, cushion], [cushion, sofa]):
        objects = join_objects(np.arange(10), groups)
        assert objects.vertex_ids.tolist() == [5, 5, 300, 300, 5, 5, 5, 5, 0, 0]
        assert (objects.multiply_claimed, objects.unclaimed, objects.unknown_segments) == (2, 2, 1)
    first, second = (8, "a", np.array([0, 1])), (9, "b", np.array([1, 2]))
    assert join_objects(np.arange(3), [first, second]).vertex_ids.tolist() == [8, 8, 9]


def test_size_counts_vertices_not_segments() -> None:
    """True over-segments: one segment of six vertices is larger than three segments of one."""
    segments = np.array([40, 40, 40, 40, 40, 40, 7, 8, 9])
    objects = join_objects(segments, [(1, "wide", np.array([40, 9])), (2, "small", np.array([9, 8, 7, 7]))])
    assert objects.vertex_ids.tolist() == [1] * 6 + [2] * 3


def test_face_takes_the_majority_then_the_first() -> None:
    ids = np.array([1, 2, 3, 1], np.uint16)
    faces = np.array([[0, 1, 2], [1, 0, 3], [0, 3, 1], [0, 1, 3], [2, 2, 1]])
    assert vote_face_ids(faces, ids).tolist() == [1, 1, 1, 1, 3]


def test_a_miss_is_zero_and_large_ids_are_refused() -> None:
    vertices, faces = np.array([[-1.0, -1, 2], [1, -1, 2], [-1, 1, 2]]), np.array([[0, 1, 2]])
    camera = Camera(np.eye(4), np.array([[10.0, 0, 10], [0, 10, 10], [0, 0, 1]]), 20, 20)
    depth, ids = MeshCaster(vertices, faces, np.array([65535])).cast(camera)
    assert depth[6, 6] == pytest.approx(2)
    assert ids[6, 6] == 65535
    assert depth[16, 16] == 0
    assert ids[16, 16] == 0
    with pytest.raises(ValueError, match="65536"):
        MeshCaster(vertices, faces, np.array([65536]))
    with pytest.raises(ValueError, match="65536"):
        join_objects(np.arange(1), [(65536, "chair", np.array([0]))])


def test_report_tells_counts_and_cameras(room: Room) -> None:
    report = json.loads(json.dumps(room.reader().report()))
    assert report["faces"] == 7 * 2 * 11**2
    assert report["vertices"] == 7 * 12**2
    assert report["frames"] == 3
    assert report["multiply_claimed_share"] == pytest.approx(1 / 7)
    assert report["unlabelled_share"] == 0
    assert report["objects"]["400"] == "floor"
    assert "99" not in report["objects"]
    assert report["K_source"][0][0] == WIDE.fx
    assert report["K_stored"][0][2] == pytest.approx(WIDTH / 2)
    assert any("test_frames" in note for note in report["notes"])


# ---- what is wrong in real scenes --------------------------------------------------------------------------------------------------------


def verdicts(room: Room, **options: Any) -> dict[str, str]:
    """Frame name -> reason, over what the index skips and what `read` refuses."""
    reader = room.reader(**options)
    found = {skip.frame: skip.reason for skip in reader.index.skipped}
    for entry in reader.index.frames:
        refused = refusal(reader.read, entry)
        if refused is not None:
            found[entry.name] = refused.reason
    return found


def refusal(look: Callable[[FrameEntry], Any], entry: FrameEntry) -> Skip | None:
    try:
        look(entry)
    except BadFrame as error:
        return error.skip
    return None


def test_every_defect_has_its_reason_and_nothing_else_is_dropped(
    tmp_path: Path, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # what torch data loaders often leave behind
    room = Room(tmp_path, WIDE, walk(24), [photos[0]] * 24)
    n = room.names
    expected = {}

    def spoil(index: int, reason: str) -> str:
        expected[n[index]] = reason
        return n[index]

    room.image(spoil(0, "image_missing")).unlink()
    room.image(spoil(1, "image_missing")).write_bytes(b"")
    room.image(spoil(2, "image_unreadable")).write_bytes(photos[0][: len(photos[0]) * 2 // 3])
    room.image(spoil(3, "image_size")).write_bytes(encoded(np.zeros((584, 876, 3), np.uint8)))
    room.entry(spoil(4, "pose_not_finite"))["transform_matrix"][1][3] = float("nan")
    del room.entry(spoil(5, "pose_not_finite"))["transform_matrix"]
    room.entry(spoil(6, "pose_not_rigid"))["transform_matrix"][0] = [1.1, 0.0, 0.0, 0.0]
    mirrored = walk(1)[0]
    mirrored[:3, 0] *= -1
    far, beside = looking((9.0, 0.0, 0.0), (0.0, 0.0, 0.0)), looking((2.9, 0.0, 0.0), (9.0, 0.0, 0.0))
    touching = looking((1.95, 0.0, 0.0), (2.0, 0.0, 0.0))
    for index, pose, reason in (
        (7, mirrored, "pose_not_rigid"), (8, far, "pose_outside_mesh"), (9, beside, "pose_bad_depth"), (10, touching, "pose_bad_depth"),
    ):  # fmt: skip
        room.entry(spoil(index, reason))["transform_matrix"] = json_pose(pose).tolist()
    room.entry(spoil(11, "is_bad"))["is_bad"] = True
    room.mask(spoil(12, "mask_missing")).unlink()
    masked = np.full((WIDE.height, WIDE.width), 255, np.uint8)
    masked[:90] = 0
    room.mask(spoil(13, "anonymised")).write_bytes(encoded(masked, "PNG"))
    masked[20:90] = 255
    room.mask(n[14]).write_bytes(encoded(masked, "PNG"))  # seven per cent: kept
    room.mask(spoil(15, "mask_unreadable")).write_bytes(encoded(masked, "PNG")[:60])
    room.mask(spoil(16, "mask_unreadable")).write_bytes(encoded(masked[:50], "PNG"))
    room.transforms["frames"].insert(0, copy.deepcopy(room.entry(n[17])))
    room.transforms["frames"] += [{"file_path": "cover.JPG"}, {"is_bad": False}]
    room.entry(n[18])["file_path"] = f"dslr/{n[18].replace('JPG', 'jpg')}"
    del room.entry(n[19])["is_bad"]
    del room.entry(n[20])["mask_path"]
    room.mask(n[20]).unlink()
    room.write()
    assert "NaN" in (room.dslr / "nerfstudio" / "transforms.json").read_text()

    odd = {n[17]: "duplicate", "cover.JPG": "entry_invalid", "#26": "entry_invalid"}
    assert verdicts(room) == {**expected, **odd}
    del expected[n[11]]
    assert verdicts(room, keep_bad=True) == {**expected, **odd}

    index = read_scene(room.root, SCENE)
    assert {entry.name: entry for entry in index.frames}[n[17]].number == 10007
    assert [entry.number for entry in index.frames] == sorted(entry.number for entry in index.frames)
    assert sum("1 frames:" in note for note in index.notes) == 3
    assert room.reader().read(next(e for e in index.frames if e.name == n[14])).valid.mean() < 0.97


def test_a_mask_counts_for_its_own_frame_alone(room: Room) -> None:
    masked = np.full((WIDE.height, WIDE.width), 255, np.uint8)
    masked[100:120, 50:90] = 0
    room.mask(room.names[1]).write_bytes(encoded(masked, "PNG"))
    reader = room.reader()
    assert [reader.read(entry).valid.mean() > 0.99 for entry in reader.index.frames] == [True, False, True]


@pytest.mark.parametrize("kind", ["plain", "progressive", "restart"])
def test_a_cut_photograph_is_refused_wherever_it_is_cut(room: Room, photos: list[bytes], kind: str) -> None:
    options = {"plain": {}, "progressive": {"progressive": True}, "restart": {"restart_marker_rows": 1}}[kind]
    # A preview within the header has an end-of-image marker of its own.
    preview = encoded(np.zeros((16, 16, 3), np.uint8))
    photo = encoded(np.asarray(Image.open(io.BytesIO(photos[0]))), comment=preview, **options)
    after_preview = photo.index(preview) + len(preview)
    reader = room.reader()
    entry = reader.index.frames[0]
    for length in [1, 2, 20, after_preview, after_preview + 1, *range(200, len(photo), 4001), *range(len(photo) - 6, len(photo))]:
        room.image(entry.name).write_bytes(photo[:length])
        refused = refusal(reader.read, entry)
        assert refused is not None, length
        assert refused.reason == "image_unreadable"
        assert entry.image_url in refused.detail
    whole = []
    for trailer in (b"", b"\0", b"\0" * 5000, b"more\xff\xd9", preview):
        room.image(entry.name).write_bytes(photo + trailer)
        whole.append(reader.read(entry).image)
    assert all((image == whole[0]).all() for image in whole)


def test_any_sound_photograph_gives_pillows_pixels(room: Room, photos: list[bytes]) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(photos[0])))
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: as the intrinsics are of the pixels in the file, it is not followed
    inks = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(inks, "JPEG")
    files = [
        photos[0], encoded(pixels, progressive=True), encoded(pixels, subsampling=2), encoded(pixels, exif=turned.tobytes()),
        encoded(pixels[..., 0]), inks.getvalue(), encoded(pixels, "PNG"),
    ]  # fmt: skip
    reader, undistorter = room.reader(), Undistorter(WIDE, WIDTH, HEIGHT)
    entry = reader.index.frames[0]
    for number, data in enumerate(files):
        room.image(entry.name).write_bytes(data)
        truth = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert (reader.read(entry).image == undistorter.image(truth)).all(), number


def test_without_masks_every_pixel_is_valid(room: Room) -> None:
    for name in room.names:
        room.mask(name).unlink()
    room.transforms["has_mask"] = False
    room.write()
    assert verdicts(room) == {}


def break_scene(room: Room, how: str) -> None:
    transforms, groups = room.transforms, room.annotation["segGroups"]
    vertices, faces, _ = room_mesh()
    if how == "iphone lens":
        transforms["camera_model"] = "OPENCV"
    elif how == "pinhole with distortion":
        transforms["camera_model"] = "PINHOLE"
    elif how == "no focal length":
        del transforms["fl_x"]
    elif how == "NaN in the lens":
        transforms["cx"] = float("nan")
    elif how == "lens without a view":
        transforms["k1"] = -50.0
    elif how == "no frames":
        transforms["frames"] = []
    elif how == "PLY cut short":
        room.ply = room.ply[:-40]
    elif how == "PLY of text":
        room.ply = room.ply.replace(b"binary_little_endian", b"ascii")
    elif how == "face out of range":
        faces[5, 1] = len(vertices)
        room.ply = ply_bytes(vertices, faces)
    elif how == "quads":
        room.ply = room.ply[:-13] + b"\x04" + room.ply[-12:]
    elif how == "vertex at infinity":
        vertices[3, 1] = np.inf
        room.ply = ply_bytes(vertices, faces)
    elif how == "repeated objectId":
        groups[2]["objectId"] = groups[1]["objectId"]
    elif how == "objectId too large":
        groups[2]["objectId"] = 70000
    elif how == "segments of another mesh":
        room.segments["segIndices"].pop()
    elif how == "group without segments":
        del groups[1]["segments"]
    room.write()
    if how == "mesh gone":
        (room.scans / "segments_anno.json").unlink()
    elif how == "transforms gone":
        (room.dslr / "nerfstudio" / "transforms.json").unlink()
    elif how == "transforms cut short":
        (room.dslr / "nerfstudio" / "transforms.json").write_text('{"fl_x": 1')
    elif how == "annotation cut short":
        (room.scans / "segments_anno.json").write_text('{"segGroups": [')


@pytest.mark.parametrize(
    ("how", "reason", "detail"),
    [
        ("iphone lens", "camera_model", "OPENCV"),
        ("pinhole with distortion", "camera_model", "distortion"),
        ("no focal length", "transforms_invalid", "fl_x"),
        ("NaN in the lens", "transforms_invalid", "cx"),
        ("lens without a view", "transforms_invalid", "pinhole view"),
        ("no frames", "no_frames", "empty"),
        ("transforms gone", "transforms_missing", "transforms.json"),
        ("transforms cut short", "transforms_invalid", "transforms.json"),
        ("mesh gone", "mesh_missing", "segments_anno.json"),
        ("PLY cut short", "mesh_invalid", "bytes"),
        ("PLY of text", "mesh_invalid", "binary_little_endian"),
        ("face out of range", "mesh_invalid", "face index"),
        ("quads", "mesh_invalid", "1 faces are not triangles"),
        ("vertex at infinity", "mesh_invalid", "not finite"),
        ("repeated objectId", "mesh_invalid", "repeated"),
        ("objectId too large", "mesh_invalid", "70000"),
        ("segments of another mesh", "mesh_invalid", "segIndices"),
        ("group without segments", "mesh_invalid", "segments"),
        ("annotation cut short", "mesh_invalid", "segments_anno.json"),
    ],
)
def test_a_broken_scene_is_named_with_its_reason(room: Room, how: str, reason: str, detail: str) -> None:
    break_scene(room, how)
    with pytest.raises(BadScene, match=SCENE) as caught:
        room.reader().report()
    assert caught.value.reason == reason
    assert detail in caught.value.detail
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.scene, again.reason, str(again)) == (SCENE, reason, str(caught.value))


def test_a_scene_that_is_not_there(room: Room) -> None:
    with pytest.raises(BadScene, match="ffffffffff") as caught:
        read_scene(room.root, "ffffffffff")
    assert caught.value.reason == "scene_missing"


def test_any_store_will_do(room: Room) -> None:
    """The same scene from a store that has no local paths."""
    memory = fsspec.filesystem("memory")
    memory.put(room.root, "/rooms", recursive=True)
    try:
        reader = SceneReader("memory://rooms", SCENE, WIDTH, HEIGHT)
        here = room.reader()
        assert [entry.name for entry in reader.index.frames] == room.names
        frame, reference = reader.read(reader.index.frames[1]), here.read(here.index.frames[1])
        assert (frame.image == reference.image).all()
        assert (frame.labels == reference.labels).all()
        assert (frame.depth == reference.depth).all()
        assert len(read_mesh("memory://rooms", SCENE).faces) == len(here.mesh.faces)
    finally:
        memory.rm("/rooms", recursive=True)
