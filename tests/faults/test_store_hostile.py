"""Answers that no store gives, but that something in front of one may: an error, and soon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from headrace_daemon.errors import SourceError, to_message
from headrace_daemon.source.ais import client
from headrace_daemon.source.reader import ReadRequest
from tests.support.loops import run
from tests.support.raw import OK, raw_store, whole
from tests.support.reading_ais import bucket, open_store
from tests.support.sources import selected

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    from tests.support.raw import Sent

SIZE: Final = 100
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTE: Final = b"100000\r\n" + bytes(1 << 20) + b"\r\n"


def redirect(location: str) -> bytes:
    return whole(b"", f"Location: {location}", first=b"HTTP/1.1 301 Moved Permanently\r\n")


_OBJECTS: Final[dict[str, Sent]] = {
    "html of another length": whole(b"<html>", "Content-Type: text/html"),
    "html in chunks": CHUNKED + b"6\r\n<html>\r\n0\r\n\r\n",
    "too many bytes": (CHUNKED, MEGABYTE),
    "an error without end": (
        b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n",
        MEGABYTE,
    ),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "another range": whole(
        b"x" * 10, "Content-Range: bytes 5-14/100", first=b"HTTP/1.1 206 Partial\r\n"
    ),
    "no http": b"SSH-2.0-OpenSSH_9.6\r\n",
    "two lengths": OK + b"Content-Length: 100\r\nContent-Length: 99\r\n\r\n" + bytes(100),
    "a negative length": OK + b"Content-Length: -1\r\n\r\n",
    "a huge header": OK + b"X-Bomb: " + b"a" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "headers without end": (OK, b"X-Bomb: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"),
    "a checksum that is no text": OK
    + b"Ais-Checksum-Type: xxhash2\r\nAis-Checksum-Value: \xff\xfe\r\nContent-Length: 100\r\n\r\n"
    + bytes(100),
    "another version that is no text": OK
    + b"Ais-Version: \xff\xfe\r\nContent-Length: 100\r\n\r\n"
    + bytes(100),
    "a reason that is no text": b"HTTP/1.1 500 \xff\xfe\r\nContent-Length: 0\r\n\r\n",
    "gzip": whole(b"\x1f\x8b\x08\x00", "Content-Encoding: gzip"),
    "a redirect to nowhere": redirect(""),
    "a redirect without a host": redirect("http:///v1/objects/b/o"),
    "a redirect to another scheme": redirect("ftp://127.0.0.1/v1/objects/b/o"),
    "a redirect to a bad port": redirect("http://127.0.0.1:x/v1/objects/b/o"),
    "a redirect to a bad host": redirect(f"http://{'a' * 300}/v1/objects/b/o"),
    "a redirect to no text": b"HTTP/1.1 301 Moved\r\nLocation: /\xff\xfe/o\r\n"
    b"Content-Length: 0\r\n\r\n",
    "a redirect to itself": redirect("/v1/objects/b/o?provider=ais"),
}


@pytest.mark.parametrize("direct", ["auto", "off"])
@pytest.mark.parametrize("what", _OBJECTS)
def test_an_answer_that_is_no_object_is_an_error_in_words(
    what: str, direct: Literal["auto", "off"]
) -> None:
    async def main() -> str:
        async with (
            raw_store(_OBJECTS[what]) as raw,
            open_store(raw.url, deadline_s=0.3, stall_s=0.2, direct=direct) as store,
        ):
            request = ReadRequest("o", memoryview(bytearray(SIZE)), b"", b"1")
            with pytest.raises(SourceError) as raised:
                await store.reader(bucket("ais://b")).read([request])
            str(store.report()).encode()
            return to_message(raised.value, scope="feed").message

    told = run(main())
    assert "object ais://b/o" in told
    assert len(told.encode()) < 1500


@pytest.mark.parametrize(
    ("what", "sent", "told"),
    [
        ("GET /v1/daemon", (CHUNKED, MEGABYTE), "more than 4194304 bytes"),
        ("GET /v1/daemon", whole(b"\xff{"), "does not answer as an AIStore proxy does"),
        ("GET /v1/buckets/b", (CHUNKED, MEGABYTE), "more than 4194304 bytes"),
        ("GET /v1/buckets/b", redirect("http://127.0.0.1:1/"), "answered 301"),
        (
            "HEAD /v1/buckets/b",
            b"HTTP/1.1 400 Bad\r\nHdr-Error: \xff\xfe\r\nContent-Length: 0\r\n\r\n",
            "bucket ais://b cannot be read",
        ),
        (
            "HEAD /v1/buckets/b",
            OK + b"Ais-Bucket-Props: \xff\xfe\r\nContent-Length: 0\r\n\r\n",
            "object ais://b/o",
        ),
    ],
    ids=range(6),
)
def test_an_answer_that_is_none_of_a_proxy_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, sent: Sent, told: str
) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 4 << 20)

    async def main() -> str:
        async with (
            raw_store(whole(b"<html>"), {what: sent}) as raw,
            open_store(raw.url, deadline_s=0.3, stall_s=0.2) as store,
        ):
            with pytest.raises(SourceError) as raised:
                if what.startswith("GET /v1/buckets"):
                    await store.list_objects(selected("ais://b"), tmp_path)
                else:
                    request = ReadRequest("o", memoryview(bytearray(SIZE)))
                    await store.reader(bucket("ais://b")).read([request])
            return to_message(raised.value, scope="feed").message

    message = run(main())
    assert told in message
    message.encode()


def test_a_proxy_that_never_ends_an_answer_is_left_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "ANSWER_S", 0.2)

    async def main() -> None:
        async with (
            raw_store(instead={"": OK}) as hung,
            raw_store(whole(b"x" * SIZE)) as well,
            open_store(hung.url, well.url) as store,
        ):
            request = ReadRequest("o", memoryview(bytearray(SIZE)))
            await store.reader(bucket("ais://b")).read([request])
            assert bytes(request.target) == b"x" * SIZE

    run(main())


def test_a_token_goes_nowhere_but_to_proxies() -> None:
    async def main() -> None:
        async with (
            raw_store(whole(b"x" * SIZE)) as elsewhere,
            raw_store(redirect(f"{elsewhere.url}/v1/objects/b/o")) as proxy,
            open_store(proxy.url, direct="off", environ={"AIS_AUTHN_TOKEN": "secret"}) as store,
        ):
            request = ReadRequest("o", memoryview(bytearray(SIZE)))
            await store.reader(bucket("ais://b")).read([request])
            assert all("Authorization: Bearer secret" in head for head in proxy.heads)
            assert elsewhere.heads
            assert "secret" not in "".join(elsewhere.heads)

    run(main())
