"""infra/docs/conventions.md, followed to the letter and without our code: the dataset that release 0.1.0 wrote, read by other means."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from storage.table import Table
from tests.conftest import REPOSITORY

DATASET = REPOSITORY / "tests/golden/release-0.1.0/dataset"
PLANES = (("distance", "<u2", 1), ("offset", "u1", 1), ("scales", "u1", 3), ("rotation", "u1", 3), ("opacity", "u1", 1))
COLUMNS = ("frames", "masks", "features", "gaussians", "operators")


def unsealed(path: Path) -> Any:
    """The value of a sealed object, its sum taken over the bytes as they stand."""
    data = path.read_bytes()
    head, value = data[: len('{"sha256":"') + 64], data[len('{"sha256":"","value":') + 64 : -1]
    assert head == b'{"sha256":"' + hashlib.sha256(value).hexdigest().encode()
    return json.loads(value)


def index_of(column: str) -> tuple[pa.Table, dict[str, Any]]:
    sha256 = unsealed(DATASET / column / "current.json")["index"]
    path = DATASET / column / f"index-{sha256[:16]}.arrow"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    table = pa.ipc.open_file(str(path)).read_all()
    return table, json.loads(table.schema.metadata[b"index"])


def rows_of(column: str) -> dict[str, dict[str, bytes]]:
    """All rows, found by the offsets of the index, each member held to its checksum."""
    table, note = index_of(column)
    rows: dict[str, dict[str, bytes]] = {}
    for row in table.to_pylist():
        tar = (DATASET / column / f"{column}-{row['shard']:06d}.tar").read_bytes()
        start = row["offset"]
        rows[row["key"]] = {}
        for name, size, crc32 in zip(note["layouts"][row["layout"]], row["sizes"], row["crc32s"], strict=True):
            data = tar[start + 512 : start + 512 + size]
            assert zlib.crc32(data) == crc32
            rows[row["key"]][name] = data
            start += 512 + (size + 511) // 512 * 512
    return rows


@pytest.mark.parametrize("column", COLUMNS)
def test_records_notes_and_tars_say_the_same(column: str) -> None:
    note = unsealed(DATASET / column / "column.json")
    bound = {name: note[name] for name in ("inputs", "settings", "format_version")}
    fingerprint = hashlib.sha256(json.dumps(bound, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    _, metadata = index_of(column)
    assert (metadata["provenance"], metadata["kind"]) == (fingerprint, note["settings"]["kind"])
    for number, source, tar_bytes, sha256 in metadata["shards"]:
        tar = DATASET / column / f"{column}-{number:06d}.tar"
        record = unsealed(DATASET / column / f"{tar.stem}.{source}.{tar_bytes}-{sha256[:8]}.json")
        assert (record["provenance"], record["tar_sha256"]) == (fingerprint, hashlib.sha256(tar.read_bytes()).hexdigest())
        with tarfile.open(tar) as members:
            names = [f"{k}.{n}" for k, which in zip(record["keys"], record["layout"], strict=True) for n in record["layouts"][which]]
            assert members.getnames() == names
    rows = rows_of(column)
    key = next(iter(rows))
    assert "." not in key
    assert (len(rows), key[:10]) == (index_of(column)[0].num_rows, "7b079de672")


def test_pixel_aligned_gaussians_stand_on_the_depth_of_their_pixels() -> None:
    """Frames and units: unprojected by K and c2w from the pixels' centres, the depth image gives the means."""
    frames, gaussians = rows_of("frames"), rows_of("gaussians")
    windows, _ = index_of("windows")
    keys, window = list(frames), windows.to_pylist()[0]
    header, binary = json.loads(gaussians[window["key"]]["gaussians.json"]), gaussians[window["key"]]["gaussians.bin"]
    planes, start = {}, 0
    for name, dtype, width in PLANES:
        count = header["rows"][name]
        stored = np.frombuffer(binary, dtype, count * width, start).reshape(count, width)
        planes[name] = np.broadcast_to(stored, (header["count"], width))
        start += stored.nbytes
    assert (start, header["format"]) == (len(binary), "pixel-aligned-1")
    low, high = header["ranges"]["distance"]
    distance = low * np.exp(planes["distance"][:, 0] / 65535 * np.log(high / low))
    shown = planes["opacity"][:, 0] > 0
    means, units = [], []
    for frame in window["context"]:
        members = frames[keys[frame]]
        camera = json.loads(members["camera.json"])
        K, c2w = np.array(camera["K"]), np.array(camera["c2w"])
        depth = np.array(Image.open(pa.BufferReader(members["depth.png"]))) / 1000
        y, x = np.mgrid[: camera["height"], : camera["width"]] + 0.5
        ray = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], -1).reshape(-1, 3)
        own = slice(len(units) * len(ray), (len(units) + 1) * len(ray))
        along = distance[own, None] * ray / np.linalg.norm(ray, axis=1, keepdims=True)
        np.testing.assert_allclose(along[shown[own], 2], depth.reshape(-1)[shown[own]], atol=1.5e-3)
        means.append(along @ c2w[:3, :3].T + c2w[:3, 3])
        units.append((1 / K[0, 0] + 1 / K[1, 1]) / 2)
    made = Table.open(str(DATASET), ["windows", "gaussians"]).row(0).gaussians()
    np.testing.assert_allclose(made.means[shown], np.concatenate(means)[shown], atol=1e-4)
    low, high = header["ranges"]["scales"]
    unit = np.repeat(units, len(distance) // len(units))
    scales = low * np.exp(planes["scales"] / 255 * np.log(high / low)) * (distance * unit)[:, None]
    np.testing.assert_allclose(made.scales[shown], scales[shown], rtol=1e-5)
    word = planes["rotation"][:, 0] | planes["rotation"][:, 1].astype(int) << 8 | planes["rotation"][:, 2].astype(int) << 16
    others = (np.stack([word >> shift & 127 for shift in (2, 9, 16)], 1) - 63) / (63 * np.sqrt(2))
    kept = np.arange(4) != (word & 3)[:, None]
    np.testing.assert_allclose(made.quats[kept].reshape(-1, 3)[shown], others[shown], atol=2e-2)  # normalised once more


def test_an_operator_is_the_matrices_that_its_file_says() -> None:
    key, members = next(iter(rows_of("operators").items()))
    data = members["01.operator.safetensors"]
    length = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + length])
    header = json.loads(tensors.pop("__metadata__")["header"])
    types = {"U8": "u1", "U16": "<u2", "F16": "<f2", "F32": "<f4"}
    arrays = {
        name: np.frombuffer(data[8 + length :][slice(*t["data_offsets"])], types[t["dtype"]]).reshape(t["shape"])
        for name, t in tensors.items()
    }
    windows = index_of("windows")[0].to_pylist()
    assert windows[0]["key"] == key
    parts = {
        "provenance": index_of("operators")[1]["provenance"],
        "window": key,
        "target": list(rows_of("frames"))[windows[0]["targets"][1]],
    }
    spelled = [f"{name}:{len(part) + 2}:".encode() + json.dumps(part).encode() for name, part in sorted(parts.items())]
    assert header["source_hash"] == hashlib.blake2b(b"".join(spelled), digest_size=16).hexdigest()
    operator = Table.open(str(DATASET), ["windows", "operators"]).row(0).operator(1)
    for name, matrix in (("S", operator.S), ("R", operator.R)):
        dense = np.zeros((len(arrays[f"{name}.lengths"]), np.prod(header["context_grid"])), np.float32)
        dense[np.repeat(np.arange(len(dense)), arrays[f"{name}.lengths"]), arrays[f"{name}.columns"]] = arrays[f"{name}.values"]
        np.testing.assert_array_equal(matrix.dense(operator.n_context), dense)
    np.testing.assert_array_equal(operator.tap_mask, arrays["tap_mask"])
    np.testing.assert_array_equal(operator.alpha, arrays["alpha"])
