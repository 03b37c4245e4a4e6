"""Synthetic rooms: files agree with each other and with the analytic scene, defects are what they say, pictures show something."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from PIL import Image

from pipeline.synthetic import DEFECTS, RoomSpec, render_truth, room_specs, write_room, write_root
from pipeline.synthetic.render.camera import Lens, lens, walk
from pipeline.synthetic.render.capture import GAP, plan
from pipeline.synthetic.scene.geometry import ELLIPSOID, FRUSTUM, Primitives, cast_rays, clearance, primitives
from pipeline.synthetic.scene.parts import Part
from pipeline.synthetic.scene.room import build_room, furnished_room

SPEC = RoomSpec("0123456789", seed=11, frames=16, test_frames=2, scale=0.06)
SHARP = replace(SPEC, scale=0.15)
ALONE = ("gap", "empty")
"""Defects that change which pictures exist, so that files cannot be compared one by one with a clean room's."""


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def written(root: Path, spec: RoomSpec) -> tuple[dict[str, bytes], dict[str, Any]]:
    summary = write_room(str(root), spec)
    return files_below(root / "data" / spec.scene_id), summary


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, Any]]:
    return written(tmp_path_factory.mktemp("clean"), SPEC)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, Any]]:
    return written(tmp_path_factory.mktemp("spoilt"), replace(SPEC, defects=tuple(d for d in DEFECTS if d not in ALONE)))


def transforms(files: dict[str, bytes]) -> dict[str, Any]:
    return json.loads(files["dslr/nerfstudio/transforms.json"])


