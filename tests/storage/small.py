"""A dataset of all six columns in a few kilobytes, made without a command: what a run builds is what is not there."""

from __future__ import annotations

import numpy as np

from configs.schema import WindowsConfig
from pipeline.columns.features import features_plan
from pipeline.columns.gaussians import windows_plan
from pipeline.columns.masks import masks_plan
from pipeline.plan.scan import report_url
from pipeline.plan.windows import build_windows
from storage import codec, location, shard
from storage.column import Column, ShardPlan, source_digest
from storage.domain import Camera, Frame, Gaussians
from storage.index import Index
from storage.plan import Wanted, agree
from storage.provenance import Provenance
from storage.records.frames import encode_frame, encode_mask, encode_tokens, frame_key
from storage.records.gaussians import encode_gaussians
from storage.records.operators import SparseRows, TokenOperator, encode_operator, operator_member, operator_source

SIZE, GRID, PER_SHARD, FRAMES = 16, (2, 2), 3, 6
RULE = WindowsConfig("gap", 2, 2, 2, 0.0, 9.0, 180.0, False)
MADE_BY = {"source": "test", "licence": "MIT"}


def frame(scene: str, number: int) -> Frame:
    rng = np.random.default_rng([*scene.encode(), number])
    c2w = np.eye(4)
    c2w[0, 3] = 0.1 * number
    camera = Camera(c2w, np.array([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]), SIZE, SIZE)
    image, labels = rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8), rng.integers(0, 9, (SIZE, SIZE)).astype(np.uint16)
    valid = np.ones((SIZE, SIZE), bool)
    valid[: number % 2] = False
    return Frame(f"DSC{number:05d}.JPG", camera, image, labels, valid, np.full((SIZE, SIZE), 2.0, np.float32))


def frames_of(scene: str, block: int) -> list[Frame]:
    return [frame(scene, number) for number in range(block * PER_SHARD, (block + 1) * PER_SHARD)]


def note(kind: str, inputs: dict[str, Index] | None = None, **settings) -> Provenance:
    return Provenance({n: i.provenance for n, i in (inputs or {}).items()}, {"kind": kind, **settings, **MADE_BY}, 2, {"time": "now"})


def gaussians(cameras: list[Camera]) -> Gaussians:
    means = np.concatenate([(c.rays() * 2).reshape(-1, 3) + c.c2w[:3, 3] for c in cameras]).astype(np.float32)
    quats = np.tile(np.float32([1, 0, 0, 0]), (len(means), 1))
    return Gaussians(means, quats, np.full((len(means), 3), 0.1, np.float32), np.full(len(means), 0.5, np.float32))


def operator(source: str) -> TokenOperator:
    rows = SparseRows(np.arange(5), np.arange(4, dtype=np.int32), np.full(4, 0.5, np.float32))
    taps, alpha = np.zeros((4, 4), np.int32), np.full(4, 0.75, np.float32)
    return TokenOperator(rows, rows, taps, alpha, np.arange(4, dtype=np.int32), (SIZE, SIZE), GRID, (2, *GRID), {}, source)


