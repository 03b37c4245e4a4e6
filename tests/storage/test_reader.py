"""The reader: every member exactly, in as few requests as the gap allows, and nothing that differs from its checksum."""

import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import s3fs
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import location, reader
from storage.index import Damaged, Member
from storage.location import NotFound, join
from storage.node_cache import NodeCache
from storage.reader import GAP, MemberReader, coalesced
from tests.servers import delayed, requests_made

# Spaces before and sizes of members that lie one after the other, around the gap that is read over.
LAYOUTS = st.lists(st.tuples(st.sampled_from([0, 1, 512, GAP - 1, GAP, GAP + 1, 3 * GAP]), st.integers(0, 2000)), min_size=1, max_size=12)


def members_of(url: str, layout: list[tuple[int, int]], seed: int = 0) -> tuple[bytes, list[Member]]:
    """Bytes, and members in them as the layout says."""
    data, members = bytearray(), []
    for number, (space, size) in enumerate(layout):
        data += bytes(space)
        content = bytes((seed + number * 31 + i) % 251 + 1 for i in range(size))
        members.append(Member(url, "bin", len(data), size, zlib.crc32(content)))
        data += content
    return bytes(data), members


@given(st.data(), st.lists(LAYOUTS, min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_every_member_comes_exactly_in_few_requests(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, layouts: list) -> None:
    folder = str(tmp_path_factory.mktemp("tars"))
    content: dict[Member, bytes] = {}
    for number, layout in enumerate(layouts):
        whole, members = members_of(f"{folder}/{number}.tar", layout, number)
        location.write_bytes(f"{folder}/{number}.tar", whole)
        content |= {member: whole[member.offset : member.offset + member.size] for member in members}
    asked = data.draw(st.lists(st.sampled_from(list(content)), max_size=30))
    its = MemberReader()
    assert its.read(asked) == [content[member] for member in asked]
    runs = coalesced(list(dict.fromkeys(asked)))
    assert its.counts()["requests"] == len(runs)
    assert sorted(member for run in runs for member in run) == sorted(set(asked))
    ends: dict[str, int] = {}
    for run in runs:
        assert len({member.url for member in run}) == 1
        for before, after in pairwise(run):
            assert 0 <= after.offset - (before.offset + before.size) <= GAP
        if run[0].url in ends:  # the run before it in the same tar ended more than a gap earlier
            assert run[0].offset - ends[run[0].url] > GAP
        ends[run[0].url] = run[-1].offset + run[-1].size


@pytest.fixture
def fresh_client() -> Iterator[None]:
    """A client keeps the endpoint that it was made for."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("fresh_client")
@pytest.mark.parametrize(("flips", "requests"), [(2, 5), (99, 9)])
def test_a_bit_that_flips_on_the_way_is_read_again(
    s3: str, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, flips: int, requests: int
) -> None:
    url = join(s3, "a.tar")
    whole, members = members_of(url, [(512, 900), (2 * GAP, 900), (2 * GAP, 900)])
    location.write_bytes(url, whole)
    s3fs.S3FileSystem.clear_instance_cache()
    with delayed(s3_environment["AWS_ENDPOINT_URL"], 0.0, flip_first=flips) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        location.exists(url)  # the client is made now
        its, before = MemberReader(), requests_made(proxy)
        if flips == 2:
            assert its.read(members) == [whole[m.offset : m.offset + m.size] for m in members]
        else:
            with pytest.raises(Damaged, match=r"a\.tar: member bin at byte \d+ differs from its checksum, 3 times"):
                its.read(members)
        assert its.counts()["requests"] == requests
        assert requests_made(proxy) - before == requests + (flips == 99)  # one more for the name that the message gives


def test_damage_that_stays_names_tar_member_and_remedy(store_url: str) -> None:
    url = join(store_url, "a.tar")
    whole, members = members_of(url, [(512, 900), (512, 900)])
    location.write_bytes(url, whole[: members[1].offset] + b"\0" + whole[members[1].offset + 1 :])
    assert MemberReader().read(members[:1]) == [whole[512:1412]]
    named = f"bin at byte {members[1].offset}"  # what no tar header names
    with pytest.raises(Damaged) as caught:
        MemberReader().read(members)
    assert str(caught.value).startswith(f"{url}: member {named} differs from its checksum, 3 times: damaged, or made anew since")
    assert "run storage/verify.py" in str(caught.value)
    location.remove(url)
    with pytest.raises(NotFound, match=r"a\.tar: not found.*open the dataset again"):
        MemberReader().read(members)


def test_hits_are_checked_and_a_corrupt_entry_is_read_again(tmp_path: Path) -> None:
    url = str(tmp_path / "a.tar")
    whole, members = members_of(url, [(512, 900), (2 * GAP, 900)])
    content = [whole[m.offset : m.offset + m.size] for m in members]
    location.write_bytes(url, whole)
    its = MemberReader(NodeCache(str(tmp_path / "cache"), 100 << 20))
    assert its.read(members) == its.read(members) == content
    assert its.counts() == {"requests": 2, "bytes": 1800, "hits": 2, "misses": 2}
    (kept, *_) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.read_bytes() == content[0]]
    kept.write_bytes(content[0][:-1] + b"\0")
    assert its.read(members) == content
    assert its.counts() == {"requests": 3, "bytes": 2700, "hits": 3, "misses": 3}
    assert kept.read_bytes() == content[0]


def test_what_is_damaged_is_not_cached(tmp_path: Path) -> None:
    url = str(tmp_path / "a.tar")
    whole, members = members_of(url, [(512, 900)])
    location.write_bytes(url, bytes(len(whole)))
    its = MemberReader(NodeCache(str(tmp_path / "cache"), 100 << 20))
    with pytest.raises(Damaged):
        its.read(members)
    assert its.counts()["requests"] == reader._READS
    location.write_bytes(url, whole)
    assert its.read(members) == [whole[512:]]
