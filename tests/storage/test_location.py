"""Locations: local disk and S3 alike; every failure names the URL and the remedy."""

import pytest
import s3fs

from storage import location
from storage.location import NotFound, StorageError, join


def test_write_read_list_remove(place: str) -> None:
    location.write_bytes(join(place, "a", "one"), b"1")
    location.write_bytes(join(place, "a", "two"), b"22")
    location.write_bytes(join(place, "a", "deep", "three"), b"333")
    location.write_bytes(join(place, "a", "two"), b"2222")
    assert location.read_bytes(join(place, "a", "two")) == b"2222"
    assert location.list_sizes(join(place, "a")) == {"one": 1, "two": 4}
    assert location.list_folders(join(place, "a")) == ["deep"]
    location.remove(join(place, "a", "one"))
    assert not location.exists(join(place, "a", "one"))
    assert location.list_sizes(join(place, "nothing")) == {}


def test_ranges_come_in_order_and_short_objects_are_noticed(place: str) -> None:
    urls = [join(place, name) for name in "xyz"]
    for n, url in enumerate(urls):
        location.write_bytes(url, bytes([65 + n]) * 100)
    assert location.read_ranges([urls[2], urls[0], urls[0]], [0, 5, 95], [2, 3, 5]) == [b"CC", b"AAA", b"AAAAA"]
    assert location.read_ranges([], [], []) == []
    with pytest.raises(StorageError, match="shorter than its manifest"):
        location.read_ranges([urls[0]], [90], [20])
    with pytest.raises(NotFound, match="not found; check the URL"):
        location.read_ranges([join(place, "absent")], [0], [1])


def test_a_missing_object_is_named(place: str) -> None:
    with pytest.raises(NotFound, match=r"absent/thing: not found; check the URL"):
        location.read_bytes(join(place, "absent", "thing"))


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(StorageError, match="unknown scheme 'gopher'"):
        location.read_bytes("gopher://host/file")


def test_wrong_credentials_are_an_error_and_not_an_absence(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    location.write_bytes(join(s3, "there"), b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-that-one")
    s3fs.S3FileSystem.clear_instance_cache()
    for call in (location.read_bytes, location.exists, location.list_sizes):
        with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY") as caught:
            call(join(s3, "there"))
        assert "not-that-one" not in str(caught.value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_no_server_at_the_endpoint_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(location, "_FIRST_WAIT_S", 0.0)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"s3://test/.*AWS_ENDPOINT_URL"):
        location.read_bytes(join(s3, "x"))
    s3fs.S3FileSystem.clear_instance_cache()
