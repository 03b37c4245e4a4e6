"""The .mat files of NYU Depth v2 and the pickle of its normals: exact arrays, and nothing of a pickle runs."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from storage.location import StorageError
from tests.conftest import REPOSITORY
from tests.training.probes.data.layouts import INDOOR, mat_level5, noise, one_line
from training.probes.data import matlab, nyuv2, nyuv2_normals
from training.probes.data.prepare.normals import convert, load_plain

HAS_H5PY = importlib.util.find_spec("h5py") is not None


def unit_normals(seed: int, *shape: int) -> np.ndarray:
    normals = np.random.default_rng(seed).normal(size=(*shape, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[..., 0, 0, :] = 0  # unknown
    return normals.astype(np.float32)


# -- MATLAB level 5 ----------------------------------------------------------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    kind=st.sampled_from(["f8", "f4", "u1", "i2", "u2", "i4"]),
    compressed=st.booleans(),
    names=st.lists(st.from_regex(r"[a-z]{1,12}", fullmatch=True), min_size=1, max_size=3, unique=True),
)
@settings(max_examples=60, deadline=None)
def test_level5_arrays_come_back(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], kind: str, compressed: bool, names: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "x.mat"
    arrays = {name: noise(n, *shape, most=100).astype(kind) for n, name in enumerate(names)}
    path.write_bytes(mat_level5(arrays, compressed))
    found = matlab.read_level5(str(path), tuple(names), "")
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("compressed", [False, True])
def test_level5_files_are_what_scipy_reads_and_writes(tmp_path: Path, compressed: bool) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="scipy is not installed; it checks our reader and writer of .mat files")
    arrays = {"img": noise(1, 5, 7, 3).astype("f4"), "norm": unit_normals(2, 5, 7).astype("f8"), "n": np.arange(4, dtype="u2")[None]}
    path = tmp_path / "x.mat"
    scipy_io.savemat(path, {**arrays, "words": "text", "cell": np.array([1, "a"], object)}, do_compression=compressed)
    for name, array in matlab.read_level5(str(path), tuple(arrays), "").items():
        np.testing.assert_array_equal(array, arrays[name])
    path.write_bytes(mat_level5(arrays, compressed))
    for name, array in arrays.items():
        np.testing.assert_array_equal(scipy_io.loadmat(path)[name], array)


def test_level5_damage_is_refused_by_name(tmp_path: Path) -> None:
    whole = mat_level5({"img": noise(1, 8, 8)}, compressed=False)
    for data, named in ((whole[:180], "damaged"), (b"MATLAB 7.3 MAT-file".ljust(300), "level 5"), (b"", "level 5"), (whole, "'norm'")):
        (tmp_path / "x.mat").write_bytes(data)
        with pytest.raises(StorageError) as refused:
            matlab.read_level5(str(tmp_path / "x.mat"), ("img", "norm"), "the remedy")
        one_line(refused.value, "x.mat", named)


@given(position=st.integers(128, 400), value=st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_of_a_level5_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, position: int, value: int) -> None:
    data = bytearray(mat_level5({"img": noise(1, 8, 8), "norm": noise(2, 8, 3).astype("f8")}, compressed=position % 2 == 0))
    data[min(position, len(data) - 1)] = value
    path = tmp_path_factory.getbasetemp() / "changed.mat"
    path.write_bytes(data)
    try:
        matlab.read_level5(str(path), ("img", "norm"), "")
    except StorageError as error:
        one_line(error, "changed.mat")


def test_a_small_file_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.mat").write_bytes(mat_level5({"img": np.zeros((100, 100), "f8")}))
    monkeypatch.setattr(matlab, "_MOST_BYTES", 1000)
    with pytest.raises(StorageError) as refused:
        matlab.read_level5(str(tmp_path / "x.mat"), ("img",), "")
    one_line(refused.value, "x.mat", "MiB")


# -- the labelled file -------------------------------------------------------------------------------------------------------------------


def write_labelled(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Three frames as MATLAB v7.3 writes them: axes from the last to the first, text in cells."""
    import h5py

    images, depths = noise(1, 3, *INDOOR, 3), np.random.default_rng(2).uniform(1, 9, (3, *INDOOR)).astype(np.float32)
    depths[:, :5] = 0
    with h5py.File(root / nyuv2.LABELLED, "w") as opened:
        opened["images"], opened["rawDepths"] = images.transpose(0, 3, 2, 1), depths.transpose(0, 2, 1)
        cells = opened.create_dataset("scenes", (1, 3), h5py.ref_dtype)
        for n, scene in enumerate(("kitchen_0004", "office_0001", "office_0001")):
            text = opened.create_dataset(f"#refs#/{n}", data=np.array([[ord(letter)] for letter in scene], np.uint16))
            cells[0, n] = text.ref
    (root / nyuv2.SPLITS).write_bytes(mat_level5({"trainNdxs": np.array([[2.0], [3.0]]), "testNdxs": np.array([[1.0]])}))
    return images, depths