def frames_by_name(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    return {frame["file_path"]: frame for frame in transforms(files)["frames"]}


def colmap_poses(files: dict[str, bytes]) -> dict[str, np.ndarray]:
    """World-to-camera [3,4] by image name, from the text model alone."""
    lines = [line for line in files["dslr/colmap/images.txt"].decode().splitlines() if not line.startswith("#")]
    poses = {}
    for line in lines[::2]:
        fields = line.split()
        w, x, y, z, *shift = map(float, fields[1:8])
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        poses[fields[9]] = np.column_stack([rotation, shift])
    return poses


def ply(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    header, body = data.split(b"end_header\n", 1)
    words = [line.split() for line in header.decode().splitlines()]
    vertices, faces = (int(line[2]) for line in words if line[0] == "element")
    kinds = {"float": "<f4", "uchar": "u1", "int": "<i4"}
    dtype = np.dtype([(line[2], kinds[line[1]]) for line in words if line[0] == "property" and line[1] != "list"])
    vertex = np.frombuffer(body, dtype, vertices)
    face = np.frombuffer(body, np.dtype([("n", "u1"), ("corners", "<i4", 3)]), faces, vertices * dtype.itemsize)
    assert len(body) == vertices * dtype.itemsize + faces * 13
    assert (face["n"] == 3).all()
    return vertex, face["corners"]


def test_the_same_spec_gives_the_same_bytes(clean: tuple[dict[str, bytes], dict[str, Any]], tmp_path: Path) -> None:
    build_room.cache_clear()
    files, summary = written(tmp_path, SPEC)
    assert files == clean[0]
    assert summary == clean[1]
    assert summary["files"] == len(files)
    assert summary["bytes"] == sum(map(len, files.values()))


def test_another_seed_gives_another_room() -> None:
    first, second = room_specs(2, seed=1, frames=1, scale=0.05)
    assert furnished_room(first.seed)[0].size != furnished_room(second.seed)[0].size


def test_specs_depend_on_seed_and_index_alone() -> None:
    assert room_specs(2, 5, 8, 0.25) == room_specs(4, 5, 8, 0.25)[:2]
    ids = [spec.scene_id for seed in range(3) for spec in room_specs(5, seed, 8, 0.25)]
    assert len(set(ids)) == 15
    assert all(len(scene) == 10 and set(scene) <= set("0123456789abcdef") for scene in ids)


@pytest.mark.parametrize(
    "wrong", [{"scene_id": "ABCDEF0123"}, {"defects": ("typo",)}, {"frames": -1}, {"scale": 1.5}, {"defects": ("gap", "gap")}, {"seed": -1}]
)
def test_a_spec_that_cannot_be_made_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"0123456789|ABCDEF0123"):
        replace(SPEC, **wrong)


def test_too_few_frames_for_the_defects_are_refused() -> None:
    crowded = replace(SPEC, frames=2, test_frames=0, defects=("missing_image", "truncated_jpeg", "nan_pose"))
    with pytest.raises(ValueError, match="too few"):
        plan(crowded, build_room(SPEC.seed))


def test_every_documented_file_is_there(clean: tuple[dict[str, bytes], dict[str, Any]]) -> None:
    files, _ = clean
    parsed = transforms(files)
    shots = parsed["frames"] + parsed["test_frames"]
    expected = {f"dslr/resized_images/{shot['file_path']}" for shot in shots} | {
        f"dslr/resized_anon_masks/{shot['mask_path']}" for shot in shots
    }
    expected |= {f"dslr/colmap/{name}.txt" for name in ("cameras", "images", "points3D")}
    expected |= {"dslr/nerfstudio/transforms.json", "dslr/train_test_lists.json", "scans/segments.json", "scans/segments_anno.json"}
    expected |= {f"scans/mesh_aligned_0.05{end}" for end in (".ply", "_semantic.ply", "_mask.txt")}
    assert set(files) == expected
    names = [frame["file_path"] for frame in parsed["frames"]]
    assert names != sorted(names), "the documentation warns that frames are not in file-name order"
    assert all(len(name) == 12 and name[:3] == "DSC" and name[3:8].isdigit() and name[8:] == ".JPG" for name in names)
    lists = json.loads(files["dslr/train_test_lists.json"])
    assert lists == {"train": sorted(names), "test": [frame["file_path"] for frame in parsed["test_frames"]], "has_masks": True}
    for name in names:
        picture = Image.open(io.BytesIO(files[f"dslr/resized_images/{name}"]))
        assert (picture.size, picture.mode, picture.layer[0][1:3]) == ((parsed["w"], parsed["h"]), "RGB", (1, 1)), (
            "4:4:4 at the stated size"
        )
    assert (parsed["w"] % 2, parsed["h"] % 2) == (0, 0)


def test_json_poses_are_the_colmap_poses(clean: tuple[dict[str, bytes], dict[str, Any]]) -> None:
    parsed, poses = transforms(clean[0]), colmap_poses(clean[0])
    shots = parsed["frames"] + parsed["test_frames"]
    assert set(poses) == {shot["file_path"] for shot in shots}
    for shot in shots:
        c2w = np.array(shot["transform_matrix"])
        # Row by row, as the public readers of the dataset undo the convention.
        c2w[2] *= -1
        c2w = c2w[[1, 0, 2, 3]]
        c2w[:3, 1:3] *= -1
        w2c = np.linalg.inv(c2w)[:3]
        np.testing.assert_allclose(w2c, poses[shot["file_path"]], rtol=0, atol=1e-9)
        assert abs(np.linalg.det(c2w[:3, :3]) - 1) < 1e-9
        assert c2w[2, 1] < 0, "the image's downward axis points down in a world with z up"


def test_colmap_tracks_are_true(clean: tuple[dict[str, bytes], dict[str, Any]]) -> None:
    files, summary = clean
    poses = colmap_poses(files)
    points = {int(f[0]): f for f in (line.split() for line in files["dslr/colmap/points3D.txt"].decode().splitlines()) if f[0] != "#"}
    camera = files["dslr/colmap/cameras.txt"].decode().splitlines()[-1].split()
    assert camera[:4] == ["1", "OPENCV_FISHEYE", str(transforms(files)["w"]), str(transforms(files)["h"])]
    fx, fy, cx, cy, *k = map(float, camera[4:])
    matrix, distortion = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), np.array(k)
    lines = [line for line in files["dslr/colmap/images.txt"].decode().splitlines() if not line.startswith("#")]
    seen = 0
    for number, (head, body) in enumerate(zip(lines[::2], lines[1::2], strict=True), start=1):
        observed = np.array(body.split(), dtype=float).reshape(-1, 3)
        world = np.array([points[int(p)][1:4] for p in observed[:, 2]], dtype=float)
        pose = poses[head.split()[9]]
        in_camera = world @ pose[:, :3].T + pose[:, 3]
        pixel, _ = cv2.fisheye.projectPoints(in_camera[:, None], np.zeros(3), np.zeros(3), matrix, distortion)
        assert np.abs(pixel[:, 0] - observed[:, :2]).max() < 2e-3
        for index, point in enumerate(observed[:, 2]):
            track = points[int(point)][8:]
            assert (str(number), str(index)) in zip(track[::2], track[1::2], strict=True)
        seen += len(observed)
    assert seen == summary["observations"] > 500
    assert len(points) == summary["points"]


