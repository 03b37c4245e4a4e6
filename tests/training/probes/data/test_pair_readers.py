"""Readers of image pairs: the arrays of the official layouts, cameras that agree with depth and points, and refusals."""

from __future__ import annotations

import json
import os
import resource
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from storage.location import StorageError
from tests.training.probes.data.layouts import INDOOR, millimetres, noise, one_line, write_image, write_lines
from training.probes.data import navi, scannet1500, spair71k, stereo
from training.probes.data.base import ProbeFrame
from training.probes.data.prepare.motorcycle import write_motorcycle


def project(frame: ProbeFrame, world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World points [N,3] -> pixels [N,2] and z depth [N] in a frame."""
    assert frame.c2w is not None
    assert frame.K is not None
    camera = (world - frame.c2w[:3, 3]) @ frame.c2w[:3, :3]
    pixels = camera @ frame.K.T
    return pixels[:, :2] / pixels[:, 2:], camera[:, 2]


def unproject(frame: ProbeFrame, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The world points [N,3] of pixels, by their centres."""
    assert frame.depth is not None
    assert frame.K is not None
    assert frame.c2w is not None
    rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], axis=1) @ np.linalg.inv(frame.K).T
    return (rays * frame.depth[rows, columns, None].astype(float)) @ frame.c2w[:3, :3].T + frame.c2w[:3, 3]


# -- ScanNet-1500 ------------------------------------------------------------------------------------------------------------------------


K = np.array([[577.59, 0, 318.9], [0, 578.73, 242.68], [0, 0, 1]])


def turned(degrees: float, shift: tuple[float, float, float]) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s, shift[0]], [0, 1, 0, shift[1]], [-s, 0, c, shift[2]], [0, 0, 0, 1]])


