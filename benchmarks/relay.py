"""A cluster that is some milliseconds away: relays in front of its nodes that hold answers back.

Each target has a relay that passes bytes on as they are and holds back what the target sends; the
proxy has one that speaks HTTP, since the map and the redirects that it sends have to name the
relays.  All relays run in one process of their own; what it spends counts for no side.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

import aiohttp
import uvloop
from aiohttp import web

from headrace_daemon.source.ais.clustermap import parse

from .ais import RELAYS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

_TEXT: Final = ("application/json", "text/")
_PASSED: Final = ("Content-Type", "Authorization", "Range", "Accept")


@contextlib.contextmanager
def away(endpoint: str, delay_s: float) -> Iterator[str]:
    """Run relays in front of a cluster, and return the endpoint of that of its proxy.

    Args:
        endpoint: Of the cluster.
        delay_s: How long everything that a node sends is held back, seconds.
    """
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(
        target=_run, name=RELAYS, args=(endpoint, delay_s, theirs), daemon=True
    )
    process.start()
    try:
        yield cast("str", ours.recv())
    finally:
        ours.send(None)
        process.join(10)


def _run(endpoint: str, delay_s: float, pipe: Connection) -> None:
    uvloop.run(_serve(endpoint, delay_s, pipe))


async def _serve(endpoint: str, delay_s: float, pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        async with session.get(f"{endpoint}/v1/daemon?what=smap") as answer:
            smap = parse(await answer.read())
        names: dict[str, str] = {}
        for node in smap.targets.values():
            parts = urlsplit(node.url)
            assert parts.hostname is not None
            assert parts.port is not None
            near = partial(_Near, parts.hostname, parts.port, delay_s)
            server = await loop.create_server(near, "127.0.0.1", 0)
            names[node.url] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        front = _Front(session, endpoint, names, delay_s)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", front.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        (host, port) = runner.addresses[0][:2]
        names[endpoint] = f"http://{host}:{port}"
        pipe.send(names[endpoint])
        await loop.run_in_executor(None, pipe.recv)
        await runner.cleanup()


class _Front:
    """The relay of a proxy."""

    def __init__(
        self, session: aiohttp.ClientSession, endpoint: str, names: dict[str, str], delay_s: float
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._names = names
        self._delay_s = delay_s

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        async with self._session.request(
            request.method,
            self._endpoint + request.raw_path,
            data=body or None,
            headers=headers,
            allow_redirects=False,
        ) as answer:
            data = await answer.read()
            kind = answer.headers.get("Content-Type", "")
            if kind.startswith(_TEXT):
                data = self._renamed(data.decode()).encode()
            told = {
                name: self._renamed(value)
                for name, value in answer.headers.items()
                if name.startswith(("Ais-", "Location", "Content-Type", "Hdr-"))
            }
        await asyncio.sleep(self._delay_s)
        return web.Response(status=answer.status, body=data, headers=told)

    def _renamed(self, text: str) -> str:
        for own, name in self._names.items():
            text = text.replace(own, name)
            # The map has host and port apart from the URL.
            text = text.replace(
                f'"daemon_port":"{urlsplit(own).port}"', f'"daemon_port":"{urlsplit(name).port}"'
            )
        return text


class _Near(asyncio.Protocol):
    """The side of a connection that the client is on."""

    def __init__(self, host: str, port: int, delay_s: float) -> None:
        self._host = host
        self._port = port
        self._delay_s = delay_s
        self._early: list[bytes] = []
        self._far: asyncio.Transport | None = None
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._connect(), name="relay")

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._transport is not None
        near = self._transport
        far, _ = await loop.create_connection(
            lambda: _Far(near, self._delay_s), self._host, self._port
        )
        self._far = far
        for data in self._early:
            far.write(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self._far is None:
            self._early.append(data)
        else:
            self._far.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._far is not None:
            self._far.close()


class _Far(asyncio.Protocol):
    """The side of a connection that the target is on: what comes is held back."""

    def __init__(self, near: asyncio.Transport, delay_s: float) -> None:
        self._near = near
        self._delay_s = delay_s
        self._held: deque[bytes | None] = deque()

    def data_received(self, data: bytes) -> None:
        self._held.append(data)
        asyncio.get_running_loop().call_later(self._delay_s, self._pass_on)

    def connection_lost(self, exc: Exception | None) -> None:
        self._held.append(None)
        asyncio.get_running_loop().call_later(self._delay_s, self._pass_on)

    def _pass_on(self) -> None:
        data = self._held.popleft()
        if data is None:
            self._near.close()
        elif not self._near.is_closing():  # the client has left
            self._near.write(data)
