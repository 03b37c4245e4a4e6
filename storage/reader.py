"""Reading members: neighbours in one request, all requests in flight together, each member checked against its checksum.

reader = MemberReader(cache=NodeCache(folder, 50 << 30))
image, operator = reader.read([frames.locate(3, "jpg"), operators.locate(7, "00.operator.safetensors")])
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence

from storage import location
from storage.index import Damaged, Member
from storage.location import NotFound
from storage.node_cache import NodeCache

GAP = 32 << 10  # bytes that are read for nothing rather than to begin another request
_TAR_HEADER, _TAR_NAME = 512, 100  # bytes; a header begins with the name
COUNTED = ("requests", "bytes", "hits", "misses")
_READS = 3  # of a member whose checksum does not fit: a bit can flip on the way


class MemberReader:
    """Reads members, through a node's cache where one is given. Several threads may share one."""

    def __init__(self, cache: NodeCache | None = None) -> None:
        self.cache = cache
        self._counts = dict.fromkeys(COUNTED, 0)
        self._lock = threading.Lock()

    def counts(self) -> dict[str, int]:
        """What was asked of the store so far (requests, bytes), and how many members the cache had and had not."""
        with self._lock:
            return dict(self._counts)

    def _count(self, also: dict[str, int], **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                self._counts[name] += number
                also[name] += number

    def read(self, members: Sequence[Member], counts: dict[str, int] | None = None) -> list[bytes]:
        """The bytes of each member. One asked for twice is read once. counts: what this call asked for is added to it, too.

        Raises NotFound where a tar is gone, Damaged where a member differs from its checksum at every attempt.
        """
        counts = dict.fromkeys(COUNTED, 0) if counts is None else counts
        found: dict[Member, bytes] = {}
        wanted = list(dict.fromkeys(members))
        if self.cache:
            for member in wanted:
                data = self.cache.get(_name(member))
                if data is not None and zlib.crc32(data) != member.crc32:
                    self.cache.drop(_name(member))
                elif data is not None:
                    found[member] = data
            self._count(counts, hits=len(found), misses=len(wanted) - len(found))
        missing = [member for member in wanted if member not in found]
        for remaining in reversed(range(_READS)):
            sound = {}
            for member, data in self._fetch(missing, counts).items():
                if zlib.crc32(data) == member.crc32:
                    sound[member] = data
            found |= sound
            if self.cache:
                for member, data in sound.items():
                    self.cache.put(_name(member), data)
            missing = [member for member in missing if member not in sound]
            if not missing:
                break
            if not remaining:
                raise Damaged(_differs(missing[0]))
        return [found[member] for member in members]

    def _fetch(self, members: Sequence[Member], counts: dict[str, int]) -> dict[Member, bytes]:
        runs = coalesced(members)
        try:
            parts = location.read_ranges(
                [run[0].url for run in runs],
                [run[0].offset for run in runs],
                [run[-1].offset + run[-1].size - run[0].offset for run in runs],
            )
        except NotFound as error:
            raise NotFound(
                f"{error}; the row's scene was withdrawn, or the shard made anew, since this index was pinned: open the dataset again"
            ) from error
        self._count(counts, requests=len(runs), bytes=sum(map(len, parts)))
        found = {}
        for run, part in zip(runs, parts, strict=True):
            for member in run:
                begin = member.offset - run[0].offset
                found[member] = part[begin : begin + member.size]
        return found


def coalesced(members: Sequence[Member]) -> list[list[Member]]:
    """The members sorted into runs, each of neighbours in one tar at most GAP bytes apart."""
    runs: list[list[Member]] = []
    for member in sorted(members, key=lambda m: (m.url, m.offset)):
        last = runs[-1][-1] if runs else None
        if last and last.url == member.url and member.offset - (last.offset + last.size) <= GAP:
            runs[-1].append(member)
        else:
            runs.append([member])
    return runs


def _name(member: Member) -> str:
    return f"{member.url} {member.offset} {member.size} {member.crc32}"


def _differs(member: Member) -> str:
    return (
        f"{member.url}: member {_name_in_tar(member)} differs from its checksum, {_READS} times: damaged, or made anew since this index "
        "was pinned; run storage/verify.py on its dataset: with set_aside=true it moves what is damaged, for the build to make again"
    )


def _name_in_tar(member: Member) -> str:
    """Key and name, from the tar's own header before the member; name and offset where that is damaged too."""
    (header,) = location.read_ranges([member.url], [member.offset - _TAR_HEADER], [_TAR_NAME])
    name = header.split(b"\0")[0].decode("ascii", "replace")
    return name if name.endswith(f".{member.name}") else f"{member.name} at byte {member.offset}"
