"""What one frame costs from the files of ScanNet++ to the bytes of a row: CPU time by stage against 0.10 s, and bytes by member.

    python tests/bench/bench_ingest.py [--frames 6] [--rounds 5] [--out file.json]

A synthetic room's photographs of the official size, 1752 x 1168, stored at 336 x 448; labels and depth by a ray a pixel on the room's mesh,
split to two million faces. Each stage is timed within `SceneReader.read` and the encoding of what it gave, without the stages inside it;
`rest` is what no stage holds. Mesh, search tree and undistortion maps are made once a scene and counted apart. Beside each PNG's bytes,
Pillow's at its level 6. `clear`: the masks hide nothing, as most do, and are one file; `hiding`: each hides a part of its own.

Then the bytes that a frame takes in the tars of `frames` and `masks`, against those of windows of 9 frames every 4 that each held copies of
their frames and depth at both ends (as datasets were before); and two processes side by side against one.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy: BLAS threads that wait count as CPU time

import argparse
import contextlib
import io
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from pipeline.readers.scannetpp import scene  # noqa: E402
from pipeline.readers.scannetpp.mesh import MeshCaster, read_mesh  # noqa: E402
from pipeline.readers.scannetpp.scene import SceneReader  # noqa: E402
from pipeline.readers.undistort import Undistorter  # noqa: E402
from pipeline.synthetic import room_specs, write_room  # noqa: E402
from storage import codec  # noqa: E402
from storage.domain import Frame  # noqa: E402

HEIGHT, WIDTH, FACES = 336, 448, 2_000_000
BAR_S, BYTES_BAR, WORKERS_BAR = 0.10, 0.65, 1.1
STAGES: dict[str, tuple[Any, str]] = {
    "read image and mask": (scene, "read_bytes"),
    "decode image": (SceneReader, "_image"),
    "decode mask": (SceneReader, "_mask"),
    "judge pose": (SceneReader, "check_pose"),
    "undistort image": (Undistorter, "image"),
    "undistort validity": (Undistorter, "valid"),
    "cast labels and depth": (MeshCaster, "cast"),
    "encode image": (codec, "encode_jpeg"),
    "encode labels": (codec, "encode_ids"),
    "encode validity": (codec, "encode_valid"),
    "encode depth": (codec, "encode_depth"),
}


def write_scene(root: str, frames: int, seed: int) -> str:
    """A room of `frames` photographs below `root`, its mesh split to at least FACES faces. Returns the scene's id."""
    spec = room_specs(1, seed=seed, frames=frames, scale=1.0)[0]
    write_room(root, spec)
    mesh = read_mesh(root, spec.scene_id)
    vertices, faces = mesh.vertices, mesh.faces
    segments = np.arange(len(vertices))  # as the rooms number them
    while len(faces) < FACES:
        vertices, faces, segments = split(vertices, faces, segments)
    scans = Path(root, "data", spec.scene_id, "scans")
    (scans / "mesh_aligned_0.05.ply").write_bytes(ply(vertices, faces))
    (scans / "segments.json").write_text(json.dumps({"segIndices": segments.tolist()}))
    return spec.scene_id


