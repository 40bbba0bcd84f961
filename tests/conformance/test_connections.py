"""Connections: they stay open after every answer, errors too, and answers do not get mixed up."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import pytest

from tests.support.ais import bucket_path, object_path
from tests.support.standin.asking import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.ais import Ais

CONTENT: Final = bytes(range(256)) * 8


@pytest.fixture(scope="module")
def filled(ais: Ais, bucket: str) -> str:
    """Return a bucket with one object, ``o``."""
    ais.put(bucket, "o", CONTENT)
    return bucket


@pytest.fixture
def target(ais: Ais, filled: str) -> Iterator[Client]:
    """Return one connection to the owner of ``o``."""
    with Client(port(ais.owner_url(filled, "o"))) as client:
        yield client


@pytest.fixture
def proxy(ais: Ais) -> Iterator[Client]:
    """Return one connection to the proxy."""
    with Client(port(ais.endpoint)) as client:
        yield client


def port(url: str) -> int:
    """Return the port of an address."""
    number = urlsplit(url).port
    assert number
    return number


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", {}, 200),
        ("", {"Range": "bytes=2-4"}, 206),
        ("", {"Range": "bytes=99999-"}, 416),
        ("", {"Range": "bytes=4-2"}, 416),
        ("?provider=nonsense", {}, 400),
        ("?provider=aws", {}, 400),
        ("?archpath=a", {}, 400),
        ("?etl_name=x", {}, 501),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_target_keeps_the_connection(
    target: Client, filled: str, method: str, query: str, headers: dict[str, str], status: int
) -> None:
    path = object_path(filled, "o")
    answer = target.ask(path + query, method, headers)
    if method == "GET":
        assert answer.status == status
    assert answer.ending == "complete"
    assert "connection" not in answer.headers
    for name in ("missing", "a/../b"):
        answer = target.ask(object_path(filled, name), method)
        assert (answer.status, answer.ending) in {(404, "complete"), (400, "complete")}
    assert target.ask(path).body == CONTENT


def test_a_proxy_keeps_the_connection(proxy: Client, filled: str) -> None:
    listing = json.dumps({"action": "list", "value": {}}).encode()
    for path, body, status in (
        (object_path(filled, "o"), b"", 301),
        (object_path("missing-bucket", "o"), b"", 404),
        (object_path(filled, "a/../b"), b"", 400),
        (bucket_path(filled), listing, 200),
        (bucket_path("missing-bucket"), listing, 404),
        (bucket_path(filled), b"{", 400),
        ("/v1/nonsense", b"", 400),
        ("/v1/daemon?what=nonsense", b"", 400),
        ("/v1/daemon?what=smap", b"", 200),
    ):
        answer = proxy.ask(path, body=body)
        assert (answer.status, answer.ending) == (status, "complete"), path
        assert "connection" not in answer.headers


def test_answers_come_in_the_order_of_the_requests(target: Client, filled: str) -> None:
    # A client that asks before it has been answered.
    path = object_path(filled, "o")
    starts = list(range(0, 2000, 100))
    for start in starts:
        last = {"Connection": "close"} if start == starts[-1] else {}
        target.send(path, headers={"Range": f"bytes={start}-{start + 9}", **last})
    received = b""
    while data := target.sock.recv(1 << 16):
        received += data
    bodies = [part[:10] for part in received.split(b"\r\n\r\n")[1:]]
    assert bodies == [CONTENT[start : start + 10] for start in starts]


def test_a_client_may_want_the_connection_closed(target: Client, filled: str) -> None:
    answer = target.ask(object_path(filled, "o"), headers={"Connection": "close"})
    assert answer.body == CONTENT
    assert answer.headers["connection"] == "close"
    target.wait_closed()


def test_many_connections_are_served_at_once(ais: Ais, filled: str) -> None:
    number = port(ais.owner_url(filled, "o"))
    together = threading.Barrier(64)
    bodies = []

    def read() -> None:
        with Client(number) as client:
            together.wait(20)
            bodies.append(client.ask(object_path(filled, "o")).body)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert bodies == [CONTENT] * 64


def test_a_client_that_goes_away_harms_nobody(ais: Ais, filled: str) -> None:
    content = bytes(8 << 20)
    ais.put(filled, "large", content)
    with Client(port(ais.owner_url(filled, "large"))) as client:
        client.send(object_path(filled, "large"))
        assert client.sock.recv(1 << 16)
    assert ais.get(filled, "large").body == content
    ais.put(filled, "large", b"small")  # nobody holds it
    assert ais.get(filled, "large").body == b"small"


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_errors_have_one_form(ais: Ais, filled: str, method: str) -> None:
    path = object_path("missing-bucket", "o")
    answer = ais.ask(method, path)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.body.endswith(b"}\n")
    error = answer.error
    assert set(error) == {
        *("tcode", "message", "method", "url_path", "remote_addr", "caller", "node", "status")
    }
    assert (error["method"], error["url_path"], error["status"]) == (method, path, 404)
    assert error["node"] == f"p[{ais.smap()['proxy_si']['daemon_id']}]"


def test_an_error_without_a_type_has_no_tcode(ais: Ais) -> None:
    answer = ais.ask("GET", "/v1/daemon?what=nonsense")
    assert answer.status == 400
    assert "tcode" not in answer.error


@pytest.mark.parametrize(
    ("path", "status", "tcode"),
    [
        ("missing-bucket/o", 404, "ErrBckNotFound"),
        ("{}/o?provider=nonsense", 400, "ErrInvalidBackendProvider"),
        ("{}/o?provider=aws", 404, "ErrFailedTo"),
    ],
)
def test_head_has_the_error_of_get_in_a_header(
    ais: Ais, filled: str, path: str, status: int, tcode: str
) -> None:
    url = f"/v1/objects/{path.format(filled)}"
    got, head = ais.ask("GET", url), ais.ask("HEAD", url)
    assert head.body == b""
    assert (head.status, head.tcode) == (got.status, got.tcode) == (status, tcode)
    assert head.error["message"] == got.error["message"]


def test_no_error_asks_for_a_pause(ais: Ais, filled: str) -> None:
    for path in (object_path(filled, "a/../b"), object_path("missing-bucket", "o"), "/v1/x"):
        assert "Retry-After" not in ais.ask("GET", path).headers


def test_the_version_of_the_software_is_told(ais: Ais) -> None:
    for at in ("", *ais.targets.values()):
        answer = ais.ask("GET", "/v1/daemon?what=software_version", at=at)
        assert answer.status == 200
        assert answer.headers.get_content_type() == "text/plain"
        assert answer.body.startswith(b"5.0.")
