"""A target that says what the test says, byte by byte, on the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import xxhash

from headrace_daemon.source.ais.clustermap import Node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_LIMIT: Final = 1 << 20


def answer(
    body: bytes,
    *,
    status: str = "200 OK",
    length: int | None = None,
    version: str = "1",
    checksum: str | None = None,
    more: str = "",
) -> bytes:
    """Return an answer as AIStore gives it.

    Args:
        body: Of an object.
        status: Number and words.
        length: Instead of that of the body.
        version: Of the object.
        checksum: Instead of that of the body.
        more: Further lines, each with its end.
    """
    told = xxhash.xxh64_hexdigest(body) if checksum is None else checksum
    head = (
        f"HTTP/1.1 {status}\r\nAis-Checksum-Type: xxhash2\r\nAis-Checksum-Value: {told}\r\n"
        f"Ais-Version: {version}\r\nContent-Length: {len(body) if length is None else length}\r\n"
        f"{more}\r\n"
    )
    return head.encode() + body


class Link:
    """A client's connection."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer
        self.asked: list[tuple[str, str]] = []
        """Name and range of every request so far."""

    async def request(self) -> tuple[str, str]:
        """Return the name and the range ("" for the whole) of the next request; waits for it."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.splitlines()
        fields = dict(line.split(": ", 1) for line in lines if line)
        name = first.split(" ")[1].removeprefix("/v1/objects/b/").partition("?")[0]
        asked = (name, fields.get("Range", ""))
        self.asked.append(asked)
        return asked

    async def say(self, data: bytes) -> None:
        """Send bytes, and wait until they are on their way."""
        self._writer.write(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Wait until the client has closed its end."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(_LIMIT):
                pass

    async def finish(self) -> None:
        """Say that nothing more comes, and wait until the client has closed its end."""
        self._writer.write_eof()
        await self.gone()

    def close(self) -> None:
        """Close in good order."""
        self._writer.close()

    def reset(self) -> None:
        """End with a reset."""
        self._writer.transport.abort()


class RawTarget:
    """What happens at a target."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.node = Node("raw", "")

    @property
    def asked(self) -> list[tuple[str, str]]:
        """Name and range of every request, connection by connection."""
        return [asked for link in self.links for asked in link.asked]


@asynccontextmanager
async def raw_target(script: Callable[[Link], Awaitable[None]]) -> AsyncIterator[RawTarget]:
    """Serve a script.

    Args:
        script: What happens on a connection, which is closed behind it.
    """
    target = RawTarget()
    tasks: list[asyncio.Task[None]] = []

    async def serve(link: Link) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await script(link)
        finally:
            link.close()

    async with asyncio.TaskGroup() as group:

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            link = Link(len(target.links), reader, writer)
            target.links.append(link)
            tasks.append(group.create_task(serve(link), name=f"link {link.number}"))

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=_LIMIT)
        port = server.sockets[0].getsockname()[1]
        target.node = Node("raw", f"http://127.0.0.1:{port}")
        try:
            yield target
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            for link in target.links:  # a task that was cancelled before its first turn did not
                link.close()
