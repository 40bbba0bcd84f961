"""A node's port: it listens, numbers its connections, and closes those that are idle.

The port is reserved by a bound socket that never listens.  So it refuses connections while the
node is down, nobody else gets it meanwhile, and the node comes back at the same address.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aiohttp.web_protocol import RequestHandler

_BACKLOG: Final = 1024
_MAX_LINE_BYTES: Final = 1 << 16
# aiohttp's own timer never fires: a listener has its own, which may be zero.
_NEVER_S: Final = 1e6
_SHUTDOWN_S: Final = 5.0
HEADER_TIMEOUT_S: Final = 16.0
"""A connection on which no request arrives within this time is closed, as by AIStore."""


class Connection:
    """A client's connection.

    Args:
        number: Unique for the life of the stand-in.
        transport: The way to it.
    """

    def __init__(self, number: int, transport: asyncio.Transport) -> None:
        self.number = number
        self.transport = transport
        self.num_requests = 0
        # None while a request is being answered.
        self._timer: asyncio.TimerHandle | None = None

    def busy(self) -> None:
        """Say that a request has arrived."""
        self.num_requests += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def idle(self, timeout_s: float) -> None:
        """Close it when no request arrives within a time; at once, for zero."""
        if timeout_s <= 0:
            self.transport.close()
        elif not self.transport.is_closing():
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(timeout_s, self.transport.close)

    def gone(self) -> None:
        """Say that it is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def reset(self) -> None:
        """End it with a reset: the client gets an error, not the end of a stream."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Listener:
    """The port of one node.  Used on the stand-in's loop only, but for `port` and `is_open`.

    Args:
        numbers: Numbers for connections, shared by all nodes.
        answer: Answers one request that has arrived on a connection.
    """

    def __init__(
        self,
        numbers: Iterator[int],
        answer: Callable[[web.BaseRequest, Connection], Awaitable[web.StreamResponse]],
    ) -> None:
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self.port: int = self._reservation.getsockname()[1]
        self._protocols = _Protocols(numbers, answer)
        # None while the port refuses.
        self._server: asyncio.Server | None = None

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    async def open(self) -> None:
        """Listen; it is no error if it does so already."""
        if self._server is None:
            self._protocols.is_welcome = True
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", self.port))
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._protocols, sock=sock, backlog=_BACKLOG)

    async def quiesce(self) -> None:
        """Accept nothing more, and wait until what was accepted has its transport.

        A server that is closed between the two leaves a transport that nobody closes.
        """
        if self._server is not None:
            loop = asyncio.get_running_loop()
            for sock in self._server.sockets:
                loop.remove_reader(sock.fileno())
            for _ in range(3):
                await asyncio.sleep(0)

    def close(self) -> None:
        """Refuse connections, and reset those that there are; it is no error to do so again."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._protocols.is_welcome = False
        self._protocols.reset()

    async def release(self) -> None:
        """Give the port back, and wait until every connection is gone."""
        await self.quiesce()
        self.close()
        # The end of the loop would leave the socket of what was accepted in this turn open.
        for _ in range(3):
            await asyncio.sleep(0)
        self._protocols.reset()
        await self._protocols.shutdown(_SHUTDOWN_S)
        self._reservation.close()


class _Protocols(web.Server):
    """Makes aiohttp's protocols, and knows the connection of each."""

    def __init__(
        self,
        numbers: Iterator[int],
        answer: Callable[[web.BaseRequest, Connection], Awaitable[web.StreamResponse]],
    ) -> None:
        super().__init__(
            self._answer,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=_NEVER_S,
            # A body that nobody wanted ends the connection, as with AIStore.
            lingering_time=0,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
        )
        self._numbers = numbers
        self._answer_one = answer
        self._open: dict[RequestHandler, Connection] = {}
        self.is_welcome = False
        """Whether connections stay: what was accepted just before its node died has its transport
        in one of the next turns of the loop."""

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        connection = self._open[handler] = Connection(next(self._numbers), transport)
        connection.idle(HEADER_TIMEOUT_S)
        if not self.is_welcome:
            connection.reset()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        connection = self._open.pop(handler, None)
        if connection is not None:
            connection.gone()
        super().connection_lost(handler, exc)

    def reset(self) -> None:
        """Reset every connection."""
        for connection in list(self._open.values()):
            connection.reset()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._open.get(request.protocol)
        if connection is None:
            raise ConnectionResetError("the client has gone")
        return await self._answer_one(request, connection)
