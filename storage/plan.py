"""Which shards `frames` should have: decided once, kept, and only ever added to.

A shard holds neighbouring frames of one scene. It gets its number when it is first planned and keeps it; where a raw file changed, a new
shard with a new number takes its place, and the old one is retired. Each decision is a file of its own,

    frames/plan-000000.json, plan-000001.json, ...      the newest counts

created only where nobody else created it, so that two builders on one dataset come to one plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from storage import codec, location
from storage.column import Column
from storage.index import Damaged, Index, read_current, set_aside_hint
from storage.location import join

PLAN_NAME = re.compile(r"plan-(\d{6,})\.json")


class FramesShard(NamedTuple):
    """One planned shard. block: which run of the scene's listed frames; source: digest of the raw files that they are made from."""

    number: int
    scene: str
    block: int
    source: str


class Wanted(NamedTuple):
    """A shard that the raw scenes ask for."""

    scene: str
    block: int
    source: str


@dataclass(frozen=True)
class FramesPlan:
    """The planned shards in ascending order. next: the first number never given. withdrawn: scenes that must not come back."""

    generation: int = -1
    next: int = 0
    shards: tuple[FramesShard, ...] = ()
    withdrawn: tuple[str, ...] = ()

    @classmethod
    def read(cls, dataset: str) -> FramesPlan:
        """The newest plan; an empty one where there is none."""
        generations = _generations(dataset)
        return cls._decode(dataset, generations[-1]) if generations else cls()

    @classmethod
    def all(cls, dataset: str) -> list[FramesPlan]:
        """Every plan that ever counted, the newest last."""
        return [cls._decode(dataset, generation) for generation in _generations(dataset)]

    @classmethod
    def _decode(cls, dataset: str, generation: int) -> FramesPlan:
        url = _url(dataset, generation)
        try:
            value = codec.unseal(location.read_bytes(url))
            shards = tuple(FramesShard(*shard) for shard in value["shards"])
            return cls(generation, value["next"], shards, tuple(value["withdrawn"]))
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{url}: damaged plan ({error}); {set_aside_hint(dataset)}") from error

    def publish(self, dataset: str) -> bool:
        """Makes this the newest plan; False where somebody else was first, whose plan then counts."""
        value = {"next": self.next, "shards": self.shards, "withdrawn": self.withdrawn}
        return location.create_bytes(_url(dataset, self.generation), codec.seal(value))

    def updated(self, wanted: Sequence[Wanted], committed: Mapping[str, int]) -> FramesPlan:
        """The plan after this one: shards of the wanted scenes as wanted, those of other scenes as they are, withdrawn scenes left out.

        A scene that can no longer be read asks for nothing, and keeps the shards that were made while it could.

        committed: number of each committed shard by its source: they keep their numbers even where a plan was lost. The same object comes
        back where nothing changes.
        """
        wanted = [w for w in wanted if w.scene not in self.withdrawn]
        scenes = {w.scene for w in wanted}
        number_of = {(s.scene, s.source): s.number for s in self.shards}
        taken = {s.number for s in self.shards}
        number, shards = max([self.next, *(n + 1 for n in committed.values())]), [s for s in self.shards if s.scene not in scenes]
        for w in wanted:
            given = number_of.get((w.scene, w.source))
            if given is None and committed.get(w.source) not in taken:
                given = committed.get(w.source)
            if given is None:
                given, number = number, number + 1
            shards.append(FramesShard(given, w.scene, w.block, w.source))
        planned = tuple(sorted(shards))
        return self if planned == self.shards else FramesPlan(self.generation + 1, number, planned, self.withdrawn)

    def without(self, scenes: Iterable[str]) -> FramesPlan:
        """The plan after this one, with these scenes withdrawn."""
        gone = set(scenes)
        kept = tuple(s for s in self.shards if s.scene not in gone)
        return FramesPlan(self.generation + 1, self.next, kept, tuple(sorted({*self.withdrawn, *gone})))


def agree(dataset: str, wanted: Sequence[Wanted]) -> FramesPlan:
    """The plan that holds what is wanted: the present one, or a new one, made anew as often as another builder is first."""
    column = Column(dataset, "frames")
    while True:
        # What a lost plan had numbered: the index knows those shards too that were lost with it.
        current = read_current(dataset, column.name)
        indexed = Index.open(dataset, column.name, current["index"]).metadata["shards"] if current else []
        committed = {source: number for number, source, *_ in indexed} | {c.source: c.number for c in column.listing() if c.whole}
        present = FramesPlan.read(dataset)
        plan = present.updated(wanted, committed)
        if plan is present or plan.publish(dataset):
            return plan


def _generations(dataset: str) -> list[int]:
    return sorted(int(match[1]) for match in map(PLAN_NAME.fullmatch, location.list_sizes(join(dataset, "frames"))) if match)


def _url(dataset: str, generation: int) -> str:
    return join(dataset, "frames", f"plan-{generation:06d}.json")