def write_scannet(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Three frames of one scene in two pairs. Returns image, depth and pose by key."""
    truth = {}
    for n, frame in enumerate((15, 585, 60)):
        folder = root / "scene0707_00"
        image = write_image(folder / f"color/{frame}.jpg", noise(n, *INDOOR, 3))
        raw, depth = millimetres(n, *INDOOR)
        write_image(folder / f"depth/{frame}.png", raw)
        pose = turned(20.0 * n, (n, 0.5, -0.25))
        write_lines(folder / f"pose/{frame}.txt", (" ".join(f"{x:.6f}" for x in row) for row in pose))
        truth[f"scene0707_00/{frame}"] = (image, depth, pose)
    np.savez(root / "test.npz", name=np.array([[707, 0, 15, 585], [707, 0, 585, 60]]), score=np.ones(2))
    np.savez(root / "intrinsics.npz", scene0707_00=K)
    return truth


def test_scannet_pairs(tmp_path: Path) -> None:
    truth = write_scannet(tmp_path)
    data = scannet1500.make(scannet1500.Config(root=str(tmp_path)))
    frames = data.frames("test")
    assert [frame.key for frame in frames] == list(truth)
    assert [(pair.first, pair.second, pair.points) for pair in data.pairs()] == [(0, 1, None), (1, 2, None)]
    for frame in frames:
        image, depth, pose = truth[frame.key]
        np.testing.assert_array_equal(frame.image, image)
        np.testing.assert_array_equal(frame.depth, depth)
        np.testing.assert_allclose(frame.c2w, pose, atol=1e-6)
        np.testing.assert_array_equal(frame.K, K)
        assert frame.group == "scene0707_00"
    assert len(data.frames("train")) == 0
    assert data.tasks == {"correspondence"}
    said = data.describe()
    assert said["pairs"] == [["scene0707_00/15", "scene0707_00/585"], ["scene0707_00/585", "scene0707_00/60"]]
    json.dumps(said)
    np.savez(tmp_path / "intrinsics.npz", scene0707_00=K * 1.01)
    assert scannet1500.make(scannet1500.Config(root=str(tmp_path))).describe()["content"] != said["content"]


def test_scannet_colour_images_are_brought_to_their_depth(tmp_path: Path) -> None:
    """K is of 640x480: a colour image of another size would be judged with another camera."""
    write_scannet(tmp_path)
    grey = np.full((960, 1280, 3), 90, np.uint8)
    grey[:480] = 200
    write_image(tmp_path / "scene0707_00/color/15.jpg", grey)
    image = scannet1500.make(scannet1500.Config(root=str(tmp_path))).frames("test")[0].image
    assert image.shape == (*INDOOR, 3)
    assert abs(image[:238].astype(int) - 200).max() < 4
    assert abs(image[242:].astype(int) - 90).max() < 4


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda root: os.remove(root / "test.npz"), ["test.npz", "root"]),
        (lambda root: np.savez(root / "test.npz", name=np.array([[1, "a"]], object)), ["test.npz", "plain arrays"]),
        (lambda root: np.savez(root / "test.npz", name=np.ones((2, 3), int)), ["test.npz", "'name'"]),
        (lambda root: np.savez(root / "test.npz", names=np.ones((2, 4), int)), ["test.npz", "'name'"]),
        (lambda root: (root / "test.npz").write_bytes(b"x"), ["test.npz", "plain arrays"]),
        (lambda root: np.savez(root / "intrinsics.npz", scene0708_00=K), ["intrinsics.npz", "scene0707_00"]),
        (lambda root: np.savez(root / "intrinsics.npz", scene0707_00=K[:2]), ["intrinsics.npz", "scene0707_00"]),
        (lambda root: os.remove(root / "scene0707_00/pose/585.txt"), ["pose/585.txt", "not found"]),
        (lambda root: write_lines(root / "scene0707_00/pose/15.txt", ["-inf -inf -inf -inf"] * 4), ["pose/15.txt", "rotation"]),
        (lambda root: write_lines(root / "scene0707_00/pose/15.txt", ["1 2 x"]), ["pose/15.txt", "16 numbers"]),
        (lambda root: np.savetxt(root / "scene0707_00/pose/15.txt", np.diag([1, 1, -1, 1.0])), ["pose/15.txt", "rotation"]),
        (lambda root: np.savetxt(root / "scene0707_00/pose/15.txt", np.diag([2, 2, 2, 1.0])), ["pose/15.txt", "rotation"]),
        (lambda root: write_image(root / "scene0707_00/depth/15.png", millimetres(1, 240, 320)[0]), ["depth/15.png", "480x640"]),
        (lambda root: write_image(root / "scene0707_00/depth/15.png", np.full(INDOOR, 3, np.uint16)), ["depth/15.png", "unit"]),
    ],
)
def test_damaged_scannet_pairs_are_refused(tmp_path: Path, damage: Any, named: list[str]) -> None:
    write_scannet(tmp_path)
    damage(tmp_path)
    with pytest.raises(StorageError) as refused:
        list(scannet1500.make(scannet1500.Config(root=str(tmp_path))).frames("test"))
    one_line(refused.value, *named)


# -- SPair-71k ---------------------------------------------------------------------------------------------------------------------------


def write_spair(root: Path, **changed: Any) -> list[np.ndarray]:
    """Two pairs of three cats. Returns the images."""
    images = [write_image(root / f"JPEGImages/cat/2008_{n}.jpg", noise(n, 40 + n, 60, 3)) for n in range(3)]
    names = [f"{n:06d}-2008_{a}-2008_{b}:cat" for n, (a, b) in enumerate(((0, 1), (1, 2)))]
    for name, (a, b) in zip(names, ((0, 1), (1, 2)), strict=True):
        annotation = {
            "category": "cat", "src_imname": f"2008_{a}.jpg", "trg_imname": f"2008_{b}.jpg",
            "src_imsize": [60, 40 + a, 3], "trg_imsize": [60, 40 + b, 3],
            "src_kps": [[1, 2], [30, 20]], "trg_kps": [[59, 39], [0, 0]],
        }  # fmt: skip
        path = root / f"PairAnnotation/test/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**annotation, **changed}))
    write_lines(root / "Layout/large/test.txt", names)
    return images


def test_spair_key_points_are_pixel_centres(tmp_path: Path) -> None:
    images = write_spair(tmp_path)
    data = spair71k.make(spair71k.Config(root=str(tmp_path)))
    frames = data.frames("test")
    assert [frame.key for frame in frames] == [f"cat/2008_{n}.jpg" for n in range(3)]
    for frame, image in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame.image, image)
        assert frame.group == "cat"
    first, second = data.pairs()
    assert [(pair.first, pair.second) for pair in (first, second)] == [(0, 1), (1, 2)]
    assert first.points is not None
    assert first.points.tolist() == [[1.5, 2.5, 59.5, 39.5], [30.5, 20.5, 0.5, 0.5]]
    assert len(data.frames("train")) == 0
    write_spair(tmp_path, src_kps=[[1, 2], [30, 21]])
    assert spair71k.make(spair71k.Config(root=str(tmp_path))).describe()["content"] != data.describe()["content"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"src_kps": [[1, 2]]}, ["as many points"]),
        ({"src_kps": [], "trg_kps": []}, ["points"]),
        ({"src_kps": [[60, 2], [3, 4]]}, ["outside its image of 60x40"]),
        ({"trg_kps": [[-1, 2], [3, 4]]}, ["outside its image"]),
        ({"src_kps": [[float("nan"), 2], [3, 4]]}, ["outside its image"]),
        ({"src_kps": "none"}, ["no annotation"]),
        ({"src_imname": "../../../etc/hostname"}, ["no path below"]),
        ({"category": ".."}, ["no path below"]),
        ({"category": None}, ["category"]),
        ({"src_imname": "2008_9.jpg"}, ["JPEGImages/cat/2008_9.jpg", "not found"]),
    ],
)
def test_damaged_spair_annotations_are_refused(tmp_path: Path, changed: dict[str, Any], named: list[str]) -> None:
    write_spair(tmp_path, **changed)
    with pytest.raises(StorageError) as refused:
        spair71k.make(spair71k.Config(root=str(tmp_path))).pairs()
    one_line(refused.value, *named)


def test_more_spair_pairs_are_read_than_files_may_be_open(tmp_path: Path) -> None:
    write_spair(tmp_path)
    first = tmp_path / "PairAnnotation/test/000000-2008_0-2008_1:cat.json"
    names = [f"{n:06d}-2008_0-2008_1:cat" for n in range(300)]
    for name in names[2:]:
        os.link(first, first.with_name(f"{name}.json"))
    os.link(first, first.with_name(f"{names[1]}.json"))
    write_lines(tmp_path / "Layout/large/test.txt", names)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 270, hard))
    try:
        assert len(spair71k.make(spair71k.Config(root=str(tmp_path))).pairs()) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_spair_lists_and_annotations_must_be_there(tmp_path: Path) -> None:
    config = spair71k.Config(root=str(tmp_path))
    with pytest.raises(StorageError) as refused:
        spair71k.make(config).frames("test")
    one_line(refused.value, "Layout/large/test.txt", "root")
    write_spair(tmp_path)
    name = "PairAnnotation/test/000001-2008_1-2008_2:cat.json"
    (tmp_path / name).write_text("{")
    with pytest.raises(StorageError) as refused:
        spair71k.make(config).frames("test")
    one_line(refused.value, name, "no JSON")
    os.remove(tmp_path / name)
    with pytest.raises(StorageError) as refused:
        spair71k.make(config).frames("test")
    one_line(refused.value, name, "not found")
    with pytest.raises(ConfigError, match="layout=huge"):
        spair71k.Config(root="x", layout="huge")


# -- NAVI --------------------------------------------------------------------------------------------------------------------------------


def quaternion(degrees: float, axis: int) -> list[float]:
    half = np.radians(degrees) / 2
    return [float(np.cos(half)), *(float(np.sin(half)) if n == axis else 0.0 for n in range(3))]


def write_navi(root: Path, count: int = 6, turn: float = 25.0, **changed: Any) -> None:
    """Images of a disc 0.2 m wide that stands at the object's origin, seen from 0.5 m by cameras that turn about it."""
    height, width, focal = 120, 160, 200.0
    annotations = []
    for n in range(count):
        q, t = quaternion(turn * n, 1), [5.0, -10.0, 500.0]  # object to camera, mm
        w, _, y, _ = q
        rotation = np.array([[1 - 2 * y * y, 0, 2 * y * w], [0, 1, 0], [-2 * y * w, 0, 1 - 2 * y * y]])
        # The plane z = 0 of the object, by its normal and a point in the camera.
        normal, point = rotation[:, 2], np.array(t) / 1000
        v, u = np.mgrid[:height, :width] + 0.5
        rays = np.stack([(u - width / 2) / focal, (v - height / 2) / focal, np.ones_like(u)], axis=-1)
        depth = (normal @ point) / np.where(abs(rays @ normal) > 1e-6, rays @ normal, 1e-6)
        on_object = (rays * depth[..., None] - point) @ rotation
        disc = (np.linalg.norm(on_object, axis=-1) < 0.1) & (depth > 0.05) & (depth < 5)
        values = np.where(disc, np.round(655350 / np.maximum(1000 * depth, 1)), 0).astype(np.uint16)
        image = np.stack([200 * disc, np.full_like(disc, 50, int), (on_object[..., 0] * 500 + 128).clip(0, 255)], axis=-1).astype(np.uint8)
        folder = root / "duck/wild_set"
        # As a camera held upright writes it: turned in the file, with the EXIF orientation that turns it back.
        write_image(folder / f"images/{n:03d}.jpg", np.rot90(image), orientation=6)
        write_image(folder / f"depth/{n:03d}.png", values)
        camera = {"q": q, "t": t, "focal_length": focal, "camera_model": "pixel_5"}
        annotations.append(
            {"object_id": "duck", "camera": camera, "filename": f"{n:03d}.jpg", "image_size": [height, width], "split": "train", **changed}
        )
    (root / "duck/wild_set/annotations.json").write_text(json.dumps(annotations[::-1]))


@pytest.fixture(scope="module")
def duck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("navi")
    write_navi(root)
    (root / "custom_splits").mkdir()
    return root


def test_navi_frames_are_upright_cut_to_the_object_with_its_camera(duck: Path) -> None:
    data = navi.make(navi.Config(root=str(duck), size=64))
    frames = data.frames("test")
    for frame in frames:
        assert frame.image.shape == (64, 64, 3)
        assert frame.depth is not None
        rows, columns = np.nonzero(frame.depth)
        # Red is painted where the disc is; JPEG blurs it by a pixel or two.
        assert ((frame.image[..., 0] > 100) == (frame.depth > 0)).mean() > 0.95
        # Cut to the object: it touches two sides at least.
        assert (rows.min() <= 1 and rows.max() >= 62) or (columns.min() <= 1 and columns.max() >= 62)
        # Depth, K and pose together say what is true of the disc: it lies in z = 0 of the object, 0.1 m around the origin.
        points = unproject(frame, rows, columns)
        assert abs(points[:, 2]).max() < 2e-3
        assert np.linalg.norm(points, axis=1).max() < 0.103
        assert abs(points[:, 1].max() + points[:, 1].min()) < 0.01


def test_navi_pairs_are_every_fourth_image_with_a_partner_that_is_drawn_once(duck: Path) -> None:
    said = navi.make(navi.Config(root=str(duck))).describe()
    assert [pair[0] for pair in said["pairs"]] == ["duck/000", "duck/004"]
    assert said == navi.make(navi.Config(root=str(duck))).describe()
    drawn = {str(navi.make(navi.Config(root=str(duck), seed=seed)).describe()["pairs"]) for seed in range(8)}
    assert len(drawn) > 1


def test_navi_partners_are_turned_by_120_degrees_at_most(tmp_path: Path) -> None:
    write_navi(tmp_path, count=4, turn=70.0)  # 0, 70, 140, 210: only the second is near enough to the first
    for seed in range(6):
        data = navi.make(navi.Config(root=str(tmp_path), seed=seed))
        assert data.describe()["pairs"] == [["duck/000", "duck/001"]]


def test_damaged_navi_is_refused(tmp_path: Path) -> None:
    def refusal(**changed: Any) -> StorageError:
        write_navi(tmp_path, count=2, **changed)
        with pytest.raises(StorageError) as refused:
            list(navi.make(navi.Config(root=str(tmp_path))).frames("test"))
        return refused.value

    with pytest.raises(StorageError) as refused:
        navi.make(navi.Config(root=str(tmp_path))).frames("test")
    one_line(refused.value, "wild_set", "root")
    one_line(refusal(camera={}), "annotations.json", "focal_length")
    one_line(refusal(camera={"q": [0, 0, 0, 0], "t": [0, 0, 1], "focal_length": 1}), "annotations.json", "camera")
    one_line(refusal(filename="../000.jpg"), "annotations.json", "no path below")
    one_line(refusal(filename="009.jpg"), "009.jpg", "not found")
    one_line(refusal(image_size=[160, 120]), "images/000.jpg", "120x160")
    write_navi(tmp_path, count=2)
    for array, named in ((np.zeros((120, 160), np.uint16), "object"), (np.full((120, 160), 30000, np.uint16), "unit")):
        write_image(tmp_path / "duck/wild_set/depth/000.png", array)
        with pytest.raises(StorageError) as refused:
            navi.make(navi.Config(root=str(tmp_path))).frames("test")[0]
        one_line(refused.value, "depth/000.png", named)


# -- stereo ------------------------------------------------------------------------------------------------------------------------------


CAMERA = {"fx": 100.0, "cx": 32.25, "cy": 24.0, "doffs": 4.0, "baseline": 0.2}


def write_pfm(path: Path, array: np.ndarray, big_end: bool = False) -> None:
    head = f"Pf\n{array.shape[1]} {array.shape[0]}\n{'1.0' if big_end else '-1.0'}\n".encode()
    path.write_bytes(head + array[::-1].astype(">f4" if big_end else "<f4").tobytes())


def write_stereo(root: Path, kind: str = "npy", **changed: Any) -> np.ndarray:
    """A slope before a wall: disparity 12 + 0.02 x, and 6. Returns it, with NaN where it is unknown."""
    disparity = np.where(np.arange(64) < 30, 12 + 0.02 * np.arange(64), 6.0)[None].repeat(48, axis=0)
    disparity[:3] = np.nan
    for n, name in enumerate(("left.png", "right.png")):
        write_image(root / name, noise(n, 48, 64, 3))
    scale = 1
    if kind == "npy":
        np.save(root / "disparity.npy", disparity.astype("f4"))
    elif kind == "png":
        scale = 256
        write_image(root / "disparity.png", np.nan_to_num(np.round(disparity * 256)).astype(np.uint16))
    else:
        write_pfm(root / "disparity.pfm", np.where(np.isfinite(disparity), disparity, np.inf), big_end=kind == "big")
    suffix = "pfm" if kind in ("small", "big") else kind
    pair = {"name": "wall", "left": "left.png", "right": "right.png", "disparity": f"disparity.{suffix}", "scale": scale, **CAMERA}
    (root / "stereo.json").write_text(json.dumps({**pair, **changed}))
    return disparity


@pytest.mark.parametrize("kind", ["npy", "png", "small", "big"])
def test_stereo_depth_is_baseline_times_focal_length_by_disparity(tmp_path: Path, kind: str) -> None:
    disparity = write_stereo(tmp_path, kind)
    data = stereo.make(stereo.Config(root=str(tmp_path)))
    left, right = data.frames("test")
    assert [left.key, right.key] == ["wall/left", "wall/right"]
    np.testing.assert_array_equal(left.image, noise(0, 48, 64, 3))
    np.testing.assert_array_equal(right.image, noise(1, 48, 64, 3))
    expected = np.nan_to_num(0.2 * 100 / (disparity + 4))
    np.testing.assert_allclose(left.depth, expected, rtol=1e-3 if kind == "png" else 1e-6)
    (pair,) = data.pairs()
    assert (pair.first, pair.second, pair.points) == (0, 1, None)
    said = data.describe()
    write_stereo(tmp_path, kind, baseline=0.3)
    assert stereo.make(stereo.Config(root=str(tmp_path))).describe()["content"] != said["content"]


def test_a_disparity_behind_the_cameras_is_unknown(tmp_path: Path) -> None:
    write_stereo(tmp_path, doffs=-7.0)  # the wall's disparity is 6
    left, _ = stereo.make(stereo.Config(root=str(tmp_path))).frames("test")
    assert left.depth is not None
    assert (left.depth[:, 30:] == 0).all()
    assert (left.depth[3:, :30] > 0).all()


def test_both_cameras_of_a_stereo_pair_see_the_same_points(tmp_path: Path) -> None:
    """A left pixel x lies at x - disparity on the same row of the right image, and the right depth is the depth there."""
    disparity = write_stereo(tmp_path)
    left, right = stereo.make(stereo.Config(root=str(tmp_path))).frames("test")
    rows, columns = np.nonzero(left.depth)
    pixels, _ = project(right, unproject(left, rows, columns))
    np.testing.assert_allclose(pixels, np.stack([columns + 0.5 - disparity[rows, columns], rows + 0.5], axis=1), atol=1e-4)
    rows, columns = np.nonzero(right.depth)
    assert len(rows) > 1500
    world = unproject(right, rows, columns)
    pixels, z = project(left, world)
    np.testing.assert_allclose(pixels[:, 1], rows + 0.5, atol=1e-9)
    x = pixels[:, 0] - 0.5
    slope = x < 29.5
    np.testing.assert_allclose(z[slope], 20 / (16 + 0.02 * x[slope]), rtol=1e-6)  # exact between the pixels too
    np.testing.assert_allclose(z[~slope], 2.0, rtol=1e-6)


@given(st.lists(st.floats(1, 20), min_size=2, max_size=40), st.integers(0, 2**16))
@settings(max_examples=150, deadline=None)
def test_disparity_of_the_right_image_undoes_the_left_one(values: list[float], holes: int) -> None:
    left = np.array([values])
    left[0, [n for n in range(len(values)) if holes >> n & 1]] = np.nan
    right = stereo.disparity_of_right(left)[0]
    for x in np.flatnonzero(np.isfinite(right)):
        position = x + right[x]  # where the left image shows it
        first = min(int(np.floor(position + 1e-9)), len(values) - 2)
        around = left[0, max(first - 1, 0) : first + 3]
        assert np.nanmin(around) - 1e-6 <= right[x] <= np.nanmax(around) + 1e-6


def test_the_nearer_surface_hides_the_farther() -> None:
    left = np.full((1, 20), 2.0)
    left[0, 8:14] = 6.0  # covers what lies at 2..7 in the right image
    assert stereo.disparity_of_right(left)[0].tolist()[:8] == [2.0, 2.0, *[6.0] * 6]


def damage_pfm(root: Path, data: bytes) -> None:
    write_stereo(root, "small")
    (root / "disparity.pfm").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda root: os.remove(root / "stereo.json"), ["stereo.json", "prepare.motorcycle"]),
        (lambda root: os.remove(root / "right.png"), ["right.png", "not found"]),
        (lambda root: write_stereo(root, left="../left.png"), ["stereo.json", "no path below"]),
        (lambda root: write_stereo(root, fx="wide"), ["stereo.json", "no stereo pair"]),
        (lambda root: write_stereo(root, baseline=0), ["stereo.json", "wall", "above 0"]),
        (lambda root: write_stereo(root, cx=float("nan")), ["stereo.json", "wall"]),
        (lambda root: (root / "stereo.json").write_text("[1]"), ["stereo.json", "no stereo pair"]),
        (lambda root: write_stereo(root, baseline=200), ["disparity.npy", "unit"]),
        (lambda root: np.save(root / "disparity.npy", np.ones((48, 65))), ["disparity.npy", "48x65"]),
        (lambda root: np.save(root / "disparity.npy", np.ones((48, 64, 3))), ["disparity.npy", "one number a pixel"]),
        (lambda root: np.save(root / "disparity.npy", np.array([[None]]), allow_pickle=True), ["disparity.npy", "plain array"]),
        (lambda root: damage_pfm(root, b"Pf\n64 48\n-1.0\nabc"), ["disparity.pfm", "damaged"]),
        (lambda root: damage_pfm(root, b"PF\n64 48\n-1.0\nabc"), ["disparity.pfm", "one channel"]),
    ],
)  # fmt: skip
def test_damaged_stereo_is_refused(tmp_path: Path, damage: Any, named: list[str]) -> None:
    write_stereo(tmp_path)
    damage(tmp_path)
    with pytest.raises(StorageError) as refused:
        list(stereo.make(stereo.Config(root=str(tmp_path))).frames("test"))
    one_line(refused.value, *named)


