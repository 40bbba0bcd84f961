"""The record of every request that a node has received."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .nodes import Node
    from .replies import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request and what became of it.

    Args:
        number: From 0, in the order of arrival at any node.
        time_s: When it arrived, on the monotonic clock.
        node: The id of the node.
        port: The node's port.
        connection: The number of its connection, unique for the life of the stand-in.
        method: ``GET`` and so on.
        target: The request target as it was sent: path and query.
        path: The path, decoded.
        query: The query, decoded.
        range: The header ``Range``; empty without one.
        body: What came with it; not for PUT.
        status: Of the answer; 0 until one is sent, and for ever if none was.
        sent_bytes: Bytes of the answer's body that were sent; without the framing of chunks.
        is_done: Whether the answer was sent to its end.
    """

    number: int
    time_s: float
    node: str
    port: int
    connection: int
    method: str
    target: str
    path: str
    query: dict[str, str]
    range: str
    body: bytes
    status: int = 0
    sent_bytes: int = 0
    is_done: bool = False


class Entry:
    """A request whose answer is under way or over."""

    __slots__ = ("_is_over", "is_done", "request", "sent_bytes", "status")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.status = 0
        self.sent_bytes = 0
        self.is_done = False
        self._is_over = False

    def snapshot(self) -> Request:
        """Return what is known now."""
        if self._is_over:
            return self.request
        return replace(
            self.request, status=self.status, sent_bytes=self.sent_bytes, is_done=self.is_done
        )

    def over(self) -> None:
        """Say that nothing will change any more."""
        self.request = self.snapshot()
        self._is_over = True


class Record:
    """All requests since the start, or since they were forgotten.

    Args:
        changed: Called when a request has arrived, and when it is over.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._entries: list[Entry] = []
        self._count = 0

    def arrived(self, node: Node, connection: int, call: Call) -> Entry:
        """Record a request."""
        entry = Entry(
            Request(
                number=self._count,
                time_s=time.monotonic(),
                node=node.id,
                port=node.port,
                connection=connection,
                method=call.method,
                target=call.target,
                path=call.path,
                query=call.query,
                range=call.headers.get("Range", ""),
                # The bytes of objects would only fill the memory.
                body=b"" if call.method == "PUT" else call.body,
            )
        )
        self._count += 1
        self._entries.append(entry)
        self._changed()
        return entry

    def over(self, entry: Entry) -> None:
        """Say that a request is over."""
        entry.over()
        self._changed()

    def snapshot(self) -> list[Request]:
        """Return all of them as they are now."""
        return [entry.snapshot() for entry in self._entries]

    def forget(self) -> None:
        """Forget all of them; the numbers go on."""
        self._entries.clear()