def test_the_lens_model_is_opencvs_and_its_inverse_is_exact() -> None:
    for seed in range(4):
        optics = lens(np.random.default_rng(seed), 0.1)
        rays = optics.rays().reshape(-1, 3)
        u, v = np.meshgrid(np.arange(optics.width) + 0.5, np.arange(optics.height) + 0.5)
        pixels = np.stack([u.ravel(), v.ravel()], axis=1)
        np.testing.assert_allclose(optics.project(rays), pixels, rtol=0, atol=1e-9)
        matrix = np.array([[optics.fx, 0, optics.cx], [0, optics.fy, optics.cy], [0, 0, 1]])
        theirs, _ = cv2.fisheye.projectPoints(rays[:, None], np.zeros(3), np.zeros(3), matrix, np.array(optics.k))
        np.testing.assert_allclose(theirs[:, 0], pixels, rtol=0, atol=1e-6)
        assert 75 < math.degrees(math.acos(rays[:, 2].min())) < 90


def test_the_mesh_is_the_analytic_room(clean: tuple[dict[str, bytes], dict[str, Any]]) -> None:
    vertex, faces = ply(clean[0]["scans/mesh_aligned_0.05.ply"])
    vertices = np.ascontiguousarray(np.stack([vertex[axis] for axis in "xyz"], axis=1))
    object_id = np.zeros(len(vertices), int)
    for group in json.loads(clean[0]["scans/segments_anno.json"])["segGroups"]:
        object_id[group["segments"]] = group["objectId"]
    assert (object_id > 0).all()
    assert 50_000 < len(faces) < 150_000
    scene = EmbreeScene()
    TriangleMesh(scene, vertices, np.ascontiguousarray(faces))
    for index in range(0, SHARP.frames, 6):
        truth = render_truth(SHARP, index)
        rays = truth["rays"].reshape(-1, 3)
        directions = (rays @ truth["c2w"][:3, :3].T).astype(np.float32)
        origins = np.broadcast_to(truth["c2w"][:3, 3].astype(np.float32), directions.shape).copy()
        hit = scene.run(origins, directions, query="INTERSECT", output=1)
        assert (hit["primID"] >= 0).all(), "a closed room has no holes"
        same = object_id[faces[hit["primID"], 0]] == truth["object_id"].ravel()
        error = np.abs(hit["tfar"] * rays[:, 2] - truth["depth_z"].ravel())[same]
        assert 1 - same.mean() < 0.001
        assert np.quantile(error, 0.99) < 0.0015
        assert len(np.unique(truth["object_id"])) > 8
        np.testing.assert_allclose(truth["distance"] * truth["rays"][..., 2], truth["depth_z"], atol=1e-12)


def warp_errors(first: dict[str, np.ndarray], second: dict[str, np.ndarray], optics: Lens) -> tuple[float, float, float]:
    """How much of one view the other sees, and the median errors of distance (metres) and of colour there."""
    points = first["c2w"][:3, 3] + (first["distance"][..., None] * first["rays"]) @ first["c2w"][:3, :3].T
    camera = (points.reshape(-1, 3) - second["c2w"][:3, 3]) @ second["c2w"][:3, :3]
    u, v = np.floor(optics.project(camera)).astype(int).T
    inside = (u >= 0) & (u < optics.width) & (v >= 0) & (v < optics.height) & (camera[:, 2] > 0)
    u, v, far = u[inside], v[inside], np.linalg.norm(camera[inside], axis=1)
    distance = np.abs(second["distance"][v, u] - far)
    seen = distance < 0.05
    colour = np.abs(second["image"][v, u] - first["image"].reshape(-1, 3)[inside]).mean(axis=1)
    return float(seen.mean() * inside.mean()), float(np.median(distance[seen])), float(np.median(colour[seen]))