def split(vertices: np.ndarray, faces: np.ndarray, segments: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each triangle into four at the middles of its edges: vertices [V,3], faces [F,3], segments [V], which a middle has of one end."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1).astype(np.int64)
    keys, which = np.unique(edges[:, 0] * len(vertices) + edges[:, 1], return_inverse=True)
    ends = np.divmod(keys, len(vertices))
    a, b, c = faces.T
    ab, bc, ca = len(vertices) + which.reshape(-1, 3).T
    quarters = [np.stack(corners, axis=1) for corners in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
    return (
        np.concatenate([vertices, (vertices[ends[0]] + vertices[ends[1]]) / 2]),
        np.concatenate(quarters).astype(np.int32),
        np.concatenate([segments, segments[ends[0]]]),
    )


def ply(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    rows = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    rows["count"], rows["corners"] = 3, faces
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz")
    header += f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    return header.encode() + vertices.astype("<f4").tobytes() + rows.tobytes()


def hide(root: str, scene_id: str) -> None:
    """Gives each frame of the scene a mask that hides three per cent of it, each another."""
    reader = SceneReader(root, scene_id, WIDTH, HEIGHT)
    lens = reader.index.lens
    for number, entry in enumerate(reader.index.frames):
        mask = np.full((lens.height, lens.width), 255, np.uint8)
        mask[lens.height // 4 : lens.height // 2, 20 * number :][:, : lens.width // 8] = 0
        assert entry.mask_url is not None
        Image.fromarray(mask).save(entry.mask_url, "PNG")


def encode(frame: Frame) -> dict[str, bytes]:
    """The members of one frame, validity even where every pixel is valid."""
    assert frame.depth is not None
    return {
        "image": codec.encode_jpeg(frame.image),
        "labels": codec.encode_ids(frame.labels),
        "validity": codec.encode_valid(frame.valid),
        "depth": codec.encode_depth(frame.depth),
    }


def pillow_png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def spent(work: Callable[[], Any]) -> float:
    """CPU seconds of this process, all its threads together."""
    started = time.process_time()
    work()
    return time.process_time() - started


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Adds up the CPU seconds of each of STAGES, less those of the stages that it calls."""
    seconds: dict[str, float] = defaultdict(float)
    within = [0.0]  # for every stage that is running, what the stages inside it took

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            within.append(0.0)
            started = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                took = time.process_time() - started
                seconds[stage] += took - within.pop()
                within[-1] += took

        return run

    with contextlib.ExitStack() as stack:
        for stage, (owner, name) in STAGES.items():
            stack.enter_context(mock.patch.object(owner, name, timed(stage, getattr(owner, name))))
        yield seconds


def measure(root: str, scene_id: str, rounds: int) -> dict[str, Any]:
    """Medians over the scene's frames, each read and encoded `rounds` times."""
    reader = SceneReader(root, scene_id, WIDTH, HEIGHT)
    entries = reader.index.frames
    load = {"mesh": spent(lambda: reader.mesh), "search tree and maps": spent(lambda: reader.check_pose(entries[0]))}
    reader.read(entries[0])
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for entry in entries:
            with watched() as seconds:
                total = spent(lambda entry=entry: encode(reader.read(entry)))  # type: ignore[misc]
            for stage in STAGES:
                samples[stage].append(seconds[stage])
            samples["rest"].append(total - sum(seconds.values()))
            samples["total"].append(total)
    frames = [reader.read(entry) for entry in entries]
    sizes = [{name: len(data) for name, data in encode(frame).items()} for frame in frames]
    plain = [
        {
            "labels": len(pillow_png(frame.labels)),
            "validity": len(pillow_png(frame.valid)),
            "depth": len(pillow_png(codec.decode_ids(codec.encode_depth(frame.depth)))),
        }
        for frame in frames
    ]
    return {
        "faces": len(reader.mesh.faces),
        "load, s": load,
        "stages, ms": {stage: 1e3 * statistics.median(values) for stage, values in samples.items()},
        "bytes": {name: statistics.mean(size[name] for size in sizes) for name in sizes[0]},
        "bytes by Pillow": {name: statistics.mean(size[name] for size in plain) for name in plain[0]},
    }


def in_tar(sizes: Iterable[float]) -> float:
    """Bytes of members with their headers, padded."""
    return sum(512 + -(-size // 512) * 512 for size in sizes)


def stored(result: dict[str, Any]) -> dict[str, float]:
    """Bytes of a frame in the tars: as it is stored now, and as windows of 9 frames every 4 stored it, with Pillow's PNGs."""
    now, before = result["bytes"], {**result["bytes"], **result["bytes by Pillow"]}
    camera, window = 500, 3400  # JSON of one camera, of a window's nine
    copies = 9 * in_tar([before["image"], before["labels"], before["validity"]]) + 2 * in_tar([before["depth"]]) + in_tar([window])
    return {"now": in_tar([*now.values(), camera]), "before": copies / 4}


def ingest(root: str, scene_id: str, rounds: int) -> tuple[float, float]:
    """CPU and wall seconds of reading and encoding every frame `rounds` times, the loading left out."""
    reader = SceneReader(root, scene_id, WIDTH, HEIGHT)
    reader.read(reader.index.frames[0])
    started = time.perf_counter()
    return spent(
        lambda: [encode(reader.read(entry)) for _ in range(rounds) for entry in reader.index.frames]
    ), time.perf_counter() - started


def side_by_side(root: str, scene_id: str, frames: int, rounds: int) -> dict[str, float]:
    """CPU seconds a frame of one process and of two at once, and how many times the frames a second of one the two make."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2) as pool:
        one = pool.apply(ingest, (root, scene_id, rounds))
        two = pool.starmap(ingest, [(root, scene_id, rounds)] * 2, chunksize=1)
    cpu = [one[0] / (frames * rounds), sum(c for c, _ in two) / (2 * frames * rounds)]
    return {"one, CPU s": cpu[0], "two, CPU s": cpu[1], "CPU ratio": cpu[1] / cpu[0], "wall ratio": 2 * one[1] / max(w for _, w in two)}


def show(result: dict[str, Any]) -> None:
    for what, seconds in result["load, s"].items():
        print(f"once a scene, {result['faces']:,} faces: {what:<32}{seconds:>8.2f} s")
    for stage, milliseconds in result["stages, ms"].items():
        print(f"  {stage:<32}{milliseconds:>8.2f} ms")
    verdict = "within" if result["stages, ms"]["total"] <= 1e3 * BAR_S else "ABOVE"
    print(f"  {verdict} the bar of {1e3 * BAR_S:.0f} ms of CPU time a frame")
    for name, size in result["bytes"].items():
        beside = result["bytes by Pillow"].get(name)
        print(f"  {name:<32}{size:>8.0f} bytes" + (f"{beside:>10.0f} by Pillow" if beside else ""))
    print(f"  {'all':<32}{sum(result['bytes'].values()):>8.0f} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, help="writes the results as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        scene_id = write_scene(root, arguments.frames, arguments.seed)
        results = {"clear": measure(root, scene_id, arguments.rounds)}
        workers = side_by_side(root, scene_id, arguments.frames, arguments.rounds)
        hide(root, scene_id)
        results["hiding"] = measure(root, scene_id, arguments.rounds)
    for masks, result in results.items():
        print(f"\n{masks}")
        show(result)
    size = stored(results["clear"])
    ratio = size["now"] / size["before"]
    print(f"\na frame in the tars: {size['now']:.0f} bytes, before {size['before']:.0f}: {ratio:.2f} x (bar {BYTES_BAR})")
    print(
        f"two processes: {workers['two, CPU s']:.4f} CPU s a frame, one {workers['one, CPU s']:.4f}: {workers['CPU ratio']:.2f} x (bar "
        f"{WORKERS_BAR}); they make {workers['wall ratio']:.2f} x the frames a second"
    )
    if arguments.out:
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
        machine = {
            "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "commit": commit,
            "size": [HEIGHT, WIDTH], "seed": arguments.seed, "frames": arguments.frames, "rounds": arguments.rounds,
        }  # fmt: skip
        arguments.out.write_text(
            json.dumps({"machine": machine, "results": results, "tar bytes a frame": size, "workers": workers}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
