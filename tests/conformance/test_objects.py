"""Objects as they are read: bodies, headers, versions, HEAD in both forms, errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest
import xxhash

from tests.support.ais import object_path

if TYPE_CHECKING:
    from tests.support.ais import Ais

CONTENT: Final = b"hello world"
PROPS: Final = "name,size,checksum,version,atime,copies,custom,location,last-modified,etag"


@pytest.fixture(scope="module")
def name(ais: Ais, bucket: str) -> str:
    """Return the name of an object."""
    ais.put(bucket, "d/o.bin", CONTENT)
    return "d/o.bin"


@pytest.fixture(scope="module")
def empty(ais: Ais, bucket: str) -> str:
    """Return the name of an empty object."""
    ais.put(bucket, "empty", b"")
    return "empty"


def checksum(content: bytes) -> str:
    """Return what AIStore calls xxhash2."""
    return xxhash.xxh64_hexdigest(content)


def test_get_returns_the_bytes_with_their_length(ais: Ais, bucket: str, name: str) -> None:
    answer = ais.get(bucket, name)
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["Content-Length"] == "11"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert "Transfer-Encoding" not in answer.headers


def test_get_tells_checksum_version_and_time(ais: Ais, bucket: str, name: str) -> None:
    headers = ais.get(bucket, name).headers
    assert headers["Ais-Checksum-Type"] == "xxhash2"
    assert headers["Ais-Checksum-Value"] == checksum(CONTENT)
    assert headers["Ais-Version"] == "1"
    assert int(headers["Ais-Atime"]) > 1_700_000_000 * 10**9


def test_get_has_no_headers_of_caches(ais: Ais, bucket: str, name: str) -> None:
    headers = ais.get(bucket, name).headers
    for header in ("ETag", "Last-Modified", "Cache-Control", "Accept-Ranges", "Retry-After"):
        assert header not in headers


def test_a_large_object_comes_whole(ais: Ais, bucket: str) -> None:
    content = bytes(range(256)) * (5 << 12)
    ais.put(bucket, "large", content)
    answer = ais.follow("GET", object_path(bucket, "large"))
    assert answer.body == content
    assert answer.headers["Content-Length"] == str(5 << 20)
    assert answer.headers["Ais-Checksum-Value"] == checksum(content)


def test_an_empty_object_is_an_object(ais: Ais, bucket: str, empty: str) -> None:
    answer = ais.get(bucket, empty)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == "0"
    assert answer.headers["Ais-Checksum-Value"] == checksum(b"")


def test_put_answers_with_checksum_and_version(ais: Ais, bucket: str) -> None:
    answer = ais.put(bucket, "put", b"abc")
    assert answer.headers["Ais-Checksum-Type"] == "xxhash2"
    assert answer.headers["Ais-Checksum-Value"] == checksum(b"abc")
    assert answer.headers["Ais-Version"] == "1"
    assert answer.body == b""


def test_each_put_is_a_new_version_and_the_checksum_follows_the_bytes(
    ais: Ais, bucket: str
) -> None:
    for version, content in enumerate([b"one", b"one", b"two"], start=1):
        ais.put(bucket, "changing", content)
        (listed,) = ais.page(bucket, prefix="changing", props="version,checksum").content["entries"]
        for headers in (ais.get(bucket, "changing").headers, ais.head(bucket, "changing").headers):
            assert headers["Ais-Version"] == listed["version"] == str(version)
            assert headers["Ais-Checksum-Value"] == listed["checksum"] == checksum(content)


def test_other_bytes_have_another_etag(ais: Ais, bucket: str) -> None:
    ais.put(bucket, "tagged", b"one")
    before = ais.head(bucket, "tagged", props="etag").headers["ETag"]
    assert ais.head(bucket, "tagged", props="etag").headers["ETag"] == before
    ais.put(bucket, "tagged", b"two")
    assert ais.head(bucket, "tagged", props="etag").headers["ETag"] != before


def test_after_delete_versions_begin_again(ais: Ais, bucket: str) -> None:
    ais.put(bucket, "again", b"1")
    ais.put(bucket, "again", b"2")
    assert ais.delete(bucket, "again").status == 200
    assert ais.get(bucket, "again").status == 404
    assert ais.put(bucket, "again", b"2").headers["Ais-Version"] == "1"


def test_nothing_is_deleted_twice(ais: Ais, bucket: str) -> None:
    assert ais.delete(bucket, "never-there").status == 404


@pytest.mark.parametrize(
    "header",
    ["If-Match", "If-None-Match", "If-Range", "If-Modified-Since", "If-Unmodified-Since"],
)
def test_there_are_no_conditional_requests(ais: Ais, bucket: str, name: str, header: str) -> None:
    etag = ais.head(bucket, name, props="etag").headers["ETag"]
    dates = {"If-Modified-Since": "2099", "If-Unmodified-Since": "1999"}
    value = f"Fri, 01 Jan {dates[header]} 00:00:00 GMT" if header in dates else etag
    if header == "If-Match":
        value = '"another"'
    answer = ais.get(bucket, name, {header: value})
    assert (answer.status, answer.body) == (200, CONTENT)


def test_bodies_are_not_compressed(ais: Ais, bucket: str) -> None:
    ais.put(bucket, "zeros", bytes(100_000))
    answer = ais.get(bucket, "zeros", {"Accept-Encoding": "gzip, deflate, br"})
    assert answer.body == bytes(100_000)
    assert "Content-Encoding" not in answer.headers


@pytest.mark.parametrize("presence", ["0", "2", "4"])
def test_head_tells_all_that_get_does(ais: Ais, bucket: str, name: str, presence: str) -> None:
    answer = ais.head(bucket, name, presence=presence)
    assert (answer.status, answer.body) == (200, b"")
    expected = ais.get(bucket, name).headers
    for header in ("Content-Length", "Ais-Checksum-Type", "Ais-Checksum-Value", "Ais-Version"):
        assert answer.headers[header] == expected[header]


def test_head_tells_where_the_object_is(ais: Ais, bucket: str, name: str) -> None:
    headers = ais.head(bucket, name).headers
    assert headers["Ais-Name"] == name
    assert headers["Ais-Bucket-Name"] == bucket
    assert headers["Ais-Bucket-Provider"] == "ais"
    assert headers["Ais-Present"] == "true"
    assert headers["Ais-Location"].startswith(f"t[{ais.owner(bucket, name)}]:mp[")
    assert headers["Ais-Mirror-Copies"] == "1"
    assert "Content-Type" not in headers
    assert "ETag" not in headers


def test_head_of_an_empty_object_has_no_length(ais: Ais, bucket: str, empty: str) -> None:
    headers = ais.head(bucket, empty).headers
    assert "Content-Length" not in headers
    assert headers["Ais-Checksum-Value"] == checksum(b"")


def test_the_newer_head_has_the_length_of_an_empty_object(
    ais: Ais, bucket: str, empty: str
) -> None:
    assert ais.head(bucket, empty, props="size").headers["Content-Length"] == "0"


def test_the_newer_head_tells_only_what_is_asked(ais: Ais, bucket: str, name: str) -> None:
    headers = ais.head(bucket, name, props="size").headers
    assert headers["Content-Length"] == "11"
    assert {h for h in map(str.title, headers) if h.startswith("Ais-")} == {"Ais-Present"}


def test_the_newer_head_tells_all_that_is_asked(ais: Ais, bucket: str, name: str) -> None:
    headers = ais.head(bucket, name, props=PROPS).headers
    assert headers["Ais-Present"] == "true"
    assert headers["Content-Length"] == "11"
    assert headers["Ais-Version"] == "1"
    assert headers["Ais-Checksum-Value"] == checksum(CONTENT)
    assert headers["Ais-Mirror-Copies"] == "1"
    assert headers["Ais-Location"].startswith(f"t[{ais.owner(bucket, name)}]:mp[")
    assert re.fullmatch(rf'"v1-{checksum(CONTENT)}-[0-9a-z]+"', headers["ETag"])
    assert headers["Last-Modified"].endswith(" GMT")


def test_the_newer_head_refuses_an_unknown_word(ais: Ais, bucket: str, name: str) -> None:
    answer = ais.head(bucket, name, props="size,nonsense")
    assert answer.status == 400
    assert "nonsense" in answer.error["message"]


@pytest.mark.parametrize("presence", ["1", "3"])
def test_head_may_tell_nothing_but_presence(
    ais: Ais, bucket: str, name: str, presence: str
) -> None:
    answer = ais.head(bucket, name, presence=presence)
    assert answer.status == 200
    assert not [header for header in answer.headers if header.title().startswith("Ais-")]


def test_head_of_what_must_not_be_there_is_refused(ais: Ais, bucket: str, name: str) -> None:
    assert ais.head(bucket, name, presence="5").status == 400


@pytest.mark.parametrize("through", ["proxy", "target"])
def test_a_missing_object_is_an_error_with_a_body(ais: Ais, bucket: str, through: str) -> None:
    path = object_path(bucket, "d/missing")
    direct = ais.get(bucket, "d/missing")
    answer = direct if through == "target" else ais.follow("GET", path)
    owner = ais.owner(bucket, "d/missing")
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Retry-After" not in answer.headers
    assert answer.body.endswith(b"}\n")
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    remote = answer.error.pop("remote_addr")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", remote)
    error = answer.error
    del error["remote_addr"]
    assert error == {
        "tcode": "ErrNotFound",
        "message": f"t[{owner}]: ais://{bucket}/d/missing does not exist",
        "method": "GET",
        "url_path": f"/v1/objects/{bucket}/d/missing",
        "caller": "",
        "node": f"t[{owner}]",
        "status": 404,
    }


def test_the_error_of_head_is_a_header(ais: Ais, bucket: str) -> None:
    answer = ais.head(bucket, "missing")
    assert (answer.status, answer.body) == (404, b"")
    error = answer.error
    assert answer.headers["Hdr-Error"].startswith("{")
    assert (error["tcode"], error["method"], error["status"]) == ("ErrNotFound", "HEAD", 404)


def test_the_error_of_the_newer_head_is_a_header_too(ais: Ais, bucket: str) -> None:
    answer = ais.head(bucket, "missing", props="size")
    assert (answer.status, answer.tcode) == (404, "ErrNotFound")


def test_transforms_are_not_built_in(ais: Ais, bucket: str, name: str) -> None:
    answer = ais.follow("GET", object_path(bucket, name, etl_name="nonsense"))
    assert (answer.status, answer.tcode) == (501, "ErrUnsupp")
