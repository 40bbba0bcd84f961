"""A blocking HTTP client that tells how an answer ended; it follows nothing and tries once."""

from __future__ import annotations

import contextlib
import http.client
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

DEADLINE_S: Final = 20.0
"""For each read: it turns a hang into a failure."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, or what there is of it.

    Args:
        status: Of HTTP; 0 without an answer.
        headers: With names in lower case; of several with a name the last.
        body: Its bytes, as far as they came.
        ending: ``complete``; ``short``: the connection was closed within the body; ``closed``: it
            was closed before the answer; ``reset``: it was reset, before the answer or within it.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    ending: Literal["complete", "short", "closed", "reset"]


class Client:
    """One connection.  A context manager.

    Args:
        port: On 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)

    def send(
        self,
        target: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Send a request."""
        lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body or method in {"PUT", "POST"}:
            lines.append(f"Content-Length: {len(body)}")
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def receive(self, method: str = "GET") -> Answer:
        """Receive an answer to its end."""
        response = http.client.HTTPResponse(self.sock, method=method)
        body = b""
        has_begun = False
        try:
            response.begin()
            has_begun = True
            while data := response.read1(1 << 16):
                body += data
        except http.client.RemoteDisconnected:
            return Answer(0, {}, b"", "closed")
        except http.client.IncompleteRead as cut:
            return Answer(response.status, _headers(response), body + cut.partial, "short")
        except ConnectionResetError:
            if not has_begun:
                return Answer(0, {}, b"", "reset")
            return Answer(response.status, _headers(response), body, "reset")
        finally:
            response.close()
        headers = _headers(response)
        is_whole = method == "HEAD" or len(body) == int(headers.get("content-length", len(body)))
        return Answer(response.status, headers, body, "complete" if is_whole else "short")

    def ask(
        self,
        target: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Send a request and receive the answer."""
        self.send(target, method, headers, body)
        return self.receive(method)

    def wait_closed(self) -> None:
        """Wait until the server closes or resets the connection; drop what it sends before."""
        with contextlib.suppress(ConnectionResetError):
            while self.sock.recv(1 << 16):
                pass

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def ask(
    port: int,
    target: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Answer:
    """Ask on a connection of its own."""
    with Client(port) as client:
        return client.ask(target, method, headers, body)


def refuses(port: int) -> bool:
    """Return whether a port refuses connections."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S).close()
    except ConnectionRefusedError:
        return True
    return False


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}