def build(root: str, scenes: tuple[str, ...] = ("a", "b")) -> list[str]:
    """Builds what is missing, as the commands do. Returns the tars that were made."""
    made: list[str] = []

    def commit(column: Column, plan: list[ShardPlan], provenance: Provenance, content, attributes=lambda n: {}, notes=None) -> None:
        column.declare(provenance)
        for planned in plan:
            stale = column.missing([planned]).get(planned.number)
            if stale is not None:
                rows: list[shard.Row] = content(planned.number)
                column.commit(planned, rows, provenance.fingerprint, stale, attributes(planned.number), notes)
                made.append(f"{column.name}/{column.tar_name(planned.number)}")

    frames_note = note("frames", width=SIZE, height=SIZE, frames_per_shard=PER_SHARD)
    frames_column, masks_column, features_column = (Column(root, name) for name in ("frames", "masks", "features"))
    frames_column.declare(frames_note)
    blocks = range(FRAMES // PER_SHARD)
    wanted = [Wanted(s, b, source_digest(frames_note.fingerprint, s, b)) for s in scenes for b in blocks]
    planned = {s.number: s for s in agree(root, wanted).shards}
    plan = [ShardPlan(s.number, s.source, group=s.scene) for s in planned.values()]

    def of_shard(number: int) -> list[tuple[str, Frame]]:
        scene = planned[number].scene
        return [(frame_key(scene, f.name), f) for f in frames_of(scene, planned[number].block)]

    def attributes(number: int) -> dict[str, list]:
        of = of_shard(number)
        numbers = [int(f.name[3:8]) for _, f in of]
        c2w = [f.camera.c2w.ravel().tolist() for _, f in of]
        return {"scene": [planned[number].scene] * len(of), "number": numbers, "c2w": c2w, "held_out": [False] * len(of)}

    frames_rows = lambda n: [(k, encode_frame(planned[n].scene, f, False)) for k, f in of_shard(n)]  # noqa: E731
    commit(frames_column, plan, frames_note, frames_rows, attributes, {"kept": [], "skipped": []})
    masks_note = Provenance({"frames": frames_note.fingerprint}, {"kind": "masks", "masks": "mesh", **MADE_BY}, 2)
    commit(masks_column, masks_plan(plan, masks_note), masks_note, lambda n: [(k, encode_mask(f.labels)) for k, f in of_shard(n)])
    for scene in scenes:
        report = {"scene": scene, "quarantined": None, "skipped": [{"frame": "DSC9.JPG", "reason": "blurred", "detail": ""}], "notes": []}
        report |= {"kept": [f.name for b in blocks for f in frames_of(scene, b)], "figures": None, "sources": []}
        if not location.exists(report_url(root, scene)):
            location.write_bytes(report_url(root, scene), codec.encode_json(report))
    frames = frames_column.write_index(plan, {})
    masks = masks_column.write_index(masks_plan(plan, masks_note), {"frames": frames.sha256})
    windows, _ = build_windows(root, "windows", RULE, frames)
    features_note = note("features", {"frames": frames}, weights_sha256="0" * 64, frames="all")
    features = features_plan(frames, features_note, None)
    tokens = lambda f: encode_tokens(f.image[::8, ::8].astype(np.float32))  # noqa: E731
    commit(features_column, features, features_note, lambda n: [(k, tokens(f)) for k, f in of_shard(n)])
    features_column.write_index(features, {"frames": frames.sha256})

    by_key = {key: f for number in planned for key, f in of_shard(number)}
    starts, context = windows.lists("context")
    ends, targets = windows.lists("targets")

    def clouds(number: int) -> list[shard.Row]:
        of_window = {
            row: [by_key[frames.key(f)].camera for f in context[starts[row] : starts[row + 1]]] for row in windows.rows_of_shard(number)
        }
        return [(windows.key(row), encode_gaussians(gaussians(cameras), cameras)) for row, cameras in of_window.items()]

    sources = {"frames": frames, "windows": windows}
    gaussians_note = note("gaussians", sources, reconstructor={"name": "depth"})
    gaussians_column = Column(root, "gaussians")
    commit(gaussians_column, windows_plan(windows, gaussians_note), gaussians_note, clouds)
    of = {name: index.sha256 for name, index in sources.items()}
    sources |= {"masks": masks, "gaussians": gaussians_column.write_index(windows_plan(windows, gaussians_note), of)}
    operators_note = note(
        "operators", sources, reconstructor={"name": "depth"}, masks="masks", grid=list(GRID), targets="all", values="f16"
    )

    def operators(number: int) -> list[shard.Row]:
        made_rows = []
        for row in windows.rows_of_shard(number):
            members = {}
            for index, target in enumerate(targets[ends[row] : ends[row + 1]].tolist()):
                source = operator_source(operators_note.fingerprint, windows.key(row), frames.key(target))
                members[operator_member(index)] = next(iter(encode_operator(operator(source)).values()))
            made_rows.append((windows.key(row), members))
        return made_rows

    plan = windows_plan(windows, operators_note, [masks], [sources["gaussians"]])
    operators_column = Column(root, "operators")
    commit(operators_column, plan, operators_note, operators)
    operators_column.write_index(plan, {name: index.sha256 for name, index in sources.items()})
    return made
