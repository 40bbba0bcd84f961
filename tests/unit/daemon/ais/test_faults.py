"""Faults: what an answer says, by its status and by its words."""

from __future__ import annotations

import json

import aiohttp
import pytest

from headrace_daemon.source.ais.faults import Kind, of_answer, of_exception


def body(message: str = "", tcode: str = "") -> bytes:
    return json.dumps({"tcode": tcode, "message": message, "status": 400}).encode() + b"\n"


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (404, body("ais://b/o does not exist", "ErrNotFound"), Kind.MISSING),
        (404, body('bucket "ais://b" does not exist', "ErrBckNotFound"), Kind.NO_BUCKET),
        (400, body('bucket "ais://b" does not exist', "ErrBckNotFound"), Kind.NO_BUCKET),
        (404, body("", "ErrRemoteBckNotFound"), Kind.NO_BUCKET),
        (
            404,
            body("AWS backend is missing in the cluster configuration", "ErrFailedTo"),
            Kind.FINAL,
        ),
        (408, b"<html>", Kind.NODE),
        (410, b"", Kind.MISSING),
        (401, b"", Kind.UNAUTHORIZED),
        (403, body("direct target access denied"), Kind.DENIED),
        (409, body("", "ErrBusy"), Kind.BUSY),
        (423, b"", Kind.BUSY),
        (429, body("Too Many Requests", "ErrRateLimitFrontend"), Kind.BUSY),
        (500, body("I/O error"), Kind.NODE),
        (502, b"", Kind.NODE),
        (503, b"", Kind.NODE),
        (504, b"", Kind.NODE),
        (400, body("dial tcp 10.0.0.1:1: connect: connection refused", "ErrFailedTo"), Kind.NODE),
        (400, body("read: connection reset by peer", "wrapError"), Kind.NODE),
        (400, body("unexpected EOF"), Kind.NODE),
        (400, body("read tcp: i/o timeout"), Kind.NODE),
        (
            400,
            body("t[t2]: failed to EC-recover ais://b/o, err: no metafile", "ErrFailedTo"),
            Kind.MISSING,
        ),
        (400, body("invalid prefix", "errInvalidPath"), Kind.FINAL),
        (400, b"not json", Kind.FINAL),
        (405, b"method not allowed", Kind.FINAL),
        (501, body("", "ErrUnsupp"), Kind.FINAL),
        (507, body("out of space"), Kind.FULL),
    ],
)
def test_an_answer_has_a_kind(status: int, content: bytes, kind: Kind) -> None:
    fault = of_answer(status, content, "target t")
    assert fault.kind is kind
    assert str(fault).startswith(f"target t answered {status}")


def test_the_words_are_those_of_the_store_in_one_short_line() -> None:
    told = of_answer(400, body("some\n  thing " + "x" * 1000, "ErrX"), "proxy p")
    assert str(told).startswith("proxy p answered 400 (ErrX: some thing xxx")
    assert len(str(told)) < 400
    assert str(of_answer(503, b"", "p")) == "p answered 503"
    assert str(of_answer(400, b"\xff<html>", "p")) == "p answered 400 (�<html>)"


@pytest.mark.parametrize(
    "content",
    [
        b'{"message": "\xff\xfe"}',
        b'{"message": "\\ud800"}',
        b'{"x": ' + b"[" * 100_000,
        b'{"message": null}',
        b"\x1f\x8b\x08\x00",
    ],
    ids=range(5),
)
def test_an_answer_of_any_bytes_is_a_fault_that_can_be_sent_on(content: bytes) -> None:
    told = of_answer(500, content, "proxy p")
    assert told.kind is Kind.NODE
    assert len(str(told)) < 400
    str(told).encode()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (aiohttp.ConnectionTimeoutError(), "did not accept a connection in time"),
        (aiohttp.SocketTimeoutError(), "did not send anything for too long"),
        (TimeoutError(), "did not send anything for too long"),
        (aiohttp.ServerDisconnectedError(), "closed the connection without an answer"),
        (aiohttp.ClientPayloadError("x"), "broke off in the middle of an answer"),
        (ConnectionResetError(104, "Connection reset by peer"), "broke off ("),
        (aiohttp.ClientOSError(), "broke off (ClientOSError)"),
    ],
    ids=repr,
)
def test_a_broken_connection_is_a_fault_of_the_node(error: Exception, words: str) -> None:
    fault = of_exception(error, "target t")
    assert fault.kind is Kind.NODE
    assert str(fault).startswith(f"target t {words}")


@pytest.mark.parametrize(
    ("status", "retry_after", "kind", "pause_s"),
    [
        (429, "7", Kind.BUSY, 7.0),
        (503, "7", Kind.BUSY, 7.0),  # it is there, and throttles
        (503, "", Kind.NODE, 0.0),
        (503, "0", Kind.NODE, 0.0),
        (429, "Wed, 21 Oct 2026 07:28:00 GMT", Kind.BUSY, 0.0),
        (429, "-1", Kind.BUSY, 0.0),
        (429, "\u0663", Kind.BUSY, 0.0),
        (500, "7", Kind.NODE, 0.0),
    ],
)
def test_a_node_may_say_when_to_come_again(
    status: int, retry_after: str, kind: Kind, pause_s: float
) -> None:
    fault = of_answer(status, b"", "target t", retry_after=retry_after)
    assert (fault.kind, fault.pause_s) == (kind, pause_s)