@pytest.mark.skipif(not HAS_H5PY, reason="h5py is not installed (extra: evaluation)")
def test_the_labelled_file_gives_its_arrays(tmp_path: Path) -> None:
    images, depths = write_labelled(tmp_path)
    data = nyuv2.make(nyuv2.Config(root=str(tmp_path), part="labelled"))
    assert [[frame.key for frame in data.frames(split)] for split in ("train", "test")] == [["0002", "0003"], ["0001"]]
    for index, frame in zip((1, 2, 0), [*data.frames("train"), *data.frames("test")], strict=True):
        np.testing.assert_array_equal(frame.image, images[index])
        np.testing.assert_array_equal(frame.depth, depths[index])
    assert [frame.group for frame in data.frames("train")] == ["office_0001", "office_0001"]
    assert (data.tasks, data.depth_crop) == ({"depth"}, "indoor")
    before = data.describe()["content"]
    with open(tmp_path / nyuv2.LABELLED, "ab") as stream:
        stream.write(b"x")
    assert nyuv2.make(nyuv2.Config(root=str(tmp_path), part="labelled")).describe()["content"] != before
    (tmp_path / nyuv2.SPLITS).write_bytes(mat_level5({"trainNdxs": np.array([[2.0], [1.0]]), "testNdxs": np.array([[1.0]])}))
    with pytest.raises(StorageError) as refused:
        nyuv2.make(nyuv2.Config(root=str(tmp_path), part="labelled")).frames("test")
    one_line(refused.value, nyuv2.LABELLED, "frame 0001", "take it out")


@pytest.mark.skipif(not HAS_H5PY, reason="h5py is not installed (extra: evaluation)")
def test_a_labelled_file_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    import h5py

    write_labelled(tmp_path)
    os.rename(tmp_path / nyuv2.LABELLED, tmp_path / "secret.h5")
    for kind in ("link", "external", "missing"):
        with h5py.File(tmp_path / nyuv2.LABELLED, "w") as opened:
            opened["rawDepths"], opened["scenes"] = np.zeros(3), np.zeros(3)
            if kind == "link":
                opened["images"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "images")
            elif kind == "external":
                opened.create_dataset("images", (10,), np.uint8, external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])
        with pytest.raises(StorageError) as refused:
            nyuv2.make(nyuv2.Config(root=str(tmp_path), part="labelled")).frames("test")
        one_line(refused.value, nyuv2.LABELLED, "'images'")
    (tmp_path / nyuv2.LABELLED).write_bytes(b"no HDF5")
    with pytest.raises(StorageError, match="no HDF5 file"):
        nyuv2.make(nyuv2.Config(root=str(tmp_path), part="labelled")).frames("test")