def test_two_views_agree_through_exact_depth() -> None:
    first, second = render_truth(SHARP, 4), render_truth(SHARP, 14)
    optics = plan(SHARP, build_room(SHARP.seed)).lens
    overlap, distance, colour = warp_errors(first, second, optics)
    assert overlap > 0.5
    assert distance < 0.01
    assert colour < 0.03
    moved = {**first, "c2w": first["c2w"].copy()}
    moved["c2w"][:3, 3] += [0.08, -0.08, 0.04]
    assert warp_errors(moved, second, optics)[1] > 2 * distance, "a wrong pose is noticed"
    other = {**second, "image": second["image"][:, ::-1]}
    assert warp_errors(first, other, optics)[2] > 3 * colour, "a wrong picture is noticed"


def solids(seed: int) -> tuple[Primitives, tuple[float, float, float]]:
    """A room's geometry without textures and light."""
    furnished, _ = furnished_room(seed)
    parts = [furnished.shell, *(part for item in furnished.items for part in item.parts)]
    columns = ([getattr(part, name) for part in parts] for name in ("kind", "centre", "half", "yaw"))
    return primitives(*(np.array(column) for column in columns)), furnished.size


@pytest.fixture(scope="module", params=range(8))
def stroll(request: pytest.FixtureRequest) -> tuple[Primitives, tuple[float, float, float], np.ndarray]:
    prims, size = solids(request.param)
    return prims, size, walk(np.random.SeedSequence(request.param), prims, size, 250)


def test_the_camera_keeps_off_walls_and_furniture(stroll: tuple[Primitives, tuple[float, float, float], np.ndarray]) -> None:
    prims, size, poses = stroll
    eyes = np.ascontiguousarray(poses[:, :3, 3])
    assert clearance(prims, eyes).min() > 0.12
    assert (eyes > 0.3).all()
    assert (eyes < np.array(size) - 0.3).all()
    ahead, _, _ = cast_rays(prims, eyes, np.ascontiguousarray(poses[:, :3, 2]))
    assert ahead.min() > 0.25
    assert np.median(ahead) > 1.2, "it looks into the room"


def test_the_walk_is_a_hands(stroll: tuple[Primitives, tuple[float, float, float], np.ndarray]) -> None:
    poses = stroll[2]
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    turns = np.degrees(np.arccos(np.clip((np.einsum("kij,kij->k", poses[1:, :3, :3], poses[:-1, :3, :3]) - 1) / 2, -1, 1)))
    assert 0.012 < steps.mean() < 0.024
    assert steps.max() < 0.06
    assert 0.5 < turns.mean() < 1.8
    assert turns.max() < 3.5
    np.testing.assert_allclose(
        poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.broadcast_to(np.eye(3), (len(poses), 3, 3)), atol=1e-12
    )


def test_a_longer_walk_begins_with_the_shorter() -> None:
    prims, size = solids(3)
    seeds = [np.random.SeedSequence(9) for _ in range(2)]
    np.testing.assert_array_equal(walk(seeds[0], prims, size, 40), walk(seeds[1], prims, size, 90)[:40])


def test_a_walk_step_of_three_takes_every_third_pose() -> None:
    spec = room_specs(1, seed=4, frames=30, scale=0.05)[0]
    room = build_room(spec.seed)
    close, wide = (plan(replace(spec, frames=frames, walk_step=step), room).shots for frames, step in ((30, 1), (10, 3)))
    np.testing.assert_array_equal([shot.c2w for shot in wide], [shot.c2w for shot in close[::3]])
    assert [int(shot.name[3:8]) - int(wide[0].name[3:8]) for shot in wide] == list(range(10)), (
        "numbers, which windows go by, stay neighbours"
    )


