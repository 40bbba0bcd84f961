"""A cluster that is some milliseconds away: relays in front of its nodes that hold answers back.

Each node has a relay that passes bytes on, and holds back what the node sends.  The map and the
redirects that the proxy sends have to name the relays: they do, since a relay's port has as many
digits as that of its node, so that one can be written over the other.  All relays run in one
process of their own; what it spends is no side's, though it takes from the cores of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import urllib.request
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

import uvloop

from headrace_daemon.source.ais.clustermap import parse

from .ais import RELAYS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

_HOST: Final = "127.0.0.1"


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
    theirs.close()
    try:
        yield cast("str", ours.recv())
    finally:
        # Workers of loaders may hold this end as well: closing it is not enough.
        with contextlib.suppress(BrokenPipeError):
            ours.send(None)
        ours.close()
        process.join(10)


def _run(endpoint: str, delay_s: float, pipe: Connection) -> None:
    with urllib.request.urlopen(f"{endpoint}/v1/daemon?what=smap", timeout=10) as answer:
        targets = [node.url for node in parse(answer.read()).targets.values()]
    uvloop.run(_serve(endpoint, targets, delay_s, pipe))


async def _serve(endpoint: str, targets: list[str], delay_s: float, pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    names: dict[bytes, bytes] = {}

    async def relay(url: str, told: dict[bytes, bytes]) -> str:
        own = urlsplit(url).port
        assert own is not None
        near = partial(_Near, own, delay_s, told)
        server = await loop.create_server(near, _HOST, 0)
        port = server.sockets[0].getsockname()[1]
        assert len(str(port)) == len(str(own)), f"ports {own} and {port} differ in length"
        # A URL has the two in one, the map has them apart as well.
        for form in (f"{_HOST}:%s", '"daemon_port":"%s"'):
            names[(form % own).encode()] = (form % port).encode()
        return f"http://{_HOST}:{port}"

    for url in targets:
        await relay(url, {})
    pipe.send(await relay(endpoint, names))
    with contextlib.suppress(EOFError):
        await loop.run_in_executor(None, pipe.recv)


class _Near(asyncio.Protocol):
    """The side of a connection that the client is on."""

    def __init__(self, port: int, delay_s: float, names: dict[bytes, bytes]) -> None:
        self._port = port
        self._delay_s = delay_s
        self._names = names
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
            lambda: _Far(near, self._delay_s, self._names), _HOST, self._port
        )
        self._far = far
        for data in self._early:
            far.write(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self._far is None:
            self._early.append(data)
        elif not self._far.is_closing():  # the node has left
            self._far.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._far is not None:
            self._far.close()


class _Far(asyncio.Protocol):
    """The side of a connection that the node is on: what comes is held back."""

    def __init__(self, near: asyncio.Transport, delay_s: float, names: dict[bytes, bytes]) -> None:
        self._near = near
        self._delay_s = delay_s
        self._names = names
        self._held: deque[bytes | None] = deque()

    def data_received(self, data: bytes) -> None:
        self._hold(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hold(None)

    def _hold(self, data: bytes | None) -> None:
        self._held.append(data)
        asyncio.get_running_loop().call_later(self._delay_s, self._pass_on)

    def _pass_on(self) -> None:
        if not self._held:
            return
        data = self._held.popleft()
        if data is None:
            self._near.close()
            return
        if self._names:
            # Wherever an answer came apart: it is whole by now, and so are the names in it.
            while self._held and self._held[0] is not None:
                data += self._held.popleft() or b""
            for own, name in self._names.items():
                data = data.replace(own, name)
        if not self._near.is_closing():  # the client has left
            self._near.write(data)
