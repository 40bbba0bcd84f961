"""The transfer of a range: which bytes go where, and which answers are taken for it."""

from __future__ import annotations

import hashlib
import random
from typing import Final

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from headrace.buckets import Bucket
from headrace_daemon.errors import ObjectChangedError
from headrace_daemon.source.ais import ranges
from headrace_daemon.source.ais.faults import Fault, Kind
from headrace_daemon.source.ais.pieces import Pieces
from headrace_daemon.source.ais.ranges import RangeTransfer
from headrace_daemon.source.ais.transfer import Head
from tests.support.spans import Span, spans

BUCKET: Final = Bucket.parse("ais://b")
CONTENT: Final = random.Random(7).randbytes(60)
SUM: Final = xxhash.xxh64_hexdigest(CONTENT).encode()
WHOLE: Final = Head(200, 60, b"xxhash2", SUM, b"7", b"")
ANSWER: Final = Head(206, 20, b"xxhash2", SUM, b"7", b"bytes 10-29/60")
REST: Final = Head(206, 14, b"xxhash2", SUM, b"7", b"bytes 16-29/60")


def span() -> Span:
    return Span.of(CONTENT, 10, 30, [(12, 20), (20, 20), (20, 22), (25, 30)])


def transfer(
    asked: Span | None = None, *, sum_: bytes = SUM, version: bytes = b"7"
) -> RangeTransfer:
    return RangeTransfer(BUCKET, (asked or span()).request("d/x", sum_, version))


def receive(found: RangeTransfer, data: bytes, portion: int) -> None:
    """Let bytes in as a connection does: into `rest` where there is one."""
    while data:
        rest = found.rest
        if rest is None:
            found.take(data[:portion])
            data = data[portion:]
        else:
            size = min(portion, len(rest), len(data))
            rest[:size] = data[:size]
            found.advance(size)
            data = data[size:]


@given(spans(CONTENT), st.integers(1, 70), st.sampled_from([0, 4, 1000]))
def test_in_whatever_portions_the_bytes_come_they_go_where_they_belong(
    asked: Span, portion: int, direct_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "DIRECT_BYTES", direct_bytes)
        found = transfer(asked)
        is_whole = asked.body == CONTENT
        head = (
            WHOLE
            if is_whole
            else ANSWER._replace(
                length=found.size, content_range=f"bytes {asked.asked}/60".encode()
            )
        )
        assert found.range == ("" if is_whole else f"bytes={asked.asked}")
        assert found.begin(head, "t") is None
        receive(found, asked.body, portion)
        assert found.done == found.size
        assert found.end("t") is None
        asked.check()


@given(spans(CONTENT), st.integers(1, 60), st.integers(1, 70))
def test_pieces_of_a_range_fill_its_places(asked: Span, step: int, portion: int) -> None:
    request = asked.request("x")
    for start in reversed(range(asked.start, asked.stop, step)):
        stop = min(start + step, asked.stop)
        part = RangeTransfer(BUCKET, request.part(start, stop))
        receive(part, CONTENT[start:stop], portion)
    asked.check()


def test_the_rest_is_asked_for_and_taken() -> None:
    asked = span()
    found = transfer(asked)
    assert found.range == "bytes=10-29"
    assert found.begin(ANSWER, "t") is None
    found.take(CONTENT[10:16])
    assert found.end("t") == Fault(Kind.NODE, "sent 6 of 20 bytes", "t")
    assert found.range == "bytes=16-29"
    assert found.begin(REST, "t") is None
    found.take(CONTENT[16:30])
    assert found.end("t") is None
    asked.check()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (REST._replace(checksum=b""), Kind.BUSY),
        (REST._replace(version=b""), Kind.BUSY),
        (ANSWER, Kind.WRONG),
        (REST._replace(content_range=b"bytes 16-28/60", length=13), Kind.WRONG),
        (REST._replace(content_range=b""), Kind.WRONG),
        (REST._replace(length=13), Kind.WRONG),
        (REST._replace(status=200), Kind.WRONG),
    ],
    ids=["no checksum", "no version", "from the start", "short", "no range", "length", "status"],
)
def test_the_rest_of_something_else_is_not_taken(head: Head, kind: Kind) -> None:
    found = transfer(sum_=b"", version=b"")
    assert found.begin(ANSWER, "t") is None
    found.take(CONTENT[10:16])
    if head.status == 200:
        head = head._replace(length=60)
    fault = found.begin(head, "t")
    assert fault is not None
    assert fault.kind is kind
    # What has arrived counts unless it is of another object.
    assert found.range == ("bytes=10-29" if kind is Kind.BUSY else "bytes=16-29")
    found.take(b"")
    receive(found, CONTENT[10 if kind is Kind.BUSY else 16 : 30], 5)
    assert found.end("t") is None


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (WHOLE, "answered 200 with no range instead of bytes=10-29"),
        (ANSWER._replace(content_range=b"bytes 0-19/60"), "with bytes 0-19/60 instead of bytes="),
        (ANSWER._replace(content_range=b"bytes 10-29/*"), "with bytes 10-29/* instead of"),
        (ANSWER._replace(content_range=b"bytes 10-29/" + b"9" * 5000), "answered 206 with bytes"),
        (ANSWER._replace(content_range=b"\xff"), "answered 206 with \ufffd instead"),
        (ANSWER._replace(length=21), "sends 21 bytes instead of bytes=10-29"),
        (ANSWER._replace(status=200, length=None), "answered 200"),
    ],
)
def test_something_else_is_not_taken_for_a_range(head: Head, told: str) -> None:
    found = transfer()
    fault = found.begin(head, "t")
    assert fault is not None
    assert fault.kind is Kind.WRONG
    assert told in fault.words
    assert len(fault.words) < 200


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (ANSWER._replace(checksum=b"0" * 16), "has checksum 0000000000000000 (version 7) at t"),
        (ANSWER._replace(checksum=b"", version=b"8"), "has version 8 at t, the manifest says 7"),
        (
            ANSWER._replace(content_range=b"bytes 10-29/61"),
            "has 61 bytes at t, the manifest says 60",
        ),
        (
            ANSWER._replace(content_range=b"bytes 10-14/15"),
            "has 15 bytes at t, the manifest says 60",
        ),
        (WHOLE._replace(length=59), "has 59 bytes at t, the manifest says 60"),
    ],
)
def test_a_range_of_another_object_than_was_listed_is_an_error(head: Head, told: str) -> None:
    with pytest.raises(ObjectChangedError) as raised:
        transfer().begin(head, "t")
    assert f"bytes 10-29 of object ais://b/d/x: it {told}" in str(raised.value)


