"""What a node answers: a status, headers and a body that may wait, break off, or have no length.

Everything that decides an answer is a plain function from a `Call` to a `Reply`; `sending` plays
the reply on a connection.  So faults are edits of a reply, and need no socket to be tested.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Headers: TypeAlias = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as a node sees it.

    Args:
        method: ``GET`` and so on.
        target: The request target as it was sent.
        path: Its path, decoded.
        query: Its query, decoded.
        headers: With names in any case.
        body: What came with it.
        remote: Address and port of the client.
        is_reused: Whether it is not the first one on its connection.
    """

    method: str
    target: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes
    remote: str
    is_reused: bool = False

    @property
    def is_redirected(self) -> bool:
        """Whether a proxy has sent it on, as far as a target can tell."""
        return bool(self.query.get("pid")) and bool(self.query.get("utm"))


@dataclass(frozen=True, slots=True)
class Wait:
    """Send nothing for `seconds`; None: for as long as the connection lives."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Abort:
    """End the connection here: in good order (FIN) or by a reset (RST)."""

    reset: bool = False


@dataclass(frozen=True, slots=True)
class Do:
    """Call a function of the stand-in, on its own thread."""

    function: Callable[[], None]


Step: TypeAlias = Wait | Abort | Do
Buffer: TypeAlias = bytes | memoryview
Item: TypeAlias = Buffer | Step


@dataclass(slots=True)
class Reply:
    """An answer.

    Args:
        status: Of HTTP.
        headers: Without the length of the body.
        body: A buffer, or items to send one after the other.
        is_chunked: Send the body in chunks and without its length.
        length: The length to declare; None: that of the body.
        before: Steps to take before the first byte.
        after: Steps to take when everything is sent.
    """

    status: int = 200
    headers: Headers = field(default_factory=list)
    body: Buffer | Iterable[Item] = b""
    is_chunked: bool = False
    length: int | None = None
    before: list[Step] = field(default_factory=list)
    after: list[Step] = field(default_factory=list)

    def items(self) -> list[Item]:
        """Return the body as a list of items, and keep it as one; its length stays declared."""
        if isinstance(self.body, (bytes, memoryview)):
            self.body = [self.body]
        elif not isinstance(self.body, list):
            self.body = list(self.body)
        if self.length is None:
            self.length = self.num_bytes()
        return self.body

    def num_bytes(self) -> int:
        """Return the bytes of a body that is a buffer or a list."""
        if isinstance(self.body, (bytes, memoryview)):
            return len(self.body)
        assert isinstance(self.body, list)
        return sum(len(item) for item in self.body if isinstance(item, (bytes, memoryview)))


class Refused(Exception):  # noqa: N818 - an answer like any other
    """A request that gets an error for an answer.

    Args:
        status: Of HTTP.
        message: For people.
        tcode: The type of the error in AIStore's own code; empty for errors without one.
        headers: More of them.
    """

    def __init__(
        self, status: int, message: str, *, tcode: str = "", headers: Headers | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.tcode = tcode
        self.headers = headers or []


class HandlerDied(Exception):  # noqa: N818 - an answer like any other
    """A request that ends AIStore's handler: the connection is closed without an answer."""


def error(call: Call, node: str, refused: Refused) -> Reply:
    """Return an error in AIStore's form; for HEAD it is a header.

    Args:
        call: The request.
        node: ``p[id]`` or ``t[id]``.
        refused: What is wrong.
    """
    content: dict[str, str | int] = {"tcode": refused.tcode} if refused.tcode else {}
    content |= {
        "message": refused.message,
        "method": call.method,
        "url_path": call.path,
        "remote_addr": call.remote,
        "caller": "",
        "node": node,
        "status": refused.status,
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    headers = [("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff")]
    headers += refused.headers
    if call.method == "HEAD":
        return Reply(refused.status, [*headers, ("Hdr-Error", text)])
    return Reply(refused.status, headers, f"{text}\n".encode("utf-8", "surrogateescape"))
