"""A store that answers with whatever bytes a test gives it: what no real one would."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

Sent: TypeAlias = bytes | tuple[bytes, bytes]

NOTHING: Final[Mapping[str, Sent]] = {}
OK: Final = b"HTTP/1.1 200 OK\r\n"


def whole(body: bytes, *headers: str, first: bytes = OK) -> bytes:
    """Return an answer with a body of a known length."""
    lines = "".join(f"{line}\r\n" for line in headers)
    return first + f"{lines}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body


class RawStore:
    """One node that is proxy and target.

    Args:
        answer: What to send for an object: all bytes, or the first and what follows for ever.
        instead: The same for what begins with a method and path, such as ``"GET /v1/daemon"``.
    """

    def __init__(self, answer: Sent, instead: Mapping[str, Sent]) -> None:
        self._answer = answer
        self.instead = instead
        self.url = ""
        self.heads: list[str] = []
        """Requests, with all their headers."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.heads.append(head)
                method, path = head.split(" ", 2)[:2]
                answer = self._reply(method, path)
                start, on = answer if isinstance(answer, tuple) else (answer, b"")
                writer.write(start)
                await writer.drain()
                while on:
                    writer.write(on)
                    await writer.drain()
        writer.close()

    def _reply(self, method: str, path: str) -> Sent:
        for begin, given in self.instead.items():
            if f"{method} {path}".startswith(begin):
                return given
        if path.startswith("/v1/daemon"):
            return whole(self._map())
        if path.startswith("/v1/buckets/") and method == "HEAD":
            return whole(b"", "Ais-Bucket-Props: {}")
        return self._answer

    def _map(self) -> bytes:
        node = {"daemon_id": "n", "public_net": {"direct_url": self.url}}
        return json.dumps(
            {"tmap": {"n": node}, "pmap": {"n": node}, "proxy_si": node, "version": "1"}
        ).encode()


@asynccontextmanager
async def raw_store(
    answer: Sent = b"", instead: Mapping[str, Sent] = NOTHING
) -> AsyncIterator[RawStore]:
    """Return a store that is served while the context lasts."""
    store = RawStore(answer, instead)
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []

        def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.append(group.create_task(store._serve(reader, writer), name="raw store"))

        server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
        store.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield store
        finally:
            server.close()
            for task in tasks:
                task.cancel()
    await server.wait_closed()