@pytest.mark.skipif(not HAS_H5PY, reason="h5py is not installed (extra: evaluation)")
@pytest.mark.parametrize("kind", ["external", "virtual", "long", "numbers", "group", "null", "name of a link"])
def test_a_scene_name_that_leads_elsewhere_is_refused_and_nothing_of_it_is_read(tmp_path: Path, kind: str) -> None:
    """An object reference can lead to a data set whose bytes lie in any file of the machine."""
    import h5py

    write_labelled(tmp_path)
    secret = "secretword"
    (tmp_path / "secret.txt").write_text(secret)
    with h5py.File(tmp_path / "secret.h5", "w") as opened:
        opened["text"] = np.frombuffer(secret.encode(), np.uint8)
    with h5py.File(tmp_path / nyuv2.LABELLED, "a") as opened:
        refs = opened["#refs#"]
        if kind == "external":
            outside = [(str(tmp_path / "secret.txt"), 0, len(secret))]
            target = refs.create_dataset("outside", (len(secret),), np.uint8, external=outside)
        elif kind == "virtual":
            layout = h5py.VirtualLayout((len(secret),), np.uint8)
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "text", (len(secret),))
            target = refs.create_virtual_dataset("outside", layout)
        elif kind == "long":
            target = refs.create_dataset("long", (1 << 20,), np.uint8, chunks=(1000,))  # takes no room in the file
        else:
            target = refs.create_dataset("numbers", data=np.ones(3)) if kind == "numbers" else refs
        if kind == "name of a link":
            refs["outside"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "text")
            del opened["scenes"]
            opened["scenes"] = np.array([[b"#refs#/outside"] * 3])
        else:
            opened["scenes"][0, 0] = h5py.Reference() if kind == "null" else target.ref
    with pytest.raises(StorageError) as refused:
        nyuv2.make(nyuv2.Config(root=str(tmp_path), part="labelled")).frames("test")[0]
    one_line(refused.value, nyuv2.LABELLED, "scenes[0, 0]", "in this file", "root")
    assert secret not in str(refused.value)


@pytest.mark.skipif(not HAS_H5PY, reason="h5py is not installed (extra: evaluation)")
@pytest.mark.parametrize("name", ["images", "rawDepths", "scenes", "unit"])
def test_a_labelled_file_of_another_shape_is_refused(tmp_path: Path, name: str) -> None:
    import h5py

    _, depths = write_labelled(tmp_path)
    with h5py.File(tmp_path / nyuv2.LABELLED, "a") as opened:
        changed = "rawDepths" if name == "unit" else name
        del opened[changed]
        opened[changed] = depths.transpose(0, 2, 1) * 1000 if name == "unit" else np.zeros((3, 3))
    with pytest.raises(StorageError) as refused:
        nyuv2.make(nyuv2.Config(root=str(tmp_path), part="labelled")).frames("test")[0]
    one_line(refused.value, nyuv2.LABELLED, "scenes[0, 0]" if name == "scenes" else "0001", "unit" if name == "unit" else "root")


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / nyuv2.LABELLED).write_bytes(b"x")
    (tmp_path / nyuv2.SPLITS).write_bytes(mat_level5({"trainNdxs": np.ones((1, 1)), "testNdxs": np.ones((1, 1))}))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError) as refused:
        nyuv2.make(nyuv2.Config(root=str(tmp_path), part="labelled")).frames("test")
    one_line(refused.value, "part=labelled", "splat-and-distill-at-scale[evaluation]")


def test_the_labelled_files_are_asked_for(tmp_path: Path) -> None:
    config = nyuv2.Config(root=str(tmp_path), part="labelled")
    for missing in (nyuv2.SPLITS, nyuv2.LABELLED):
        with pytest.raises(StorageError) as refused:
            nyuv2.make(config).frames("test")
        one_line(refused.value, missing, "root")
        (tmp_path / nyuv2.SPLITS).write_bytes(mat_level5({"trainNdxs": np.ones((1, 1)), "testNdxs": np.ones((1, 1))}))


# -- normals -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def normals_root(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """Two GeoNet frames, larger than what counts, and a test set of three images, two of them test images."""
    root = tmp_path_factory.mktemp("normals")
    height, width = INDOOR
    arrays: dict[str, np.ndarray] = {}
    (root / "train").mkdir()
    for n in range(2):
        arrays[f"image{n}"] = noise(n, height + 1, width + 1, 3)
        arrays[f"depth{n}"] = np.random.default_rng(n).uniform(1, 9, (height + 1, width + 1)).astype("f4")
        arrays[f"norm{n}"] = unit_normals(n, height + 1, width + 1)
        shifted = arrays[f"image{n}"] - 2 * nyuv2_normals.MEAN + 0.01
        mat = {"img": shifted, "depth": arrays[f"depth{n}"], "norm": arrays[f"norm{n}"]}
        (root / f"train/bedroom_0001-{n:04d}.mat").write_bytes(mat_level5(mat, compressed=n == 1))
    arrays["images"] = noise(3, 3, 3, height, width)
    arrays["depths"] = np.random.default_rng(4).uniform(1, 9, (3, height, width)).astype("f4")
    arrays["depths"][:, :3] = 20.0
    arrays["snorms"] = np.ascontiguousarray(unit_normals(5, 3, height, width).transpose(0, 3, 1, 2))
    content = {
        **{name: arrays[name] for name in ("images", "depths", "snorms")},
        "scene_types": ["kitchen", "office", "bedroom"], "train_indices": np.array([1]), "test_indices": [0, 2],
    }  # fmt: skip
    with open(root / "test.pkl", "wb") as stream:
        pickle.dump(content, stream)
    convert(str(root / "test.pkl"), str(root / "test"))
    return root, arrays


