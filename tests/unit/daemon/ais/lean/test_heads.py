"""Heads of answers: what is understood, and that everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.source.ais.lean.heads import Heads, NoHeadError
from headrace_daemon.source.ais.transfer import Head

FULL = (
    b"HTTP/1.1 206 Partial Content\r\nAccept-Ranges: bytes\r\nAis-Atime: 1\r\n"
    b"Ais-Checksum-Type: xxhash2\r\nAis-Checksum-Value: 0123\r\nAis-Version: 7\r\n"
    b"Content-Length: 10\r\nContent-Range: bytes 5-14/15\r\n\r\n"
)


def test_a_head_is_understood() -> None:
    heads = Heads()
    assert heads.parse(FULL) == Head(206, 10, b"xxhash2", b"0123", b"7", b"bytes 5-14/15")
    assert heads.goes_on


def test_nothing_is_left_of_the_head_before() -> None:
    heads = Heads()
    heads.parse(FULL)
    assert heads.parse(b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\n") == Head(
        404, 3, b"", b"", b"", b""
    )


def test_fields_may_be_written_in_any_case() -> None:
    assert Heads().parse(FULL.replace(b"Ais-", b"ais-").replace(b"Content-", b"CONTENT-")) == (
        Heads().parse(FULL)
    )


@pytest.mark.parametrize(
    ("block", "goes_on"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nconnection: close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", False),
    ],
)
def test_whether_the_connection_stays_is_told(block: bytes, goes_on: bool) -> None:
    heads = Heads()
    heads.parse(block)
    assert heads.goes_on is goes_on


@pytest.mark.parametrize(
    "block",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
def test_a_body_of_unknown_length_has_none(block: bytes) -> None:
    assert Heads().parse(block).length is None


@pytest.mark.parametrize(
    "block",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\n\nbehind\r\n\r\n",
    ],
)
def test_what_is_no_head_is_refused(block: bytes) -> None:
    heads = Heads()
    with pytest.raises(NoHeadError):
        heads.parse(block)
    assert heads.parse(FULL).length == 10, "and the next one is understood all the same"


@given(st.binary(max_size=200))
def test_nothing_but_a_refusal_comes_of_garbage(block: bytes) -> None:
    try:
        head = Heads().parse(block + b"\r\n\r\n")
    except NoHeadError:
        return
    assert block.lstrip(b"\r\n").startswith(b"HTTP/")
    assert head.status
