"""A dataset, for those who read it: rows of the windows table, each joined with the frames that it names and what was derived from it.

    table = Table.open("s3://bucket/rooms", ["windows", "masks", "operators"])
    row = table.row(17)
    row.window().context          # rows of `frames`
    row.frames(labels=True)       # the window's frames, decoded
    row.operator(0)               # into its first target

Columns are named as they lie in the dataset; what each holds (its kind) stands in its index. Opening checks that all were made for each
other as they are now, or as they were when their sums were pinned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from storage.domain import Camera, Frame, Gaussians
from storage.index import Index, Member
from storage.location import NotFound, StorageError
from storage.reader import MemberReader
from storage.records.frames import CAMERA, DEPTH, IMAGE, MASK, TOKENS, VALID, decode_frame, decode_tokens
from storage.records.gaussians import MEMBERS as GAUSSIAN_MEMBERS
from storage.records.gaussians import decode_gaussians
from storage.records.operators import OPERATOR_MEMBERS, TokenOperator, decode_operator, operator_member, operator_source

FRAMES = "frames"
_KEPT_FRAMES = 48  # decoded; neighbouring windows share most of theirs


@dataclass(frozen=True)
class Window:
    """A row of the windows table: the frames of its context and those that can be its target, as rows of `frames`."""

    key: str
    scene: str
    context: tuple[int, ...]
    targets: tuple[int, ...]


class Table:
    """Columns of one dataset, joined. At most one of each kind."""

    def __init__(self, root: str, columns: Mapping[str, Index], reader: MemberReader) -> None:
        self.root, self.columns, self.reader = root, dict(columns), reader
        self.by_kind: dict[str, Index] = {}
        for name, index in self.columns.items():
            if index.kind in self.by_kind:
                raise StorageError(f"{root}: {self.by_kind[index.kind].column!r} and {name!r} both hold {index.kind}; open one of them")
            self.by_kind[index.kind] = index
        self.frames = self.by_kind["frames"]
        self._rows: dict[str, np.ndarray | None] = {}
        for kind, index in self.by_kind.items():
            base = "windows" if kind in ("gaussians", "operators") else "frames"
            if kind not in ("frames", "windows") and base in self.by_kind:
                self._rows[kind] = index.rows_of(self.by_kind[base])
        if "windows" in self.by_kind:
            self._context, self._targets = (self.windows.lists(name) for name in ("context", "targets"))
        self._decoded: OrderedDict[tuple, Frame] = OrderedDict()

    @classmethod
    def open(cls, root: str, columns: Iterable[str], pinned: Mapping[str, str] | None = None, reader: MemberReader | None = None) -> Table:
        """The columns of those names, and `frames`, as they are now; or as `pinned` (name -> sum of the index) says.

        Raises NotFound for a column without a finished build; StorageError where one was made for another state of the others.
        """
        names = list(dict.fromkeys([FRAMES, *columns]))
        unpinned = [name for name in names if pinned and name not in pinned]
        if unpinned:
            raise NotFound(
                f"{root}: column {unpinned[0]!r} is none of those that were pinned ({', '.join(sorted(pinned or {}))}); start anew"
            )
        opened = {name: Index.open(root, name, pinned[name] if pinned else None) for name in names}
        for name, index in opened.items():
            for source, sha256 in index.of.items():
                if source in opened and opened[source].sha256 != sha256:
                    raise StorageError(
                        f"{root}: column {name!r} was made for another state of {source!r} than it has now; run the build of {name!r} "
                        "again: it makes only what is missing"
                    )
        return cls(root, opened, reader or MemberReader())

    @property
    def windows(self) -> Index:
        return self.by_kind["windows"]

    @cached_property
    def numbers(self) -> np.ndarray:
        """[frames] int64: the camera's counter of each frame."""
        return self.frames.attribute("number")

    def pins(self) -> dict[str, str]:
        """The sum of each column's index: what `open` takes to open exactly this again."""
        return {name: index.sha256 for name, index in self.columns.items()}

    def __len__(self) -> int:
        return len(self.windows)

    def row(self, number: int) -> Row:
        return Row(self, number)

    def rows_of_shard(self, number: int) -> list[Row]:
        """The windows of one shard of the windows table. Raises StorageError where it has no such shard."""
        if not self.windows.rows_of_shard(number):
            raise StorageError(f"{self.root}: the windows table {self.windows.column!r} has no shard {number}")
        return [Row(self, number) for number in self.windows.rows_of_shard(number)]

    def context(self, row: int) -> np.ndarray:
        """[V] int32: the frames of a window's context."""
        offsets, frames = self._context
        return frames[offsets[row] : offsets[row + 1]]

    def targets(self, row: int) -> np.ndarray:
        """[T] int32: the frames that can be a window's target, in the order in which its operators are numbered."""
        offsets, frames = self._targets
        return frames[offsets[row] : offsets[row + 1]]

    def row_in(self, kind: str, base_row: int) -> int:
        """The row of a derived column (`masks`, `features`: of a frame; `gaussians`, `operators`: of a window)."""
        rows = self._rows[kind]
        found = base_row if rows is None else int(rows[base_row])
        if found < 0:
            base = self.windows if kind in ("gaussians", "operators") else self.frames
            raise StorageError(f"{self.root}: column {self.by_kind[kind].column!r} has no row {base.key(base_row)!r}; run its build again")
        return found

    def locate(self, kind: str, base_row: int, name: str) -> Member:
        """Where a member lies of the row of `kind` that belongs to a frame or a window."""
        if kind == "frames":
            return self.frames.locate(base_row, name)
        return self.by_kind[kind].locate(self.row_in(kind, base_row), name)

    def read_frames(self, frames: Sequence[int], labels: bool = False, depth: bool = False) -> list[Frame]:
        """Rows of `frames`, decoded; with their labels from `masks`, and with their depth where they have any."""
        wanted: dict[int, list[Member]] = {}
        for frame in dict.fromkeys(int(f) for f in frames):
            if (frame, labels, depth) in self._decoded:
                self._decoded.move_to_end((frame, labels, depth))
                continue
            names = [CAMERA, IMAGE, *(name for name in (VALID, *([DEPTH] if depth else [])) if self.frames.has(frame, name))]
            wanted[frame] = [self.frames.locate(frame, name) for name in names]
            if labels:
                wanted[frame].append(self.locate("masks", frame, MASK))
        parts = iter(self.reader.read([member for members in wanted.values() for member in members]))
        fresh = {frame: decode_frame({member.name: next(parts) for member in members}) for frame, members in wanted.items()}
        found = [fresh[f] if f in fresh else self._decoded[f, labels, depth] for f in map(int, frames)]
        for frame, decoded in fresh.items():
            self._decoded[frame, labels, depth] = decoded
        while len(self._decoded) > _KEPT_FRAMES:
            self._decoded.popitem(last=False)
        return found


