"""Plays a reply on a connection, byte by byte as the reply says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.http import RESPONSES

from .replies import Do, Wait

if TYPE_CHECKING:
    from .listener import Connection
    from .record import Entry
    from .replies import Buffer, Reply, Step

_BLOCK_BYTES: Final = 1 << 18
_BODILESS: Final = frozenset({204, 304})


class ConnectionEndedError(ConnectionError):
    """The reply has ended the connection."""


class Sent(web.StreamResponse):
    """What aiohttp gets to see of an answer that was sent already."""

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection goes on."""
        return self._goes_on

    def __init__(self, *, goes_on: bool) -> None:
        super().__init__()
        self._goes_on = goes_on

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing."""


class Sender:
    """Sends one reply.

    Args:
        request: What is answered.
        connection: The connection it came on.
        entry: Where status and bytes are recorded.
    """

    def __init__(self, request: web.BaseRequest, connection: Connection, entry: Entry) -> None:
        self._request = request
        self._connection = connection
        self._entry = entry
        # Head of the reply until it goes out together with the first bytes of the body.
        self._head = b""

    async def send(self, reply: Reply, *, goes_on: bool) -> None:
        """Send a reply and take its steps.

        Raises:
            ConnectionEndedError: If the reply has ended the connection.
        """
        for step in reply.before:
            await self._take(step)
        self._head = _head(reply, is_head=self._request.method == "HEAD", goes_on=goes_on)
        self._entry.status = reply.status
        if self._request.method != "HEAD" and reply.status not in _BODILESS:
            await self._send_body(reply)
        self._flush()
        await self._drain()
        self._entry.is_done = True
        for step in reply.after:
            await self._take(step)

    async def _send_body(self, reply: Reply) -> None:
        body = reply.body
        if isinstance(body, (bytes, memoryview)):
            await self._send_buffer(body, is_chunked=reply.is_chunked)
        else:
            for item in body:
                if isinstance(item, (bytes, memoryview)):
                    await self._send_buffer(item, is_chunked=reply.is_chunked)
                else:
                    # What came before is on its way before the step is taken.
                    self._flush()
                    await self._take(item)
        if reply.is_chunked:
            self._write(b"0\r\n\r\n")

    async def _send_buffer(self, data: Buffer, *, is_chunked: bool) -> None:
        if len(data) <= _BLOCK_BYTES:
            self._send_block(data, is_chunked=is_chunked)
            await self._drain()
            return
        view = memoryview(data)
        for start in range(0, len(view), _BLOCK_BYTES):
            self._send_block(view[start : start + _BLOCK_BYTES], is_chunked=is_chunked)
            await self._drain()

    def _send_block(self, data: Buffer, *, is_chunked: bool) -> None:
        if not data:
            return
        self._write(b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if is_chunked else data)
        self._entry.sent_bytes += len(data)

    def _write(self, data: Buffer) -> None:
        if self._connection.transport.is_closing():
            raise ConnectionEndedError("the client has gone")
        if self._head:
            data = b"".join((self._head, data))
            self._head = b""
        self._connection.transport.write(data)

    def _flush(self) -> None:
        if self._head:
            self._write(b"")

    async def _drain(self) -> None:
        await self._request.writer.drain()

    async def _take(self, step: Step) -> None:
        if isinstance(step, Do):
            step.function()
        elif isinstance(step, Wait):
            if step.seconds is None:
                await asyncio.get_running_loop().create_future()
            else:
                await asyncio.sleep(step.seconds)
        elif step.reset:
            self._connection.reset()
            raise ConnectionEndedError("reset")
        else:
            await self._drain()
            self._connection.transport.close()
            raise ConnectionEndedError("closed")


def _head(reply: Reply, *, is_head: bool, goes_on: bool) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} {RESPONSES.get(reply.status, ('Unknown',))[0]}"]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    if reply.is_chunked:
        lines.append("Transfer-Encoding: chunked")
    elif not is_head and reply.status not in _BODILESS:
        length = reply.num_bytes() if reply.length is None else reply.length
        lines.append(f"Content-Length: {length}")
    if not goes_on:
        lines.append("Connection: close")
    lines += ["", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")