def depth_inside(part: Part, points: np.ndarray) -> np.ndarray:
    """How far inside a solid world points lie, negative outside; metres, for an ellipsoid roughly."""
    x, y, z = (points - np.array(part.centre)).T
    cos, sin = math.cos(part.yaw), math.sin(part.yaw)
    local = np.stack([cos * x + sin * y, cos * y - sin * x, z], axis=1)
    half = np.array(part.half)
    if part.kind == ELLIPSOID:
        return (1 - np.linalg.norm(local / half, axis=1)) * half.min()
    if part.kind == FRUSTUM:
        radius = half[0] + (half[1] - half[0]) * (0.5 + 0.5 * z / half[2])
        return np.minimum(radius - np.hypot(x, y), half[2] - np.abs(z))
    return (half - np.abs(local)).min(axis=1)


@pytest.mark.parametrize("seed", range(4))
def test_no_object_stands_in_another_or_in_a_wall(seed: int) -> None:
    furnished, _ = furnished_room(seed)
    scatter = np.random.default_rng(0).uniform(-1, 1, (150, 3))
    parts = [(item.label, number, part) for number, item in enumerate(furnished.items) for part in item.parts]
    # A blanket is drawn round its mattress.
    bodies = [(number, part) for label, number, part in parts if label != "blanket"]
    for number, part in bodies:
        reach = np.array([max(part.half[:2])] * 2 + [part.half[2]]) if part.kind == FRUSTUM else np.array(part.half)
        x, y, z = (scatter * reach).T
        cos, sin = math.cos(part.yaw), math.sin(part.yaw)
        points = np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=1) + part.centre
        points = points[depth_inside(part, points) > 0]
        assert (points > -1e-6).all()
        assert (points < np.array(furnished.size) + 1e-6).all()
        for other_number, other in bodies:
            if other_number != number:
                assert depth_inside(other, points).max() < 0.02, f"{part} stands in {other}"


def test_clearance_is_negative_inside_a_solid() -> None:
    prims, _ = solids(0)
    assert (clearance(prims, prims.centre[1:]) < 0).all()