def test_no_range_there_says_how_long_the_object_is() -> None:
    fault = Fault(Kind.FINAL, "answered 416", "t")
    with pytest.raises(ObjectChangedError, match="has 9 bytes at t, the manifest says 60"):
        transfer().unsatisfiable(fault, b"bytes */9")
    for told in (b"", b"bytes */60", b"bytes */" + b"9" * 5000):
        assert transfer().unsatisfiable(fault, told).kind is Kind.WRONG


def test_a_range_that_is_the_whole_object_is_held_against_its_checksum() -> None:
    for direct_bytes in (0, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranges, "DIRECT_BYTES", direct_bytes)
            for at in range(60):  # a flipped byte in a place or in a gap
                asked = Span.of(CONTENT, 0, 60, [(5, 20), (30, 60)])
                found = transfer(asked)
                assert found.begin(WHOLE, "t") is None
                damaged = CONTENT[:at] + bytes([CONTENT[at] ^ 1]) + CONTENT[at + 1 :]
                receive(found, damaged, 7)
                fault = found.end("t")
                assert fault is not None
                assert fault.kind is Kind.CORRUPT
                # It comes again, broken off once.
                assert found.range == ""
                assert found.begin(WHOLE, "t") is None
                receive(found, CONTENT[:at], 11)
                head = Head(206, 60 - at, b"xxhash2", SUM, b"7", b"bytes %d-59/60" % at)
                assert found.begin(head if at else WHOLE, "t") is None
                receive(found, CONTENT[at:], 13)
                assert found.end("t") is None
                asked.check()


def test_a_whole_object_of_another_size_is_an_error_and_one_of_an_unknown_checksum_is_not() -> None:
    asked = Span.of(CONTENT, 0, 60, [(5, 20)])
    with pytest.raises(ObjectChangedError, match="has 61 bytes"):
        transfer(asked).begin(WHOLE._replace(length=61), "t")
    for kind, value in ((b"crc32c", b"12345678"), (b"xxhash2", b"")):
        found = transfer(asked, sum_=b"")
        assert found.begin(WHOLE._replace(checksum_type=kind, checksum=value), "t") is None
        found.take(CONTENT)
        assert found.end("t") is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("md5", hashlib.md5(CONTENT).hexdigest()),
        ("sha256", hashlib.sha256(CONTENT).hexdigest()),
        ("sha512", hashlib.sha512(CONTENT).hexdigest()),
        ("xxhash", SUM.decode()),
    ],
    ids=["md5", "sha256", "sha512", "xxhash"],
)
def test_checksums_grow_with_the_bytes(kind: str, value: str) -> None:
    for told, is_good in ((value, True), (value[::-1], False)):
        found = transfer(Span.of(CONTENT, 0, 60, [(9, 12)]), sum_=b"")
        head = WHOLE._replace(checksum_type=kind.encode(), checksum=told.encode())
        assert found.begin(head, "t") is None
        found.take(CONTENT[:40])
        found.take(CONTENT[40:])
        fault = found.end("t")
        assert (fault is None) is is_good
        if fault is not None:
            assert fault.kind is Kind.CORRUPT


def test_a_range_in_pieces_is_told_of_as_one() -> None:
    asked = span()
    request = asked.request("x")
    with Pieces(BUCKET, request) as parts:
        (piece,) = parts.pieces
        assert piece.what == "bytes 10-29 of object ais://b/x"
        assert (piece.num_reads, piece.num_ranges) == (1, 1)
    for place in request.places:
        place.target.release()
    asked.memory.append(0)  # BufferError while anybody has a view of it
