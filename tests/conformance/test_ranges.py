"""Ranges of an object: what is clipped, what is refused and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.support.ais import object_path

if TYPE_CHECKING:
    from tests.support.ais import Ais

CONTENT: Final = b"hello world"
SIZE: Final = len(CONTENT)


@pytest.fixture(scope="module")
def name(ais: Ais, bucket: str) -> str:
    """Return the name of an object of 11 bytes."""
    ais.put(bucket, "o", CONTENT)
    return "o"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("0-0", 0, 0),
        ("0-", 0, 10),
        ("0-10", 0, 10),
        ("2-4", 2, 4),
        ("10-", 10, 10),
        ("-1", 10, 10),
        ("-11", 0, 10),
        ("5-100", 5, 10),  # clipped
        ("-100", 0, 10),
        (" 2-4", 2, 4),
        ("2 - 4", 2, 4),
        ("2-4,", 2, 4),
        (",2-4", 2, 4),
    ],
)
def test_a_range_comes_clipped(
    ais: Ais, bucket: str, name: str, asked: str, start: int, end: int
) -> None:
    whole = ais.get(bucket, name).headers
    answer = ais.get(bucket, name, {"Range": f"bytes={asked}"})
    assert (answer.status, answer.body) == (206, CONTENT[start : end + 1])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end}/{SIZE}"
    assert answer.headers["Content-Length"] == str(end + 1 - start)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    # All else is as for the whole object, its checksum too.
    for header in ("Ais-Checksum-Type", "Ais-Checksum-Value", "Ais-Version"):
        assert answer.headers[header] == whole[header]


def test_a_proxy_redirects_a_range_like_any_other_get(ais: Ais, bucket: str, name: str) -> None:
    headers = {"Range": "bytes=2-4"}
    assert ais.ask("GET", object_path(bucket, name), headers=headers).status == 301
    answer = ais.follow("GET", object_path(bucket, name), headers=headers)
    assert (answer.status, answer.body) == (206, b"llo")


@pytest.mark.parametrize("asked", ["11-", "100-200", "11-11"])
def test_a_range_behind_the_end_tells_the_size(
    ais: Ais, bucket: str, name: str, asked: str
) -> None:
    answer = ais.get(bucket, name, {"Range": f"bytes={asked}"})
    assert (answer.status, answer.tcode) == (416, "ErrRangeNotSatisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
    assert answer.error["status"] == 416


@pytest.mark.parametrize("asked", ["0-", "0-0", "5-7"])
def test_an_empty_object_has_no_ranges(ais: Ais, bucket: str, asked: str) -> None:
    ais.put(bucket, "empty", b"")
    answer = ais.get(bucket, "empty", {"Range": f"bytes={asked}"})
    assert (answer.status, answer.tcode) == (416, "ErrRangeNotSatisfiable")
    assert answer.headers["Content-Range"] == "bytes */0"


@pytest.mark.parametrize(
    "asked",
    ["bytes=4-2", "bytes=a-b", "bytes=2", "bytes=--2", "bytes=-", "items=0-1", "bytes 0-1", "0-1"],
)
def test_a_range_that_is_none_is_refused_without_the_size(
    ais: Ais, bucket: str, name: str, asked: str
) -> None:
    answer = ais.get(bucket, name, {"Range": asked})
    assert answer.status == 416
    assert "Content-Range" not in answer.headers
    assert answer.error["status"] == 416


def test_several_ranges_are_not_supported(ais: Ais, bucket: str, name: str) -> None:
    answer = ais.get(bucket, name, {"Range": "bytes=0-1,4-5"})
    assert (answer.status, answer.tcode) == (416, "ErrUnsupp")
    assert "Content-Range" not in answer.headers


def test_the_last_zero_bytes_are_nonsense(ais: Ais, bucket: str, name: str) -> None:
    answer = ais.get(bucket, name, {"Range": "bytes=-0"})
    assert (answer.status, answer.body) == (206, b"")
    assert answer.headers["Content-Range"] == "bytes 11-10/11"


def test_head_knows_no_ranges(ais: Ais, bucket: str, name: str) -> None:
    path = object_path(bucket, name)
    at = ais.owner_url(bucket, name)
    answer = ais.ask("HEAD", path, at=at, headers={"Range": "bytes=2-4"})
    assert (answer.status, answer.headers["Content-Length"]) == (200, "11")
    assert "Content-Range" not in answer.headers


@pytest.mark.parametrize("tag", ['"another"', "Fri, 01 Jan 1999 00:00:00 GMT"])
def test_a_range_with_a_condition_is_a_range(ais: Ais, bucket: str, name: str, tag: str) -> None:
    answer = ais.get(bucket, name, {"Range": "bytes=2-4", "If-Range": tag})
    assert (answer.status, answer.body) == (206, b"llo")


def test_a_range_of_a_missing_object_is_a_missing_object(ais: Ais, bucket: str) -> None:
    answer = ais.get(bucket, "missing", {"Range": "bytes=0-1"})
    assert (answer.status, answer.tcode) == (404, "ErrNotFound")


def test_a_range_of_a_new_version_tells_that_it_is_new(ais: Ais, bucket: str) -> None:
    ais.put(bucket, "changing", b"one and all")
    before = ais.get(bucket, "changing", {"Range": "bytes=0-2"}).headers
    ais.put(bucket, "changing", b"two and more")
    after = ais.get(bucket, "changing", {"Range": "bytes=3-5"}).headers
    assert (before["Ais-Version"], after["Ais-Version"]) == ("1", "2")
    assert before["Ais-Checksum-Value"] != after["Ais-Checksum-Value"]
    assert after["Content-Range"] == "bytes 3-5/12"