def test_pictures_are_textured_and_well_exposed(tmp_path: Path) -> None:
    spec = replace(SHARP, frames=4, test_frames=0)
    files, _ = written(tmp_path, spec)
    for name in frames_by_name(files):
        grey = np.asarray(Image.open(io.BytesIO(files[f"dslr/resized_images/{name}"])).convert("L"), dtype=np.float32)
        smooth = cv2.GaussianBlur(grey, (0, 0), 1.0)
        gradient = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0) / 8, cv2.Sobel(smooth, cv2.CV_32F, 0, 1) / 8)
        blocks = gradient[: grey.shape[0] // 16 * 16, : grey.shape[1] // 16 * 16].reshape(grey.shape[0] // 16, 16, -1, 16).mean(axis=(1, 3))
        # Sensor noise alone gives 0.25 after the blur.
        assert (blocks > 0.6).mean() > 0.8, "nearly every part of the picture has structure"
        assert gradient.mean() > 2.0
        assert 80 < grey.mean() < 190
        assert (grey > 252).mean() < 0.1
        assert grey.std() > 25


def test_scans_are_annotated(clean: tuple[dict[str, bytes], dict[str, Any]]) -> None:
    files, summary = clean
    vertex, faces = ply(files["scans/mesh_aligned_0.05_semantic.ply"])
    plain, _ = ply(files["scans/mesh_aligned_0.05.ply"])
    assert all((vertex[name] == plain[name]).all() for name in plain.dtype.names)
    assert (summary["vertices"], summary["faces"]) == (len(vertex), len(faces))
    assert faces.max() < len(vertex)
    assert json.loads(files["scans/segments.json"])["segIndices"] == list(range(len(vertex)))
    annotation = json.loads(files["scans/segments_anno.json"])
    assert annotation["sceneId"] == SPEC.scene_id
    groups = annotation["segGroups"]
    assert 25 < len(groups) == summary["objects"]
    assert len({group["objectId"] for group in groups}) == len(groups)
    assert {"wall", "floor", "ceiling", "table", "chair", "carpet", "books", "monitor", "door", "window"} <= {
        group["label"] for group in groups
    }
    claimed = np.concatenate([group["segments"] for group in groups])
    assert sorted(claimed) == list(range(len(vertex))), "every vertex belongs to one object"
    points = np.stack([vertex[axis] for axis in "xyz"], axis=1).astype(float)
    for group in groups:
        box = group["obb"]
        axes = np.array(box["normalizedAxes"]).reshape(3, 3)
        local = (points[group["segments"]] - box["centroid"]) @ axes.T
        np.testing.assert_allclose(np.abs(local).max(axis=0) * 2, box["axesLengths"], atol=1e-4)
        assert abs(np.linalg.norm(group["dominantNormal"]) - 1) < 1e-6


def test_lists_of_splits_and_classes(clean: tuple[dict[str, bytes], dict[str, Any]], tmp_path: Path) -> None:
    specs = room_specs(3, 0, 4, 0.1)
    ids = [spec.scene_id for spec in specs]
    write_root(str(tmp_path), [*specs, SPEC], ids[:2], ids[2:])
    listed = files_below(tmp_path)
    assert listed["splits/nvs_sem_train.txt"].decode() == f"{ids[0]}\n{ids[1]}\n"
    assert listed["splits/nvs_sem_val.txt"].decode() == f"{ids[2]}\n"
    classes = listed["metadata/semantic_classes.txt"].decode().splitlines()
    vertex, _ = ply(clean[0]["scans/mesh_aligned_0.05_semantic.ply"])
    groups = json.loads(clean[0]["scans/segments_anno.json"])["segGroups"]
    for group in groups:
        assert {classes[row] for row in np.unique(vertex["label"][group["segments"]])} == {group["label"]}
    assert not {"wall", "floor", "ceiling"} & set(listed["metadata/instance_classes.txt"].decode().splitlines())
    assert set(listed["metadata/semantic_benchmark/top100.txt"].decode().splitlines()) < set(classes)
    assert set(json.loads(listed["metadata/scene_types.json"])) == {*ids, SPEC.scene_id}
    with pytest.raises(ValueError, match=ids[0]):
        write_root(str(tmp_path), specs, ids[:1], ids[:1])


def test_defects_change_the_files_that_they_name_and_no_other(
    clean: tuple[dict[str, bytes], dict[str, Any]], spoilt: tuple[dict[str, bytes], dict[str, Any]]
) -> None:
    defects = spoilt[1]["defects"]
    assert set(defects) == set(DEFECTS) - set(ALONE)
    changed = {name for name in clean[0] if spoilt[0].get(name) != clean[0][name]}
    assert set(spoilt[0]) <= set(clean[0])
    assert changed == {name for hit in defects.values() for name in hit["files"]}
    hit_frames = [name for hit in defects.values() for name in hit["frames"]]
    assert len(set(hit_frames)) == len(hit_frames) == 2 + 8


def test_frame_defects(clean: tuple[dict[str, bytes], dict[str, Any]], spoilt: tuple[dict[str, bytes], dict[str, Any]]) -> None:
    good, bad, defects = frames_by_name(clean[0]), frames_by_name(spoilt[0]), spoilt[1]["defects"]
    frame = {defect: hit["frames"][0] for defect, hit in defects.items() if hit["frames"]}

    def image(files: dict[str, bytes], name: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(files[f"dslr/resized_images/{name}"]))).astype(float)

    run = [name for name in sorted(bad) if bad[name]["is_bad"]]
    assert run == defects["is_bad_run"]["frames"]
    numbers = [int(name[3:8]) for name in run]
    assert numbers == list(range(numbers[0], numbers[0] + 2))
    for name in run:
        assert cv2.Laplacian(image(spoilt[0], name), cv2.CV_64F).std() < 0.8 * cv2.Laplacian(image(clean[0], name), cv2.CV_64F).std()

    assert f"dslr/resized_images/{frame['missing_image']}" not in spoilt[0]
    assert frame["missing_image"] in bad
    with pytest.raises(OSError, match="truncated"):
        image(spoilt[0], frame["truncated_jpeg"])
    assert f"dslr/resized_anon_masks/{frame['missing_mask'][:-4]}.png" not in spoilt[0]
    assert bad[frame["missing_mask"]]["mask_path"] == f"{frame['missing_mask'][:-4]}.png"

    assert b"NaN" in spoilt[0]["dslr/nerfstudio/transforms.json"]
    for name in good:
        here, there = np.array(bad[name]["transform_matrix"]), np.array(good[name]["transform_matrix"])
        if name == frame["nan_pose"]:
            assert np.isnan(here).sum() == 1
        elif name == frame["far_pose"]:
            assert np.linalg.norm(here[:3, 3] - there[:3, 3]) > 20
        elif name == frame["non_rigid_pose"]:
            assert np.abs(here[:3, :3].T @ here[:3, :3] - np.eye(3)).max() > 0.1
        else:
            np.testing.assert_array_equal(here, there)
    names = [entry["file_path"] for entry in transforms(spoilt[0])["frames"]]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == [frame["duplicate"]]

    mask = np.asarray(Image.open(io.BytesIO(spoilt[0][f"dslr/resized_anon_masks/{frame['anonymised'][:-4]}.png"])))
    assert set(np.unique(mask)) == {0, 255}
    hidden = cv2.erode((mask == 0).astype(np.uint8), np.ones((5, 5))) > 0
    assert np.abs(image(spoilt[0], frame["anonymised"])[hidden] - [255, 0, 255]).max() < 12
    plain = np.asarray(Image.open(io.BytesIO(spoilt[0][f"dslr/resized_anon_masks/{frame['duplicate'][:-4]}.png"])))
    assert (plain == 255).all()