def test_several_pairs_lie_in_one_folder(tmp_path: Path) -> None:
    write_stereo(tmp_path)
    one = json.loads((tmp_path / "stereo.json").read_text())
    (tmp_path / "stereo.json").write_text(json.dumps([one, {**one, "name": "again"}]))
    data = stereo.make(stereo.Config(root=str(tmp_path)))
    assert data.describe()["pairs"] == [["wall/left", "wall/right"], ["again/left", "again/right"]]
    (tmp_path / "stereo.json").write_text(json.dumps([one, one]))
    with pytest.raises(StorageError, match="unique"):
        stereo.make(stereo.Config(root=str(tmp_path))).frames("test")


@pytest.mark.parametrize("packed", [False, True])
def test_the_motorcycle_is_written_from_a_folder_or_a_wheel(tmp_path: Path, packed: bool) -> None:
    """With pictures of our own under its names."""
    source = tmp_path / "data"
    for n, name in enumerate(("motorcycle_left.png", "motorcycle_right.png")):
        write_image(source / name, noise(n, 50, 74, 3))
    np.savez(source / "motorcycle_disp.npz", np.full((50, 74), 20.0, "f4"))
    if packed:
        with zipfile.ZipFile(tmp_path / "scikit_image.whl", "w") as wheel:
            for path in source.iterdir():
                wheel.write(path, f"skimage/data/{path.name}")
    write_motorcycle(str(tmp_path / "out"), str(tmp_path / "scikit_image.whl" if packed else source))
    left, right = stereo.make(stereo.Config(root=str(tmp_path / "out"))).frames("test")
    np.testing.assert_array_equal(left.image, noise(0, 50, 74, 3))
    np.testing.assert_allclose(left.depth, 0.193001 * 994.978 / (20 + 31.086), rtol=1e-6)
    assert right.c2w is not None
    assert right.c2w[0, 3] == 0.193001
    for wrong in (tmp_path, tmp_path / "none.whl"):
        with pytest.raises(StorageError) as refused:
            write_motorcycle(str(tmp_path / "out"), str(wrong))
        one_line(refused.value, str(wrong), "motorcycle_left.png")


@pytest.mark.skipif(find_spec("skimage") is None, reason="scikit-image is not installed; it holds the Motorcycle pair")
def test_the_motorcycle_itself(tmp_path: Path) -> None:
    """Real photographs: the colours of both views agree where the disparity says, and nowhere else."""
    write_motorcycle(str(tmp_path))
    left, right = stereo.make(stereo.Config(root=str(tmp_path))).frames("test")
    assert left.image.shape == (500, 741, 3)
    rows, columns = np.nonzero(right.depth)
    x = np.round(project(left, unproject(right, rows, columns))[0][:, 0] - 0.5).astype(int)
    good = (x >= 0) & (x < 741)
    colours = right.image[rows, columns].astype(int)[good]
    agree = np.median(abs(colours - left.image[rows[good], x[good]]))
    apart = np.median(abs(colours - left.image[rows[good], np.roll(x[good], 40)]))
    assert agree < 8 < apart
