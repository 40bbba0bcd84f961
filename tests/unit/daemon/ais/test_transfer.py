"""The transfer of an object: which answers continue it, and when its bytes are right."""

from __future__ import annotations

from typing import Final

import pytest
import xxhash

from headrace.buckets import Bucket
from headrace_daemon.errors import ObjectChangedError
from headrace_daemon.source.ais import transfer as module
from headrace_daemon.source.ais.faults import Fault, Kind
from headrace_daemon.source.ais.transfer import Head, Transfer
from headrace_daemon.source.reader import ReadRequest
from tests.support.reading_ais import target_of

BODY: Final = b"0123456789"
SUM: Final = xxhash.xxh64_hexdigest(BODY).encode()
WHOLE: Final = Head(200, 10, b"xxhash2", SUM, b"7", b"")
REST: Final = Head(206, 6, b"xxhash2", SUM, b"7", b"bytes 4-9/10")


@pytest.fixture(autouse=True, params=["at the end", "as it arrives"])
def when_checked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "as it arrives":
        monkeypatch.setattr(module, "WARM_BYTES", 0)


def transfer(checksum: bytes = b"", version: bytes = b"", size: int = 10) -> Transfer:
    request = ReadRequest("d/x", memoryview(bytearray(size)), checksum, version)
    return Transfer(Bucket.parse("ais://b"), request)


def broken_at_4() -> Transfer:
    found = transfer()
    assert found.begin(WHOLE, "t") is None
    found.take(BODY[:4])
    return found


def test_a_whole_object_is_taken() -> None:
    found = transfer(SUM, b"7")
    assert found.range == ""
    assert found.begin(WHOLE, "t") is None
    found.take(BODY)
    assert found.end("t") is None
    assert bytes(target_of(found.request)) == BODY


def test_the_rest_is_asked_for_and_taken() -> None:
    found = broken_at_4()
    assert found.range == "bytes=4-"
    assert found.begin(REST, "t") is None
    rest = found.rest
    assert rest is not None
    rest[:] = BODY[4:]
    found.advance(6)
    assert found.end("t") is None
    assert bytes(target_of(found.request)) == BODY


@pytest.mark.parametrize(
    "head",
    [
        WHOLE,
        REST._replace(checksum=b"0" * 16),
        REST._replace(version=b"8"),
        REST._replace(content_range=b"bytes 5-9/10"),
        REST._replace(content_range=b"bytes 4-10/11"),
        REST._replace(content_range=b""),
    ],
    ids=["the whole", "other bytes", "another version", "elsewhere", "another size", "no range"],
)
def test_the_rest_of_something_else_is_not_taken(head: Head) -> None:
    found = broken_at_4()
    fault = found.begin(head, "t")
    assert isinstance(fault, Fault)
    assert fault.kind is Kind.BUSY
    assert found.range == "", "all of it is asked for again"


def test_short_and_damaged_bytes_are_faults() -> None:
    found = broken_at_4()
    fault = found.end("t")
    assert fault == Fault(Kind.NODE, "sent 4 of 10 bytes", "t")
    assert found.done == 4, "and what has arrived is kept"
    found.take(b"XXXXXX")
    fault = found.end("t")
    assert fault is not None
    assert fault.kind is Kind.CORRUPT
    assert found.done == 0


def test_more_bytes_than_there_may_be_are_a_fault() -> None:
    found = broken_at_4()
    assert found.too_many("t") == Fault(Kind.NODE, "sent more than 10 bytes", "t")
    assert found.done == 0


def test_an_object_that_is_shorter_by_now_is_asked_for_as_a_whole() -> None:
    found = broken_at_4()
    fault = found.unsatisfiable(Fault(Kind.FINAL, "answered 416", "t"), b"")
    assert fault.kind is Kind.BUSY
    assert found.done == 0


@pytest.mark.parametrize(
    ("checksum", "version", "head", "told"),
    [
        (b"", b"", WHOLE._replace(length=11), "has 11 bytes at t, the manifest says 10"),
        (SUM, b"7", WHOLE._replace(checksum=b"0" * 16), "has checksum 0000000000000000 (version"),
        (b"", b"6", WHOLE, "has version 7 at t, the manifest says 6"),
        (b"short", b"6", WHOLE, "has version 7 at t, the manifest says 6"),
    ],
)
def test_another_object_than_was_listed_is_an_error(
    checksum: bytes, version: bytes, head: Head, told: str
) -> None:
    with pytest.raises(ObjectChangedError) as raised:
        transfer(checksum, version).begin(head, "t")
    assert "object ais://b/d/x" in str(raised.value)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("checksum", "version"), [(SUM, b"6"), (b"", b""), (b"md5 of a provider", b""), (b"", b"7")]
)
def test_the_same_object_is_taken_whatever_is_known_of_it(checksum: bytes, version: bytes) -> None:
    assert transfer(checksum, version).begin(WHOLE, "t") is None