def test_annotation_defects(clean: tuple[dict[str, bytes], dict[str, Any]], spoilt: tuple[dict[str, bytes], dict[str, Any]]) -> None:
    before = {group["objectId"]: group for group in json.loads(clean[0]["scans/segments_anno.json"])["segGroups"]}
    after = json.loads(spoilt[0]["scans/segments_anno.json"])["segGroups"]
    (forgotten,) = spoilt[1]["defects"]["unlabelled_object"]["objects"]
    carpet, floor = spoilt[1]["defects"]["multilabel"]["objects"]
    assert {group["objectId"] for group in after} == set(before) - {forgotten}
    assert (before[carpet]["label"], before[floor]["label"]) == ("carpet", "floor")
    assert after[-1]["objectId"] == floor, "the larger group comes last, so that the last one wins wrongly"
    assert set(after[-1]["segments"]) == set(before[floor]["segments"]) | set(before[carpet]["segments"])
    for group in after[:-1]:
        assert group == before[group["objectId"]]
    vertex, _ = ply(spoilt[0]["scans/mesh_aligned_0.05_semantic.ply"])
    assert sorted(np.flatnonzero(vertex["label"] == -100)) == before[forgotten]["segments"]


def test_a_gap_skips_numbers(clean: tuple[dict[str, bytes], dict[str, Any]], tmp_path: Path) -> None:
    files, summary = written(tmp_path, replace(SPEC, defects=("gap",)))
    names, missing = sorted(frames_by_name(files)), summary["defects"]["gap"]["frames"]
    numbers = sorted(int(name[3:8]) for name in [*names, *missing])
    assert len(names) == SPEC.frames
    assert len(missing) == GAP
    assert numbers == list(range(numbers[0], numbers[0] + SPEC.frames + GAP))
    assert not {f"dslr/resized_images/{name}" for name in missing} & set(files)
    before = [name for name in names if name < missing[0]]
    assert 0 < len(before) < len(names)
    for name in before:
        assert files[f"dslr/resized_images/{name}"] == clean[0][f"dslr/resized_images/{name}"]


def test_an_empty_scene_has_a_scan_and_no_pictures(clean: tuple[dict[str, bytes], dict[str, Any]], tmp_path: Path) -> None:
    files, summary = written(tmp_path, replace(SPEC, defects=("empty",)))
    parsed = transforms(files)
    assert (parsed["frames"], parsed["test_frames"]) == ([], [])
    assert not [name for name in files if name.endswith((".JPG", ".png"))]
    assert set(summary["defects"]) == {"empty"}
    for name, data in clean[0].items():
        if name.startswith("scans/"):
            assert files[name] == data