class Row:
    """One row of the windows table."""

    def __init__(self, table: Table, number: int) -> None:
        self.table, self.number = table, number

    @property
    def key(self) -> str:
        return self.table.windows.key(self.number)

    def window(self) -> Window:
        context, targets = self.table.context(self.number), self.table.targets(self.number)
        return Window(self.key, self.table.windows.scene(self.number), tuple(context.tolist()), tuple(targets.tolist()))

    def frames(self, labels: bool = False, depth: bool = False) -> list[Frame]:
        """All frames that the window names, by the camera's counter."""
        window = self.window()
        return self.table.read_frames(sorted({*window.context, *window.targets}, key=self.table.numbers.__getitem__), labels, depth)

    def context(self, labels: bool = False, depth: bool = False) -> list[Frame]:
        """The frames of the context, in its order."""
        return self.table.read_frames(self.window().context, labels, depth)

    def targets(self, labels: bool = False, depth: bool = False) -> list[Frame]:
        """The frames that can be the target, in the order in which operators are numbered."""
        return self.table.read_frames(self.window().targets, labels, depth)

    def masks(self) -> list[np.ndarray]:
        """[H,W] uint16 object ids of each frame of `frames()`."""
        return [frame.labels for frame in self.frames(labels=True) if frame.labels is not None]

    def gaussians(self, cameras: Sequence[Camera] | None = None) -> Gaussians:
        """What the reconstructor made of the context. cameras: those of the context, where they are at hand."""
        if cameras is None:
            cameras = [frame.camera for frame in self.context()]
        members = [self.table.locate("gaussians", self.number, name) for name in GAUSSIAN_MEMBERS]
        return decode_gaussians(dict(zip(GAUSSIAN_MEMBERS, self.table.reader.read(members), strict=True)), cameras)

    def operator(self, target: int) -> TokenOperator:
        """The splat into the target of that number, as a matrix."""
        (data,) = self.table.reader.read([self.table.locate("operators", self.number, operator_member(target))])
        return decode_operator({OPERATOR_MEMBERS[0]: data}, self.operator_source(target))

    def operator_source(self, target: int) -> str:
        """What the operator into that target must say that it was made from."""
        frame = self.table.frames.key(int(self.table.targets(self.number)[target]))
        return operator_source(self.table.by_kind["operators"].provenance, self.key, frame)

    def tokens(self) -> np.ndarray:
        """[V,h,w,C] float32: the teacher's tokens of the context, from `features`."""
        members = [self.table.locate("features", int(frame), TOKENS) for frame in self.table.context(self.number)]
        return np.stack([decode_tokens(data) for data in self.table.reader.read(members)])