def test_normals_come_back_from_geonet_and_the_converted_pickle(normals_root: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, arrays = normals_root
    data = nyuv2_normals.make(nyuv2_normals.Config(root=str(root)))
    assert data.tasks == {"normals"}
    height, width = INDOOR
    for n, frame in enumerate(data.frames("train")):
        assert (frame.key, frame.group) == (f"bedroom_0001-{n:04d}", "bedroom_0001")
        np.testing.assert_array_equal(frame.image, arrays[f"image{n}"][:height, :width])
        np.testing.assert_array_equal(frame.depth, arrays[f"depth{n}"][:height, :width])
        np.testing.assert_allclose(frame.normals, arrays[f"norm{n}"][:height, :width], atol=1e-6)
    test = data.frames("test")
    assert [(frame.key, frame.group) for frame in test] == [("0000", "kitchen"), ("0002", "bedroom")]
    for index, frame in zip((0, 2), test, strict=True):
        np.testing.assert_array_equal(frame.image, arrays["images"][index].transpose(1, 2, 0))
        np.testing.assert_allclose(frame.normals, arrays["snorms"][index].transpose(1, 2, 0), atol=1e-6)
        assert (frame.normals[0, 0] == 0).all()
        expected = np.where(arrays["depths"][index] > 10, 0, arrays["depths"][index])  # beyond 10 m nothing is judged
        np.testing.assert_array_equal(frame.depth, expected)


def test_two_of_geonets_frames_are_left_out_of_the_whole_release(
    normals_root: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = lambda: nyuv2_normals.make(nyuv2_normals.Config(root=str(normals_root[0])))  # noqa: E731
    assert nyuv2_normals.DROPPED == (21181, 6919)
    assert make().describe()["counts"]["train"] == 2
    monkeypatch.setattr(nyuv2_normals, "DROPPED", (1,))
    assert make().describe()["frames"]["train"] == ["bedroom_0001-0000"]


def test_normals_that_are_not_as_published_are_refused(normals_root: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    def refusal(root: Path) -> StorageError:
        with pytest.raises(StorageError) as refused:
            list(nyuv2_normals.make(nyuv2_normals.Config(root=str(root))).frames("train"))
        return refused.value

    one_line(refusal(tmp_path), "train", ".mat")
    (tmp_path / "train").mkdir()
    right = {"img": np.zeros((*INDOOR, 3)), "depth": np.ones(INDOOR), "norm": unit_normals(1, *INDOOR).astype("f8")}
    mat = tmp_path / "train/a_1.mat"
    mat.write_bytes(mat_level5(right, compressed=False))
    one_line(refusal(tmp_path), "test.json", "prepare.normals")  # the pickle is still to be converted
    os.symlink(normals_root[0] / "test", tmp_path / "test")
    for wrong, named in (
        ({"norm": right["norm"] * 127}, "length 127"),
        ({"depth": right["depth"] * 1000}, "unit"),
        ({"img": right["img"][:100]}, "480x640"),
    ):
        mat.write_bytes(mat_level5({**right, **wrong}, compressed=False))
        one_line(refusal(tmp_path), "a_1.mat", named)
    mat.write_bytes(mat_level5(right, compressed=False))
    os.unlink(tmp_path / "test")
    (tmp_path / "test").mkdir()
    for name in ("images.npy", "depths.npy", "snorms.npy"):
        os.symlink(normals_root[0] / "test" / name, tmp_path / "test" / name)
    for index in ({"scene_types": ["a"] * 3, "test_indices": [3]}, {"scene_types": ["a"], "test_indices": [0]}, {}, [1]):
        (tmp_path / "test/test.json").write_text(json.dumps(index))
        one_line(refusal(tmp_path), "test.json", "prepare.normals")


# -- pickles -----------------------------------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_plain_pickles_come_back_from_every_protocol(protocol: int, order: str) -> None:
    arrays = {kind: noise(1, 3, 4, most=100).astype(kind, order=order) for kind in ("u1", "i8", ">i4", "f4", "f8", "?")}
    content = {**arrays, "list": [1, 2.5, "text", None, True, np.int64(7)], "words": np.array(["kitchen", "b"])}
    found = load_plain(io.BytesIO(pickle.dumps(content, protocol)))
    assert found["list"] == [1, 2.5, "text", None, True, 7]
    for name in (*arrays, "words"):
        np.testing.assert_array_equal(found[name], content[name])
        assert found[name].dtype == content[name].dtype


@pytest.mark.parametrize(
    "content",
    [
        Bomb(os.mkdir, "RAN"),
        {"images": Bomb(os.mkdir, "RAN")},
        [Bomb(eval, "__import__('os').mkdir('RAN')")],
        Bomb(getattr, "", "join"),
        Bomb(np.load, "RAN"),
        Bomb(np.frombuffer, b"1234"),
        Bomb(exec, "print('RAN')"),
        Bomb(bytearray, 10),
        np.array([Bomb(os.mkdir, "RAN")], object),
        np.zeros(3, [("a", "f4"), ("b", object)]),
        np.zeros(3, [("a", "f4")]),
        np.array(["2020-01-01"], "M8[D]"),
        {1, 2},
        1j,
        range(3),
        [[[[1]]]],
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_that_calls_anything_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: Any, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(content, protocol)
    (tmp_path / "bomb.pkl").write_bytes(data)
    with pytest.raises(StorageError) as refused:
        convert("bomb.pkl", "out")
    one_line(refused.value, "bomb.pkl", "refused")
    assert os.listdir(tmp_path) == ["bomb.pkl"]
    assert "RAN" not in capsys.readouterr().out


def test_the_bomb_of_this_test_would_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Bomb(os.mkdir, "RAN")))
    assert (tmp_path / "RAN").is_dir()


class Stated:
    """Pickles as an array with a state of our choice."""

    def __init__(self, state: tuple) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        make, arguments, _ = np.zeros(1).__reduce__()  # type: ignore[misc]
        return make, arguments, self.state


class TypeWith:
    """Pickles as the type u1 with a state of our choice."""

    def __init__(self, state: tuple) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return np.dtype, ("u1", False, True), self.state


U1 = np.dtype("u1")


@pytest.mark.parametrize(
    "state",
    [
        (1, (100,), U1, False, b"1234"),
        (1, (-4,), U1, False, b"1234"),
        (1, (4,), U1, False, [1, 2, 3, 4]),
        (1, "4", U1, False, b"1234"),
        (1, (4,), "u1", False, b"1234"),
        (1, (4,), TypeWith((3, "|", (U1, (2,)), None, None, -1, -1, 0)), False, b"1234"),
        (1, (4,)),
    ],
)
def test_an_array_whose_state_lies_is_refused(state: tuple) -> None:
    with pytest.raises(pickle.UnpicklingError):
        load_plain(io.BytesIO(pickle.dumps(Stated(state))))


def test_flags_of_a_type_have_no_effect() -> None:
    """With numpy's own restoring, flags that lie make it take bytes for addresses."""
    state = (1, (4,), TypeWith((3, "|", None, None, None, -1, -1, 63)), False, b"1234")
    assert load_plain(io.BytesIO(pickle.dumps(Stated(state)))).tolist() == [49, 50, 51, 52]


@pytest.mark.parametrize("data", [b"", b"N", b"no pickle", b"\x8e" + b"\xff" * 7 + b"\x0f", pickle.dumps(np.zeros(9))[:-20]])
def test_what_is_no_whole_pickle_is_refused(data: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        load_plain(io.BytesIO(data))


def test_the_command_converts_or_says_why_not(normals_root: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb(os.mkdir, str(tmp_path / "RAN"))))
    command = [sys.executable, "-m", "training.probes.data.prepare.normals"]
    run = lambda *words: subprocess.run([*command, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)  # noqa: E731
    refused = run(str(tmp_path / "bomb.pkl"), str(tmp_path / "out"))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "bomb.pkl" in refused.stderr
    assert sorted(os.listdir(tmp_path)) == ["bomb.pkl"]
